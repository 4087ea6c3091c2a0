"""The programs of others that a recording needs, and what to install where one is missing."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence

from rmpcore.kernel.errors import KernelError

PACKAGES = {
    "qemu-system-x86_64": "qemu-system-x86",
    "gdb": "gdb",
    "busybox": "busybox-static",
    "apt-get": "apt",
    "apt-cache": "apt",
    "dpkg-deb": "dpkg",
    "setpriv": "util-linux",
}
"""Debian's package for each."""


def program(name: str) -> str:
    """Where a program is.  Raises KernelError with the package that has it."""
    path = shutil.which(name)
    if path is None:
        raise KernelError(f"{name} is not there: install the package {PACKAGES[name]}")
    return path


def output_of(command: Sequence[str], seconds: float) -> str:
    """What a program prints.  Raises KernelError if it fails or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise KernelError(f"{command[0]} did not end within {seconds:.0f} s") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"status {done.returncode}"]
        raise KernelError(f"{command[0]}: {lines[-1]}")
    return done.stdout
