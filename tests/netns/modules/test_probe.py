# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules relay_info and tunnel_probe.

host: up0 (veth, 198.51.100.7/24), culvert0 (TUN, 10.86.0.1/16), a program on the TUN that answers pings
"""

from __future__ import annotations

import base64
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.netns.modules.control_socket import ControlSocket
from tests.netns.modules.host import Host, Result

PRIVATE = bytes.fromhex("77076d0a7318a57d3c16c17251b26645d6b54d2aa6b5f1b4ae1b8b9f5b4b9a20")
PEER = bytes(range(32))
QUIET = bytes(range(1, 33))

# Answers with the caller's address, as the demo's "internet" does.
SERVICE = """
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.client_address[0].encode() + b"\\n")

server = HTTPServer(("198.51.100.7", 8080), Handler)
print("up", flush=True)
server.serve_forever()
"""


def answer(age_s: int = 5) -> str:
    return (
        f"private_key={PRIVATE.hex()}\nlisten_port=51820\nfwmark=51820\n"
        f"public_key={PEER.hex()}\npreshared_key={'ab' * 32}\nprotocol_version=1\n"
        f"endpoint=198.51.100.9:51820\nlast_handshake_time_sec={int(time.time()) - age_s}\n"
        "last_handshake_time_nsec=1\ntx_bytes=92\nrx_bytes=148\npersistent_keepalive_interval=25\n"
        "allowed_ip=10.86.0.2/32\nallowed_ip=10.86.7.0/24\n"
        f"public_key={QUIET.hex()}\nprotocol_version=1\n"
        "last_handshake_time_sec=0\nlast_handshake_time_nsec=0\n"
        "tx_bytes=0\nrx_bytes=0\npersistent_keepalive_interval=0\nallowed_ip=10.86.0.3/32\nerrno=0\n\n"
    )


@pytest.fixture
def control(tmp_path: Path) -> Iterator[ControlSocket]:
    control = ControlSocket(tmp_path / "culvert0.sock", answer())
    yield control
    control.close()


@pytest.fixture
def tunnel(host: Host) -> Host:
    host.sh("""
        ip link add up0 type veth peer name far0
        ip link set up0 up
        ip link set far0 up
        ip addr add 198.51.100.7/24 dev up0
    """)
    host.module("tun_device", name="culvert0", addresses=["10.86.0.1/16"])
    return host


def probe(host: Host, control: ControlSocket | None, *targets: str, **params: Any) -> Result:
    return host.module(
        "tunnel_probe",
        socket_path=str(control.path) if control else "/nowhere.sock",
        targets=[{"address": address} for address in targets],
        **{"count": 1, "timeout_s": 0.4, **params},
    )


def test_relay_info_tells_all_but_secrets(host: Host, control: ControlSocket) -> None:
    told = host.module("relay_info", socket_path=str(control.path))
    assert not told.changed
    assert control.requests == [b"get=1\n\n", b"culvert=1\n\n"]
    assert told["running"] is True
    public = host.run("wg", "pubkey", stdin=base64.b64encode(PRIVATE).decode()).strip()
    assert (told["public_key"], told["listen_port"], told["fwmark"]) == (public, 51820, 51820)
    first, second = told["peers"]
    assert first["public_key"] == base64.b64encode(PEER).decode()
    assert first["allowed_ips"] == ["10.86.0.2/32", "10.86.7.0/24"]
    assert (first["endpoint"], first["rx_bytes"], first["tx_bytes"]) == ("198.51.100.9:51820", 148, 92)
    assert 0 <= first["handshake_age_s"] - 5 < 30
    assert (second["latest_handshake_s"], second["handshake_age_s"], second["endpoint"]) == (0, None, None)
    for secret in (PRIVATE.hex(), base64.b64encode(PRIVATE).decode(), "ab" * 32):
        assert secret not in told.text


def test_relay_info_without_a_relay(host: Host, tmp_path: Path, control: ControlSocket) -> None:
    assert host.module("relay_info", name="culvert9")["running"] is False
    control.close()
    left = host.module("relay_info", socket_path=str(control.path), check=True)
    assert (left["running"], left["peers"]) == (False, [])
    for name, text in (("refusing", "errno=13\n\n"), ("other", "HTTP/1.1 400 Bad Request\n\n")):
        other = ControlSocket(tmp_path / f"{name}.sock", text)
        failed = host.module("relay_info", socket_path=str(other.path))
        assert failed.failed
        assert str(other.path) in failed.msg
        other.close()
    host.module("relay_info", name="../etc").assert_refused("name", ["../etc"])


def test_a_tunnel_that_works(tunnel: Host, control: ControlSocket) -> None:
    tunnel.attach("culvert0")
    tunnel.start(sys.executable, "-c", SERVICE, ready="up")
    said = probe(tunnel, control, "10.86.0.2", "10.86.0.1", egress_url="http://198.51.100.7:8080/", count=2)
    assert said["reasons"] == []
    assert said["ok"] is True
    assert said["device_addresses"] == ["10.86.0.1"]
    other, own = said["targets"]
    assert (other["reachable"], other["loss"], other["reasons"], other["name"]) == (
        True,
        0.0,
        [],
        "10.86.0.2",
    )
    assert 0 < other["rtt_ms"] < 1000
    assert 0 <= other["handshake_age_s"] - 5 < 30
    assert (own["reachable"], own["reasons"]) == (True, [])
    assert said["egress_address"] == "198.51.100.7"


def test_why_a_target_is_not_reached(tunnel: Host, control: ControlSocket) -> None:
    tunnel.attach("culvert0", 0x1001)
    tunnel.sh("""
        iptables-nft -A INPUT -i culvert0 -j DROP
        ip route add 10.86.9.0/24 dev up0
        ip rule add to 10.86.8.8 prohibit
    """)
    said = probe(tunnel, control, "10.86.0.2", "10.86.0.3", "10.86.0.4", "10.86.9.1", "10.86.8.8")
    assert said["ok"] is False
    assert said["reasons"] == []
    silent, never, nobodys, elsewhere, prohibited = (target["reasons"] for target in said["targets"])
    assert "does not answer although" in silent[0]
    assert "no handshake" in never[0]
    assert base64.b64encode(QUIET).decode()[:8] in never[0]
    assert "in no peer's allowed IPs" in nobodys[0]
    assert "leaves through up0, not through culvert0" in elsewhere[0]
    assert "no route to 10.86.8.8" in prohibited[0]
    assert all(not target["reachable"] and target["loss"] == 1.0 for target in said["targets"])


def test_what_is_wrong_with_the_device(tunnel: Host, control: ControlSocket) -> None:
    assert "no carrier" in probe(tunnel, control)["reasons"][0]
    tunnel.sh("ip link set culvert0 down")
    assert "culvert0 is down" in probe(tunnel, control, "10.86.0.2")["reasons"][0]
    tunnel.sh("ip link del culvert0")
    assert "no device culvert0" in probe(tunnel, control, "10.86.0.2")["reasons"][0]
    assert any("no relay answers" in reason for reason in probe(tunnel, None, device="up0")["reasons"])
    unreachable = probe(tunnel, control, egress_url="http://198.51.100.7:9/")
    assert "http://198.51.100.7:9/" in unreachable["reasons"][-1]
    assert unreachable["egress_address"] is None


def test_an_old_handshake_is_named(tunnel: Host, tmp_path: Path) -> None:
    tunnel.attach("culvert0")
    tunnel.sh("iptables-nft -A INPUT -i culvert0 -j DROP")
    control = ControlSocket(tmp_path / "old.sock", answer(age_s=500))
    reasons = probe(tunnel, control, "10.86.7.7")["targets"][0]["reasons"]
    control.close()
    assert "gone silent" in reasons[0]
    assert "198.51.100.9:51820" in reasons[0]


def test_refusals_name_the_option(host: Host) -> None:
    for params, option in (
        ({"targets": [{"address": "10.86.0.300"}]}, "targets[0].address"),
        ({"count": 0}, "count"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"egress_url": "file:///etc/passwd"}, "egress_url"),
        ({"device": "sixteen-bytes-xx"}, "device"),
    ):
        host.module("tunnel_probe", **params).assert_refused(option, [])
