# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings shared by the relay's tests."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from culvert.testing import World

# Examples are drawn from the test's own name: a run is as good as the last one, on any machine.
settings.register_profile(
    "culvert", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("culvert")


@pytest.fixture
def world() -> World:
    return World()
