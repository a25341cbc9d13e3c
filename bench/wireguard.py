# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The contenders that speak WireGuard: our relay with each of its batch implementations, and wireguard-go."""

from __future__ import annotations

import abc
from functools import cached_property
from typing import ClassVar

from bench.topology import (
    INTERNET_NETWORK,
    MTU_BYTES,
    SERVER,
    TUNNEL_CLIENT,
    TUNNEL_NETWORK,
    TUNNEL_SERVER,
    Contender,
)
from tests.netns.endpoints import PORT, Culvert, Endpoint, Key, Peer, Settings, WireGuardGo
from tests.netns.lab import Host


class WireGuard(Contender):
    """Two endpoints of one kind; the server knows more peers than the one that calls."""

    @abc.abstractmethod
    def endpoint(self, host: Host, settings: Settings, address: str) -> Endpoint: ...

    @cached_property
    def keys(self) -> tuple[Key, Key]:
        return Key(), Key()

    def start_server(self) -> None:
        client, server = self.keys
        peers = [Peer(client.public, [f"{TUNNEL_CLIENT}/32"])]
        # They never call, and none of the traffic is theirs.
        for number in range(1, self.options.wireguard_peers):
            peers.append(Peer(Key().public, [f"10.{number >> 8}.{number & 255}.0/24"]))
        end = self.endpoint(self.hosts.server, Settings(server.private, peers=peers), f"{TUNNEL_SERVER}/25")
        end.start()
        self.server_process = end.process

    def start_client(self) -> None:
        client, server = self.keys
        peer = Peer(server.public, [TUNNEL_NETWORK, INTERNET_NETWORK], f"{SERVER}:{PORT}")
        end = self.endpoint(self.hosts.client, Settings(client.private, peers=[peer]), f"{TUNNEL_CLIENT}/25")
        end.start()
        self.client_process = end.process
        self.hosts.client.ip("route", "add", INTERNET_NETWORK, "dev", end.device)


class Relay(WireGuard):
    """Our relay."""

    batch: ClassVar[str]

    def endpoint(self, host: Host, settings: Settings, address: str) -> Endpoint:
        end = Culvert(host, settings, [address], MTU_BYTES)
        usage = end.culvert("run", "--help")
        if "--batch" in usage:
            end.options += ["--batch", self.batch]
        if self.options.disable_offloads and "--disable-offloads" in usage:
            end.options += ["--disable-offloads", self.options.disable_offloads]
        return end


class CompiledRelay(Relay):
    name = "compiled"
    title = "culvert, compiled batch"
    batch = "compiled"
    packets_guess = 100_000.0


class PythonRelay(Relay):
    name = "python"
    title = "culvert, Python batch"
    batch = "python"


class DebianWireGuardGo(WireGuard):
    name = "wireguard-go"
    title = "wireguard-go"
    package = "wireguard-go"
    packets_guess = 25_000.0

    def endpoint(self, host: Host, settings: Settings, address: str) -> Endpoint:
        return WireGuardGo(host, settings, [address], MTU_BYTES)
