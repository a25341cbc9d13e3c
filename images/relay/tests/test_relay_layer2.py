# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A device that carries Ethernet frames: to whom they go, and what holds them up."""

from __future__ import annotations

import json

import pytest

from culvert.ethernet import MAX_FRAME_BYTES
from culvert.frame import NEEDS_CSUM, PLAIN, VNET_HEADER
from culvert.layer2 import Drop, Layer2, Layer2Settings
from culvert.limits import Limits
from culvert.messages import TYPE_DATA
from culvert.rejections import Reason
from culvert.switch import PAUSE_S, QUIET_S
from culvert.testing import Host, World, udp_packet
from relay_ethernet import BROADCAST, frame, meshed, star

FRAME_MESSAGE = 0x66


def switch(host: Host) -> Layer2:
    found = host.device.layer2
    assert found is not None
    return found


def configure(world: World, host: Host, **settings: int | bool) -> None:
    switch(host).configure(Layer2Settings(**settings), world.now)  # type: ignore[arg-type]


def send(world: World, host: Host, *frames: bytes) -> None:
    host.send(*frames)
    world.settle()


def take(*hosts: Host) -> list[list[bytes]]:
    """What came to the hosts' own sides since the last time."""
    found = [list(host.received) for host in hosts]
    for host in hosts:
        host.received.clear()
    return found


def lie(world: World, hub: Host, peer: Host, data: bytes) -> None:
    """A peer whose relay lets anything out."""
    switch(hub).receive(hub.peer(peer), PLAIN + data, world.now)
    world.settle()


def addresses(world: World, host: Host, other: Host | None = None) -> int:
    key = b"" if other is None else other.public_key
    return next(port.addresses for port in switch(host).state(world.now).ports if port.public_key == key)


# --- Where frames go ----------------------------------------------------------------------------------------


def test_what_is_for_all_reaches_all_and_never_its_sender() -> None:
    world, hub, (one, two, three) = star(3)
    question = frame(1, BROADCAST)
    send(world, one, question)
    assert take(hub, one, two, three) == [[question], [], [question], [question]]
    send(world, hub, question := frame(9, BROADCAST))
    assert take(hub, one, two, three) == [[], [question], [question], [question]]


def test_what_is_for_a_known_station_goes_there_alone() -> None:
    world, hub, (one, two, three) = star(3)
    send(world, two, frame(2, BROADCAST))
    send(world, hub, frame(9, BROADCAST))
    take(hub, one, two, three)
    send(world, one, to_two := frame(1, 2))
    send(world, one, to_hub := frame(1, 9))
    send(world, hub, answer := frame(9, 1))
    assert take(hub, one, two, three) == [[to_hub], [answer], [to_two], []]
    assert [addresses(world, hub, other) for other in (None, one, two, three)] == [1, 1, 1, 0]


def test_an_unknown_station_is_looked_for_everywhere() -> None:
    world, hub, (one, two, three) = star(3)
    send(world, one, sought := frame(1, 7))
    assert take(hub, one, two, three) == [[sought], [], [sought], [sought]]
    send(world, three, frame(7, 1))
    take(hub, one, two, three)
    send(world, two, found := frame(2, 7))
    assert take(hub, one, two, three) == [[], [], [], [found]]


def test_what_is_for_the_same_side_goes_nowhere() -> None:
    world, hub, (one, two) = star(2)
    send(world, one, frame(1, BROADCAST), frame(2, BROADCAST))
    take(hub, one, two)
    world.deliver([])
    one_sends = frame(1, 2)
    # (Its own switch would not send it either: it comes from one who does not care.)
    switch(one)._switch.forget(b"")
    send(world, one, one_sends)
    assert take(hub, one, two) == [[], [], []]


def test_all_of_it_is_frame_messages() -> None:
    world, _, (one, two) = star(2)
    send(world, one, frame(1, BROADCAST), frame(1, 5, bytes(1400)))
    assert {flight.kind for flight in world.seen} == {FRAME_MESSAGE}
    assert len(take(two)[0]) == 2
    world.seen.clear()
    world.advance(15)
    assert {flight.kind for flight in world.seen} == {TYPE_DATA}, "keepalives are as ever"


def test_data_messages_are_keepalives_or_nothing() -> None:
    world, hub, (one,) = star(1)
    for text in (frame(1, BROADCAST), udp_packet("10.87.0.1", "10.87.0.2", b"no frame")):
        world.deliver([one.sealed(hub, text)])
    world.settle()
    assert take(hub) == [[]]
    assert addresses(world, hub, one) == 0


def test_a_mesh_has_no_loop() -> None:
    """A hub between two peers that are each other's peers, too: who has no other place in it gets copies, but
    nobody gets back what it said, and it ends.
    """
    world, hosts = meshed(3)
    send(world, hosts[0], question := frame(1, BROADCAST))
    assert take(*hosts)[0] == []
    assert all(question in host_got for host_got in ([question], [question]))
    assert len(world.seen) <= 6


def test_a_full_mesh_of_isolated_peers_sends_nothing_twice() -> None:
    world, hosts = meshed(4)
    for host in hosts:
        configure(world, host, client_isolation=True)
    for sender in hosts:
        send(world, sender, question := frame(sender.number, BROADCAST))
        assert take(*hosts) == [[question] * (host is not sender) for host in hosts]
    assert len(world.seen) == 4 * 3
    world.seen.clear()
    send(world, hosts[0], found := frame(1, 3))
    assert take(*hosts) == [[], [], [found], []]
    assert len(world.seen) == 1


@pytest.mark.parametrize(("mtu_bytes", "tag", "payload"), [(1414, 0, 1472), (1410, 4, 1472), (1382, 0, 1452)])
def test_what_fits_one_datagram(mtu_bytes: int, tag: int, payload: int) -> None:
    """The table in docs/layer2.md: 1500 less the headers of UDP and of IPv4, or of IPv6."""
    world, _, (one,) = star(1)
    for more, fits in ((0, True), (1, False)):
        world.seen.clear()
        send(world, one, frame(1, BROADCAST, vlan=9 if tag else 0).ljust(14 + tag + mtu_bytes + more, b"\0"))
        assert [len(flight.data) <= payload for flight in world.seen] == [fits]


def test_vlan_tags_stay_and_make_addresses_their_own() -> None:
    world, hub, (one, two, three) = star(3)
    send(world, one, tagged := frame(1, BROADCAST, vlan=7))
    assert take(two)[0] == [tagged]
    take(hub, three)
    send(world, two, frame(1, BROADCAST, vlan=8))
    take(hub, one, three)
    for vlan, place in ((7, one), (8, two)):
        send(world, three, wanted := frame(3, 1, vlan=vlan))
        assert take(place)[0] == [wanted]
    assert take(hub)[0] == []


def test_stations_that_say_nothing_are_forgotten() -> None:
    world, hub, (one, two) = star(2)
    for host in (hub, two):
        configure(world, host, mac_ageing_s=60)
    send(world, one, frame(1, BROADCAST))
    world.advance(61)
    take(hub, one, two)
    send(world, hub, sought := frame(9, 1))
    assert take(one, two) == [[sought], [sought]]


# --- What is dropped ----------------------------------------------------------------------------------------


def test_what_is_no_frame_is_dropped() -> None:
    world, hub, (one,) = star(1)
    bad = [
        b"",
        b"\0" * 13,
        frame(1, BROADCAST)[:6] + BROADCAST + b"\x08\x00",
        b"\x01\x80\xc2\x00\x00\x01" + bytes(54),
    ]
    send(world, one, *bad)
    assert take(hub) == [[]]
    assert not world.seen
    assert switch(one).state(world.now).dropped == {Drop.MALFORMED: len(bad)}
    for piece in bad[1:]:
        switch(hub).receive(hub.peer(one), PLAIN + piece, world.now)
    header = VNET_HEADER.pack(NEEDS_CSUM, 0, 0, 0, 34, 6)
    switch(hub).receive(hub.peer(one), header + frame(1, BROADCAST), world.now)
    world.settle()
    assert take(hub) == [[]]
    assert switch(hub).state(world.now).dropped == {Drop.MALFORMED: len(bad)}


@pytest.mark.parametrize("mtu_bytes", [1500, 9000, 65521])
def test_what_is_too_long_is_dropped(mtu_bytes: int) -> None:
    world, hub, (one,) = star(1)
    hub.device.mtu_bytes = one.device.mtu_bytes = mtu_bytes
    most = min(mtu_bytes + 14 + 8, MAX_FRAME_BYTES)
    longest = frame(1, BROADCAST).ljust(most, b"\0")
    send(world, one, longest)
    assert take(hub) == [[longest]]
    assert all(len(flight.data) <= 65507 for flight in world.seen), "a datagram takes no more"
    send(world, one, longest + b"\0")
    switch(hub).receive(hub.peer(one), PLAIN + longest + b"\0", world.now)
    world.settle()
    assert take(hub) == [[]]
    for host in (one, hub):
        assert switch(host).state(world.now).dropped == {Drop.OVERSIZED: 1}


def test_isolated_peers_reach_our_own_side_alone() -> None:
    world, hub, (one, two) = star(2)
    configure(world, hub, client_isolation=True)
    send(world, two, frame(2, BROADCAST))
    take(hub, one, two)
    sent = [frame(1, BROADCAST), frame(1, 2), frame(1, 7)]
    send(world, one, *sent)
    assert take(hub, one, two) == [sent, [], []]
    send(world, hub, answer := frame(9, 1))
    send(world, hub, news := frame(9, BROADCAST))
    assert take(hub, one, two) == [[], [answer, news], [news]]
    configure(world, hub, client_isolation=False)
    send(world, one, frame(1, 2))
    assert len(take(two)[0]) == 1


def test_a_peer_that_takes_the_gateways_address_gets_nothing_of_it() -> None:
    """Not as long as the gateway speaks; and with isolation, not even the others' frames for it."""
    world, hub, (one, two) = star(2)
    configure(world, hub, client_isolation=True)
    send(world, hub, frame(9, BROADCAST))
    world.advance(1)
    lie(world, hub, two, frame(9, BROADCAST))
    assert switch(hub).state(world.now).dropped == {Drop.MOVED: 1}
    world.advance(QUIET_S)
    lie(world, hub, two, frame(9, BROADCAST))
    assert addresses(world, hub, two) == 1, "nobody else claims it"
    take(hub, one, two)
    send(world, one, for_gateway := frame(1, 9))
    assert take(hub, one, two) == [[for_gateway], [], []]
    send(world, hub, answer := frame(9, 1))
    assert take(one) == [[answer]]
    assert addresses(world, hub, two) == 0


def test_a_frame_that_comes_back_is_dropped() -> None:
    """Somebody has connected two peers' networks with each other: what one sends comes back by the other."""
    world, hub, (one, two) = star(2)
    back = frame(1, BROADCAST)
    for _ in range(50):
        world.now += 0.01
        send(world, one, back)
        (copies,) = take(two)
        send(world, two, *copies)
    assert len(take(hub)[0]) == 50
    assert take(one)[0] == []
    # It does not even leave the side that it came back to: there it is at home behind the hub.
    assert switch(two).state(world.now).dropped == {Drop.MOVED: 50}
    assert switch(hub).state(world.now).dropped == {}
    for _ in range(50):
        world.now += 0.01
        send(world, one, back)
        lie(world, hub, two, back)
    assert switch(hub).state(world.now).dropped == {Drop.MOVED: 50}
    assert take(one)[0] == []


def test_a_station_may_move() -> None:
    world, hub, (one, two) = star(2)
    send(world, one, frame(1, BROADCAST))
    world.advance(PAUSE_S)
    send(world, one, frame(1, BROADCAST))
    send(world, two, frame(1, BROADCAST))
    take(hub, one, two)
    send(world, hub, found := frame(9, 1))
    assert take(one, two) == [[], [found]]


def test_a_storm_of_one_peer_is_limited_and_the_others_are_heard() -> None:
    world, hub, (one, two, three) = star(3)
    configure(world, hub, storm_limit_per_s=100)
    send(world, three, frame(3, BROADCAST))
    send(world, hub, frame(9, BROADCAST))
    take(hub, one, two, three)
    world.now += 1
    for number in range(50):
        send(world, one, *(frame(1, BROADCAST, bytes((number, copy))) for copy in range(10)))
    assert len(take(hub)[0]) == 100
    assert len(take(two)[0]) == 100
    send(world, one, *(known := [frame(1, 9), frame(1, 3)]))
    assert [take(hub)[0], take(three)[0][-1:]] == [known[:1], known[1:]], "what is for one is not held up"
    send(world, two, question := frame(2, BROADCAST))
    assert take(hub)[0] == [question]
    assert switch(hub).state(world.now).dropped[Drop.STORM] >= 400
    world.now += 1
    send(world, one, later := frame(1, BROADCAST))
    assert take(hub, two) == [[later], [later]]


def test_a_storm_on_our_own_side_is_limited_for_every_peer() -> None:
    world, hub, (one, two) = star(2)
    configure(world, hub, storm_limit_per_s=50)
    send(world, hub, *(frame(9, 1000 + number) for number in range(200)))
    assert [len(got) for got in take(one, two)] == [50, 50]
    configure(world, hub, storm_limit_per_s=0)
    send(world, hub, *(frame(9, 1000 + number) for number in range(200)))
    assert [len(got) for got in take(one, two)] == [200, 200]


def test_a_peer_gets_no_more_of_all_the_others_storms_than_of_one() -> None:
    world, hub, spokes = star(4)
    configure(world, hub, storm_limit_per_s=50)
    for number, one in enumerate(spokes[1:], 1):
        send(world, one, *(frame(number, BROADCAST) for _ in range(100)))
    assert len(take(hub)[0]) == 150
    assert len(take(spokes[0])[0]) == 50


def test_a_crowd_of_addresses_is_not_learnt() -> None:
    world, hub, (one, two) = star(2)
    configure(world, hub, mac_limit=10, storm_limit_per_s=0)
    send(world, one, *(frame(number, BROADCAST) for number in range(100)))
    assert addresses(world, hub, one) == 10
    assert len(take(hub)[0]) == 100, "they are heard all the same"
    state = switch(hub).state(world.now)
    assert (state.addresses, state.unlearnt) == (10, 90)
    send(world, two, frame(200, BROADCAST))
    assert addresses(world, hub, two) == 1


# --- Peers --------------------------------------------------------------------------------------------------


def test_a_peer_that_is_nowhere_is_left_out() -> None:
    world, hub, (one, two) = star(2)
    send(world, two, frame(2, BROADCAST))
    take(hub, one)
    hub.peer(two).endpoint = None
    send(world, hub, frame(9, BROADCAST), frame(9, 2))
    assert len(take(one)[0]) == 1
    (entry,) = hub.device.rejections()
    assert (entry.reason, entry.public_key) == (Reason.NO_ENDPOINT, two.public_key)


def test_frames_wait_for_a_session() -> None:
    world = World(layer=2)
    one, two = world.pair()
    sent = [frame(1, BROADCAST, bytes((number,))) for number in range(5)]
    one.send(*sent)
    world.settle()
    assert take(two) == [sent]


def test_a_peer_that_is_removed_takes_its_stations_along() -> None:
    world, hub, (one, two) = star(2)
    send(world, one, frame(1, BROADCAST))
    hub.device.remove_peer(one.public_key)
    assert switch(hub).state(world.now).addresses == 0
    world.seen.clear()
    send(world, hub, frame(9, 1))
    assert {flight.target for flight in world.seen} == {two.endpoint}


def test_limits_hold() -> None:
    world, hub, (one, two) = star(2)
    send(world, one, frame(1, BROADCAST))
    send(world, two, frame(2, BROADCAST))
    take(hub, one, two)
    hub.device.warden.set(hub.peer(one), Limits(rate_bps=800_000), world.now)
    limiter = hub.peer(one).limiter
    assert limiter is not None
    send(world, hub, *(frame(9, 1, bytes(1400)) for _ in range(100)))
    passed = len(take(one)[0])
    assert 40 < passed < 50, "65,536 bytes at once"
    assert limiter.dropped == 100 - passed
    send(world, one, *(frame(1, 9, bytes(1400)) for _ in range(100)))
    assert 40 < len(take(hub)[0]) < 50
    send(world, two, *(frame(2, 9, bytes(1400)) for _ in range(100)))
    assert len(take(hub)[0]) == 100


def test_a_quota_ends_it() -> None:
    world, hub, (one, two) = star(2)
    send(world, one, frame(1, BROADCAST))
    take(hub, one, two)
    hub.device.warden.set(hub.peer(one), Limits(quota_bytes=20_000), world.now)
    send(world, hub, *(frame(9, 1, bytes(1400)) for _ in range(30)))
    for _ in range(20):
        send(world, hub, frame(9, 1, bytes(1400)), frame(9, BROADCAST))
    assert hub.peer(one).barred
    take(one, two)
    send(world, hub, frame(9, 1), news := frame(9, BROADCAST))
    assert take(one, two) == [[], [news]]
    assert hub.device.rejections()[0].reason is Reason.QUOTA


def succession() -> tuple[World, Host, Host, Host, Host]:
    """A hub with a peer, its successor (which has no session so far), and another."""
    world, hub, (old, other) = star(2)
    new = world.host()
    world.introduce(hub, new)
    hub.device.succession.link(hub.peer(new), hub.peer(old), world.now)
    return world, hub, old, new, other


def test_a_successor_takes_its_predecessors_stations() -> None:
    world, hub, old, new, other = succession()
    send(world, old, frame(1, BROADCAST))
    send(world, other, frame(5, BROADCAST))
    take(hub, old, new, other)
    new.peer(hub).initiate(world.now)
    world.settle()
    send(world, hub, found := frame(9, 1), news := frame(9, BROADCAST))
    assert take(old, new, other) == [[], [found, news], [news]], "the two are one port"
    send(world, new, frame(1, 5))
    assert len(take(other)[0]) == 1, "and its stations are not strangers there"
    hub.device.remove_peer(old.public_key)
    world.seen.clear()
    send(world, hub, again := frame(9, 1))
    assert take(old, new, other) == [[], [again], []]
    assert {flight.target for flight in world.seen} == {new.endpoint}, "it is still known where"


def test_what_was_a_peer_of_its_own_is_one_port_with_its_predecessor() -> None:
    world, hub, (old, new, other) = star(3)
    send(world, new, frame(1, BROADCAST))
    hub.device.succession.link(hub.peer(new), hub.peer(old), world.now)
    assert addresses(world, hub, old) == 1
    take(hub, old, new, other)
    send(world, hub, found := frame(9, 1))
    assert take(new) == [[found]]


def test_a_successor_hears_nothing_twice() -> None:
    world, hub, old, new, other = succession()
    send(world, other, news := frame(5, BROADCAST))
    assert sorted(map(len, take(old, new))) == [0, 1]
    assert take(hub) == [[news]]
    send(world, old, frame(1, BROADCAST))
    assert take(old, new)[0] == []


# --- From one process to another ----------------------------------------------------------------------------


def test_the_table_is_handed_on() -> None:
    world, hub, (one, two) = star(2)
    send(world, one, frame(1, BROADCAST), frame(2, BROADCAST, vlan=9))
    world.now += 1
    send(world, hub, frame(9, BROADCAST))
    take(one, two)
    configure(world, hub, client_isolation=True, storm_limit_per_s=7, mac_limit=9, mac_ageing_s=99)
    values = json.loads(json.dumps(switch(hub).export()))
    after = Layer2(hub.device._context, hub.device._peers)
    after.restore(values, world.now)
    assert (after.settings, after.export()) == (switch(hub).settings, values)
    hub.device._context.layer2 = after
    send(world, hub, found := frame(9, 1))
    assert take(one, two) == [[found], []]


@pytest.mark.parametrize(
    "entry",
    [
        [],
        ["020000000001", "", 0.0, 1],
        ["0200000001", "", 0.0],
        ["020000000001", "00", 0.0],
        ["020000000001", "ff" * 32, 0.0],
        ["020000000001", "", 1e12],
        ["020000000001", "", True],
        [7, "", 0.0],
    ],
    ids=str,
)
def test_a_table_that_makes_no_sense_is_refused(entry: list[object]) -> None:
    world, hub, _ = star(1)
    with pytest.raises(ValueError, match=r"is|was|belongs"):
        switch(hub).restore(switch(hub).export() | {"macs": [entry]}, world.now)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"client_isolation": 1},
        {"storm_limit_per_s": -1},
        {"mac_limit": 0},
        {"mac_ageing_s": 1},
        {"macs": {}},
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, object]) -> None:
    world, hub, _ = star(1)
    with pytest.raises(ValueError, match=r"is not|is neither"):
        switch(hub).restore(switch(hub).export() | values if values else {}, world.now)


def test_whose_frame_it_is_for_captures() -> None:
    world, hub, (one, _) = star(2)
    send(world, one, frame(1, BROADCAST))
    owner = switch(hub).owner
    assert owner(frame(9, 1), True) == owner(frame(1, 9), False) == one.public_key
    assert owner(frame(1, 9), True) is owner(frame(7, 8), False) is owner(b"short", True) is None
    assert udp_packet("10.87.0.1", "10.87.0.2", b"") in frame(1, 2)
