# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bad input on a port that anybody can reach, while a peer's packets go on.

    client    eth0 198.51.100.2 ─────────────── eth0 198.51.100.1  server: listens on TCP 8443,
              cvt0 10.86.0.2    ══ TCP tunnel ═ cvt0 10.86.0.1         TLS 443
    attacker  eth0 203.0.113.10 … .49 ───────── eth1 203.0.113.1

What it costs is printed: ``pytest -s``.
"""

from __future__ import annotations

import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.netns.endpoints import Culvert
from tests.netns.handover import Pings
from tests.netns.lab import Host, Lab
from tests.netns.streams import STREAM_PORT, await_streams, memory_bytes, stream_tunnel, streams_of
from tests.netns.topology import direct_hosts

ABUSER = Path(__file__).with_name("abuse_peer.py")
TARGET = "203.0.113.1"
SOURCES = [f"203.0.113.{number}" for number in range(10, 50)]
SECONDS = 1
PING_S = 0.01
# What strangers may cost: connections of 1,024 of them, 1 MiB of what they sent, and what Python needs more.
MAX_MEMORY_BYTES = 24 << 20
MAX_STRANGERS = 1024
# Half a TLS handshake takes 45 KiB of OpenSSL's.
MAX_TLS_MEMORY_BYTES = 72 << 20
TLS_PORT = 443
# On a machine that does other things too.
MAX_GAP_S = 0.5


@dataclass(frozen=True)
class Kind:
    """A kind of abuse."""

    name: str
    "A method of ``abuse_peer.Attack``."
    refused: int = 1
    "So many strangers at least are hung up on while it goes on."
    strangers: int = 0
    "So many at least are there at one time."
    made: int = 100
    "So many connections at least it makes."
    port: int = STREAM_PORT


KINDS = (
    Kind("garbage", 20, 0, 20),
    Kind("oversized", 20, 0, 20),
    Kind("long_frames", 0, 1, 1),
    Kind("half_frames", 100, 60),
    Kind("forged", 0, 1, 1),
    Kind("slowloris", 0, 150),
    Kind("left", 0, 200),
    Kind("thousand", 100, 900),
    Kind("reset", 20, 0, 20),
    Kind("tls_garbage", 20, 0, 20, port=TLS_PORT),
    Kind("tls_half_hellos", 100, 250, port=TLS_PORT),
    Kind("tls_slow_hellos", 0, 150, port=TLS_PORT),
    Kind("tls_unknown", 20, 1, 20, port=TLS_PORT),
)


def attacked(lab: Lab) -> tuple[Culvert, Host, Pings]:
    """A server that listens, an attacker with many addresses, and a peer whose pings are answered."""
    client, server = direct_hosts(lab)
    attacker = lab.host("attacker")
    addresses = [f"{source}/24" for source in SOURCES]
    lab.link(attacker, "eth0", addresses, server, "eth1", [f"{TARGET}/24"])
    tunnel, one, two = stream_tunnel(client, server)
    folder = server.directory / "tls"
    two.culvert("certificate", "--directory", str(folder))
    files = (f"TLSCertificateFile = {folder}/certificate.pem", f"TLSPrivateKeyFile = {folder}/key.pem")
    two.settings.more = [*two.settings.more, f"ListenTLS = {TLS_PORT}", *files]
    tunnel.start()
    assert client.ping(tunnel.server_addresses[4]).received == 3
    return two, attacker, Pings.start(one.host, tunnel.server_addresses[4], PING_S)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_peer_notices_nothing(lab: Lab, kind: Kind) -> None:
    relay, attacker, pings = attacked(lab)
    before_bytes, before = memory_bytes(relay), streams_of(relay)
    words = [sys.executable, str(ABUSER), kind.name, TARGET, str(kind.port), str(SECONDS), *SOURCES]
    abuser = attacker.spawn(["nice", *words], "abuser")
    strangers, most_bytes = 0, before_bytes
    while abuser.running:
        strangers = max(strangers, streams_of(relay)["strangers"])
        most_bytes = max(most_bytes, memory_bytes(relay))
        time.sleep(0.1)
    assert abuser.wait(1) == 0, abuser.output()
    pings.await_more()
    after = streams_of(relay)
    refused = after["refused"] - before["refused"]
    print(
        f"\n{kind.name}: {abuser.output().strip()}; {refused} refused, {strangers} strangers at one time, "
        f"{(most_bytes - before_bytes) / 2**20:.1f} MiB more; {len(pings.times())} pings answered, "
        f"{pings.lost()} lost, longest gap {1000 * pings.gap_s():.0f} ms"
    )
    [made] = re.findall(r"made (\d+)", abuser.output())
    assert int(made) >= kind.made
    assert refused >= kind.refused
    assert kind.strangers <= strangers <= MAX_STRANGERS
    assert pings.lost() == 0
    assert pings.gap_s() < MAX_GAP_S
    most_more = MAX_TLS_MEMORY_BYTES if kind.port == TLS_PORT else MAX_MEMORY_BYTES
    assert most_bytes - before_bytes < most_more
    assert after["dropped_messages"] == before["dropped_messages"]


def test_strangers_are_gone_when_their_time_is_up(lab: Lab) -> None:
    relay, attacker, pings = attacked(lab)
    words = [sys.executable, str(ABUSER), "left", TARGET, str(STREAM_PORT), "12", *SOURCES]
    abuser = attacker.spawn(["nice", *words], "abuser")
    await_streams(relay, strangers=200)
    await_streams(relay, strangers=0, connections=1)
    assert abuser.wait(30) == 0
    assert "open 0" in abuser.output(), "every one was hung up on"
    assert pings.lost() == 0
