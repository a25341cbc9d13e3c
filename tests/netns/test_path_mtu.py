# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever the path takes, from 1280 to 1500 bytes, and whether or not its routers say so: 10 MB pass through
the tunnel in each direction and both families, and nothing is lost because it is too large.

The topology is that of ``path.py``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.netns.lab import Lab
from tests.netns.path import CONTAINER, DEVICE, INTERNET, NarrowPath
from tests.netns.topology import Tunnel
from tests.netns.transfer import MEGABYTE, transfer

OVERHEAD = {4: 60, 6: 80}
SIZES = (1280, 1300, 1358, 1400, 1420, 1460, 1480, 1492, 1500)


def started(path: NarrowPath) -> Iterator[NarrowPath]:
    try:
        yield path.start()
    finally:
        path.close()


@pytest.fixture(scope="module", params=[4, 6], ids=["over-ipv4", "over-ipv6"])
def path(
    machine: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[NarrowPath]:
    with Lab(tmp_path_factory.mktemp("path")) as lab:
        yield from started(NarrowPath(lab, ("relay", "relay"), request.param))


def transfer_all(path: NarrowPath, size_bytes: int) -> int:
    """Both ways in both families, with the internet host; how many segments were lost."""
    lost = 0
    for inner in (4, 6):
        lost += transfer(path.client, path.internet, INTERNET[inner], size_bytes).lost
        lost += transfer(path.internet, path.client, Tunnel.client_addresses[inner], size_bytes).lost
    return lost


@pytest.mark.parametrize("says_so", [True, False], ids=["icmp", "silent"])
@pytest.mark.parametrize("mtu", SIZES)
def test_ten_megabytes_pass(path: NarrowPath, mtu: int, says_so: bool) -> None:
    path.narrow(mtu, says_so)
    found = path.deploy()
    assert found["path_mtu"] == mtu
    room = mtu - OVERHEAD[path.outer]
    assert found["mtu"] == max(1280, room if room == 1420 else room - room % 16)
    with path.accounted() as account:
        transfer_all(path, 10 * MEGABYTE)
    assert account == {"lost": 0, "cut": 0}
