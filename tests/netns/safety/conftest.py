# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the tests in which a host is cut off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.netns.lab import Lab
from tests.netns.safety.fleet import Fleet


@pytest.fixture
def make_fleet(lab: Lab, tmp_path: Path) -> Callable[..., Fleet]:
    """Call it with the numbers of hosts and controllers."""
    return lambda **numbers: Fleet.make(lab, tmp_path, **numbers)


@pytest.fixture
def fleet(make_fleet: Callable[..., Fleet]) -> Fleet:
    """One host, one controller."""
    return make_fleet()
