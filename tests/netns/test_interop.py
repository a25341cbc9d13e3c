# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The relay and Debian's wireguard-go understand each other: the proof that the cryptography is right.

                                            one cable
    ┌───────────────────────┐   198.51.100.0/24, 2001:db8:1::/64   ┌───────────────────────┐
    │ client   (initiator)  │ eth0 ──────────────────────── eth0   │ server   (responder)  │
    │ eth0  .2              │                                      │ eth0  .1              │
    │ cvt0  10.86.0.2/24    │ cvt0 ═════════ WireGuard ═════ cvt0  │ cvt0  10.86.0.1/24    │
    │       fd86:…::2/64    │                UDP 51820             │       fd86:…::1/64    │
    └───────────────────────┘                                      └───────────────────────┘

Only the client knows where its peer is, so it is the one that initiates. Every combination of
implementations, outer family, inner family and pre-shared key is pinged and moves 1 MB each way; a covering
subset moves 100 MB each way.

The relay comes in four kinds, both batch implementations with and without the kernel's offloads, and each
kind meets wireguard-go (which does not coalesce) in both roles in every combination. Two relays would make
sixteen pairs of kinds: each of the eight other combinations has four of them, and the next one another four.
So every kind is met in both roles in every combination, and every pair of kinds over both outer families.
"""

from __future__ import annotations

import itertools
import os
import time

import pytest
from culvert.offloads import OFFLOADS
from culvert.show import query

from tests.netns.endpoints import DEVICE, RELAY_KINDS, Culvert, Endpoint
from tests.netns.lab import Lab, unanswered
from tests.netns.topology import OUTER, PAIRS, bracketed, direct_hosts, make_tunnel
from tests.netns.transfer import MEGABYTE, transfer

FAMILIES = (4, 6)
RELAYS = tuple(kind.kind for kind in RELAY_KINDS)
ROWS = tuple(
    itertools.product(FAMILIES, FAMILIES, (False, True))
)  # outer family, inner family, pre-shared key
Combination = tuple[tuple[str, str], int, int, bool]


def kinds_of(pair: tuple[str, str], number: int) -> list[tuple[str, str]]:
    """The kinds of endpoints that stand for a pair in row ``number``."""
    client, server = pair
    if pair == ("relay", "relay"):
        return [(kind, RELAYS[(index + number) % 4]) for index, kind in enumerate(RELAYS)]
    clients = RELAYS if client == "relay" else (client,)
    return list(itertools.product(clients, RELAYS if server == "relay" else (server,)))


ALL: list[Combination] = [
    (kinds, *row) for pair in PAIRS for number, row in enumerate(ROWS) for kinds in kinds_of(pair, number)
]


def is_big(combination: Combination) -> bool:
    """Whether to move 100 MB. Of the relays' kinds, neighbours in the list differ in batch and offloads: two
    relays are such neighbours. They take the outer family which the client has not had with wireguard-go.
    """
    (client, server), outer, inner, preshared = combination
    inside = 2 * FAMILIES.index(inner) + preshared
    if client in RELAYS and server in RELAYS:
        place = RELAYS.index(client)
        return RELAYS.index(server) == place ^ 1 and outer == FAMILIES[place < 2]
    if client in RELAYS or server in RELAYS:
        place = RELAYS.index(client if client in RELAYS else server)
        return outer == FAMILIES[place >= 2] and inside == (place + 2 * (server in RELAYS)) % 4
    return inside == FAMILIES.index(outer)


def _named(combination: Combination) -> object:
    pair, outer, inner, preshared = combination
    size = 100 * MEGABYTE if is_big(combination) else MEGABYTE
    words = ["-to-".join(pair), f"ipv{inner}-over-ipv{outer}", "psk" if preshared else "nopsk"]
    return pytest.param(*combination, size, id="-".join([*words, f"{size // MEGABYTE}MB"]))


@pytest.mark.skipif("NETNS_PAIRS" in os.environ, reason="other pairs")
def test_the_matrix_is_covered() -> None:
    """What the choice of pairs of relays leaves out must not be more than it says."""
    everything = {(kind, role, *row) for kind in RELAYS for role in (0, 1) for row in ROWS}
    for relay_pair in (False, True):
        met = {
            (kinds[role], role, *row)
            for kinds, *row in ALL
            for role in (0, 1)
            if kinds[role] in RELAYS and ("go" not in kinds) == relay_pair
        }
        assert met == everything
    outer_of_pairs = {(kinds, outer) for kinds, outer, _, _ in ALL if "go" not in kinds}
    assert outer_of_pairs == set(itertools.product(itertools.product(RELAYS, RELAYS), FAMILIES))
    big = [combination for combination in ALL if is_big(combination)]
    assert len(big) == 12
    assert {tuple(row) for _, *row in big} == set(ROWS)
    roles = {(kinds[role], role, outer) for kinds, outer, _, _ in big for role in (0, 1)}
    assert roles >= set(itertools.product(RELAYS, (0, 1), FAMILIES))


def assert_in_effect(end: Endpoint) -> None:
    """The relay moves packets as its kind says, to the end: nothing has been switched off on the way."""
    if end.kind in RELAYS:
        device = query(DEVICE, str(end.socket.parent))
        batch, _, plain = end.kind.partition("-")
        assert device["batch"] == batch
        assert device["offloads"] == ([] if plain else list(OFFLOADS))
        assert isinstance(end, Culvert)
        assert end.process
        assert "WARNING" not in end.process.output()


@pytest.mark.parametrize(
    ("pair", "outer", "inner", "preshared", "size"), [_named(combination) for combination in ALL]
)
def test_ping_and_transfer(
    lab: Lab, pair: tuple[str, str], outer: int, inner: int, preshared: bool, size: int
) -> None:
    client, server = direct_hosts(lab)
    server_outer, client_outer = OUTER[outer]
    before_s = int(time.time())
    tunnel = make_tunnel(pair, client, server, bracketed(server_outer), preshared=preshared).start()
    server_inner, client_inner = tunnel.server_addresses[inner], tunnel.client_addresses[inner]

    for host, address in ((client, server_inner), (server, client_inner)):
        # With -w it waits for late replies and sends more meanwhile; without, for the last one a millisecond.
        pings = host.ping(address, options=["-w", "3"])
        assert pings.received >= 3, pings.output
        assert unanswered(pings.output) == [], pings.output

    assert tunnel.client.handshake_s(tunnel.server_key.public) >= before_s
    assert tunnel.server.endpoint_of(tunnel.client_key.public) == f"{bracketed(client_outer)}:51820"
    transfer(client, server, server_inner, size, seed=1)
    transfer(server, client, client_inner, size, seed=2)
    for end in (tunnel.client, tunnel.server):
        assert_in_effect(end)


@pytest.mark.parametrize("pair", PAIRS, ids="-to-".join)
def test_a_wrong_preshared_key_gives_no_session(lab: Lab, pair: tuple[str, str]) -> None:
    """Without this, the tests above could pass with a pre-shared key that nobody mixes in."""
    client, server = direct_hosts(lab)
    tunnel = make_tunnel(pair, client, server, OUTER[4][0], preshared=True)
    tunnel.server.settings.peers[0].preshared_key = ""
    tunnel.start()
    assert client.ping(tunnel.server_addresses[4], count=2, wait_s=1).received == 0
    assert tunnel.client.handshake_s(tunnel.server_key.public) == 0
