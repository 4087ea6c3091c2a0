"""Fixtures and settings that all tests share."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from rmpcore.machine import BACKENDS

settings.register_profile("rmpcore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("rmpcore")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Each implementation in turn: both are part of the project, so neither is ever skipped."""
    return str(request.param)
