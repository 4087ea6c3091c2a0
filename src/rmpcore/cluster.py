"""The way to a Dask cluster, for what can be done there (the extra ``cluster``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distributed import Client

_PATIENCE = 10
"""Seconds that a cluster has to answer."""


def cluster_at(address: str, error: type[ValueError]) -> Client:
    """The cluster whose scheduler has this address.  What stops it is raised as ``error``, in one line."""
    try:
        from distributed import Client
    except ImportError:
        raise error("a cluster needs distributed, which is not installed: pip install 'rmpcore[cluster]'") from None
    try:
        if not address:
            raise ValueError("no address")
        return Client(address, timeout=_PATIENCE)
    except (OSError, ValueError) as e:
        raise error(f"no Dask cluster at {address}: {e}") from None
