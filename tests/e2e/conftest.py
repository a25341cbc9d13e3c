# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One fleet for all end-to-end tests: each file leaves it blank again.

Their mark `xdist_group` keeps them in one process, in order, while the other tests go on beside them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fleet import Fleet


@pytest.fixture(scope="session")
def fleet() -> Iterator[Fleet]:
    assert os.geteuid() == 0, "the end-to-end tests make container hosts: run them as root"
    lab = Fleet("e2e", number=1)
    lab.down()
    lab.up()
    yield lab
    lab.down()
