# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The other contenders from Debian: OpenVPN, Nebula and tinc, set up as their documentation says.

Keys and certificates are made for one measurement and thrown away. What is not set is left as packaged.
"""

from __future__ import annotations

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
from tests.netns.lab import Host, Process

_CERTIFICATES = """\
[req]
distinguished_name = name
[name]
[ca]
basicConstraints = critical, CA:TRUE
keyUsage = keyCertSign
[server]
basicConstraints = critical, CA:FALSE
keyUsage = digitalSignature
extendedKeyUsage = serverAuth
[client]
basicConstraints = critical, CA:FALSE
keyUsage = digitalSignature
extendedKeyUsage = clientAuth
"""


class OpenVpn(Contender):
    """OpenVPN over UDP with certificates, AES-256-GCM, in user space (no DCO)."""

    name = "openvpn"
    title = "OpenVPN, AES-256-GCM"
    package = "openvpn"
    protocol: ClassVar[tuple[str, str]] = ("udp4", "udp4")  # of server and client

    @cached_property
    def _authority(self) -> Path:
        """A directory with the certificates and keys of authority, server and client."""
        host, directory = self.hosts.server, self.hosts.server.directory
        config = directory / "certificates.cnf"
        config.write_text(_CERTIFICATES)
        for name in ("ca", "server", "client"):
            argv = [
                "openssl",
                "req",
                "-x509",
                "-config",
                str(config),
                "-extensions",
                name,
                "-days",
                "2",
                "-nodes",
            ]
            argv += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", f"/CN={name}"]
            argv += ["-keyout", str(directory / f"{name}.key"), "-out", str(directory / f"{name}.pem")]
            if name != "ca":
                argv += ["-CA", str(directory / "ca.pem"), "-CAkey", str(directory / "ca.key")]
            host.run(argv)
        return directory

    def _run(self, host: Host, own: list[str]) -> Process:
        keys = self._authority
        lines = [
            "dev tun",
            f"proto {self.protocol[host is self.hosts.client]}",
            "port 1194",
            f"tun-mtu {MTU_BYTES}",
            "data-ciphers AES-256-GCM",
            "disable-dco",
            f"ca {keys / 'ca.pem'}",
            f"cert {keys / f'{host.label}.pem'}",
            f"key {keys / f'{host.label}.key'}",
            *own,
        ]
        config = host.directory / "openvpn.conf"
        config.write_text("\n".join([*lines, ""]))
        return host.spawn(["openvpn", "--config", str(config)], "openvpn")

    def start_server(self) -> None:
        network = f"{TUNNEL_NETWORK.partition('/')[0]} 255.255.255.128"
        self.server_process = self._run(
            self.hosts.server, [f"server {network}", "topology subnet", "dh none", "remote-cert-tls client"]
        )
        await_ready(self.server_process, "Initialization Sequence Completed")

    def start_client(self) -> None:
        route = f"route {INTERNET_NETWORK.partition('/')[0]} 255.255.255.0"
        self.client_process = self._run(
            self.hosts.client, ["client", f"remote {SERVER}", "nobind", "remote-cert-tls server", route]
        )


class OpenVpnTcp(OpenVpn):
    """The same over TCP."""

    name = "openvpn-tcp"
    title = "OpenVPN over TCP, AES-256-GCM"
    protocol = ("tcp4-server", "tcp4-client")


_NEBULA = """\
pki: {{ca: {keys}/ca.crt, cert: {keys}/{label}.crt, key: {keys}/{label}.key}}
static_host_map: {{{known}}}
lighthouse: {{am_lighthouse: {is_server}, hosts: [{lighthouses}]}}
listen: {{host: 0.0.0.0, port: 4242}}
tun: {{dev: nebula0, mtu: {mtu}, unsafe_routes: [{routes}]}}
firewall:
  outbound: [{{port: any, proto: any, host: any}}]
  inbound: [{{port: any, proto: any, host: any}}]
"""


class Nebula(Contender):
    """Nebula with its standard cipher (AES-256-GCM); the server is lighthouse and router."""

    name = "nebula"
    title = "Nebula, AES-256-GCM"
    package = "nebula"

    @cached_property
    def _authority(self) -> Path:
        host, directory = self.hosts.server, self.hosts.server.directory
        argv = ["nebula-cert", "ca", "-name", "bench"]
        host.run([*argv, "-out-crt", str(directory / "ca.crt"), "-out-key", str(directory / "ca.key")])
        for name, address in (("server", TUNNEL_SERVER), ("client", TUNNEL_CLIENT)):
            argv = ["nebula-cert", "sign", "-name", name, "-ip", f"{address}/25"]
            argv += ["-ca-crt", str(directory / "ca.crt"), "-ca-key", str(directory / "ca.key")]
            argv += ["-out-crt", str(directory / f"{name}.crt"), "-out-key", str(directory / f"{name}.key")]
            if name == "server":
                argv += ["-subnets", INTERNET_NETWORK]
            host.run(argv)
        return directory

    def _run(self, host: Host) -> Process:
        server = host is self.hosts.server
        config = host.directory / "nebula.yml"
        text = _NEBULA.format(
            keys=self._authority,
            label=host.label,
            known="" if server else f'"{TUNNEL_SERVER}": ["{SERVER}:4242"]',
            is_server=str(server).lower(),
            lighthouses="" if server else f'"{TUNNEL_SERVER}"',
            mtu=MTU_BYTES,
            routes=""
            if server
            else f'{{route: {INTERNET_NETWORK}, via: "{TUNNEL_SERVER}", mtu: {MTU_BYTES}}}',
        )
        config.write_text(text)
        return host.spawn(["nebula", "-config", str(config)], "nebula")

    def start_server(self) -> None:
        self.server_process = self._run(self.hosts.server)
        await_ready(self.server_process, "Nebula interface is active")

    def start_client(self) -> None:
        self.client_process = self._run(self.hosts.client)


class Tinc(Contender):
    """tinc 1.0 in router mode with its standard cipher and digest.

    Path MTU discovery is off: it needs ten seconds after each start, during which packets travel over TCP.
    """

    name = "tinc"
    title = "tinc 1.0"
    package = "tinc"

    def _set_up(self, host: Host, other: str, address: str, subnets: list[str], outside: str) -> Path:
        directory = host.directory / "tinc"
        (directory / "hosts").mkdir(parents=True)
        calls = f"ConnectTo = {other}" if outside == "" else ""
        (directory / "tinc.conf").write_text(
            f"Name = {host.label}\nAddressFamily = ipv4\nInterface = tinc0\n{calls}\n"
        )
        lines = [*(f"Subnet = {subnet}" for subnet in subnets), "PMTUDiscovery = no"]
        if outside:
            lines.append(f"Address = {outside}")
        (directory / "hosts" / host.label).write_text("\n".join([*lines, ""]))
        up = directory / "tinc-up"
        up.write_text(
            "#!/bin/sh\n"
            f'ip link set "$INTERFACE" mtu {MTU_BYTES} up\n'
            f'ip address add {address}/25 dev "$INTERFACE"\n'
            + ("" if outside else f'ip route add {INTERNET_NETWORK} dev "$INTERFACE"\n')
        )
        up.chmod(0o755)
        host.run(["tincd", "-c", str(directory), "-K2048"])
        return directory

    def _run(self, host: Host, directory: Path) -> Process:
        argv = ["tincd", "-c", str(directory), "-D", "--pidfile", str(directory / "pid")]
        return host.spawn(argv, "tinc")

    def start_server(self) -> None:
        client, server = self.hosts.client, self.hosts.server
        theirs = [f"{TUNNEL_SERVER}/32", INTERNET_NETWORK]
        at_server = self._set_up(server, "client", TUNNEL_SERVER, theirs, SERVER)
        at_client = self._set_up(client, "server", TUNNEL_CLIENT, [f"{TUNNEL_CLIENT}/32"], "")
        for ours, others, label in ((at_server, at_client, "client"), (at_client, at_server, "server")):
            (ours / "hosts" / label).write_bytes((others / "hosts" / label).read_bytes())
        self.server_process = self._run(server, at_server)
        await_ready(self.server_process, "Ready")

    def start_client(self) -> None:
        self.client_process = self._run(self.hosts.client, self.hosts.client.directory / "tinc")
