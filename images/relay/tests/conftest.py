# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings shared by the relay's tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from culvert.testing import World

# What the tests share is found from here (relay_kernel), wherever pytest was started.
sys.path.insert(0, str(Path(__file__).parent))

# Examples are drawn from the test's own name: a run is as good as the last one, on any machine.
settings.register_profile(
    "culvert", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
# A long run, with new examples each time: CULVERT_FUZZ_EXAMPLES=100000 pytest images/relay/tests
EXAMPLES = int(os.environ.get("CULVERT_FUZZ_EXAMPLES", "0"))
settings.register_profile(
    "long", settings.get_profile("culvert"), derandomize=False, max_examples=max(EXAMPLES, 1), print_blob=True
)
settings.load_profile("long" if EXAMPLES else "culvert")


@pytest.fixture
def world() -> World:
    return World()
