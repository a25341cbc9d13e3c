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
"""

from __future__ import annotations

import itertools
import time

import pytest

from tests.netns.lab import Lab
from tests.netns.topology import OUTER, PAIRS, bracketed, direct_hosts, make_tunnel
from tests.netns.transfer import MEGABYTE, transfer

FAMILIES = (4, 6)
# 100 MB: every pair over every outer family once; inner family and pre-shared key alternate over them.
INSIDE = ((4, False), (6, True), (6, False), (4, True))
BIG = {
    (*pair, outer, *INSIDE[number % len(INSIDE)])
    for number, (pair, outer) in enumerate(itertools.product(PAIRS, FAMILIES))
}


def _combinations() -> list[object]:
    combinations: list[object] = []
    for pair, outer, inner, preshared in itertools.product(PAIRS, FAMILIES, FAMILIES, (False, True)):
        size = 100 * MEGABYTE if (*pair, outer, inner, preshared) in BIG else MEGABYTE
        words = ["-to-".join(pair), f"ipv{inner}-over-ipv{outer}", "psk" if preshared else "nopsk"]
        name = "-".join([*words, f"{size // MEGABYTE}MB"])
        combinations.append(pytest.param(pair, outer, inner, preshared, size, id=name))
    return combinations


def test_the_big_transfers_cover_every_axis() -> None:
    assert {entry[:3] for entry in BIG} == {(*pair, outer) for pair in PAIRS for outer in FAMILIES}
    assert {entry[3:] for entry in BIG} == set(INSIDE) == set(itertools.product(FAMILIES, (False, True)))


@pytest.mark.parametrize(("pair", "outer", "inner", "preshared", "size"), _combinations())
def test_ping_and_transfer(
    lab: Lab, pair: tuple[str, str], outer: int, inner: int, preshared: bool, size: int
) -> None:
    client, server = direct_hosts(lab)
    server_outer, client_outer = OUTER[outer]
    before_s = int(time.time())
    tunnel = make_tunnel(pair, client, server, bracketed(server_outer), preshared=preshared).start()
    server_inner, client_inner = tunnel.server_addresses[inner], tunnel.client_addresses[inner]

    pings = client.ping(server_inner)
    assert pings.received == pings.sent == 3, pings.output
    pings = server.ping(client_inner)
    assert pings.received == pings.sent == 3, pings.output

    assert tunnel.client.handshake_s(tunnel.server_key.public) >= before_s
    assert tunnel.server.endpoint_of(tunnel.client_key.public) == f"{bracketed(client_outer)}:51820"
    transfer(client, server, server_inner, size, seed=1)
    transfer(server, client, client_inner, size, seed=2)


@pytest.mark.parametrize("pair", PAIRS, ids="-to-".join)
def test_a_wrong_preshared_key_gives_no_session(lab: Lab, pair: tuple[str, str]) -> None:
    """Without this, the tests above could pass with a pre-shared key that nobody mixes in."""
    client, server = direct_hosts(lab)
    tunnel = make_tunnel(pair, client, server, OUTER[4][0], preshared=True)
    tunnel.server.settings.peers[0].preshared_key = ""
    tunnel.start()
    assert client.ping(tunnel.server_addresses[4], count=2, wait_s=1).received == 0
    assert tunnel.client.handshake_s(tunnel.server_key.public) == 0
