# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the modules' namespace tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.modules.host import Host


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A host with nothing but ``lo``; gone after the test, failed or not."""
    with_directory = tmp_path / "host"
    with_directory.mkdir()
    host = Host(with_directory)
    try:
        yield host
    finally:
        host.close()
