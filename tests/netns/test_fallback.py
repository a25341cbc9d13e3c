# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A client with a list of endpoints, and a firewall that closes and opens while it is at work.

client  eth0 198.51.100.2 ──── firewall: UDP or not ──── eth0 198.51.100.1  server: UDP 51820, TLS 443
        cvt0 10.86.0.2    ═══════ WireGuard over ═══════ cvt0 10.86.0.1
                                  UDP, or in TLS
"""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from culvert.show import query

from tests.netns.endpoints import PORT, Culvert
from tests.netns.lab import Host, Lab, eventually
from tests.netns.topology import OUTER, Tunnel, direct_hosts, make_tunnel
from tests.netns.transfer import Transfer

TLS_PORT = 443
SERVER = OUTER[4][0]
INNER = Tunnel.server_addresses[4]
# What the acceptance of a start without UDP is.
START_S = 10.0


class Site:
    """A tunnel that is not started yet."""

    def __init__(self, lab: Lab) -> None:
        self.client, self.server = direct_hosts(lab)
        self.tunnel = make_tunnel(("relay", "relay"), self.client, self.server, SERVER)
        one, two = self.tunnel.client, self.tunnel.server
        assert isinstance(one, Culvert)
        assert isinstance(two, Culvert)
        self.one, self.two = one, two
        folder = self.server.directory / "tls"
        pin = json.loads(two.culvert("certificate", "--directory", str(folder)))["pin"]
        two.settings.more = [
            f"ListenTLS = {TLS_PORT}",
            f"TLSCertificateFile = {folder}/certificate.pem",
            f"TLSPrivateKeyFile = {folder}/key.pem",
        ]
        peer = one.settings.peers[0]
        peer.endpoint = f"udp://{SERVER}:{PORT}, tls://{SERVER}:{TLS_PORT}"
        peer.more = [f"TLSPin = {pin}"]

    def close_udp(self) -> None:
        for host in (self.client, self.server):
            host.iptables("-A INPUT -p udp -j DROP")

    def open_udp(self) -> None:
        for host in (self.client, self.server):
            host.iptables("-D INPUT -p udp -j DROP")

    @property
    def way(self) -> dict[str, Any]:
        """What the client says of its way to the server."""
        (peer,) = query(self.one.device, str(self.one.socket.parent))["peers"]
        found: dict[str, Any] = peer["way"]
        return found

    def await_way(self, transport: str, within_s: float) -> None:
        eventually(lambda: self.way["transport"] == transport, within_s, f"over {transport}, not {self.way}")


@pytest.fixture
def site(lab: Lab) -> Site:
    return Site(lab)


def kill(host: Host) -> None:
    """Reset the connections of the TLS port, from outside."""
    assert "ESTAB" in host.run(["ss", "-tnH", "sport", "=", f":{TLS_PORT}"]).stdout
    host.run(["ss", "-K", "-tn", "sport", "=", f":{TLS_PORT}"])


def test_without_udp_from_the_start_and_with_connections_that_are_killed(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.close_udp()
    began_s = time.monotonic()
    site.tunnel.start()
    # One echo request: it waits for the session, and is answered.
    assert site.client.ping(INNER, 1, wait_s=START_S).received == 1
    with capsys.disabled():
        print(f"\nfirst answer over TLS {time.monotonic() - began_s:.1f} s after the start")
    way = site.way
    assert (way["transport"], way["state"]) == ("tls", "fallback")
    assert way["probing"] == f"{SERVER}:{PORT}"
    assert f"transport: tls, probing {SERVER}:{PORT} in" in site.one.culvert("show", site.one.device)
    # Its handshakes are five seconds apart; a session that is there needs none.
    for _ in range(2):
        kill(site.server)
        # Nothing is sent by the client itself: the server has something for it, and reaches it.
        eventually(
            lambda: site.server.ping(Tunnel.client_addresses[4], 1, wait_s=0.5).received, 10, "back at once"
        )
    assert site.way["transport"] == "tls"


def test_a_transfer_moves_from_udp_to_tls_and_back(site: Site) -> None:
    site.tunnel.start()
    assert site.client.ping(INNER, 1).received == 1
    assert site.way["transport"] == "udp"
    flow = Transfer(site.client, site.server, INNER, 9_000_000, rate_bytes_s=4e5)
    back = Transfer(site.server, site.client, Tunnel.client_addresses[4], 9_000_000, rate_bytes_s=4e5)
    time.sleep(1.0)
    site.close_udp()
    site.await_way("tls", 12)
    time.sleep(1.0)
    kill(site.server)
    site.open_udp()
    site.await_way("udp", 20)
    assert flow.running
    assert back.running
    # One connection each, from the beginning to the end, and every byte.
    flow.finish()
    back.finish()
    assert site.way["state"] == "preferred"
    assert site.one.process is not None
    moves = [line for line in site.one.process.output().splitlines() if "no longer over" in line]
    assert len(moves) == 2, moves
