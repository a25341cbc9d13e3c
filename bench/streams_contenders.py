# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The contenders of ``make bench-streams``: our relay by each transport, and the plain TCP listener."""

from __future__ import annotations

import json
import sys
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from bench.topology import (
    INTERNET_NETWORK,
    MTU_BYTES,
    SERVER,
    TUNNEL_CLIENT,
    TUNNEL_NETWORK,
    TUNNEL_SERVER,
    Contender,
    await_ready,
)
from bench.wireguard import CompiledRelay
from tests.netns.endpoints import REPOSITORY, Culvert, Endpoint, Peer, Settings
from tests.netns.lab import Host, Process

STREAM_PORT, LISTENER_PORT = 443, 4433
LISTENER_DEVICE = "plain0"


class UdpRelay(CompiledRelay):
    name = "udp"
    title = "culvert over UDP"


class StreamRelay(CompiledRelay):
    """One that the client calls over a stream, and the server listens for it there."""

    scheme: ClassVar[str]
    frame_messages: ClassVar[bool] = True

    def endpoint(self, host: Host, settings: Settings, address: str) -> Endpoint:
        of_ours = ["FrameMessages = on"] if self.frame_messages else []
        if host is self.hosts.server:
            settings.more = self._listener()
            # The others that the server knows never call.
            settings.peers[0].more = of_ours
        else:
            self._call(settings.peers[0], of_ours)
        return super().endpoint(host, settings, address)

    def _listener(self) -> list[str]:
        return [f"ListenTCP = {STREAM_PORT}"]

    def _call(self, peer: Peer, of_ours: list[str]) -> None:
        peer.endpoint, peer.more = f"{self.scheme}://{SERVER}:{STREAM_PORT}", of_ours


class TcpRelay(StreamRelay):
    name = "tcp"
    title = "culvert over TCP"
    scheme = "tcp"


class TcpRelayWithoutFrames(TcpRelay):
    """As with a peer that is not told of frame messages: packet by packet, in ordinary data messages."""

    name = "tcp-plain"
    title = "culvert over TCP, no frame messages"
    frame_messages = False


class TlsRelay(StreamRelay):
    name = "tls"
    title = "culvert over TLS"
    scheme = "tls"

    @cached_property
    def _certificate(self) -> tuple[Path, str]:
        """The folder of a new key and certificate, and their pin."""
        directory = self.hosts.server.directory / "tls"
        maker = Culvert(self.hosts.server, Settings(""), [])
        made = json.loads(maker.culvert("certificate", "--directory", str(directory)))
        return directory, made["pin"]

    def _listener(self) -> list[str]:
        folder, _pin = self._certificate
        return [
            f"ListenTLS = {STREAM_PORT}",
            f"TLSCertificateFile = {folder / 'certificate.pem'}",
            f"TLSPrivateKeyFile = {folder / 'key.pem'}",
        ]

    def _call(self, peer: Peer, of_ours: list[str]) -> None:
        super()._call(peer, [*of_ours, f"TLSPin = {self._certificate[1]}"])


class PlainListener(Contender):
    """:mod:`bench.packet_listener`: what a first attempt at this looks like, and takes."""

    name = "listener"
    title = "plain TCP listener, not encrypted"

    def _run(self, host: Host, way: str, address: str) -> Process:
        argv = [
            sys.executable,
            "-m",
            "bench.packet_listener",
            LISTENER_DEVICE,
            way,
            SERVER,
            str(LISTENER_PORT),
        ]
        host.ip("tuntap", "add", "dev", LISTENER_DEVICE, "mode", "tun")
        host.ip("link", "set", LISTENER_DEVICE, "mtu", str(MTU_BYTES))
        host.add_address(LISTENER_DEVICE, f"{address}/{TUNNEL_NETWORK.partition('/')[2]}")
        host.ip("link", "set", LISTENER_DEVICE, "up")
        process = host.spawn(argv, "listener", {"PYTHONPATH": str(REPOSITORY)})
        await_ready(process, "ready")
        return process

    def start_server(self) -> None:
        self.server_process = self._run(self.hosts.server, "listen", TUNNEL_SERVER)

    def start_client(self) -> None:
        self.client_process = self._run(self.hosts.client, "call", TUNNEL_CLIENT)
        self.hosts.client.ip("route", "add", INTERNET_NETWORK, "dev", LISTENER_DEVICE)
