# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A fleet for each file of end-to-end tests that asks for one.

A file's tests run in order and in one process (`--dist loadfile`), the files beside each other.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fleet import NUMBERS, Fleet


@pytest.fixture(scope="module")
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """Blank hosts, made for one file of tests and removed after it."""
    assert os.geteuid() == 0, "the end-to-end tests make container hosts: run them as root"
    name = request.module.__name__.rpartition("test_")[2]
    lab = Fleet(name, NUMBERS[name])
    lab.down()
    lab.up()
    yield lab
    lab.down()
