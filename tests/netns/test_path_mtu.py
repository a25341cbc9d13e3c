# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever the path takes, from 1280 to 1500 bytes, and whether or not its routers say so: 10 MB pass through
the tunnel in each direction and both families, and nothing is lost because it is too large.

The topology is that of ``path.py``.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator

import pytest

from tests.netns.lab import Host, Lab
from tests.netns.path import INTERNET, SERVER_OUTER, NarrowPath
from tests.netns.pcap import Capture
from tests.netns.topology import Tunnel
from tests.netns.transfer import MEGABYTE, transfer

OVERHEAD = {4: 60, 6: 80}
ECHO_HEADERS = {4: 28, 6: 48}
ICMP, SILENT = True, False
PATHS = [
    (mtu, says_so)
    for mtu in (1280, 1300, 1358, 1400, 1420, 1460, 1480, 1492, 1500)
    for says_so in (ICMP, SILENT)
]


def mtu_over(outer: int, path_mtu: int) -> int:
    """A multiple of what WireGuard fills packets up to, or what all of its devices have on Ethernet."""
    room = path_mtu - OVERHEAD[outer]
    return max(1280, room if room == 1420 else room - room % 16)


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


def transfer_all(path: NarrowPath, size_bytes: int) -> None:
    """Both ways in both families, with the internet host."""
    for inner in (4, 6):
        transfer(path.client, path.internet, INTERNET[inner], size_bytes)
        transfer(path.internet, path.client, Tunnel.client_addresses[inner], size_bytes)


@pytest.mark.parametrize(
    ("mtu", "says_so"), PATHS, ids=[f"{mtu}-{'icmp' if says_so else 'silent'}" for mtu, says_so in PATHS]
)
def test_ten_megabytes_pass_whole(path: NarrowPath, mtu: int, says_so: bool) -> None:
    path.narrow(mtu, says_so)
    found = path.deploy()
    assert [measured["how"] for measured in found["paths"]] == ["echo"]
    assert (found["path_mtu"], found["mtu"]) == (mtu, mtu_over(path.outer, mtu))
    with path.accounted() as account:
        transfer_all(path, 10 * MEGABYTE)
    assert account == {"lost": 0, "cut": 0}


@pytest.mark.parametrize(
    ("kinds", "outer", "mtu", "says_so"),
    [
        (("relay", "go"), 6, 1358, SILENT),
        (("go", "relay"), 4, 1400, SILENT),
        (("go", "relay"), 6, 1280, ICMP),
    ],
    ids=["relay-to-go-1358", "go-to-relay-1400", "go-to-relay-1280"],
)
def test_wireguard_go_on_the_other_side(
    lab: Lab, kinds: tuple[str, str], outer: int, mtu: int, says_so: bool
) -> None:
    for path in started(NarrowPath(lab, kinds, outer)):
        path.narrow(mtu, says_so)
        assert path.deploy()["mtu"] == mtu_over(outer, mtu)
        with path.accounted() as account:
            transfer_all(path, 10 * MEGABYTE)
        assert account == {"lost": 0, "cut": 0}


def test_what_leaves_one_end_arrives_at_the_other(path: NarrowPath) -> None:
    """By capture: datagrams, none a fragment, none larger than the path takes."""
    path.narrow(1358, SILENT)
    path.deploy()
    with Capture(path.client, "eth0", "ip or ip6") as near, Capture(path.server, "eth0", "ip or ip6") as far:
        transfer_all(path, MEGABYTE)
    assert (near.dropped, far.dropped) == (0, 0)
    seen = [
        collections.Counter(packet.datagram for packet in capture.packets if 51820 in packet.ports)
        for capture in (near, far)
    ]
    assert sum(seen[0].values()) > 3000
    assert not seen[0] - seen[1]
    assert not seen[1] - seen[0]
    sizes = [len(packet.frame) - 14 for packet in (*near.packets, *far.packets) if packet.protocol == 17]
    assert 1358 - 16 < max(sizes) <= 1358


def told(host: Host, address: str, size: int) -> int:
    """What a sender of one packet of ``size`` bytes that may not be fragmented learns to be the most; 0 when
    the packet arrived.
    """
    family = 6 if ":" in address else 4
    ping = host.ping(address, 1, size_bytes=size - ECHO_HEADERS[family], options=["-M", "do"])
    if ping.received:
        return 0
    found = re.search(r"mtu ?= ?(\d+)", ping.output)
    assert found, ping.output
    return int(found[1])


@pytest.mark.parametrize("inner", [4, 6])
def test_who_sends_too_much_is_told(path: NarrowPath, inner: int) -> None:
    """With the kill switch on: from a container on the client, and from the internet to that client, whose
    path takes less than the server's device.
    """
    path.narrow(1380, SILENT)
    mtu = path.deploy(client_kill_switch=True)["mtu"]
    assert mtu == mtu_over(path.outer, 1380) < 1420
    for sender, address in (
        (path.container, INTERNET[inner]),
        (path.internet, Tunnel.client_addresses[inner]),
    ):
        assert told(sender, address, 1500) == mtu
        path.forget()
        assert told(sender, address, mtu + 1) == mtu
        path.forget()
        assert told(sender, address, mtu) == 0


def test_what_the_least_mtu_has_no_room_for(path: NarrowPath) -> None:
    """A tunnel with IPv6 takes 1280, the path less: who may not be fragmented is told so over IPv4, and IPv6
    goes in fragments, which the routers make or ask the sender for.
    """
    path.narrow(1280, path.outer == 6)
    found = path.deploy()
    assert found["mtu"] == 1280 > found["inner"] == (1216 if path.outer == 4 else 1200)
    for sender, address in ((path.container, INTERNET[4]), (path.internet, Tunnel.client_addresses[4])):
        assert told(sender, address, 1280) == found["inner"]
        assert told(sender, address, found["inner"]) == 0
    with path.accounted() as account:
        for sender, address in ((path.container, INTERNET[6]), (path.internet, Tunnel.client_addresses[6])):
            ping = sender.ping(
                address, 5, size_bytes=1280 - ECHO_HEADERS[6], options=["-M", "do"], wait_s=0.5
            )
            # Over IPv6 the first one each way is what the router's message is about.
            assert ping.received >= (5 if path.outer == 4 else 3)
    assert account["cut"] > 0


@pytest.mark.parametrize("inner", [4, 6])
def test_tcp_of_others_is_clamped(path: NarrowPath, inner: int) -> None:
    """A container's connections fit although nobody on their way says what does."""
    path.narrow(1358, SILENT)
    path.deploy()
    for host in (path.client, path.server):
        for family, kind in ((4, "icmp --icmp-type 3/4"), (6, "icmpv6 --icmpv6-type 2")):
            host.iptables(f"-A OUTPUT -p {kind} -j DROP", family)
    try:
        with path.accounted() as account:
            transfer(path.container, path.internet, INTERNET[inner], MEGABYTE)
    finally:
        for host in (path.client, path.server):
            for family, kind in ((4, "icmp --icmp-type 3/4"), (6, "icmpv6 --icmpv6-type 2")):
                host.iptables(f"-D OUTPUT -p {kind} -j DROP", family)
    assert account == {"lost": 0, "cut": 0}


def test_a_fixed_mtu_that_does_not_fit(path: NarrowPath) -> None:
    """What measuring is for. Over IPv4 the routers cut, over IPv6 large packets vanish."""
    path.narrow(1358, SILENT)
    path.deploy({"mtu": 1420, "inner": 1420, "mss4": 0, "mss6": 0})
    assert path.client.ping(INTERNET[4], 1).received == 1
    large = path.client.ping(INTERNET[4], 1, size_bytes=1380, wait_s=0.5)
    assert large.received == (1 if path.outer == 4 else 0)


class TestAnEndpointThatAnswersNoEcho:
    """Its path cannot be measured."""

    @pytest.fixture(autouse=True)
    def _silenced(self, path: NarrowPath) -> Iterator[None]:
        kinds = ((4, "icmp --icmp-type 8"), (6, "icmpv6 --icmpv6-type 128"))
        for family, kind in kinds:
            path.server.iptables(f"-I INPUT -i eth0 -p {kind} -j DROP", family)
        yield
        for family, kind in kinds:
            path.server.iptables(f"-D INPUT -i eth0 -p {kind} -j DROP", family)

    def test_what_its_routers_say_counts(self, path: NarrowPath) -> None:
        path.narrow(1400, ICMP)
        (measured,) = path.measure()["paths"]
        assert (measured["how"], measured["path_mtu"]) == ("icmp", 1400)

    def test_the_device_keeps_what_it_has(self, path: NarrowPath) -> None:
        path.narrow(1500, SILENT)
        for mtu in (1300, 1420):
            path.client.ip("link", "set", "culvert0", "mtu", str(mtu))
            found = path.measure()
            assert ([measured["how"] for measured in found["paths"]], found["mtu"]) == (["kept"], mtu)

    def test_it_works_where_the_network_helps(self, path: NarrowPath) -> None:
        """Routers cut IPv4, and their messages make the sender cut IPv6."""
        path.narrow(1358, path.outer == 6)
        found = path.deploy({"mtu": 1420, "inner": 1420, "mss4": 0, "mss6": 0})
        assert found["mtu"] == 1420
        with path.accounted() as account:
            transfer_all(path, MEGABYTE)
        assert account["cut"] > 0


def test_measured_again_it_is_the_same(path: NarrowPath) -> None:
    """Although the network loses every third echo."""
    path.narrow(1358, SILENT)
    mtu = path.deploy()["mtu"]
    kinds = ((4, "icmp --icmp-type 8"), (6, "icmpv6 --icmpv6-type 128"))
    for family, kind in kinds:
        path.near.iptables(
            f"-I FORWARD -p {kind} -m statistic --mode nth --every 3 --packet 0 -j DROP", family
        )
    try:
        assert [path.measure()["mtu"] for _ in range(2)] == [mtu] * 2
        path.narrow(1500, SILENT)
        larger = path.measure()["mtu"]
    finally:
        for family, _kind in kinds:
            path.near.iptables("-F FORWARD", family)
    assert larger == mtu_over(path.outer, 1500)


def test_both_ways_count(path: NarrowPath) -> None:
    """Where the way back takes less, the answer comes in fragments, or not at all."""
    path.narrow(1500, ICMP)
    path.far.ip("link", "set", "narrow", "mtu", "1400")
    try:
        measured = path.measure()["path_mtu"]
    finally:
        path.narrow(1500, ICMP)
    assert 1400 - 8 < measured <= 1400


def test_the_relays_mark_keeps_the_echoes_out_of_the_tunnel(path: NarrowPath) -> None:
    path.narrow(1500, ICMP)
    path.deploy()
    marked, unmarked = path.measure(), path.measure(fwmark=0)
    assert [measured["device"] for measured in marked["paths"]] == ["eth0"]
    assert [measured["device"] for measured in unmarked["paths"]] == ["culvert0"]
    assert any("leads into culvert0" in warning for warning in unmarked["warnings"])
    assert SERVER_OUTER[path.outer] in unmarked["warnings"][0]
