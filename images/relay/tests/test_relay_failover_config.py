# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Failover groups in the configuration file, on the control socket, in what is shown, and in the log."""

from __future__ import annotations

import errno
import logging
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from culvert.about import read_about
from culvert.config import Config, parse_config
from culvert.control import answer
from culvert.device import Device
from culvert.echo import Echo
from culvert.errors import ConfigError, RequestError
from culvert.frame import PLAIN
from culvert.keys import encode_base64, short_name
from culvert.relay import Relay
from culvert.reload import difference
from culvert.show import render
from culvert.testing import World, udp_packet
from culvert.transport.memory import MemoryNetwork
from culvert.tun import MemoryTun
from culvert.uapi import parse_set
from relay_fleet import echo_reply

ONE, TWO, THREE, PRIVATE = (bytes([number] * 32) for number in range(1, 5))
SHARED = "FailoverAllowedIPs = 0.0.0.0/0, ::/0"


class Bench:
    """A relay in memory whose clock the test moves."""

    def __init__(self) -> None:
        self.world, self.network = World(), MemoryNetwork()
        self.tun = MemoryTun()
        self.tun.own_addresses = (bytes([10, 86, 0, 100]),)
        self.relay = Relay(
            Device(self.world.wall_clock_ns, rng=self.world.rng),
            self.tun,
            lambda port, mark: self.network.open("198.51.100.1", port),
            lambda: self.world.now,
        )

    @property
    def device(self) -> Device:
        return self.relay.device

    def load(self, *lines: str) -> None:
        self.relay.load(parse(*lines))

    def ask(self, *lines: str) -> str:
        reply = answer("\n".join(lines).encode(), self.relay)
        assert reply is not None
        return reply.decode()

    def code(self, *lines: str) -> int:
        reply = self.ask("set=1", *lines)
        assert reply.startswith("errno=")
        return int(reply[6:])

    def own(self, public_key: bytes) -> list[str]:
        peer = self.device.peer(public_key)
        assert peer is not None
        return [str(network) for network in self.device.allowed_ips(peer)]

    def shared(self) -> list[str]:
        return [str(network) for network in self.device.allowed_ips(self.device.failover)]

    def priorities(self) -> dict[bytes, int]:
        return {
            peer.public_key: priority for peer, priority, _ in self.device.failover.states(self.world.now)
        }

    def active(self) -> bytes | None:
        peer = self.device.failover.active
        return None if peer is None else peer.public_key

    def about(self) -> dict[str, Any]:
        found: dict[str, Any] = read_about(self.ask("culvert=1"))["failover"]
        return found

    def advance(self, seconds: float) -> None:
        end = self.world.now + seconds
        while (moment := self.relay.get_timer()) is not None and moment <= end:
            self.world.now = max(self.world.now, moment)
            self.relay.handle_timer()
        self.world.now = end


@pytest.fixture
def bench() -> Bench:
    return Bench()


def parse(*lines: str) -> Config:
    text = "\n".join(["[Interface]", f"PrivateKey = {encode_base64(PRIVATE)}", *lines])
    return parse_config(text, "/etc/culvert/test.conf")


def peer(public_key: bytes, *lines: str) -> str:
    return "\n".join(["[Peer]", f"PublicKey = {encode_base64(public_key)}", *lines])


FIRST = peer(ONE, "AllowedIPs = 10.86.0.1/32", "Endpoint = 198.51.100.2:7", "Failover = 1")
SECOND = peer(TWO, "AllowedIPs = 10.86.0.2/32", "Endpoint = 198.51.100.3:7", "Failover = 2")


# --- The file -----------------------------------------------------------------------------------------------


def test_a_group_in_the_file() -> None:
    config = parse(
        SHARED, "FailoverAllowedIPs = 10.0.0.7/8", "failovertimeout = 1.25", "FailoverReturn=0", FIRST
    )
    assert [str(network) for network in config.failover_allowed_ips] == ["0.0.0.0/0", "::/0", "10.0.0.0/8"]
    assert (config.failover_timeout_s, config.failover_return_s) == (1.25, 0.0)
    assert config.peers[0].failover == 1


def test_what_the_file_does_not_say() -> None:
    config = parse(peer(ONE, "Failover = 0"), peer(TWO))
    assert config.failover_allowed_ips == ()
    assert (config.failover_timeout_s, config.failover_return_s) == (2.5, 30.0)
    assert [member.failover for member in config.peers] == [0, None]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["FailoverTimeout = 0.9"], ":3: FailoverTimeout: '0.9' is not a number of seconds from 1 to 60"),
        (["FailoverTimeout = 61"], ":3: FailoverTimeout: '61' is not a number of seconds from 1 to 60"),
        (["FailoverTimeout = nan"], ":3: FailoverTimeout: 'nan' is not a number of seconds"),
        (["FailoverTimeout = 2."], ":3: FailoverTimeout: '2.' is not a number of seconds"),
        (["FailoverTimeout = 2.5000"], ":3: FailoverTimeout: '2.5000' is not a number of seconds"),
        (["FailoverReturn = 1e3"], ":3: FailoverReturn: '1e3' is not a number of seconds from 0 to 3600"),
        (["FailoverReturn = -1"], ":3: FailoverReturn: '-1' is not a number of seconds"),
        (["FailoverReturn = 3600.1"], ":3: FailoverReturn: '3600.1' is not a number of seconds"),
        (["FailoverAllowedIPs = 10.0.0.0/33"], ":3: FailoverAllowedIPs: '10.0.0.0/33' is not an IPv4"),
        (["Failover = 1"], ":3: Failover does not belong in [Interface]"),
        ([peer(ONE, "Failover = 65536")], ":5: Failover: '65536' is not a number from 0 to 65535"),
        ([peer(ONE, "Failover = none")], ":5: Failover: 'none' is not a number from 0 to 65535"),
        ([peer(ONE, "Failover = 1", "Failover = 1")], ":6: Failover is set twice (first on line 5)"),
        ([peer(ONE, SHARED)], ":5: FailoverAllowedIPs does not belong in [Peer]"),
        (
            [SHARED, peer(ONE, "AllowedIPs = 0.0.0.0/0")],
            ":3: FailoverAllowedIPs: 0.0.0.0/0 already belongs to the [Peer] on line 4",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_file(lines: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(*lines)
    assert message in str(caught.value)


def test_the_file_is_loaded_and_loaded_again(bench: Bench) -> None:
    bench.load(SHARED, "FailoverTimeout = 5", FIRST, SECOND, peer(THREE))
    assert bench.shared() == ["0.0.0.0/0", "::/0"]
    assert bench.device.failover.timeout_s == 5.0
    assert bench.priorities() == {ONE: 1, TWO: 2}
    assert bench.active() == ONE
    config = parse(SHARED, "FailoverTimeout = 5", FIRST, SECOND, peer(THREE))
    said = {member.public_key: member.endpoints for member in config.peers}
    again = difference(bench.device, 0, config, said)
    assert again.peers == ()
    assert not again.replace_failover_allowed_ips


def test_a_reload_changes_what_is_different(bench: Bench) -> None:
    bench.load(SHARED, FIRST, SECOND, peer(THREE, "Failover = 3"))
    first = bench.device.peer(ONE)
    # The third leaves, the first changes its priority; the group has other prefixes, one of them a peer's.
    bench.load(
        "FailoverAllowedIPs = 0.0.0.0/0, 10.86.0.2/32",
        FIRST.replace("Failover = 1", "Failover = 7"),
        SECOND.replace("10.86.0.2/32", "::/0"),
        peer(THREE),
    )
    assert bench.device.peer(ONE) is first
    assert bench.priorities() == {ONE: 7, TWO: 2}
    assert bench.shared() == ["0.0.0.0/0", "10.86.0.2/32"]
    assert bench.own(TWO) == ["::/0"]
    assert bench.device.failover.timeout_s == 2.5


def test_a_reload_may_take_the_group_away(bench: Bench) -> None:
    bench.load(SHARED, FIRST)
    bench.load(peer(ONE, "AllowedIPs = 0.0.0.0/0"))
    assert bench.shared() == []
    assert bench.own(ONE) == ["0.0.0.0/0"]
    assert bench.active() is None
    assert "failover" not in bench.ask("culvert=1")


# --- The control socket -------------------------------------------------------------------------------------


def test_a_group_on_the_control_socket(bench: Bench) -> None:
    request = [
        "failover_timeout_ms=1500", "failover_return_ms=60000",
        "failover_allowed_ip=10.0.0.0/8", "replace_failover_allowed_ips=true",
        "failover_allowed_ip=0.0.0.0/0",
        f"public_key={ONE.hex()}", "allowed_ip=10.86.0.1/32", "failover=1",
        f"public_key={TWO.hex()}", "failover=0",
        f"public_key={THREE.hex()}",
    ]  # fmt: skip
    assert bench.code(*request) == 0
    told = bench.ask("culvert=1").split("\n")[2:]
    assert [line for line in told if not line.startswith(("version=", "take_over="))] == [
        "failover_timeout_ms=1500", "failover_return_ms=60000", "failover_allowed_ip=0.0.0.0/0",
        f"failover_active={ONE.hex()}",
        f"failover_peer={ONE.hex()}", "failover_priority=1", "failover_state=active",
        f"failover_peer={TWO.hex()}", "failover_priority=0", "failover_state=unknown",
        "errno=0", "", "",
    ]  # fmt: skip
    assert bench.code(f"public_key={ONE.hex()}", "failover=none") == 0
    assert "failover_active" not in bench.ask("culvert=1")
    assert bench.priorities() == {TWO: 0}
    # Standard requests say nothing of the group, and so change nothing of it.
    assert bench.code(f"public_key={TWO.hex()}", "replace_allowed_ips=true", "allowed_ip=10.86.0.2/32") == 0
    assert bench.priorities() == {TWO: 0}


@pytest.mark.parametrize(
    "line",
    [
        "failover_timeout_ms=999", "failover_timeout_ms=60001", "failover_timeout_ms=2.5",
        "failover_return_ms=3600001", "failover_return_ms=-1", "replace_failover_allowed_ips=false",
        "failover_allowed_ip=10.0.0.1", "failover_allowed_ip=-10.0.0.0/8", "failover=1",
    ],
)  # fmt: skip
def test_bad_requests_change_nothing(bench: Bench, line: str) -> None:
    assert bench.code(f"public_key={ONE.hex()}", "failover=1") == 0
    assert bench.code("replace_peers=true", line) == -errno.EINVAL
    assert bench.priorities() == {ONE: 1}


@pytest.mark.parametrize("value", ["65536", "-1", "", "None", "1.0", "0x1"])
def test_bad_priorities(value: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_set([f"public_key={ONE.hex()}", f"failover={value}"])
    assert caught.value.code == errno.EINVAL


def carrier(bench: Bench) -> bytes | None:
    return bench.device.owner(bytes([203, 0, 113, 80]))


def test_a_prefix_moves_between_peer_and_group_in_one_request(bench: Bench) -> None:
    bench.code(f"public_key={ONE.hex()}", "allowed_ip=0.0.0.0/0", f"public_key={TWO.hex()}")
    to_group = [
        "failover_allowed_ip=0.0.0.0/0",
        f"public_key={ONE.hex()}", "failover=1", "replace_allowed_ips=true", "allowed_ip=10.86.0.1/32",
        f"public_key={TWO.hex()}", "failover=2",
    ]  # fmt: skip
    assert bench.code(*to_group) == 0
    assert (carrier(bench), bench.own(ONE), bench.shared()) == (ONE, ["10.86.0.1/32"], ["0.0.0.0/0"])
    to_peer = [
        "replace_failover_allowed_ips=true",
        f"public_key={ONE.hex()}", "failover=none", f"public_key={TWO.hex()}", "failover=none",
        "replace_allowed_ips=true", "allowed_ip=0.0.0.0/0",
    ]  # fmt: skip
    assert bench.code(*to_peer) == 0
    assert (carrier(bench), bench.own(TWO), bench.shared()) == (TWO, ["0.0.0.0/0"], [])


def test_get_stays_standard(bench: Bench) -> None:
    """What the group has is shown at the active member, where its packets go."""
    bench.load(SHARED, FIRST, SECOND)
    lines = bench.ask("get=1").split("\n")
    second = lines.index(f"public_key={TWO.hex()}")
    shown = [line for line in lines[:second] if line.startswith("allowed_ip=")]
    assert shown == ["allowed_ip=10.86.0.1/32", "allowed_ip=0.0.0.0/0", "allowed_ip=::/0"]
    assert [line for line in lines[second:] if line.startswith("allowed_ip=")] == ["allowed_ip=10.86.0.2/32"]
    assert not any("failover" in line for line in lines)
    bench.code(f"public_key={ONE.hex()}", "remove=true")
    assert bench.ask("get=1").count("allowed_ip=0.0.0.0/0\n") == 1


def test_the_state_as_json_and_for_a_person(bench: Bench) -> None:
    bench.load(SHARED, FIRST, SECOND, peer(THREE, "Failover = 0"))
    group = bench.about()
    names = [encode_base64(key) for key in (ONE, TWO, THREE)]
    assert group == {
        "active": names[0],
        "timeout_s": 2.5,
        "return_s": 30.0,
        "allowed_ips": ["0.0.0.0/0", "::/0"],
        "members": [
            {"public_key": names[0], "priority": 1, "state": "active"},
            {"public_key": names[1], "priority": 2, "state": "unknown"},
            {"public_key": names[2], "priority": 0, "state": "unknown"},
        ],
    }
    peers = [
        {
            "public_key": name, "endpoint": None, "allowed_ips": [], "latest_handshake_s": 0, "rx_bytes": 0,
            "tx_bytes": 0, "persistent_keepalive_s": 0,
        }
        for name in names
    ]  # fmt: skip
    device = {
        "name": "cvt0",
        "public_key": None,
        "listen_port": 0,
        "fwmark": 0,
        "batch": None,
        "offloads": None,
    }
    text = render({**device, "rejections": [], "captures": [], "peers": peers, "failover": group})
    assert "  failover: 0.0.0.0/0, ::/0: after 2.5 s of silence, back after 30 s" in text
    assert [line for line in text.splitlines() if "priority" in line] == [
        "  failover: active, priority 1",
        "  failover: unknown, priority 2",
        "  failover: unknown, priority 0 (never)",
    ]


# --- The log ------------------------------------------------------------------------------------------------


def test_the_log_says_what_happened(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    names = {key: short_name(key) for key in (ONE, TWO)}
    bench.load(SHARED, FIRST, SECOND)
    assert f"sending through peer {names[ONE]}, as configured" in caplog.messages
    # Neither is there.
    bench.tun.inject(udp_packet("10.86.0.100", "203.0.113.80", b"?"))
    bench.relay.on_tun_readable()
    bench.advance(5.0)
    assert f"peer {names[ONE]} is silent (for 2.5 s), and so is every other: staying" in caplog.messages
    bench.advance(60.0)
    assert sum("every other" in message for message in caplog.messages) == 1
    bench.code(f"public_key={ONE.hex()}", "remove=true")
    assert (
        f"sending through peer {names[TWO]}, no longer through peer {names[ONE]}, as configured"
        in caplog.messages
    )


def test_a_group_that_moves_all_the_time_does_not_fill_the_log(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    bench.load(SHARED, FIRST, SECOND)
    for number in range(2000):
        key, other = (ONE, TWO) if number % 2 else (TWO, ONE)
        bench.code(f"public_key={key.hex()}", "failover=1", f"public_key={other.hex()}", "failover=0")
    assert bench.active() == ONE
    assert 0 < sum("as configured" in message for message in caplog.messages) <= 500


# --- Echo requests ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "target"), [("10.86.0.9", "10.86.0.1"), ("fd86::9", "fd86::1")])
def test_only_the_reply_to_our_own_request_is_taken_out(source: str, target: str) -> None:
    ours, theirs = (ip_network(text).network_address.packed for text in (source, target))
    replies: list[bool] = []
    echo = Echo(ours, theirs, 7, 1, lambda: replies.append(True))
    reply = PLAIN + echo_reply(echo.request)
    others = [
        PLAIN + echo.request,
        PLAIN + echo_reply(Echo(ours, theirs, 7, 2, lambda: None).request),
        PLAIN + echo_reply(Echo(ours, theirs, 8, 1, lambda: None).request),
        PLAIN + echo_reply(Echo(theirs, ours, 7, 1, lambda: None).request),
        b"\1" + reply[1:],
        reply + b"\0",
        PLAIN + udp_packet(target, source, b"12345678"),
    ]
    assert echo.without_reply(list(others)) == others
    assert not replies
    assert echo.without_reply([others[0], reply, others[1]]) == others[:2]
    assert replies == [True]


@given(st.lists(st.binary(max_size=80)))
def test_any_frames_are_looked_at(frames: list[bytes]) -> None:
    for addresses in ((bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])), (bytes(16), bytes([1] * 16))):
        echo = Echo(*addresses, 7, 1, lambda: None)
        size = len(PLAIN) + len(echo.request)
        shaped = [(PLAIN + frame).ljust(size, b"\0")[:size] for frame in frames]
        assert echo.without_reply([*frames, *shaped]) == [*frames, *shaped]


def test_addresses_come_from_the_device() -> None:
    bench = Bench()
    assert bench.device.addresses == (bytes([10, 86, 0, 100]),)
    bench.tun.own_addresses = (bytes(15) + b"\1",)
    bench.relay.on_link_changed()
    assert bench.device.addresses == (bytes(15) + b"\1",)
