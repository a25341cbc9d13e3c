# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A tunnel inside TLS, on the port where web servers are, and what visitors of that port see.

    client  eth0 198.51.100.2 ──────────────── eth0 198.51.100.1  server, TCP port 443
            cvt0 10.86.0.2    ══ WireGuard ═══ cvt0 10.86.0.1
                                 in TLS

UDP between the two is dropped by the server's firewall, so nothing goes around TLS.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.netns.endpoints import Culvert
from tests.netns.forge_peer import forged_initiation
from tests.netns.handover import Pings, take_over
from tests.netns.lab import Host, Lab, await_output, eventually
from tests.netns.topology import OUTER, Tunnel, direct_hosts, make_tunnel
from tests.netns.transfer import MEGABYTE, transfer

PORT = 443
RELAY_UID = 51820
CAP_NET_BIND_SERVICE, CAP_NET_ADMIN = 10, 12
SERVER = OUTER[4][0]
VISITOR = str(Path(__file__).with_name("tls_visitor.py"))
OURS = re.compile(r"culvert|wireguard|vpn|tunnel|python", re.IGNORECASE)


class Tls:
    """A tunnel over TLS that is not started yet; the server's certificate is in :attr:`folder`."""

    def __init__(self, lab: Lab) -> None:
        self.client, self.server = direct_hosts(lab)
        self.tunnel = make_tunnel(("relay", "relay"), self.client, self.server, SERVER)
        assert isinstance(self.tunnel.server, Culvert)
        self.relay: Culvert = self.tunnel.server
        self.folder = self.server.directory / "tls"
        self.pin = self.certificate(self.folder)
        self.relay.settings.more = [
            f"ListenTLS = {PORT}",
            f"TLSCertificateFile = {self.folder}/certificate.pem",
            f"TLSPrivateKeyFile = {self.folder}/key.pem",
        ]
        self.expect(self.pin)
        self.server.iptables("-A INPUT -p udp -i eth0 -j DROP")

    def certificate(self, folder: Path) -> str:
        """Make one; its pin."""
        made = self.relay.culvert("certificate", "--directory", str(folder), "--name", "www.example.org")
        return str(json.loads(made)["pin"])

    def expect(self, pin: str) -> None:
        """Tell the client where the server is, and by what it knows it."""
        peer = self.tunnel.client.settings.peers[0]
        peer.endpoint = f"tls://{SERVER}:{PORT}"
        peer.more = [f"TLSPin = {pin}", "TLSServerName = www.example.org"]

    def start(self) -> Tls:
        self.tunnel.start()
        return self

    def ping(self, count: int = 3, **options: Any) -> int:
        return self.client.ping(Tunnel.server_addresses[4], count, **options).received

    def ask(self, *words: bytes | str, seconds: float = 1.0) -> list[dict[str, Any]]:
        """What a stranger is answered to these bytes, each over a connection of its own."""
        spelt = [word if isinstance(word, str) else word.hex() for word in words]
        command = [sys.executable, VISITOR, "ask", SERVER, str(PORT), str(seconds), *spelt]
        answers: list[dict[str, Any]] = json.loads(self.client.run(command).stdout)
        return answers

    def curl(self, *words: str) -> tuple[int, str, str]:
        """Exit status, answer with its headers, and complaints."""
        done = self.client.run(["curl", "-sS", "-i", "--max-time", "5", *words], check=False)
        return done.returncode, done.stdout, done.stderr


@pytest.fixture
def tls(lab: Lab) -> Tls:
    return Tls(lab)


# --- Peers
# --------------------------------------------------------------------------------------------------


def test_packets_go_through_tls_alone(tls: Tls) -> None:
    tls.start()
    assert tls.ping() == 3
    assert tls.server.ping(Tunnel.client_addresses[6]).received == 3
    transfer(tls.client, tls.server, Tunnel.server_addresses[4], 8 * MEGABYTE)
    transfer(tls.server, tls.client, Tunnel.client_addresses[4], 8 * MEGABYTE)
    # Nothing but 443: neither end has sent a UDP datagram that arrived.
    counters = tls.server.iptables("-L INPUT -n -v -x")
    assert int(re.findall(r"(\d+) +\d+ +DROP +(?:udp|17) ", counters)[0]) == 0


def test_a_server_with_another_key_is_told_nothing(tls: Tls) -> None:
    """No WireGuard message, and no end of the TLS handshake either."""
    other = tls.server.directory / "other"
    tls.certificate(other)
    words = ["serve", str(PORT), f"{other}/certificate.pem", f"{other}/key.pem", "3"]
    impostor = tls.server.spawn([sys.executable, VISITOR, *words], "impostor")
    await_output(impostor, "listens")
    tls.tunnel.client.start()
    tls.client.ping(Tunnel.server_addresses[4], 2, wait_s=0.5)
    assert impostor.wait(10) == 0
    told = json.loads(impostor.output().splitlines()[-1])
    assert told
    assert not any(one["handshake"] or one["bytes"] for one in told)


def test_one_of_two_pins_is_enough_for_a_new_key(tls: Tls) -> None:
    """How a key is replaced: clients know both for a while."""
    tls.expect(f"{base64.b64encode(os.urandom(32)).decode()}, {tls.pin}")
    tls.start()
    assert tls.ping() == 3


# --- Visitors
# -----------------------------------------------------------------------------------------------


def test_curl_sees_an_ordinary_web_server(tls: Tls) -> None:
    tls.relay.start()
    url = f"https://{SERVER}"
    status, answer, _ = tls.curl("-k", f"{url}/")
    assert status == 0
    assert answer.startswith("HTTP/1.1 200 OK\n")
    assert "\nServer: nginx\n" in answer
    assert "<title>Welcome to nginx!</title>" in answer
    asked = {
        ("-k", f"{url}/index.html"): 200,
        ("-k", f"{url}/admin"): 404,
        ("-k", "-I", f"{url}/"): 200,
        ("-k", "-X", "DELETE", f"{url}/"): 405,
        ("-k", "--data", "x=1", f"{url}/"): 405,
        ("-k", "-H", "Host:", f"{url}/"): 400,
        ("--pinnedpubkey", f"sha256//{tls.pin}", "-k", f"{url}/"): 200,
    }
    for words, code in asked.items():
        status, answer, complaint = tls.curl(*words)
        assert (status, answer.split()[1]) == (0, str(code)), (words, complaint)
        assert not OURS.search(answer)
    # Two requests on one connection.
    status, _, words = tls.curl("-k", "-v", f"{url}/", f"{url}/x")
    assert status == 0
    assert "Re-using existing connection" in words
    assert "ALPN: server accepted http/1.1" in words or "ALPN, server accepted to use http/1.1" in words
    # Its certificate is nobody's whom curl knows; and there is no older TLS.
    assert tls.curl(f"{url}/")[0] == 60
    assert tls.curl("-k", "--tls-max", "1.2", f"{url}/")[0] == 35
    assert tls.curl("-k", "--pinnedpubkey", f"sha256//{'A' * 43}=", f"{url}/")[0] == 90


def test_openssl_sees_a_leaf_for_the_name(tls: Tls) -> None:
    tls.relay.start()
    words = ["-connect", f"{SERVER}:{PORT}", "-servername", "www.example.org", "-alpn", "h2,http/1.1"]
    done = tls.client.run(["openssl", "s_client", *words], check=False, stdin="", timeout_s=10)
    assert "TLSv1.3" in done.stdout
    assert "ALPN protocol: http/1.1" in done.stdout
    assert re.search(r"subject=CN ?= ?www\.example\.org", done.stdout)
    assert not OURS.search(done.stdout)


def test_whatever_a_stranger_sends_is_a_bad_request(tls: Tls) -> None:
    """Also what looks like a message of ours, whole or in part, and at once."""
    tls.relay.start()
    initiation = forged_initiation(os.urandom(32))
    replayed_to_somebody_else = b"\0\x94" + initiation
    bad = [
        os.urandom(500),
        b"\0",
        b"\0\x94\x01\0\0\0",
        replayed_to_somebody_else,
        b"\0\x20\x04\0\0\0" + os.urandom(28),
        b"\xff\xff\x04\0\0\0" + os.urandom(1000),
        b"\x3f\xff\x66\0\0\0",
    ]
    for word, answer in zip(bad, tls.ask(*bad), strict=True):
        assert answer["answer"].startswith("HTTP/1.1 400 Bad Request\r\n"), word
        assert answer["ended"]
        assert (answer["version"], answer["alpn"]) == ("TLSv1.3", "http/1.1")
        assert not OURS.search(answer["answer"])
    quiet, garbage, half = tls.ask(
        "", "-" + (b"\x16\x03\x01\x02\0" + bytes(512)).hex(), "-160301", seconds=0.3
    )
    assert (quiet["answer"], quiet["ended"]) == ("", False)
    assert garbage["ended"]
    assert (half["answer"], half["ended"]) == ("", False)


def test_visitors_do_not_disturb_peers(tls: Tls) -> None:
    tls.start()
    assert tls.ping() == 3
    script = f"for n in $(seq 40); do curl -sk --max-time 5 -o /dev/null https://{SERVER}/ || echo bad; done"
    visits = tls.client.spawn(["sh", "-c", script], "visits")
    assert tls.ping(60, interval_s=0.02) == 60
    assert visits.wait(20) == 0
    assert visits.output() == ""
    assert tls.ping() == 3


# --- The process
# --------------------------------------------------------------------------------------------


def shown_pin(tls: Tls) -> str:
    """Of the certificate that a new visitor is shown."""
    script = (
        f"openssl s_client -connect {SERVER}:{PORT} </dev/null 2>/dev/null | openssl x509 -pubkey -noout"
        " | openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | base64"
    )
    return tls.client.run(["sh", "-c", script]).stdout.strip()


def test_a_new_certificate_by_reload(tls: Tls) -> None:
    """It is for new connections; a bad one changes nothing; and the relay is no more than it has to be."""
    for path in (tls.folder, tls.folder / "key.pem", tls.folder / "certificate.pem"):
        os.chown(path, RELAY_UID, RELAY_UID)
    readable(tls.server.directory)
    tls.relay.options = ["--user", str(RELAY_UID)]
    settings = tls.relay.write_settings
    tls.relay.write_settings = lambda: owned(settings())  # type: ignore[method-assign]
    tls.start()
    assert tls.ping() == 3
    process = tls.relay.process
    assert process is not None
    status = Path(f"/proc/{process.pid}/status").read_text()
    assert int(re.findall(r"CapEff:\t(\w+)", status)[0], 16) == 1 << CAP_NET_BIND_SERVICE | 1 << CAP_NET_ADMIN
    assert re.findall(r"Uid:\t(\d+)", status) == [str(RELAY_UID)]
    assert shown_pin(tls) == tls.pin
    key = (tls.folder / "key.pem").read_bytes()

    other = tls.server.directory / "other"
    pin = tls.certificate(other)
    (tls.folder / "key.pem").write_bytes((other / "key.pem").read_bytes())
    process.send_signal(signal.SIGHUP)
    await_output(process, "reload refused, nothing changed")
    assert "is not the key of the certificate in" in process.output()
    assert shown_pin(tls) == tls.pin

    (tls.folder / "certificate.pem").write_bytes((other / "certificate.pem").read_bytes())
    process.send_signal(signal.SIGHUP)
    await_output(process, "configuration reloaded")
    assert shown_pin(tls) == pin != tls.pin
    assert tls.ping() == 3
    for secret in (key, (other / "key.pem").read_bytes()):
        assert not any(line in process.output() for line in secret.decode().split()[3:-3])


def test_a_successor_has_port_and_certificate(tls: Tls) -> None:
    tls.start()
    pings = Pings.start(tls.client, Tunnel.server_addresses[4], 0.02)
    before = take_over(tls.relay)
    pings.await_more(50)
    assert before.stop() == 0
    assert shown_pin(tls) == tls.pin
    assert tls.curl("-k", f"https://{SERVER}/")[1].startswith("HTTP/1.1 200 OK")
    assert tls.ping() == 3


def readable(folder: Path) -> None:
    """For the relay's user, up to the root of the test."""
    for parent in (folder, *folder.parents[:4]):
        parent.chmod(parent.stat().st_mode | 0o011)


def owned(path: Path) -> Path:
    os.chown(path, RELAY_UID, RELAY_UID)
    return path


def test_a_port_that_is_taken_is_named(tls: Tls) -> None:
    taken = tls.server.spawn([sys.executable, "-m", "http.server", str(PORT)], "taken")
    eventually(lambda: listens(tls.server, PORT), 5, "the other server")
    settings = tls.relay.write_settings()
    done = tls.server.run(
        [*tls.relay.command, "run", "cvt0", "--config", str(settings)],
        check=False,
        env=tls.relay.environment(),
    )
    assert done.returncode == 1
    assert f"ListenTLS = {PORT}: Address already in use" in done.stderr
    taken.stop()


def listens(host: Host, port: int) -> bool:
    """Whether somebody has the TCP port."""
    rows = "".join(host.path(f"/proc/net/{table}").read_text() for table in ("tcp", "tcp6"))
    return any(
        int(row.split()[1].rpartition(":")[2], 16) == port for row in rows.splitlines() if "local" not in row
    )
