# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts with firewalls of others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.coexist.firewall_host import FAMILIES, FirewallHost


@pytest.fixture
def families(request: pytest.FixtureRequest) -> list[str]:
    """Both, unless the test says otherwise (``parametrize(..., indirect=True)``)."""
    wanted: list[str] = getattr(request, "param", FAMILIES)
    return wanted


@pytest.fixture
def host(tmp_path: Path, families: list[str]) -> Iterator[FirewallHost]:
    directory = tmp_path / "host"
    directory.mkdir()
    host = FirewallHost(directory, families)
    try:
        yield host
    finally:
        host.close()
