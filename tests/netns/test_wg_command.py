# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ``wg`` command drives the relay as it drives wireguard-go: same text, same exit status, same effects.

Text:       go     cvt0, no link        relay  cvt0, no link        (two hosts, the same configuration)

Effects:    client  eth0 198.51.100.2 ──────────── eth0 198.51.100.1  server
                    cvt0 10.86.0.2    ═ WireGuard ═ cvt0 10.86.0.1
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

import pytest

from tests.netns.endpoints import DEVICE, KINDS, Culvert, Endpoint, Key, Peer, Settings, preshared_key
from tests.netns.lab import Lab, await_output, unanswered
from tests.netns.services import PYTHON
from tests.netns.topology import OUTER, PAIRS, direct_hosts, make_tunnel
from tests.netns.transfer import MEGABYTE, transfer

OWN, ALICE, BOB, CAROL = Key(), Key(), Key(), Key()
SHARED, ANOTHER_SHARED = preshared_key(), preshared_key()
every_pair = pytest.mark.parametrize("pair", PAIRS, ids="-to-".join)


def base_settings() -> Settings:
    peers = [
        Peer(ALICE.public, ["10.86.1.0/24", "fd86:1::/64"], preshared_key=SHARED),
        Peer(BOB.public, ["10.86.2.0/24", "10.86.3.7/32"]),
    ]
    return Settings(OWN.private, peers=peers)


def changed_file() -> str:
    """Another configuration: Alice changed, Bob gone, Carol new."""
    alice = Peer(ALICE.public, ["10.86.2.0/24"], preshared_key=ANOTHER_SHARED)
    return Settings(OWN.private, 51999, 0x20, [alice, Peer(CAROL.public, ["10.86.1.0/24", "::/0"])]).text()


STEPS: dict[str, tuple[str, str]] = {  # name: (words of the command, standard input)
    "nothing": ("show interfaces", ""),
    "listen-port": ("set cvt0 listen-port 51999", ""),
    "fwmark": ("set cvt0 fwmark 0xca6c", ""),
    "fwmark-off": ("set cvt0 fwmark 0xca6c fwmark off", ""),
    "private-key": ("set cvt0 private-key /dev/stdin", Key().private),
    "private-key-of-a-peer": ("set cvt0 private-key /dev/stdin", ALICE.private),
    "no-private-key": ("set cvt0 private-key /dev/null", ""),
    "new-peer": (f"set cvt0 peer {CAROL.public} allowed-ips 10.86.9.0/24,fd86:9::/64", ""),
    "new-peer-with-our-own-key": (f"set cvt0 peer {OWN.public} allowed-ips 10.86.9.0/24", ""),
    "new-peer-without-anything": (f"set cvt0 peer {CAROL.public}", ""),
    "remove": (f"set cvt0 peer {BOB.public} remove", ""),
    "remove-unknown": (f"set cvt0 peer {CAROL.public} remove", ""),
    "preshared-key": (f"set cvt0 peer {BOB.public} preshared-key /dev/stdin", ANOTHER_SHARED),
    "preshared-key-off": (f"set cvt0 peer {ALICE.public} preshared-key /dev/null", ""),
    "keepalive": (f"set cvt0 peer {BOB.public} persistent-keepalive 65535", ""),
    "keepalive-off": (f"set cvt0 peer {BOB.public} persistent-keepalive off", ""),
    "endpoint-ipv4": (f"set cvt0 peer {BOB.public} endpoint 198.51.100.9:1234", ""),
    "endpoint-ipv6": (f"set cvt0 peer {BOB.public} endpoint [2001:db8::9]:1234", ""),
    "allowed-ips-replaced": (f"set cvt0 peer {ALICE.public} allowed-ips 10.86.200.0/24", ""),
    "allowed-ips-none": (f"set cvt0 peer {ALICE.public} allowed-ips ", ""),
    "allowed-ips-taken-over": (f"set cvt0 peer {BOB.public} allowed-ips 10.86.1.0/24,fd86:1::/64", ""),
    "allowed-ips-inside-anothers": (f"set cvt0 peer {BOB.public} allowed-ips 10.86.1.7/32,10.86.0.0/16", ""),
    "allowed-ips-host-bits": (f"set cvt0 peer {BOB.public} allowed-ips 10.86.5.77/24,fd86:5::77/64", ""),
    "allowed-ips-everything": (f"set cvt0 peer {BOB.public} allowed-ips 0.0.0.0/0,::/0", ""),
    "several-peers": (f"set cvt0 peer {BOB.public} remove peer {CAROL.public} allowed-ips 10.86.2.0/24", ""),
    "setconf": ("setconf cvt0 /dev/stdin", changed_file()),
    "addconf": ("addconf cvt0 /dev/stdin", Peer(CAROL.public, ["10.86.2.0/24"]).text()),
    "syncconf": ("syncconf cvt0 /dev/stdin", changed_file()),
    "syncconf-of-the-same": ("syncconf cvt0 /dev/stdin", base_settings().text()),
    "setconf-of-nothing": ("setconf cvt0 /dev/stdin", "[Interface]\nListenPort = 51820\n"),
    "bad-key": ("set cvt0 peer nonsense remove", ""),
    "no-such-device": ("show cvt9", ""),
}


@dataclass
class Rivals:
    """One endpoint of each implementation, on hosts of their own, set up alike."""

    go: Endpoint
    relay: Endpoint


@pytest.fixture
def rivals(lab: Lab) -> Rivals:
    ends = {}
    for kind in ("go", "relay"):
        ends[kind] = KINDS[kind](lab.host(kind), base_settings(), ["10.86.0.1/16"])
        ends[kind].start()
    return Rivals(ends["go"], ends["relay"])


def state(end: Endpoint) -> list[list[str]]:
    """All that ``wg`` shows of a device; peers, and addresses within a line, sorted: their order is free."""
    commands = ("show all dump", "show cvt0 dump", "show interfaces", "show cvt0", "showconf cvt0")
    texts = [end.wg(*command.split()) for command in commands]
    return [sorted(",".join(sorted(line.split(","))) for line in text.splitlines()) for text in texts]


@pytest.mark.parametrize("step", STEPS)
def test_the_same_command_gives_the_same_text(rivals: Rivals, step: str) -> None:
    words, stdin = STEPS[step]
    argv = ["wg", *words.split(" ")]
    done = {kind: end.host.run(argv, stdin=stdin, check=False) for kind, end in vars(rivals).items()}
    results = {kind: (result.returncode, result.stdout, result.stderr) for kind, result in done.items()}
    assert results["relay"] == results["go"]
    assert state(rivals.relay) == state(rivals.go)


def test_the_steps_do_change_something(rivals: Rivals) -> None:
    """Were ``wg`` to fail on both sides alike, the comparison above would prove nothing."""
    before = state(rivals.go)
    unchanged = {"nothing", "new-peer-with-our-own-key", "remove-unknown", "fwmark-off", "keepalive-off"}
    unchanged |= {"syncconf-of-the-same", "bad-key", "no-such-device"}
    for name, (words, stdin) in STEPS.items():
        rivals.go.host.run(["wg", *words.split(" ")], stdin=stdin, check=False)
        assert (state(rivals.go) == before) == (name in unchanged), name
        rivals.go.wg("setconf", DEVICE, str(rivals.go.write_settings()))
        rivals.go.wg("set", DEVICE, "fwmark", "0")


def talk(end: Endpoint, request: str) -> str:
    """Say something to the control socket and return the whole answer."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(str(end.socket))
        connection.sendall(request.encode())
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while part := connection.recv(65536):
            answer += part
        return answer.decode()


HEX = "5a" * 32
BAD_REQUESTS = {
    "unknown-key": "set=1\nbogus=1\n\n",
    "no-value": "set=1\nlisten_port\n\n",
    "port-too-large": "set=1\nlisten_port=65536\n\n",
    "port-not-a-number": "set=1\nlisten_port=x\n\n",
    "fwmark-not-a-number": "set=1\nfwmark=zz\n\n",
    "short-private-key": "set=1\nprivate_key=00\n\n",
    "private-key-not-hex": f"set=1\nprivate_key={'zz' * 32}\n\n",
    "short-public-key": "set=1\npublic_key=00\n\n",
    "peer-line-without-peer": "set=1\npreshared_key=00\n\n",
    "replace-peers-false": "set=1\nreplace_peers=false\n\n",
    "remove-false": f"set=1\npublic_key={HEX}\nremove=false\n\n",
    "update-only-false": f"set=1\npublic_key={HEX}\nupdate_only=false\n\n",
    "replace-allowed-ips-false": f"set=1\npublic_key={HEX}\nreplace_allowed_ips=false\n\n",
    "allowed-ip-prefix": f"set=1\npublic_key={HEX}\nallowed_ip=10.0.0.0/33\n\n",
    "allowed-ip-word": f"set=1\npublic_key={HEX}\nallowed_ip=home\n\n",
    "endpoint-without-port": f"set=1\npublic_key={HEX}\nendpoint=198.51.100.1\n\n",
    "endpoint-word": f"set=1\npublic_key={HEX}\nendpoint=nonsense\n\n",
    "keepalive-too-large": f"set=1\npublic_key={HEX}\npersistent_keepalive_interval=65536\n\n",
    "protocol-version": f"set=1\npublic_key={HEX}\nprotocol_version=2\n\n",
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_bad_request_gives_the_same_error_number(rivals: Rivals, name: str) -> None:
    answers = {kind: talk(end, BAD_REQUESTS[name]) for kind, end in vars(rivals).items()}
    assert answers["go"].startswith("errno="), "the request must be one that wireguard-go refuses"
    assert answers["go"] != "errno=0\n\n"
    assert answers["relay"] == answers["go"]


OCCUPY = """
import socket, time
blocker = socket.socket(type=socket.SOCK_DGRAM)
blocker.bind(("", 40000))
print("bound", flush=True)
time.sleep(60)
"""


def test_a_port_in_use_gives_the_same_error(rivals: Rivals) -> None:
    results = []
    for end in (rivals.go, rivals.relay):
        process = end.host.spawn([*PYTHON, OCCUPY], "occupy")
        await_output(process, "bound")
        results.append(end.host.run(["wg", "set", DEVICE, "listen-port", "40000"], check=False))
    assert results[0].returncode == results[1].returncode == 1
    assert results[0].stderr == results[1].stderr


def test_port_zero_means_some_port(rivals: Rivals) -> None:
    for end in (rivals.go, rivals.relay):
        end.wg("set", DEVICE, "listen-port", "0")
        assert int(end.wg("show", DEVICE, "listen-port")) > 0


@every_pair
def test_a_device_filled_by_wg_alone_carries_traffic(lab: Lab, pair: tuple[str, str]) -> None:
    client, server = direct_hosts(lab)
    tunnel = make_tunnel(pair, client, server, OUTER[4][0], preshared=True)
    for end in (tunnel.client, tunnel.server):
        if isinstance(end, Culvert):
            end.by_setconf = True
    tunnel.start()
    transfer(client, server, tunnel.server_addresses[4], MEGABYTE)
    transfer(server, client, tunnel.client_addresses[6], MEGABYTE)
    received, sent = tunnel.client.shown("transfer")[tunnel.server_key.public].split("\t")
    assert tunnel.client.handshake_s(tunnel.server_key.public) > 0
    assert int(received) > MEGABYTE
    assert int(sent) > MEGABYTE


@every_pair
def test_changes_keep_the_session_of_the_peer(lab: Lab, pair: tuple[str, str]) -> None:
    """Narrower allowed IPs act at once; another peer by syncconf, another port: all without a handshake."""
    client, server = direct_hosts(lab)
    tunnel = make_tunnel(pair, client, server, OUTER[4][0]).start()
    addresses, end = tunnel.server_addresses, tunnel.client
    assert client.ping(addresses[4]).received == client.ping(addresses[6]).received == 3
    handshake_s = end.handshake_s(tunnel.server_key.public)

    end.wg("set", DEVICE, "peer", tunnel.server_key.public, "allowed-ips", "10.86.0.0/24")
    assert client.ping(addresses[4]).received == 3
    assert client.ping(addresses[6], wait_s=1).received == 0

    ping = client.spawn(["ping", "-n", "-i", "0.01", "-c", "150", addresses[4]], "ping")
    end.settings.peers.append(Peer(CAROL.public, ["10.86.9.0/24"]))
    end.wg("syncconf", DEVICE, str(end.write_settings()))
    assert CAROL.public in end.shown("allowed-ips")
    end.wg("set", DEVICE, "listen-port", "51999")
    ping.wait(10)
    assert len(unanswered(ping.output())) <= 1, "one may be on its way while the port changes"
    assert ping.output().count("bytes from") >= 140, ping.output()[-200:]
    assert client.ping(addresses[6]).received == 3, "syncconf brought the allowed IPs back"
    assert tunnel.server.endpoint_of(tunnel.client_key.public) == f"{OUTER[4][1]}:51999"
    assert end.handshake_s(tunnel.server_key.public) == handshake_s
