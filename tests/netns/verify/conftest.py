# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One VPN for all tests of this directory: a test breaks one thing and mends it again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.netns.lab import Lab
from tests.netns.verify.fleet import VpnFleet


@pytest.fixture(scope="module")
def vpn(machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VpnFleet]:
    directory = tmp_path_factory.mktemp("vpn")
    with Lab(directory) as lab:
        yield VpnFleet.make(lab, directory)
