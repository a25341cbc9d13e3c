# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A client and a server as the roles deploy them, with relays, and what they say of a packet's way.

    client ── up0 198.51.100.2/28 ── router ── eth0 203.0.113.1/24 ── server
                                        └───── eth0 198.51.100.130/28 ── outside

Each link has IPv6 as well. All of the client's traffic goes into the tunnel, and the server gives it its own
address.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from typing import Any

from tests.netns.endpoints import FWMARK, PORT, Culvert, Key, Peer, Settings
from tests.netns.fulltunnel.network import ClientHost
from tests.netns.lab import Host, Lab, LabError, eventually
from tests.role_documents import documents

DEVICE = "culvert0"
CLIENT, SERVER, OUTSIDE = "198.51.100.2", "203.0.113.1", "198.51.100.130"
SERVER6, OUTSIDE6 = "2001:db8:cb::1", "2001:db8:9::2"
IN_TUNNEL = {"client": "10.86.0.2", "server": "10.86.0.1"}
_RUN = "/usr/local/lib/culvert/run.py"


@dataclass
class Pair:
    """Made by :func:`make`, deployed and with relays that run."""

    client: ClientHost
    server: ClientHost
    router: Host
    outside: Host
    client_key: Key = field(default_factory=Key)
    server_key: Key = field(default_factory=Key)
    client_relay: Culvert | None = None
    server_relay: Culvert | None = None

    def deploy(self) -> None:
        facts = {"all_ipv6_addresses": ["2001:db8:1::2"], "default_ipv6": {}}
        peers = [{"endpoint": f"{SERVER}:{PORT}"}]
        for role, host in (("client", self.client), ("server", self.server)):
            made = documents(role, True, relay_peers=peers, ansible_facts=facts, server_resolver="none")
            for document in made.values():
                host.network(document)
        self.start_server()
        self.start_client()

    def start_server(self, client_key: str = "", allowed: tuple[str, ...] = ()) -> None:
        """:param client_key: instead of the one that the client has."""
        peer = Peer(
            client_key or self.client_key.public,
            allowed or ("10.86.0.2/32", "fd86:ea04:1115::2/128"),
        )
        settings = Settings(self.server_key.private, fwmark=FWMARK, peers=[peer])
        self.server_relay = self._start(self.server, settings)

    def start_client(
        self, server_key: str = "", allowed: tuple[str, ...] = (), env: dict[str, str] | None = None
    ) -> None:
        peer = Peer(
            server_key or self.server_key.public,
            allowed or ("0.0.0.0/0", "::/0"),
            f"{SERVER}:{PORT}",
            keepalive_s=1,
        )
        settings = Settings(self.client_key.private, fwmark=FWMARK, peers=[peer])
        self.client_relay = self._start(self.client, settings, env)

    def _start(self, host: Host, settings: Settings, env: dict[str, str] | None = None) -> Culvert:
        relay = Culvert(host, settings, [])
        relay.env = env or {}
        relay.device, relay.persistent = DEVICE, True
        relay.start()
        return relay

    def stop_client(self) -> None:
        if self.client_relay is not None:
            self.client_relay.stop()

    def stop_server(self) -> None:
        if self.server_relay is not None:
            self.server_relay.stop()

    def await_tunnel(self) -> None:
        eventually(
            lambda: self.client.ping(IN_TUNNEL["server"], 1, wait_s=2).received == 1,
            15,
            "an echo from the server's end of the tunnel",
        )

    def explain(self, host: Host, destination: str, *words: str) -> dict[str, Any]:
        """What the installed command says."""
        done = host.run(
            [sys.executable, "-IB", _RUN, "explain", destination, "--json", *words], check=False, timeout_s=60
        )
        if done.returncode not in (0, 1):
            raise LabError(f"explain: {done.stdout}{done.stderr}")
        found: dict[str, Any] = json.loads(done.stdout)
        if done.returncode != (0 if found["ok"] else 1):
            raise LabError(f"explain ended with {done.returncode}: {done.stdout}")
        return found


def make(lab: Lab) -> Pair:
    router, outside = lab.host("router"), lab.host("outside")
    client, server = (
        ClientHost(f"{router.namespace}{label[0]}", label, lab.directory / label)
        for label in ("client", "server")
    )
    lab.hosts += [client, server]
    lab.link(
        client, "up0", ["198.51.100.2/28", "2001:db8:1::2/64"], router, "to-client",
        ["198.51.100.1/28", "2001:db8:1::1/64"],
    )  # fmt: skip
    lab.link(
        server, "eth0", [f"{SERVER}/24", f"{SERVER6}/64"], router, "to-server",
        ["203.0.113.254/24", "2001:db8:cb::fe/64"],
    )  # fmt: skip
    lab.link(
        outside, "eth0", [f"{OUTSIDE}/28", f"{OUTSIDE6}/64"], router, "to-outside",
        ["198.51.100.129/28", "2001:db8:9::1/64"],
    )  # fmt: skip
    router.forward()
    for host, gateways in (
        (client, ("198.51.100.1", "2001:db8:1::1")),
        (server, ("203.0.113.254", "2001:db8:cb::fe")),
        (outside, ("198.51.100.129", "2001:db8:9::1")),
    ):
        for gateway in gateways:
            host.ip("route", "add", "default", "via", gateway)
    return Pair(client, server, router, outside)
