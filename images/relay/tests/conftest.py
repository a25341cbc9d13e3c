# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings shared by the relay's tests."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from culvert.keys import encode_base64
from culvert.testing import World

# What the tests share is found from here (relay_kernel), wherever pytest was started.
sys.path.insert(0, str(Path(__file__).parent))
import relay_kernel

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


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    relay_kernel.end_commands()


@pytest.fixture
def configured() -> Iterator[Path]:
    # Not tmp_path: no other user can get there.
    with tempfile.TemporaryDirectory(prefix="cvt") as name:
        path = Path(name)
        path.chmod(0o755)
        (path / "key").write_text(encode_base64(bytes(range(32))))
        text = "[Interface]\nPrivateKeyFile = key\nListenPort = 51820\nMTU = 1380\n"
        (path / "wg.conf").write_text(text)
        yield path
