# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Captures: limits, what is written, and readers that are slow, gone, or too many."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from culvert.about import read_about
from culvert.capture import (
    LIMITS,
    MAX_CAPTURES,
    MAX_PENDING_BYTES,
    Capture,
    CaptureRequest,
    Captures,
    parse_capture,
)
from culvert.capture_filter import parse_filter
from culvert.device import Device
from culvert.errors import RequestError
from culvert.frame import GSO_TCPV4, NEEDS_CSUM, PLAIN, VNET_HEADER
from culvert.keys import encode_base64
from culvert.relay import Relay
from culvert.testing import World, udp_packet
from culvert.transport.memory import MemoryNetwork
from culvert.tun import MemoryTun
from relay_pcap import records

KEY = bytes([1] * 32)
NAME = encode_base64(KEY)
UDP = udp_packet("10.86.0.1", "10.86.0.2", b"x")
UDP6 = udp_packet("fd86::1", "fd86::2", b"x")


def tcp(payload: bytes = b"") -> bytes:
    packet = bytearray(udp_packet("10.86.0.1", "10.86.0.2", bytes(12) + payload))
    packet[9] = 6
    packet[32] = 5 << 4
    return bytes(packet)


TCP = tcp()


def owner(address: bytes) -> bytes | None:
    return KEY if address == UDP[16:20] else None


# --- What is written ----------------------------------------------------------------------------------------


class Seen:
    """One capture by itself, with a clock of its own."""

    def __init__(self, text: str = "", **limits: int) -> None:
        self.wall_ns = 1_790_000_000_123_456_789
        self.captures = Captures(owner, lambda: self.wall_ns)
        self.changes = 0
        self.capture = self.start(text, **limits)

    def start(self, text: str = "", **limits: int) -> Capture:
        request = CaptureRequest(parse_filter(text), **limits)
        return self.captures.start(request, 100.0, self.changed)

    def changed(self) -> None:
        self.changes += 1

    def see(self, *packets: bytes, outgoing: bool = True) -> None:
        self.captures.see([PLAIN + packet for packet in packets], outgoing)


def test_packets_are_written_as_they_are() -> None:
    seen = Seen()
    seen.see(UDP, UDP6)
    seen.wall_ns += 1_500_000_000
    seen.see(TCP, outgoing=False)
    found = records(seen.capture.take())
    assert [record.data for record in found] == [UDP, UDP6, TCP]
    assert [record.full_bytes for record in found] == [len(UDP), len(UDP6), len(TCP)]
    assert found[0].at_us == 1_790_000_000_123_456
    assert found[2].at_us - found[0].at_us == 1_500_000
    assert seen.capture.take() == b""


def test_superpackets_are_written_uncut() -> None:
    packet = tcp(bytes(60_000))
    frame = VNET_HEADER.pack(NEEDS_CSUM, GSO_TCPV4, 40, 1380, 20, 16) + packet
    seen = Seen()
    seen.captures.see([frame], True)
    (record,) = records(seen.capture.take())
    assert (record.data, record.full_bytes) == (packet, 60_040)


def test_what_is_no_packet_is_not_written() -> None:
    seen = Seen()
    seen.captures.see([PLAIN, PLAIN + UDP], True)
    assert len(records(seen.capture.take())) == 1


def test_snaplen_keeps_the_beginning_and_tells_the_length() -> None:
    seen = Seen(snaplen=24)
    seen.see(UDP, UDP[:20])
    first, second = records(seen.capture.take(), snaplen=24)
    assert (first.data, first.full_bytes) == (UDP[:24], len(UDP))
    assert (second.data, second.full_bytes) == (UDP[:20], 20)


def test_each_capture_sees_what_its_filter_says() -> None:
    seen = Seen("proto tcp")
    other = seen.start("in")
    seen.see(UDP, TCP)
    seen.see(UDP, outgoing=False)
    assert [record.data for record in records(seen.capture.take())] == [TCP]
    assert [record.data for record in records(other.take())] == [UDP]


# --- Limits -------------------------------------------------------------------------------------------------


def test_so_many_packets_and_no_more() -> None:
    seen = Seen("proto udp", packets=3)
    seen.see(TCP, UDP, UDP)
    assert seen.capture.ended is None
    seen.see(UDP, UDP, UDP)
    assert seen.capture.ended == "packets"
    assert seen.captures.active == []
    assert len(records(seen.capture.take())) == 3
    assert "packets=3\n" in seen.capture.summary()


def test_so_many_bytes_and_no_more() -> None:
    size = 16 + len(UDP)
    seen = Seen(bytes=24 + 3 * size + size - 1)
    seen.see(*[UDP] * 9)
    assert seen.capture.ended == "bytes"
    data = seen.capture.take()
    assert len(data) == seen.capture.size_bytes == 24 + 3 * size
    assert len(records(data)) == 3


def test_so_long_and_no_longer() -> None:
    seen = Seen(seconds=7)
    longer = seen.start(seconds=9)
    endless = seen.start(seconds=0)
    assert seen.captures.timer() == 107.0
    seen.captures.expire(106.9)
    assert seen.capture.ended is None
    seen.captures.expire(107.0)
    assert (seen.capture.ended, longer.ended) == ("seconds", None)
    assert seen.captures.timer() == 109.0
    seen.captures.expire(109.0)
    assert seen.captures.timer() is None
    assert seen.captures.active == [endless]


def test_zero_is_no_limit() -> None:
    seen = Seen(packets=0, bytes=0, seconds=0)
    for _ in range(20):
        seen.see(*[UDP] * 1000)
        seen.capture.take()
    assert (seen.capture.packets, seen.capture.ended) == (20_000, None)


def test_there_are_limits_when_none_are_asked_for() -> None:
    request = parse_capture([])
    assert (request.packets, request.bytes, request.seconds, request.snaplen) == (
        LIMITS["packets"],
        LIMITS["bytes"],
        LIMITS["seconds"],
        65535,
    )
    assert all(LIMITS.values())


def test_a_reader_that_is_behind_loses_packets_and_holds_bounded_memory() -> None:
    seen = Seen(packets=0, bytes=0)
    big = udp_packet("10.86.0.1", "10.86.0.2", bytes(60_000))
    for _ in range(200):
        seen.see(big)
    kept = MAX_PENDING_BYTES // (len(big) + 16)
    assert (seen.capture.packets, seen.capture.lost) == (kept, 200 - kept)
    assert len(records(seen.capture.take())) == kept
    seen.see(UDP)
    assert seen.capture.take()[16:] == UDP
    assert seen.capture.packets == kept + 1


def test_so_many_at_once() -> None:
    seen = Seen()
    others = [seen.start() for _ in range(MAX_CAPTURES - 1)]
    with pytest.raises(RequestError) as caught:
        seen.start()
    assert caught.value.code == errno.EBUSY
    seen.captures.stop(others[0], "reader")
    seen.start()


def test_a_change_is_told_when_there_was_nothing_to_take() -> None:
    seen = Seen(packets=4)
    seen.capture.take()
    seen.see(UDP, UDP)
    assert seen.changes == 1
    seen.capture.take()
    assert not seen.capture.has_more
    seen.see(UDP, UDP)
    assert seen.changes == 3
    assert seen.capture.has_more
    seen.capture.take()
    assert not seen.capture.has_more


# --- Requests -----------------------------------------------------------------------------------------------


def test_a_request_is_what_was_asked_for() -> None:
    wanted = CaptureRequest(parse_filter("host 10.0.0.1 and in"), packets=1, bytes=2, seconds=3, snaplen=4)
    first, *lines = wanted.lines().split("\n")
    assert first == "capture=1"
    assert lines[-2:] == ["", ""]
    read = parse_capture(lines[:-2])
    assert read.filter.text == wanted.filter.text
    assert (read.packets, read.bytes, read.seconds, read.snaplen) == (1, 2, 3, 4)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("packets", errno.EPROTO),
        ("packet=1", errno.EINVAL),
        ("packets=", errno.EINVAL),
        ("packets=-1", errno.EINVAL),
        ("packets=1_0", errno.EINVAL),
        ("seconds=1000001", errno.EINVAL),
        ("bytes=" + "9" * 40, errno.EINVAL),
        ("snaplen=65536", errno.EINVAL),
        ("filter=hots", errno.EINVAL),
        ("filter=\x7f", errno.EINVAL),
    ],
)
def test_bad_requests(line: str, code: int) -> None:
    with pytest.raises(RequestError) as caught:
        parse_capture([line])
    assert caught.value.code == code


# --- In a relay ---------------------------------------------------------------------------------------------


@pytest.fixture
def relay(world: World) -> Iterator[Relay]:
    network = MemoryNetwork()
    relay = Relay(
        Device(world.wall_clock_ns, rng=world.rng),
        MemoryTun(),
        lambda port, mark: network.open("198.51.100.1", port),
        lambda: world.now,
    )
    yield relay
    relay.close()


def nothing() -> None:
    return None


def states(relay: Relay) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_about(relay.about() + "errno=0\n\n")["captures"]
    return found


def test_a_capture_is_seen_while_it_runs(
    relay: Relay, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    capture = relay.capture(CaptureRequest(parse_filter("proto udp"), seconds=30), nothing, "uid 7")
    relay.tun.inject(UDP, TCP)  # type: ignore[attr-defined]
    relay.on_tun_readable()
    world.now += 12.5
    expected = {"age_s": 12, "packets": 1, "bytes": 24 + 16 + len(UDP), "filter": "proto udp"}
    assert states(relay) == [expected]
    assert relay.get_timer() == world.now + 17.5
    world.now += 17.5
    relay.handle_timer()
    assert capture.ended == "seconds"
    assert states(relay) == []
    assert relay.get_timer() is None
    messages = [record.getMessage() for record in caplog.records]
    assert "capture started by uid 7: filter proto udp" in messages
    assert f"capture ended (seconds): 1 packets, {expected['bytes']} bytes, 0 packets lost" in messages


def test_what_the_relay_itself_tells_the_host_is_captured(relay: Relay) -> None:
    capture = relay.capture(CaptureRequest(), nothing, "")
    relay.tun.inject(UDP)  # type: ignore[attr-defined]
    relay.on_tun_readable()
    sent, error = (record.data for record in records(capture.take()))
    assert sent == UDP
    assert error[9] == 1
    assert relay.tun.written == [error]  # type: ignore[attr-defined]


def test_a_peer_that_there_is_not(relay: Relay) -> None:
    with pytest.raises(RequestError) as caught:
        relay.capture(CaptureRequest(parse_filter(f"peer {NAME}")), nothing, "")
    assert caught.value.code == errno.ENOENT
    relay.device.add_peer(KEY)
    relay.capture(CaptureRequest(parse_filter(f"peer {NAME}")), nothing, "")


def test_while_none_runs_no_packet_is_looked_at(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a capture costs when there is none: the test whether the list is empty, and no call."""

    def seen(*_: object, **__: object) -> None:
        raise AssertionError("a packet was looked at")

    see: Callable[..., None] = seen
    monkeypatch.setattr(Captures, "see", see)
    monkeypatch.setattr(Captures, "expire", see)
    relay.tun.inject(UDP)  # type: ignore[attr-defined]
    relay.on_tun_readable()
    relay.handle_timer()
    assert len(relay.tun.written) == 1  # type: ignore[attr-defined]
    relay.capture(CaptureRequest(), nothing, "")
    relay.tun.inject(UDP)  # type: ignore[attr-defined]
    with pytest.raises(AssertionError, match="was looked at"):
        relay.on_tun_readable()
