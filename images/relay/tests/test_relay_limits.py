# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Limits of peers: expiry, quota and rate, in engines in memory, with the calendar in the test's hands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from ipaddress import ip_network

import pytest

import relay_packets as p
from culvert.batch import Batch
from culvert.context import EventKind
from culvert.limits import (
    MAX_QUOTA_BYTES,
    NO_LIMITS,
    Limits,
    Period,
    format_moment,
    parse_moment,
    parse_period,
    parse_quota,
    parse_rate,
    period_ends_s,
    period_name,
)
from culvert.pure import PureBatch
from culvert.rejections import Reason
from culvert.testing import Host, World
from relay_batches import compiled

# When the world's time begins, by its own calendar.
START_S = World().wall_clock_ns() // 10**9
DAY_S = 86400


@pytest.fixture(params=[PureBatch, compiled], ids=["python", "compiled"])
def pair(request: pytest.FixtureRequest) -> tuple[World, Host, Host]:
    """A server, and a device that is a peer of it; there is a session."""
    make: Callable[[], Batch] = request.param
    world = World(batch=make)
    server, device = world.pair()
    world.connect(device, server)
    world.advance(1)
    for host in (server, device):
        host.received.clear()
        host.events.clear()
    return world, server, device


def limit(host: Host, other: Host, **limits: object) -> None:
    peer = host.peer(other)
    wanted = replace(host.device.warden.limits(peer), **limits)  # type: ignore[arg-type]
    host.device.warden.set(peer, wanted, host.world.now)


def reaches(one: Host, other: Host) -> bool:
    """Whether packets get through, in the time in which a session that the other has lost is made anew."""
    other.received.clear()
    packet = one.packet(other, b"are you there?")
    for _ in range(4):
        one.send(packet)
        one.world.advance(6)
    return packet in other.received


def reasons(host: Host) -> dict[Reason, int]:
    return {entry.reason: entry.count for entry in host.device.rejections()}


# --- Text ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("8k", 8000),
        ("8000", 8000),
        ("1.5M", 1_500_000),
        ("20m", 20_000_000),
        ("100G", 10**11),
        ("0.008M", 8000),
    ],
)
def test_rates(text: str, rate: int) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "7999",
        "7.999k",
        "101G",
        "1T",
        "1Ki",
        "-1M",
        "1e6",
        "1 M",
        ".5M",
        "5.M",
        "1.2345M",
        "M",
        "٣M",
        "1MM",
    ],
)
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(ValueError, match="is not a number of bits a second from 8k to 100G"):
        parse_rate(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("50G", 50 * 10**9),
        ("50Gi", 50 * 2**30),
        ("1.5ki", 1536),
        ("2T", 2 * 10**12),
        (str(2**63 - 1), 2**63 - 1),
    ],
)
def test_quotas(text: str, size: int) -> None:
    assert parse_quota(text) == size <= MAX_QUOTA_BYTES


@pytest.mark.parametrize(
    "text", ["", "0", "0.001", str(2**63), "9999999999999Ti", "50GB", "50i", "fifty", "1,5G", "Ⅷ"]
)
def test_what_is_no_quota(text: str) -> None:
    with pytest.raises(ValueError, match="is not a number of bytes"):
        parse_quota(text)


@pytest.mark.parametrize("text", ["2027-06-30T22:00:00Z", "2028-02-29T23:59:59Z", "1970-01-01T00:00:01Z"])
def test_moments(text: str) -> None:
    assert parse_moment(text) == datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    assert format_moment(parse_moment(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "2027-06-30",
            "2027-06-30T22:00:00",
            "2027-06-30T22:00:00+00:00",
            "2027-06-30T22:00:00.5Z",
            "2027-02-29T00:00:00Z",
        ),
        *(
            "2027-6-3T2:0:0Z",
            "2027-06-30T24:00:00Z",
            "2027-06-30t22:00:00z",
            "9999-12-31T23:59:59Z",
            "1970-01-01T00:00:00Z",
        ),
        *(
            "2027-06-30T22:00:60Z",
            "1969-12-31T00:00:00Z",
            "0001-01-01T00:00:00Z",
            "٢٠٢٧-06-30T22:00:00Z",
            " 2027-06-30T22:00:00Z",
        ),
    ],
)
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time in UTC such as"):
        parse_moment(text)


def test_names_of_periods() -> None:
    assert [parse_period(text) for text in ("month", "DAY", "Total")] == [
        Period.MONTH,
        Period.DAY,
        Period.TOTAL,
    ]
    with pytest.raises(ValueError, match="is not one of month, day, total"):
        parse_period("week")


@pytest.mark.parametrize(
    ("moment", "month", "next_month", "next_day"),
    [
        ("2026-11-23T10:00:00Z", "2026-11", "2026-12-01T00:00:00Z", "2026-11-24T00:00:00Z"),
        ("2026-12-31T23:59:59Z", "2026-12", "2027-01-01T00:00:00Z", "2027-01-01T00:00:00Z"),
        ("2028-02-29T00:00:00Z", "2028-02", "2028-03-01T00:00:00Z", "2028-03-01T00:00:00Z"),
        ("2027-01-31T12:00:00Z", "2027-01", "2027-02-01T00:00:00Z", "2027-02-01T00:00:00Z"),
    ],
)
def test_periods(moment: str, month: str, next_month: str, next_day: str) -> None:
    wall_s = parse_moment(moment)
    assert period_name(Period.MONTH, wall_s) == month
    assert period_name(Period.DAY, wall_s) == moment[:10]
    assert period_ends_s(Period.MONTH, wall_s) == parse_moment(next_month)
    assert period_ends_s(Period.DAY, wall_s) == parse_moment(next_day)
    assert (period_name(Period.TOTAL, wall_s), period_ends_s(Period.TOTAL, wall_s)) == ("total", 0)


@pytest.mark.parametrize("wall_s", [-1e9, 0.0, 1e18, float("1e300")])
def test_no_clock_is_too_wrong(wall_s: float) -> None:
    for period in Period:
        assert period_name(period, wall_s)
        assert period_ends_s(period, wall_s) >= 0


# --- Expiry -------------------------------------------------------------------------------------------------


def test_a_peer_expires_at_its_moment_in_the_middle_of_a_session(pair: tuple[World, Host, Host]) -> None:
    world, server, device = pair
    limit(server, device, expires_at_s=START_S + 31)
    assert reaches(device, server)
    world.advance(6)
    assert not reaches(device, server)
    assert not reaches(server, device)
    assert server.peer(device).keypairs.current is None
    assert len(server.events_of(EventKind.EXPIRED)) == 1
    assert reasons(server)[Reason.EXPIRED] >= 2


def test_a_session_ends_within_a_moment_of_the_expiry(pair: tuple[World, Host, Host]) -> None:
    world, server, device = pair
    limit(server, device, expires_at_s=START_S + 31)
    world.now = 10_030.9
    server.device.handle_timer(world.now)
    assert server.peer(device).keypairs.current is not None
    assert (server.device.get_timer() or 0) <= 10_031.01
    world.now = 10_031.01
    server.device.handle_timer(world.now)
    assert server.peer(device).keypairs.current is None
    assert server.device._context.keypairs == {}


def test_a_later_date_brings_it_back_and_an_earlier_one_ends_it(pair: tuple[World, Host, Host]) -> None:
    _, server, device = pair
    limit(server, device, expires_at_s=START_S - 5)
    assert not reaches(device, server)
    limit(server, device, expires_at_s=START_S + 5 * DAY_S)
    assert reaches(device, server)
    assert reaches(server, device)
    limit(server, device, expires_at_s=1)
    assert not reaches(device, server)
    limit(server, device, expires_at_s=0)
    assert server.peer(device).limiter is None
    assert reaches(device, server)
    kinds = [event.kind for event in server.events if "up" in event.kind.value or "back" in event.kind.value]
    assert kinds == [EventKind.EXPIRED, EventKind.READMITTED] * 2


def test_a_clock_that_is_set_counts(pair: tuple[World, Host, Host]) -> None:
    world, server, device = pair
    limit(server, device, expires_at_s=START_S + 30 * DAY_S)
    real = server.device._context.wall_clock_ns
    server.device._context.wall_clock_ns = lambda: real() + 31 * DAY_S * 10**9
    world.advance(61)
    assert server.peer(device).barred
    server.device._context.wall_clock_ns = real
    world.advance(61)
    assert not server.peer(device).barred


def test_a_barred_peer_is_refused_by_the_clock_even_if_no_timer_ran(pair: tuple[World, Host, Host]) -> None:
    world, server, device = pair
    limit(server, device, expires_at_s=START_S + 31)
    device.peer(server).forget_keys()
    server.peer(device).forget_keys()
    world.now = 10_040.0
    device.send(device.packet(server))
    world.deliver(world.collect())
    assert reasons(server)[Reason.EXPIRED] == 1
    assert world.collect() == []


def test_nothing_is_sent_to_a_barred_peer(pair: tuple[World, Host, Host]) -> None:
    world, server, device = pair
    server.peer(device).set_keepalive_interval(10, world.now)
    limit(server, device, expires_at_s=1)
    world.settle()
    world.seen.clear()
    server.send(server.packet(device))
    world.advance(400)
    assert [flight for flight in world.seen if flight.sender == server.endpoint] == []
    assert server.peer(device).staged == 0
    assert any(packet[9] == 1 for packet in server.received), "the sender is told by ICMP"


def test_a_handshake_that_was_due_is_not_made_with_a_barred_peer(pair: tuple[World, Host, Host]) -> None:
    world, server, device = pair
    server.send(server.packet(device))
    world.collect()  # and lost: without an answer, there is a new handshake after 15 s
    limit(server, device, expires_at_s=1)
    world.seen.clear()
    world.advance(60)
    assert [flight for flight in world.seen if flight.sender == server.endpoint] == []
    limit(server, device, expires_at_s=0)
    server.send(server.packet(device))
    world.settle()
    assert server.peer(device).keypairs.current is not None


def test_a_replayed_initiation_of_a_barred_peer_is_of_no_use_later(pair: tuple[World, Host, Host]) -> None:
    world, server, device = pair
    limit(server, device, expires_at_s=1)
    device.peer(server).forget_keys()
    world.advance(6)
    world.seen.clear()
    device.send(device.packet(server))
    (initiation,) = world.collect()
    world.deliver([initiation])
    limit(server, device, expires_at_s=0)
    world.deliver([initiation])
    assert world.collect() == []


# --- Quota --------------------------------------------------------------------------------------------------


def test_a_quota_is_what_wg_shows_in_both_directions(pair: tuple[World, Host, Host]) -> None:
    world, server, device = pair
    limit(server, device, quota_bytes=10**6)
    stats = server.peer(device).stats
    before = stats.rx_bytes + stats.tx_bytes
    device.send(device.packet(server, bytes(1000)))
    server.send(server.packet(device, bytes(500)))
    world.settle()
    (state,) = server.device.warden.states()
    assert state.used_bytes == stats.rx_bytes + stats.tx_bytes - before
    assert 1500 <= state.used_bytes <= 1700
    assert state.resets_at_s == period_ends_s(Period.MONTH, START_S)


@pytest.mark.parametrize("outgoing", [True, False], ids=["sent", "received"])
def test_a_used_up_quota_ends_the_session(pair: tuple[World, Host, Host], outgoing: bool) -> None:
    world, server, device = pair
    limit(server, device, quota_bytes=20_000)
    one, two = (server, device) if outgoing else (device, server)
    arrived = 0
    for _ in range(100):
        two.received.clear()
        one.send(one.packet(two, bytes(1000)))
        world.settle()
        arrived += len(two.received)
    assert 18 <= arrived <= 20
    assert server.peer(device).barred
    assert server.peer(device).keypairs.current is None
    assert len(server.events_of(EventKind.QUOTA_EXCEEDED)) == 1
    assert not reaches(device, server)
    assert reasons(server)[Reason.QUOTA] >= 1
    (state,) = server.device.warden.states()
    assert 20_000 <= state.used_bytes <= 22_000


def test_a_new_day_and_a_new_month_bring_it_back(pair: tuple[World, Host, Host]) -> None:
    world, server, device = pair
    for period in (Period.DAY, Period.MONTH):
        limit(server, device, quota_bytes=3000, quota_period=period)
        for _ in range(4):
            device.send(device.packet(server, bytes(1000)))
            world.settle()
        assert server.peer(device).barred
        ends_s = period_ends_s(period, world.wall_clock_ns() / 10**9)
        world.now = 10_000 + (ends_s - START_S) - 40.0
        assert not reaches(device, server)
        world.advance(16.1)
        assert reaches(device, server), period
        assert 0 < server.device.warden.states()[0].used_bytes < 1000
        limit(server, device, quota_bytes=0)


def test_a_total_quota_does_not_come_back_by_itself(pair: tuple[World, Host, Host]) -> None:
    world, server, device = pair
    limit(server, device, quota_bytes=3000, quota_period=Period.TOTAL)
    for _ in range(4):
        device.send(device.packet(server, bytes(1000)))
        world.settle()
    world.now += 400 * DAY_S
    assert not reaches(device, server)
    limit(server, device, quota_bytes=30_000)
    assert reaches(device, server)
    assert server.device.warden.states()[0].used_bytes > 3000, "what was used before counts"


def test_a_peer_that_is_removed_and_comes_back_has_no_new_quota(pair: tuple[World, Host, Host]) -> None:
    world, server, device = pair
    limit(server, device, quota_bytes=3000)
    device.send(device.packet(server, bytes(1000)))
    world.settle()
    used = server.device.warden.states()[0].used_bytes
    server.device.remove_peer(device.public_key)
    assert server.device.warden.states() == []
    world.introduce(server, device)
    limit(server, device, quota_bytes=3000)
    assert server.device.warden.states()[0].used_bytes == used > 1000


def test_a_clock_that_is_in_1970_for_a_while_makes_no_new_quota(pair: tuple[World, Host, Host]) -> None:
    world, server, device = pair
    limit(server, device, quota_bytes=3000)
    device.send(device.packet(server, bytes(1000)))
    world.settle()
    used = server.device.warden.states()[0].used_bytes
    context = server.device._context
    real, context.wall_clock_ns = context.wall_clock_ns, lambda: 5 * 10**9
    server.device.warden.look(world.now)
    server.device.warden.keep_usage()
    assert server.device.warden.states()[0].used_bytes == 0
    context.wall_clock_ns = real
    server.device.warden.look(world.now)
    assert server.device.warden.states()[0].used_bytes == used


# --- Rate ---------------------------------------------------------------------------------------------------

RATE_BPS = 800_000
RATE_BYTES = RATE_BPS / 8
BURST_BYTES = 65536


def received_bytes(host: Host) -> int:
    return sum(len(packet) for packet in host.received)


@pytest.mark.parametrize("outgoing", [True, False], ids=["sent", "received"])
def test_a_rate_holds_in_the_long_run(pair: tuple[World, Host, Host], outgoing: bool) -> None:
    world, server, device = pair
    limit(server, device, rate_bps=RATE_BPS)
    one, two = (server, device) if outgoing else (device, server)
    for _ in range(100):
        one.send(*[one.packet(two, bytes(1000))] * 40)  # twice the rate, in bursts
        world.settle()
        world.now += 0.2
    assert RATE_BYTES * 20 * 0.95 <= received_bytes(two) <= RATE_BYTES * 20 + BURST_BYTES + 2000
    (state,) = server.device.warden.states()
    assert state.dropped_packets == 4000 - len(two.received)


def test_each_direction_has_a_rate_of_its_own(pair: tuple[World, Host, Host]) -> None:
    world, server, device = pair
    limit(server, device, rate_bps=RATE_BPS)
    for one, two in ((server, device), (device, server)):
        one.send(*[one.packet(two, bytes(1000))] * 60)
        world.settle()
        assert len(two.received) == 60


def test_a_superpacket_that_does_not_fit_is_cut_and_passes_in_part(pair: tuple[World, Host, Host]) -> None:
    world, server, device = pair
    limit(server, device, rate_bps=RATE_BPS)
    server.device.allow(server.peer(device), ip_network("10.0.0.2"))
    device.device.allow(device.peer(server), ip_network("10.0.0.1"))
    frame = p.Packet(p.noise(40_000, 1)).frame(1000)
    for _ in range(2):
        server.device.send_frames([frame], world.now)
        world.settle()
    assert 55 < len(device.received) < 65
    assert device.received == [*p.kernel_segments(frame), *p.kernel_segments(frame)][: len(device.received)]
    assert server.device.warden.states()[0].dropped_packets == 80 - len(device.received)


def test_what_is_beyond_the_rate_is_heard_all_the_same(pair: tuple[World, Host, Host]) -> None:
    world, server, device = pair
    limit(server, device, rate_bps=8000)
    device.send(*[device.packet(server, bytes(1000))] * 200)
    world.settle()
    assert len(server.received) == 63
    assert server.peer(device).last_heard_s == world.now
    assert server.peer(device).stats.rx_bytes > 200 * 1000


def test_no_limits_no_limiter(pair: tuple[World, Host, Host]) -> None:
    world, server, device = pair
    limit(server, device, rate_bps=8000, expires_at_s=START_S + 1000)
    assert server.peer(device).limiter is not None
    server.device.warden.set(server.peer(device), NO_LIMITS, world.now)
    assert server.peer(device).limiter is None
    device.send(*[device.packet(server, bytes(1000))] * 200)
    world.settle()
    assert len(server.received) == 200


def test_limits_are_shown_and_nothing_else_changes(pair: tuple[World, Host, Host]) -> None:
    world, server, device = pair
    before = server.peer(device).keypairs.current
    limit(server, device, rate_bps=8000, expires_at_s=START_S + 1000, quota_bytes=10**9)
    assert server.peer(device).keypairs.current is before
    (state,) = server.device.warden.states()
    assert state.limits == Limits(START_S + 1000, 8000, 10**9, Period.MONTH)
    assert state.barred is None
    assert world.now
