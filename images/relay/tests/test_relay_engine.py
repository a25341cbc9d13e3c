# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two engines in memory: what arrives, what does not, and who is told."""

from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest

from culvert import handshake, ip
from culvert.batch import Received
from culvert.constants import MAX_STAGED_PACKETS
from culvert.context import EventKind
from culvert.endpoint import Endpoint
from culvert.noise import ResponderHandshake
from culvert.testing import Flight, Host, World, udp_packet

INITIATION, RESPONSE, COOKIE, DATA = 1, 2, 3, 4


def kinds(flights: list[Flight]) -> list[int]:
    return [flight.kind for flight in flights]


# --- The ordinary course
# -------------------------------------------------------------------------------------


@pytest.mark.parametrize("preshared", [bytes(32), bytes(range(32))], ids=["no-psk", "psk"])
def test_a_packet_makes_its_session(world: World, preshared: bytes) -> None:
    one, two = world.pair(preshared)
    packet = one.packet(two)
    one.send(packet)
    world.settle()
    assert kinds(world.seen) == [INITIATION, RESPONSE, DATA]
    assert two.received == [packet]
    back = two.packet(one, b"pong")
    two.send(back)
    world.settle()
    assert one.received == [back]
    assert kinds(world.seen)[3:] == [DATA]
    for host in (one, two):
        assert len(host.events_of(EventKind.HANDSHAKE_COMPLETED)) == 1


def test_messages_for_us_are_told_from_others(world: World) -> None:
    """Before anything is done for them: what a TLS port's visitor may send is no message of ours."""
    one, two = world.pair()
    one.send(one.packet(two))
    world.settle()
    two.send(two.packet(one))
    world.settle()
    stranger = world.host()
    for flight in world.seen:
        target, source = (one, two) if flight.target == one.endpoint else (two, one)
        assert target.device.recognises(flight.data)
        assert not source.device.recognises(flight.data)
        assert not stranger.device.recognises(flight.data)
        assert not target.device.recognises(flight.data[:4])
        assert flight.kind == DATA or not target.device.recognises(flight.data[:-1])
    initiation = next(flight.data for flight in world.seen if flight.kind == INITIATION)
    for place in (10, len(initiation) - 20):
        changed = bytearray(initiation)
        changed[place] ^= 1
        assert not two.device.recognises(bytes(changed))


def test_both_families_and_the_empty_payload(world: World) -> None:
    one, two = world.pair()
    packets = [
        udp_packet(one.inner, two.inner, b""),
        udp_packet(one.inner6, two.inner6, b"six"),
        udp_packet(one.inner, two.inner, bytes(1392)),
    ]
    one.send(*packets)
    world.settle()
    assert two.received == packets


def test_messages_have_the_papers_sizes_and_padding(world: World) -> None:
    one, two = world.pair()
    world.connect(one, two)
    one.send(*(one.packet(two, bytes(size)) for size in range(40)))
    flights = world.collect()
    for size, flight in enumerate(flights):
        padded = (28 + size + 15) // 16 * 16
        assert len(flight.data) == 16 + padded + 16
        kind, _, counter = struct.unpack_from("<IIQ", flight.data)
        assert (kind, counter) == (DATA, size + 1)


def test_without_the_same_preshared_key_there_is_no_session(world: World) -> None:
    one, two = world.pair()
    one.peer(two).preshared_key = bytes(range(32))
    one.send(one.packet(two))
    world.advance(30)
    assert two.received == []
    assert one.peer(two).keypairs.current is None


def test_an_unknown_initiator_hears_nothing(world: World) -> None:
    one, two = world.pair()
    two.device.remove_peer(one.public_key)
    one.send(one.packet(two))
    world.advance(30)
    assert set(kinds(world.seen)) == {INITIATION}


def test_a_device_without_a_key_is_silent(world: World) -> None:
    one, two = world.pair()
    two.device.set_private_key(None)
    one.send(one.packet(two))
    two.send(two.packet(one))
    world.advance(30)
    assert {flight.sender for flight in world.seen} == {one.endpoint}


# --- What may pass
# -------------------------------------------------------------------------------------------


def test_a_peer_may_not_use_another_peers_address(world: World) -> None:
    one, two = world.pair()
    three = world.host()
    world.introduce(two, three)
    # One believes that it owns three's address too, and two knows better.
    world.connect(one, two)
    one.send(udp_packet(three.inner, two.inner, b"forged"))
    one.send(udp_packet("203.0.113.1", two.inner, b"forged"))
    one.send(udp_packet(three.inner6, two.inner6, b"forged"))
    honest = one.packet(two, b"honest")
    one.send(honest)
    world.settle()
    assert two.received == [honest]


@pytest.mark.parametrize(
    "inner",
    [
        b"\x45" + bytes(10),
        b"\x60" + bytes(20),
        b"\x00" * 64,
        b"\x55" + bytes(60),
        # IPv4 total length: beyond the packet, and below the header's own length
        b"\x45\0\xff\xff" + bytes(8) + bytes([10, 86, 0, 1, 10, 86, 0, 2]),
        b"\x45\0\0\x13" + bytes(8) + bytes([10, 86, 0, 1, 10, 86, 0, 2]),
        b"\x4f\0\0\x14" + bytes(8) + bytes([10, 86, 0, 1, 10, 86, 0, 2]),
        b"\x41\0\0\x14" + bytes(8) + bytes([10, 86, 0, 1, 10, 86, 0, 2]),
    ],
    ids=[
        "short4",
        "short6",
        "zero",
        "version5",
        "too-long",
        "too-short",
        "header-too-long",
        "header-too-short",
    ],
)
def test_what_a_peer_seals_must_be_a_packet(world: World, inner: bytes) -> None:
    one, two = world.pair()
    world.connect(one, two)
    world.deliver([one.sealed(two, inner)])
    assert two.received == []


def test_padding_is_taken_off_by_the_packets_own_length(world: World) -> None:
    one, two = world.pair()
    world.connect(one, two)
    packet = one.packet(two, b"x")
    world.deliver([one.sealed(two, packet + b"garbage!")])
    assert two.received == [packet]


@pytest.mark.parametrize("junk", [b"", b"\x45", b"\x45" * 19, b"\x60" * 39, b"\x70" + bytes(60), bytes(100)])
def test_what_the_host_sends_must_be_a_packet(world: World, junk: bytes) -> None:
    one, _ = world.pair()
    one.send(junk)
    assert world.collect() == []
    assert one.received == []


# --- Loss, duplication, order, corruption
# --------------------------------------------------------------------


@pytest.mark.parametrize("lost", [INITIATION, RESPONSE])
def test_a_lost_handshake_message_is_made_up_for(world: World, lost: int) -> None:
    one, two = world.pair()
    drops = [lost]

    def weather(flight: Flight) -> list[Flight]:
        if flight.kind in drops:
            drops.remove(flight.kind)
            return []
        return [flight]

    world.weather = weather
    packet = one.packet(two)
    one.send(packet)
    world.settle()
    assert two.received == []
    world.advance(5.5)
    assert two.received == [packet]
    assert len(one.events_of(EventKind.HANDSHAKE_RETRIED)) == 1


def test_a_lost_confirmation_is_made_up_for(world: World) -> None:
    """The responder may not send before it heard on the session; what it has waits."""
    one, two = world.pair()
    world.weather = lambda flight: [] if flight.kind == DATA else [flight]
    one.send(one.packet(two, b"lost"))
    world.settle()
    waiting = two.packet(one, b"waiting")
    two.send(waiting)
    world.weather = lambda flight: [flight]
    world.advance(6)
    assert one.received == [waiting]


def test_everything_doubled_is_as_if_once(world: World) -> None:
    one, two = world.pair()
    world.weather = lambda flight: [flight, flight]
    packets = [one.packet(two, bytes([number])) for number in range(20)]
    one.send(*packets)
    world.advance(1)
    assert two.received == packets
    assert len(two.events_of(EventKind.HANDSHAKE_COMPLETED)) == 1


def test_reordered_packets_all_arrive(world: World) -> None:
    one, two = world.pair()
    world.connect(one, two)
    packets = [one.packet(two, number.to_bytes(4)) for number in range(2000)]
    one.send(*packets)
    flights = world.collect()
    world.rng.shuffle(flights)
    world.deliver(flights)
    assert sorted(two.received) == sorted(packets)
    two.received.clear()
    world.deliver(flights)
    assert two.received == []


def test_every_flipped_bit_is_noticed(world: World) -> None:
    """Each message of a handshake and a data packet, with one bit of each byte flipped: nothing comes of
    it.
    """
    one, two = world.pair()
    packet = one.packet(two)
    one.send(packet)
    for _ in range(3):
        (flight,) = world.collect()
        before = [host.peer(other).endpoint for host, other in ((one, two), (two, one))]
        for place in range(len(flight.data)):
            if flight.kind != DATA and place >= len(flight.data) - 16:
                break  # mac2 is not looked at without load
            damaged = bytearray(flight.data)
            damaged[place] ^= 1 << place % 8
            elsewhere = Flight(Endpoint("203.0.113.66", 666), flight.target, bytes(damaged))
            world.deliver([elsewhere])
            assert world.collect() == []
        assert [host.peer(other).endpoint for host, other in ((one, two), (two, one))] == before
        world.deliver([flight])
    assert two.received == [packet]


def test_truncated_and_extended_messages_are_nothing(world: World) -> None:
    one, two = world.pair()
    one.send(one.packet(two))
    for _ in range(3):
        (flight,) = world.collect()
        for size in range(len(flight.data)):
            world.deliver([flight.altered(flight.data[:size])])
        world.deliver([flight.altered(flight.data + b"\0")])
        assert world.collect() == []
        assert two.received == []
        world.deliver([flight])


def test_a_session_is_not_taken_over_by_a_replayed_handshake(world: World) -> None:
    one, two = world.pair()
    one.send(one.packet(two))
    world.settle()
    initiation, response = (flight for flight in world.seen if flight.kind != DATA)
    current = one.peer(two).keypairs.current
    world.seen.clear()
    world.now += 1
    world.deliver([initiation, response, initiation, response])
    assert world.collect() == []
    assert one.peer(two).keypairs.current is current
    assert two.peer(one).keypairs.next is None


def test_initiations_are_answered_fifty_times_a_second_at_most(world: World) -> None:
    one, two = world.pair()
    answered = 0
    for _ in range(100):
        one.peer(two)._sent_handshake_s = float("-inf")
        one.peer(two).initiate(world.now)
        world.deliver(world.collect())
        answered += len(world.collect())
        world.now += 0.005
    assert 20 <= answered <= 26


def test_simultaneous_initiation_ends_in_sessions_for_both(world: World) -> None:
    one, two = world.pair()
    one.send(one.packet(two, b"from one"))
    two.send(two.packet(one, b"from two"))
    crossing = world.collect()
    assert kinds(crossing) == [INITIATION, INITIATION]
    world.deliver(crossing)
    world.advance(12)
    assert two.received == [one.packet(two, b"from one")]
    assert one.received == [two.packet(one, b"from two")]
    for number in range(5):
        one.send(one.packet(two, bytes([number])))
        two.send(two.packet(one, bytes([number])))
        world.settle()
    assert len(one.received) == len(two.received) == 6


# --- Queue
# ---------------------------------------------------------------------------------------------------


def test_packets_wait_for_the_handshake_in_order_the_oldest_give_way(world: World) -> None:
    one, two = world.pair()
    packets = [one.packet(two, number.to_bytes(4)) for number in range(MAX_STAGED_PACKETS + 50)]
    for packet in packets:
        one.send(packet)
    assert one.peer(two).staged == MAX_STAGED_PACKETS
    assert kinds(world.collect()) == [INITIATION]
    one.peer(two)._sent_handshake_s = float("-inf")
    one.send(packets[-1])
    world.settle()
    assert two.received == [*packets[51:], packets[-1]]


# --- Roaming
# -------------------------------------------------------------------------------------------------


def test_a_peer_is_where_its_last_authentic_packet_came_from(world: World) -> None:
    one, two = world.pair()
    world.connect(one, two)
    moved = Endpoint("203.0.113.5", 4000)
    one.endpoint = moved
    one.send(one.packet(two))
    world.settle()
    assert two.peer(one).endpoint == moved
    assert len(two.events_of(EventKind.ENDPOINT_CHANGED)) == 1
    answer = two.packet(one)
    two.send(answer)
    world.settle()
    assert one.received == [answer]


def test_silence_makes_us_forget_from_which_address_we_send(world: World) -> None:
    """It may be our side of the path that is dead. The endpoint itself stays."""
    one, two = world.pair()
    world.connect(one, two)
    peer = one.peer(two)
    world.weather = lambda flight: []
    for _ in range(2):
        peer.endpoint = replace(two.endpoint, local=b"ours")
        one.send(one.packet(two))
        world.advance(16)
        assert peer.endpoint == two.endpoint
        assert peer.endpoint.local == b""
    assert one.events_of(EventKind.ENDPOINT_CHANGED) == []


def test_a_replayed_packet_moves_nobody(world: World) -> None:
    one, two = world.pair()
    world.connect(one, two)
    one.send(one.packet(two))
    flights = world.collect()
    world.deliver(flights)
    thief = Endpoint("203.0.113.66", 666)
    world.deliver([Flight(thief, flight.target, flight.data) for flight in flights])
    assert two.peer(one).endpoint == one.endpoint


# --- ICMP
# ----------------------------------------------------------------------------------------------------


def test_a_sender_without_a_peer_is_told_v4(world: World) -> None:
    one, _ = world.pair()
    lost = udp_packet(one.inner, "10.86.9.9", b"x" * 1000)
    one.send(lost)
    world.collect()
    (error,) = one.received
    assert error[12:16] == lost[16:20]
    assert error[16:20] == lost[12:16]
    assert error[9] == 1
    assert error[20:22] == bytes([3, 1])
    assert len(error) <= 576
    assert lost.startswith(error[28:])
    assert ip.checksum(error[:20]) == 0
    assert ip.checksum(error[20:]) == 0


def test_a_sender_without_a_peer_is_told_v6(world: World) -> None:
    one, _ = world.pair()
    lost = udp_packet(one.inner6, "fd86::99", b"x" * 1300)
    one.send(lost)
    world.collect()
    (error,) = one.received
    assert error[8:24] == lost[24:40]
    assert error[24:40] == lost[8:24]
    assert error[40:42] == bytes([1, 3])
    assert len(error) <= 1280
    pseudo = error[8:40] + (len(error) - 40).to_bytes(4) + bytes([0, 0, 0, 58])
    assert ip.checksum(pseudo + error[40:]) == 0


def test_a_sender_is_told_when_the_peer_has_no_endpoint(world: World) -> None:
    one, two = world.pair()
    one.peer(two).endpoint = None
    one.send(one.packet(two))
    world.collect()
    assert len(one.received) == 1


def test_a_sender_is_told_for_a_second_when_the_network_has_no_route(world: World) -> None:
    one, two = world.pair()
    world.connect(one, two)
    one.device.endpoint_unreachable(two.endpoint, world.now)
    one.send(one.packet(two))
    assert world.collect() == []
    assert len(one.received) == 1
    world.now += 1
    one.send(one.packet(two))
    assert kinds(world.collect()) == [DATA]


def echo_error(source: str, target: str) -> bytes:
    packet = bytearray(udp_packet(source, target, bytes(40)))
    packet[9] = 1
    packet[20] = 3
    return bytes(packet)


@pytest.mark.parametrize(
    "packet",
    [
        udp_packet("10.86.0.1", "224.0.0.251", b"multicast"),
        udp_packet("10.86.0.1", "255.255.255.255", b"broadcast"),
        udp_packet("0.0.0.0", "10.86.9.9", b"nobody"),
        udp_packet("fd86::1", "ff02::fb", b"multicast"),
        udp_packet("::", "fd86::99", b"nobody"),
        echo_error("10.86.0.1", "10.86.9.9"),
        udp_packet("10.86.0.1", "10.86.9.9", bytes(40))[:6]
        + b"\0\1"
        + udp_packet("10.86.0.1", "10.86.9.9", bytes(40))[8:],
    ],
    ids=["multicast4", "broadcast", "unspecified4", "multicast6", "unspecified6", "error", "fragment"],
)
def test_no_icmp_error_where_none_may_be(world: World, packet: bytes) -> None:
    one, _ = world.pair()
    one.send(packet)
    world.collect()
    assert one.received == []


def test_icmp_errors_are_bounded(world: World) -> None:
    one, _ = world.pair()
    for _ in range(10):
        one.send(*[udp_packet(one.inner, "10.86.9.9", b"")] * 100)
    world.collect()
    assert len(one.received) == 50


# --- ECN and DSCP
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [0, 1, 2, 3])
def test_ecn_is_copied_outwards_and_dscp_is_not(world: World, bits: int) -> None:
    one, two = world.pair()
    world.connect(one, two)
    one.send(one.packet(two, ecn=bits | 0xB8))
    one.send(udp_packet(one.inner6, two.inner6, b"", ecn=bits))
    assert [flight.tos for flight in world.collect()] == [bits, bits]


def test_handshakes_are_marked_af41(world: World) -> None:
    one, two = world.pair()
    one.send(one.packet(two))
    world.settle()
    assert [flight.tos for flight in world.seen] == [0x88, 0x88, 0]


@pytest.mark.parametrize("inner", [0, 1, 2, 3])
@pytest.mark.parametrize("family", [4, 6])
def test_congestion_on_the_way_reaches_the_inside(world: World, inner: int, family: int) -> None:
    one, two = world.pair()
    world.connect(one, two)
    source, target = (one.inner, two.inner) if family == 4 else (one.inner6, two.inner6)
    one.send(udp_packet(source, target, b"x", ecn=inner))
    (flight,) = world.collect()
    two.device.receive_datagrams([Received(flight.data, one.endpoint, ip.ECN_CE)], world.now)
    world.collect()
    assert two.received == [udp_packet(source, target, b"x", ecn=3 if inner else 0)]


# --- Under load
# ----------------------------------------------------------------------------------------------


def flood(world: World, victim: Host, stranger: Host) -> None:
    """Initiations with a right mac1 from a stranger, until the victim asks for cookies."""
    for number in range(500):
        stranger.peer(victim)._sent_handshake_s = float("-inf")
        stranger.peer(victim).initiate(world.now)
        source = Endpoint("203.0.113.1", 1000 + number)
        for flight in world.collect():
            victim.device.receive_datagrams([Received(flight.data, source)], world.now)


@pytest.fixture
def loaded(world: World) -> tuple[World, Host, Host]:
    one, two = world.pair()
    stranger = world.host()
    stranger.device.add_peer(two.public_key).endpoint = two.endpoint
    flood(world, two, stranger)
    world.collect()
    world.seen.clear()
    return world, one, two


def test_under_load_a_handshake_needs_a_cookie(loaded: tuple[World, Host, Host]) -> None:
    world, one, two = loaded
    packet = one.packet(two)
    one.send(packet)
    world.settle()
    assert kinds(world.seen) == [INITIATION, COOKIE]
    # The cookie comes into play with the next initiation (section 5.4.7).
    stranger = world.hosts[2]
    for _ in range(6):
        flood(world, two, stranger)
        world.collect()
        world.advance(0.9)
    mine = [flight for flight in world.seen if flight.sender == one.endpoint]
    assert kinds(mine) == [INITIATION, INITIATION, DATA]
    assert [any(flight.data[-16:]) for flight in mine[:2]] == [False, True]
    assert two.received == [packet]


def test_under_load_a_proven_source_is_limited(loaded: tuple[World, Host, Host]) -> None:
    """Even with a cookie, one address gets five handshakes at once and twenty a second, not more."""
    world, one, two = loaded
    peer = one.peer(two)
    peer.initiate(world.now)
    world.settle()
    flood(world, two, world.hosts[2])
    world.collect()
    world.seen.clear()
    for _ in range(10):
        peer._sent_handshake_s = float("-inf")
        two.peer(one)._answered_initiation_s = float("-inf")
        peer.initiate(world.now)
        initiation = world.collect()[0]
        assert any(initiation.data[-16:])
        world.deliver([initiation])
    world.collect()
    assert kinds([flight for flight in world.seen if flight.sender == two.endpoint]) == [RESPONSE] * 5


def test_under_load_the_initiator_is_protected_too(world: World) -> None:
    """Cookies go to responders as well: the initiator may be the one under load."""
    one, two = world.pair()
    stranger = world.host()
    stranger.device.add_peer(one.public_key).endpoint = one.endpoint
    one.send(one.packet(two))
    world.deliver(world.collect())
    (response,) = world.collect()
    flood(world, one, stranger)
    world.collect()
    world.deliver([response])
    assert kinds(world.collect()) == [COOKIE]
    assert one.peer(two).keypairs.current is None


def test_a_flood_gets_cookies_and_no_computation(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = world.pair()
    world.connect(one, two)
    stranger = world.host()
    stranger.device.add_peer(two.public_key).endpoint = two.endpoint
    computed: list[int] = []

    class Counted(ResponderHandshake):
        def __init__(self, *arguments: Any) -> None:
            computed.append(1)
            super().__init__(*arguments)

    monkeypatch.setattr(handshake, "ResponderHandshake", Counted)
    flood(world, two, stranger)
    replies = [flight for flight in world.seen if flight.kind == COOKIE]
    assert len(computed) <= 400
    assert len(replies) >= 99
    assert all(len(reply.data) < 148 for reply in replies)
    packet = one.packet(two)
    one.send(packet)
    world.settle()
    assert two.received == [packet]


# --- Configuration while it runs
# -----------------------------------------------------------------------------


def test_a_removed_peers_session_is_dead_at_once(world: World) -> None:
    one, two = world.pair()
    world.connect(one, two)
    two.device.remove_peer(one.public_key)
    one.send(one.packet(two))
    world.advance(40)
    assert two.received == []
    assert {flight.sender for flight in world.seen} == {one.endpoint}


def test_other_peers_do_not_notice(world: World) -> None:
    one, two = world.pair()
    world.connect(one, two)
    before = two.peer(one).keypairs.current
    for _ in range(100):
        other = world.host()
        world.introduce(two, other)
        two.device.remove_peer(other.public_key)
        one.send(one.packet(two))
        world.settle()
    assert two.peer(one).keypairs.current is before
    assert len(two.received) == 100
    assert set(kinds(world.seen)) == {DATA}


def test_a_new_private_key_ends_every_session(world: World) -> None:
    one, two = world.pair()
    world.connect(one, two)
    two.device.set_private_key(bytes(range(32)))
    assert two.peer(one).keypairs.current is None
    one.send(udp_packet(one.inner, two.inner, b"x"))
    world.advance(30)
    assert two.received == []


def test_a_new_private_key_introduces_itself_at_once(world: World) -> None:
    one, two = world.pair()
    world.connect(one, two)
    one.device.set_private_key(bytes(range(32)))
    one.send(one.packet(two))
    assert kinds(world.collect()) == [INITIATION]


def test_the_same_private_key_again_changes_nothing(world: World) -> None:
    one, two = world.pair()
    world.connect(one, two)
    identity = two.device.identity
    assert identity is not None
    two.device.set_private_key(identity.private_bytes())
    assert two.peer(one).keypairs.current is not None


def test_a_prefix_moves_to_its_new_owner(world: World) -> None:
    one, two = world.pair()
    three = world.host()
    world.introduce(one, three)
    one.device.allow(one.peer(three), ip_network(two.inner))
    one.send(udp_packet(one.inner, two.inner, b"x"))
    assert [flight.target for flight in world.collect()] == [three.endpoint]
    assert ip_network(two.inner) not in set(one.device.allowed_ips(one.peer(two)))


def test_a_device_is_not_its_own_peer(world: World) -> None:
    one, _ = world.pair()
    with pytest.raises(ValueError, match="own peer"):
        one.device.add_peer(one.public_key)


def test_a_peer_with_a_low_order_key_never_gets_anything(world: World) -> None:
    one, two = world.pair()
    peer = one.device.add_peer(bytes(32))
    peer.endpoint = two.endpoint
    one.device.allow(peer, ip_network("10.99.0.0/16"))
    one.send(udp_packet(one.inner, "10.99.0.1", b"x"))
    assert world.collect() == []


def test_statistics_count_udp_payload(world: World) -> None:
    one, two = world.pair()
    one.send(one.packet(two))
    world.settle()
    sent = sum(len(flight.data) for flight in world.seen if flight.sender == one.endpoint)
    assert one.peer(two).stats.tx_bytes == two.peer(one).stats.rx_bytes == sent
    assert one.peer(two).stats.rx_bytes == two.peer(one).stats.tx_bytes == 92
    assert one.peer(two).stats.last_handshake_ns == world.wall_clock_ns()


def test_keys_are_in_no_repr(world: World) -> None:
    one, two = world.pair(bytes(range(32)))
    world.connect(one, two)
    peer = one.peer(two)
    assert one.device.identity is not None
    shown = " ".join(map(repr, (peer, peer.keypairs.current, one.device.identity, one.device, one.events)))
    for secret in (one.device.identity.private_bytes(), bytes(range(32))):
        assert secret.hex() not in shown
        assert repr(secret)[2:-1] not in shown
