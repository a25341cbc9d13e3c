# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The leaf ideas: replay window, allowed IPs, token buckets, messages, cookies, timers, padding."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from culvert.allowedips import AllowedIPs, Network
from culvert.batch import padding
from culvert.constants import REJECT_AFTER_MESSAGES, REPLAY_WINDOW_BITS
from culvert.cookie import MacChecker, MacStamper
from culvert.endpoint import Endpoint, EndpointName, parse_endpoint
from culvert.errors import BadPacket
from culvert.messages import CookieReply, Initiation, Response
from culvert.ratelimit import LoadMeter, SourceLimiter, TokenBucket
from culvert.replay import ReplayWindow
from culvert.timers import Timer, TimerQueue, Timers

WINDOW = REPLAY_WINDOW_BITS - 64

# --- Replay window
# -------------------------------------------------------------------------------------------

near = st.integers(0, 3 * REPLAY_WINDOW_BITS)
counters = st.one_of(near, st.integers(0, 2**64 - 1), st.integers(0, 300))


@given(st.lists(counters, max_size=200))
def test_replay_window_is_the_set_of_what_was_seen(received: list[int]) -> None:
    """Against a model that remembers everything: nothing twice, nothing too old, everything else once."""
    window, seen, greatest = ReplayWindow(), set(), 0
    for counter in received:
        expected = counter < REJECT_AFTER_MESSAGES and counter not in seen and greatest - counter <= WINDOW
        assert window.accept(counter) is expected
        if expected:
            seen.add(counter)
            greatest = max(greatest, counter)


def test_replay_window_at_its_edges() -> None:
    window = ReplayWindow()
    assert window.accept(0)
    assert not window.accept(0)
    assert window.accept(WINDOW)
    assert not window.accept(0)
    assert window.accept(1)
    assert window.accept(WINDOW + 2)
    assert not window.accept(1)
    assert window.accept(2)
    assert window.accept(REJECT_AFTER_MESSAGES - 1)
    assert not window.accept(REJECT_AFTER_MESSAGES)
    assert window.accept(REJECT_AFTER_MESSAGES - 1 - WINDOW)
    assert not window.accept(REJECT_AFTER_MESSAGES - 2 - WINDOW)


# --- Allowed IPs
# ---------------------------------------------------------------------------------------------

v4_prefixes = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(
    lambda pair: ip_network((pair[0] & ~((1 << 32 - pair[1]) - 1), pair[1]))
)
v6_prefixes = st.tuples(st.integers(0, 2**128 - 1), st.integers(0, 128)).map(
    lambda pair: ip_network((pair[0] & ~((1 << 128 - pair[1]) - 1), pair[1]))
)
changes = st.lists(
    st.tuples(
        st.sampled_from(["insert", "remove", "clear"]),
        st.one_of(v4_prefixes, v6_prefixes),
        st.sampled_from("abc"),
    ),
    max_size=40,
)


@given(changes, st.lists(st.integers(0, 2**32 - 1), max_size=10))
def test_allowed_ips_against_a_linear_search(
    steps: list[tuple[str, Network, str]], addresses: list[int]
) -> None:
    table: AllowedIPs[str] = AllowedIPs()
    model: dict[Network, str] = {}
    for step, network, owner in steps:
        if step == "insert":
            table.insert(network, owner)
            model[network] = owner
        elif step == "remove":
            table.remove(network, owner)
            if model.get(network) == owner:
                del model[network]
        else:
            table.remove_owner(owner)
            model = {key: value for key, value in model.items() if value != owner}
        probes = [ip_address(number) for number in addresses]
        probes += [key.network_address for key in model] + [key.broadcast_address for key in model]
        for address in probes:
            best = max(
                (key for key in model if key.version == address.version and address in key),
                key=lambda key: key.prefixlen,
                default=None,
            )
            assert table.lookup(address.packed) == (None if best is None else model[best])
        for name in "abc":
            assert set(table.of(name)) == {key for key, value in model.items() if value == name}


def test_the_default_route_is_a_prefix_like_any_other() -> None:
    table: AllowedIPs[str] = AllowedIPs()
    table.insert(ip_network("0.0.0.0/0"), "all")
    table.insert(ip_network("::/0"), "all")
    table.insert(ip_network("10.86.0.2/32"), "one")
    assert table.lookup(ip_address("203.0.113.9").packed) == "all"
    assert table.lookup(ip_address("2001:db8::9").packed) == "all"
    assert table.lookup(ip_address("10.86.0.2").packed) == "one"


def test_answers_are_not_remembered_without_bound() -> None:
    table: AllowedIPs[str] = AllowedIPs()
    table.insert(ip_network("10.0.0.0/8"), "ten")
    for number in range(20_000):
        table.lookup((0x0A000000 + number).to_bytes(4))
    assert len(table._v4._remembered) <= 4096


# --- Rates
# ---------------------------------------------------------------------------------------------------


def test_token_bucket_bursts_then_drips() -> None:
    bucket = TokenBucket(10.0, 3, 0.0)
    assert [bucket.allow(0.0) for _ in range(4)] == [True, True, True, False]
    assert not bucket.allow(0.05)
    assert bucket.allow(0.15)
    assert [bucket.allow(100.0) for _ in range(4)] == [True, True, True, False]


def test_token_bucket_does_not_fill_when_time_stands() -> None:
    bucket = TokenBucket(10.0, 1, 50.0)
    assert bucket.allow(50.0)
    assert not bucket.allow(40.0)
    assert not bucket.allow(50.0)


def test_sources_are_limited_one_by_one_and_forgotten_in_order() -> None:
    limiter = SourceLimiter(1.0, 1, max_sources=100)
    assert limiter.allow(b"victim", 0.0)
    assert not limiter.allow(b"victim", 0.0)
    for number in range(99):
        assert limiter.allow(number.to_bytes(4), 0.0)
        assert not limiter.allow(b"victim", 0.0)
    for number in range(100_000):
        limiter.allow(number.to_bytes(4), 0.0)
    assert len(limiter) == 100


def test_load_meter_stays_up_for_a_second() -> None:
    meter = LoadMeter()
    assert not any(meter.message(0.0) for _ in range(400))
    assert meter.message(0.0)
    assert meter.message(0.9)
    assert not meter.message(2.0)


# --- Messages
# ------------------------------------------------------------------------------------------------


def test_message_sizes_are_the_papers() -> None:
    initiation = Initiation(1, bytes(32), bytes(48), bytes(28)).pack() + bytes(32)
    response = Response(1, 2, bytes(32), bytes(16)).pack() + bytes(32)
    reply = CookieReply(1, bytes(24), bytes(32)).pack()
    assert (len(initiation), len(response), len(reply)) == (148, 92, 64)
    assert Initiation.unpack(initiation) == (1, bytes(32), bytes(48), bytes(28))
    assert Response.unpack(response) == (1, 2, bytes(32), bytes(16))
    assert CookieReply.unpack(reply) == (1, bytes(24), bytes(32))


@pytest.mark.parametrize("kind", [Initiation, Response, CookieReply])
@pytest.mark.parametrize("damage", ["short", "long", "reserved", "type"])
def test_messages_that_are_none(
    kind: type[Initiation] | type[Response] | type[CookieReply], damage: str
) -> None:
    good = {
        Initiation: Initiation(1, bytes(32), bytes(48), bytes(28)).pack() + bytes(32),
        Response: Response(1, 2, bytes(32), bytes(16)).pack() + bytes(32),
        CookieReply: CookieReply(1, bytes(24), bytes(32)).pack(),
    }[kind]
    bad = {
        "short": good[:-1],
        "long": good + b"\0",
        "reserved": good[:2] + b"\1" + good[3:],
        "type": b"\4" + good[1:],
    }[damage]
    with pytest.raises(BadPacket):
        kind.unpack(bad)


# --- Cookies
# -------------------------------------------------------------------------------------------------

PUBLIC = bytes(range(32))
HERE, THERE = Endpoint("198.51.100.1", 1000).packed, Endpoint("198.51.100.1", 1001).packed


def test_mac1_needs_the_public_key() -> None:
    message = MacStamper(PUBLIC).stamp(b"body", 0.0)
    assert MacChecker(PUBLIC).check_mac1(message)
    assert not MacChecker(bytes(32)).check_mac1(message)
    assert not MacChecker(PUBLIC).check_mac1(b"Body" + message[4:])
    assert message[-16:] == bytes(16)


def test_a_cookie_proves_an_address_for_two_minutes() -> None:
    checker, stamper = MacChecker(PUBLIC), MacStamper(PUBLIC)
    first = stamper.stamp(b"body", 0.0)
    assert not checker.check_mac2(first, HERE, 0.0)
    stamper.consume_reply(CookieReply.unpack(checker.reply(first, 7, HERE, 0.0)), 0.0)
    second = stamper.stamp(b"body", 1.0)
    assert checker.check_mac1(second)
    assert checker.check_mac2(second, HERE, 1.0)
    assert not checker.check_mac2(second, THERE, 1.0)
    assert not checker.check_mac2(second[:-1] + bytes([second[-1] ^ 1]), HERE, 1.0)
    assert not checker.check_mac2(second, HERE, 121.0)
    assert stamper.stamp(b"body", 116.0)[-16:] == bytes(16)


def test_a_cookie_reply_answers_one_message_once() -> None:
    checker, stamper = MacChecker(PUBLIC), MacStamper(PUBLIC)
    old = stamper.stamp(b"old", 0.0)
    reply_to_old = CookieReply.unpack(checker.reply(old, 7, HERE, 0.0))
    stamper.stamp(b"new", 0.0)
    with pytest.raises(BadPacket):
        stamper.consume_reply(reply_to_old, 0.0)
    fresh = CookieReply.unpack(checker.reply(stamper.stamp(b"new", 0.0), 7, HERE, 0.0))
    stamper.consume_reply(fresh, 0.0)
    with pytest.raises(BadPacket):
        stamper.consume_reply(fresh, 0.0)


# --- Timers
# --------------------------------------------------------------------------------------------------


def test_timers_fire_once_at_their_moment() -> None:
    queue, fired = TimerQueue(), []
    timers = Timers(queue, lambda timer, now: fired.append((timer, now)))
    timers.set(Timer.KEEPALIVE, 10.0)
    timers.set(Timer.RETRANSMIT, 5.0)
    assert queue.next() == 5.0
    queue.run(4.9)
    assert fired == []
    queue.run(5.0)
    queue.run(20.0)
    queue.run(99.0)
    assert fired == [(Timer.RETRANSMIT, 5.0), (Timer.KEEPALIVE, 20.0)]


def test_a_postponed_timer_does_not_fire_early() -> None:
    queue, fired = TimerQueue(), []
    timers = Timers(queue, lambda timer, now: fired.append(timer))
    for deadline in (10.0, 20.0, 30.0):
        timers.set(Timer.KEEPALIVE, deadline)
    queue.run(29.0)
    assert fired == []
    assert queue.next() == 30.0
    timers.set(Timer.KEEPALIVE, 12.0)
    timers.cancel(Timer.KEEPALIVE)
    queue.run(40.0)
    assert fired == []
    assert queue.next() is None


@given(st.lists(st.tuples(st.sampled_from(list(Timer)), st.floats(0, 100)), max_size=30), st.floats(0, 100))
def test_exactly_the_due_timers_fire(sets: list[tuple[Timer, float]], now: float) -> None:
    queue, fired = TimerQueue(), []
    timers = Timers(queue, lambda timer, moment: fired.append(timer))
    for timer, deadline in sets:
        timers.set(timer, deadline)
    last = dict(sets)
    for _ in range(3):
        queue.run(now)
    assert sorted(fired) == sorted(timer for timer, deadline in last.items() if deadline <= now)
    remaining = [deadline for deadline in last.values() if deadline > now]
    following = queue.next()
    assert following is None or following > now
    if remaining:
        assert following is not None
        assert following <= min(remaining)
    queue.run(1000.0)
    assert len(fired) == len(last)


# --- Padding and endpoints
# -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "mtu", "pad"),
    [(0, 1420, 0), (1, 1420, 15), (16, 1420, 0), (17, 1420, 15), (1412, 1420, 8), (1419, 1420, 1),
     (1420, 1420, 0), (1421, 1420, 15), (2840, 1420, 0), (1279, 1280, 1)],
)  # fmt: skip
def test_padding_stops_at_the_mtu(length: int, mtu: int, pad: int) -> None:
    assert padding(length, mtu) == pad


@pytest.mark.parametrize(
    "text",
    [
        "198.51.100.1:51820",
        "[2001:db8::1]:51820",
        "[fe80::1%1]:9",
        "tcp://198.51.100.1:7",
        "tls://[fe80::1%1]:9",
    ],
)
def test_endpoints_read_as_they_are_written(text: str) -> None:
    assert str(parse_endpoint(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", ":", "198.51.100.1", "198.51.100.1:", "198.51.100.1:0", "198.51.100.1:65536", "198.51.100.1:-1",
     "2001:db8::1:51820", "[2001:db8::1]", "[2001:db8::1]51820", "[2001:db8::1", "host:1", "198.51.100.300:1",
     "198.51.100.1:\uff11", "[fe80::1%nosuchdevice]:1", "198.51.100.1:0000010000000",
     "[fe80::1%4294967296]:1", "http://198.51.100.1:1", "://198.51.100.1:1", "tcp:198.51.100.1:1",
     "tls://tls://198.51.100.1:1", "tls://"],
)  # fmt: skip
def test_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_endpoint(text)


def test_endpoints_of_one_address_are_told_apart_by_what_carries_them() -> None:
    udp, tcp, tls = (parse_endpoint(f"{scheme}://198.51.100.1:443") for scheme in ("udp", "tcp", "TLS"))
    assert len({udp, tcp, tls}) == 3
    assert udp == parse_endpoint("198.51.100.1:443")
    assert [one.is_stream for one in (udp, tcp, tls)] == [False, True, True]
    assert {one.host_port for one in (udp, tcp, tls)} == {"198.51.100.1:443"}
    assert {one.packed for one in (udp, tcp, tls)} == {udp.packed}
    assert str(EndpointName("vpn.example.org", 443, "tls")) == "tls://vpn.example.org:443"
    assert str(EndpointName("vpn.example.org", 443)) == "vpn.example.org:443"


def test_an_ipv4_mapped_endpoint_is_ipv4() -> None:
    assert parse_endpoint("[::ffff:198.51.100.1]:7") == Endpoint("198.51.100.1", 7)


def test_ipv6_sources_are_counted_by_their_network() -> None:
    one, two = Endpoint("2001:db8::1", 1), Endpoint("2001:db8::ffff:2", 2)
    assert one.source == two.source
    assert one.packed != two.packed
