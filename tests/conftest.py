"""Fixtures and settings that all tests share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from rmpcore import cli
from rmpcore.machine import BACKENDS

Run = Callable[..., tuple[int, str, str]]

settings.register_profile("rmpcore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("rmpcore")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Each implementation in turn: both are part of the project, so neither is ever skipped."""
    return str(request.param)


@pytest.fixture
def rmpcore_(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line; gives exit status, stdout and stderr, with what its processes say."""

    def run(*args: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rmpcore", *map(str, args)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capfd.readouterr()
        return int(caught.value.code or 0), out, err

    return run
