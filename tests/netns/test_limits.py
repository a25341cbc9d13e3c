# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Devices with limits, on a real kernel: Debian's wireguard-go is the device, and knows nothing of them.

device  eth0 198.51.100.2 ──────────────── eth0 198.51.100.1  server (relay: rate, quota, expiry)
        cvt0 10.86.0.2    ═══ WireGuard ══ cvt0 10.86.0.1
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.netns.endpoints import DEVICE, REPOSITORY, Culvert
from tests.netns.lab import Lab, eventually
from tests.netns.topology import OUTER, Tunnel, direct_hosts, make_tunnel
from tests.netns.transfer import MEGABYTE, Transfer, transfer

SERVER = OUTER[4][0]
SCHEMA = Draft202012Validator(json.loads((REPOSITORY / "docs" / "events.schema.json").read_text()))
# Of TCP through a bucket that drops, which holds 0.4 s worth when it is full.
LEAST, MOST = 0.6, 1.25


def limited(lab: Lab, kind: str, *limits: str) -> tuple[Tunnel, Culvert]:
    """A device and a server that limits it, both running."""
    tunnel = make_tunnel(("go", kind), *direct_hosts(lab), SERVER)
    server = tunnel.server
    assert isinstance(server, Culvert)
    server.settings.more = ["Events = on", f"UsageFile = {server.host.directory}/usage"]
    server.settings.peers[0].more = ["# phone"]
    limit(tunnel, limits)
    tunnel.start()
    return tunnel, server


def limit(tunnel: Tunnel, limits: Sequence[str]) -> None:
    peer = tunnel.server.settings.peers[0]
    peer.more = limits


def reload(tunnel: Tunnel, *limits: str) -> None:
    """Other limits, by the file and SIGHUP."""
    limit(tunnel, limits)
    tunnel.server.write_settings()
    process = tunnel.server.process
    assert process is not None
    before = process.output().count("configuration reloaded")
    process.send_signal(signal.SIGHUP)
    eventually(lambda: process.output().count("configuration reloaded") > before, 5, "reloaded")


def shown(server: Culvert) -> dict[str, Any]:
    """What ``culvert show`` says of the device's limits."""
    (device,) = json.loads(server.culvert("show", DEVICE, "--json"))
    (peer,) = device["peers"]
    limits: dict[str, Any] = peer["limits"]
    return limits


def told(server: Culvert) -> list[dict[str, Any]]:
    """The server's events, each of them valid."""
    process = server.process
    assert process is not None
    events = [json.loads(line) for line in process.output().splitlines() if line.startswith("{")]
    for event in events:
        SCHEMA.validate(event)
    return events


def names(server: Culvert) -> list[str]:
    return [event["event"] for event in told(server)]


def answers(tunnel: Tunnel, count: int = 1, wait_s: float = 1.0) -> bool:
    return tunnel.client.host.ping(tunnel.server_addresses[4], count, wait_s=wait_s).received > 0


def switch_off_and_on(tunnel: Tunnel) -> None:
    """The device forgets its session, as one whose owner does that; otherwise it takes it 15 s to notice."""
    tunnel.client.wg("setconf", DEVICE, str(tunnel.client.write_settings()))


def moment(seconds: float) -> str:
    """So many seconds from now, rounded up, as the configuration file has it."""
    at = datetime.now(UTC) + timedelta(seconds=seconds + 1)
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"


@pytest.mark.parametrize("kind", ["compiled", "python-plain"])
def test_rate(lab: Lab, kind: str) -> None:
    """TCP keeps to the rate and comes close to it, in both directions, with superpackets and without."""
    tunnel, server = limited(lab, kind, "RateLimit = 20M")
    device = tunnel.client.host
    for sender, receiver, address in (
        (device, server.host, tunnel.server_addresses[4]),
        (server.host, device, tunnel.client_addresses[4]),
    ):
        result = transfer(sender, receiver, address, 6 * MEGABYTE)
        rate = 8 * result.bytes / result.seconds
        assert LEAST * 20e6 < rate < MOST * 20e6, (
            f"{sender.label} to {receiver.label}: {rate / 1e6:.1f} Mbit/s"
        )
    assert shown(server)["dropped_packets"] > 0
    reload(tunnel)
    assert shown(server) is None
    result = transfer(device, server.host, tunnel.server_addresses[4], 6 * MEGABYTE)
    assert 8 * result.bytes / result.seconds > 1.5 * 20e6, "without a limit again"


def test_quota(lab: Lab) -> None:
    """At its end the session is over, a restart changes nothing, and a higher quota brings it back."""
    tunnel, server = limited(lab, "compiled", "TransferQuota = 3M", "QuotaPeriod = total")
    assert answers(tunnel)
    download = Transfer(server.host, tunnel.client.host, tunnel.client_addresses[4], 9 * MEGABYTE)
    eventually(lambda: shown(server)["barred"] == "quota", 10, "the quota is used up")
    assert download.running
    used = shown(server)["quota_used_bytes"]
    assert 3 * MEGABYTE <= used < 4 * MEGABYTE
    sent, received = server.shown("transfer")[tunnel.client_key.public].split("\t")
    assert used == int(sent) + int(received), "it is what wg shows"
    assert not answers(tunnel)
    assert names(server).count("quota_exceeded") == 1

    server.restart()
    assert not answers(tunnel, 3)
    assert shown(server)["quota_used_bytes"] >= used
    switch_off_and_on(tunnel)
    assert not answers(tunnel)
    eventually(lambda: "refused" in names(server), 20, "the device's handshake is refused", 0.2)
    (event,) = [event for event in told(server) if event["event"] == "refused"][:1]
    assert (event["reason"], event["peer"]) == ("quota", tunnel.client_key.public)
    assert server.handshake_s(tunnel.client_key.public) == 0

    reload(tunnel, "TransferQuota = 30M", "QuotaPeriod = total")
    eventually(lambda: answers(tunnel), 20, "the device is back")
    assert "readmitted" in names(server)


def test_expiry(lab: Lab) -> None:
    """A session ends in the second it has to, and handshakes are refused until the date is another."""
    expires_s = time.time() + 4
    at = moment(3)
    tunnel, server = limited(lab, "compiled", f"ExpiresAt = {at}")
    key = tunnel.client_key.public
    end_s = datetime.fromisoformat(at.replace("Z", "+00:00")).timestamp()
    assert end_s < expires_s + 1
    last_s = 0.0
    while time.time() < end_s + 1.5:
        started_s = time.time()
        if answers(tunnel, wait_s=0.2):
            last_s = started_s
    assert end_s - 1 < last_s < end_s + 0.1
    assert shown(server)["barred"] == "expired"
    assert [event["expires_at"] for event in told(server) if event["event"] == "expired"] == [at]

    before = server.handshake_s(key)
    switch_off_and_on(tunnel)
    assert not answers(tunnel)
    eventually(lambda: "refused" in names(server), 20, "the device's handshake is refused", 0.2)
    assert [event["reason"] for event in told(server) if event["event"] == "refused"] == ["expired"]
    assert server.handshake_s(key) == before

    reload(tunnel, f"ExpiresAt = {moment(3600)}")
    eventually(lambda: answers(tunnel), 20, "the device is back")
