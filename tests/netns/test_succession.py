# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""All keys of a tunnel are replaced while traffic goes through it, and nobody notices.

client  eth0 198.51.100.2 ──────────────── eth0 198.51.100.1  server
        cvt0 10.86.0.2    ═══ WireGuard ══ cvt0 10.86.0.1

Both have a second identity for a while, each with a peer for the other's. The client is the relay or Debian's
wireguard-go, which knows nothing of identities: it is given its new keys in one go, as a phone is.
"""

from __future__ import annotations

import base64
import dataclasses
import signal
import socket
import time

import pytest
from culvert.show import query

from tests.netns.endpoints import DEVICE, Culvert, Endpoint, Key, Peer, Settings, preshared_key
from tests.netns.failover_lab import ROUTED, make_servers
from tests.netns.lab import Lab, eventually, unanswered
from tests.netns.topology import OUTER, Tunnel, direct_hosts, make_tunnel
from tests.netns.transfer import MEGABYTE, Transfer

SECONDS_OF_TRAFFIC = 12


class Rotation:
    """A tunnel, and the keys that its two ends are to have next."""

    def __init__(self, tunnel: Tunnel) -> None:
        self.tunnel = tunnel
        self.next = {"client": Key(), "server": Key()}
        self.preshared_key = preshared_key()

    def end(self, name: str) -> Endpoint:
        return self.tunnel.client if name == "client" else self.tunnel.server

    def other_key(self, name: str) -> Key:
        return self.next["server" if name == "client" else "client"]

    def begin(self, name: str) -> None:
        begin(self.end(name), self.next[name], [self.other_key(name)], self.preshared_key)

    def finish(self, name: str) -> None:
        finish(self.end(name), self.next[name], [self.other_key(name)])

    def state(self, name: str) -> str:
        """What the relay says of its successor."""
        return succession(self.end(name), self.other_key(name).public)


def begin(end: Endpoint, own: Key, others: list[Key], preshared: str = "") -> None:
    """A second identity, and for each peer the same host's next key."""
    end.settings.more = [f"AlternatePrivateKey = {own.private}"]
    end.settings.peers += [
        Peer(
            key.public,
            [],
            preshared_key=preshared,
            more=["LocalKey = alternate", f"Succeeds = {before.public_key}"],
        )
        for before, key in zip(end.settings.peers, others, strict=True)
    ]
    reload(end)


def finish(end: Endpoint, own: Key, others: list[Key]) -> None:
    """The next keys and nothing else."""
    befores, afters = end.settings.peers[: len(others)], end.settings.peers[len(others) :]
    end.settings.private_key, end.settings.more = own.private, []
    end.settings.peers = [
        dataclasses.replace(before, public_key=after.public_key, preshared_key=after.preshared_key)
        for before, after in zip(befores, afters, strict=True)
    ]
    reload(end)


def reload(end: Endpoint) -> None:
    end.write_settings()
    assert end.process is not None
    said = end.process.output().count("configuration reloaded")
    end.process.send_signal(signal.SIGHUP)
    eventually(
        lambda: end.process and end.process.output().count("configuration reloaded") > said, 10, "loaded"
    )


def succession(end: Endpoint, public_key: str) -> str:
    device = query(DEVICE, str(end.socket.parent))
    return next(
        (peer["succession"] or "" for peer in device["peers"] if peer["public_key"] == public_key), "no peer"
    )


def request(end: Endpoint, *lines: str) -> str:
    """A request on the control socket; its answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(5)
        connection.connect(str(end.socket))
        connection.sendall("\n".join([*lines, "", ""]).encode())
        return connection.recv(65536).decode()


def allowed(end: Endpoint, public_key: str) -> str:
    return end.shown("allowed-ips").get(public_key, "no peer")


@pytest.mark.parametrize(
    ("kinds", "first"),
    [(("compiled", "python"), "server"), (("python", "compiled"), "client")],
    ids=["server-first", "client-first"],
)
def test_all_keys_are_replaced_under_traffic(lab: Lab, kinds: tuple[str, str], first: str) -> None:
    client, server = direct_hosts(lab)
    tunnel = make_tunnel(kinds, client, server, OUTER[4][0], preshared=True).start()
    rotation = Rotation(tunnel)
    address = tunnel.server_addresses[4]
    assert client.ping(address, count=1).received == 1
    size = 4 * MEGABYTE
    flows = [
        Transfer(client, server, address, size, rate_bytes_s=size / SECONDS_OF_TRAFFIC),
        Transfer(server, client, tunnel.client_addresses[6], size, rate_bytes_s=size / SECONDS_OF_TRAFFIC),
    ]
    pings = client.spawn(["ping", "-i", "0.05", "-w", str(SECONDS_OF_TRAFFIC), "-W", "2", address], "ping")

    second = "client" if first == "server" else "server"
    for name in (first, second):
        rotation.begin(name)
        time.sleep(0.5)
    for name in (first, second):
        # The server knows where the client is and asks, too, if it is the last.
        eventually(lambda name=name: rotation.state(name) == "active", 10, f"{name} has moved")  # type: ignore[misc]
    for name in (first, second):
        assert allowed(rotation.end(name), rotation.other_key(name).public) != "(none)"
        assert allowed(rotation.end(name), rotation.end(name).settings.peers[0].public_key) == "(none)"
    for name in (first, second):
        rotation.finish(name)
        time.sleep(0.5)

    assert all(flow.running for flow in flows), "the transfers must last longer than the changes"
    for flow in flows:
        assert flow.finish()[0].lost == 0
    assert pings.wait(SECONDS_OF_TRAFFIC + 5) == 0
    assert unanswered(pings.output()) == [], pings.output()
    for name in (first, second):
        shown = rotation.end(name).wg("show", DEVICE, "peers").split()
        assert shown == [rotation.other_key(name).public]
        assert rotation.end(name).wg("show", DEVICE, "public-key").strip() == rotation.next[name].public
    log = tunnel.server.process.output() if tunnel.server.process else ""
    assert "it succeeds peer" in log
    assert rotation.next["server"].private not in log


def test_the_servers_of_a_failover_group_get_new_keys(lab: Lab) -> None:
    """No flow notices, it is no move, and failover goes on between the new ones."""
    net = make_servers(lab, ["relay", "relay"])
    flows = [net.flow("udp", ROUTED), net.flow("stream", ROUTED)]
    for flow in flows:
        eventually(lambda flow=flow: len(flow.moments()) > 5, 10, f"{flow.mode} gets answers")  # type: ignore[misc]
    started, moves = time.monotonic(), len(net.moves())
    own, keys = Key(), [Key() for _ in net.ends]
    for end, key in zip(net.ends, keys, strict=True):
        begin(end, key, [own])
    begin(net.here, own, keys)
    for key in keys:
        eventually(lambda key=key: succession(net.here, key.public) == "active", 10, "moved")  # type: ignore[misc]
    assert "203.0.113.0/24" in allowed(net.here, keys[0].public)
    for end, key in zip(net.ends, keys, strict=True):
        finish(end, key, [own])
    finish(net.here, own, keys)
    time.sleep(1.0)
    assert "203.0.113.0/24" in allowed(net.here, keys[0].public)
    assert max(flow.longest_gap_s(started, time.monotonic()) for flow in flows) < 2.4
    assert len(net.moves()) == moves
    net.break_server(0, "killed")
    eventually(
        lambda: "203.0.113.0/24" in allowed(net.here, keys[1].public), 20, "the second server takes over"
    )
    now = time.monotonic()
    for flow in flows:
        eventually(lambda flow=flow: flow.moments()[-1] > now, 10, f"{flow.mode} goes on")  # type: ignore[misc]
    assert all(flow.process.running for flow in flows)


def test_a_relay_that_is_started_anew_in_the_middle_goes_on(lab: Lab) -> None:
    client, server = direct_hosts(lab)
    tunnel = make_tunnel(("relay", "relay"), client, server, OUTER[4][0]).start()
    rotation = Rotation(tunnel)
    address = tunnel.server_addresses[4]
    assert client.ping(address, count=1).received == 1
    rotation.begin("server")
    tunnel.server.restart()
    eventually(lambda: client.ping(address, count=1, wait_s=1).received, 40, "the server is back")
    rotation.begin("client")
    eventually(lambda: rotation.state("client") == rotation.state("server") == "active", 10, "both moved")
    for name in ("client", "server"):
        rotation.end(name).restart()
        eventually(lambda: client.ping(address, count=1, wait_s=1).received, 40, f"{name} is back")
        eventually(
            lambda: rotation.state("client") == rotation.state("server") == "active", 10, "both are back"
        )
    for name in ("server", "client"):
        rotation.finish(name)
        assert client.ping(address).received == 3


def go_settings(tunnel: Tunnel, private: str, server_key: str, preshared: str) -> Settings:
    peer = dataclasses.replace(
        tunnel.client.settings.peers[0], public_key=server_key, preshared_key=preshared
    )
    return dataclasses.replace(tunnel.client.settings, private_key=private, peers=[peer])


def give(tunnel: Tunnel, settings: Settings) -> None:
    """Other keys for wireguard-go; it forgets its sessions."""
    tunnel.client.settings = settings
    tunnel.client.wg("setconf", DEVICE, str(tunnel.client.write_settings()))


def test_wireguard_go_changes_its_keys_in_one_go_and_back(lab: Lab) -> None:
    """It has one identity at a time. Whichever it speaks with carries, until one is removed."""
    client, server = direct_hosts(lab)
    tunnel = make_tunnel(("go", "relay"), client, server, OUTER[4][0], preshared=True).start()
    rotation = Rotation(tunnel)
    address, back = tunnel.server_addresses[4], tunnel.client_addresses[4]
    assert client.ping(address, count=1).received == 1
    old = tunnel.client.settings
    rotation.begin("server")
    assert client.ping(address).received == 3, "the first identity is as good as before"
    assert rotation.state("server") == "waiting"

    new = go_settings(
        tunnel, rotation.next["client"].private, rotation.next["server"].public, rotation.preshared_key
    )
    give(tunnel, new)
    assert client.ping(address).received == 3
    assert rotation.state("server") == "active"
    assert server.ping(back).received == 3

    # A wrong pairing of keys is nobody: the new client at the old identity, and the other way round.
    for private, public in (
        (rotation.next["client"].private, tunnel.server_key.public),
        (tunnel.client_key.private, rotation.next["server"].public),
    ):
        give(tunnel, go_settings(tunnel, private, public, ""))
        assert client.ping(address, count=1, wait_s=1).received == 0
        refused = {entry["reason"] for entry in query(DEVICE, str(tunnel.server.socket.parent))["rejections"]}
        assert "unknown_peer" in refused

    # Back to the old keys, and the server's packets follow when the new ones do not answer.
    give(tunnel, old)
    start = time.monotonic()
    flood = server.spawn(["ping", "-i", "0.2", "-w", "25", back], "ping")
    eventually(lambda: rotation.state("server") == "silent", 25, "the predecessor took back")
    took_s = time.monotonic() - start
    flood.wait(30)
    assert server.ping(back).received == 3
    assert took_s < 20

    give(tunnel, new)
    assert client.ping(address).received == 3
    eventually(lambda: rotation.state("server") == "active", 10, "the successor again")
    handshake_s = tunnel.server.handshake_s(rotation.next["client"].public)
    flow = Transfer(server, client, back, 2 * MEGABYTE, rate_bytes_s=1e6)
    rotation.finish("server")
    assert flow.finish()[0].lost == 0
    assert tunnel.server.handshake_s(rotation.next["client"].public) == handshake_s, "its session goes on"

    give(tunnel, old)
    assert client.ping(address, count=2, wait_s=1).received == 0, "the old keys are refused"
    give(tunnel, new)
    assert client.ping(address).received == 3


def test_a_relay_with_two_identities_has_peers_of_both(lab: Lab) -> None:
    """Two clients of one server, each at its own identity, at the same time."""
    client, server = direct_hosts(lab)
    other = lab.host("other")
    lab.link(other, "eth0", ["203.0.113.2/24"], server, "eth1", ["203.0.113.1/24"])
    tunnel = make_tunnel(("go", "relay"), client, server, OUTER[4][0]).start()
    rotation = Rotation(tunnel)
    rotation.begin("server")
    to_server = Peer(
        rotation.next["server"].public, ["10.86.0.0/24"], "203.0.113.1:51820", rotation.preshared_key
    )
    settings = Settings(rotation.next["client"].private, peers=[to_server])
    second = Culvert(other, settings, ["10.86.0.3/24"])
    assert isinstance(tunnel.server, Culvert)
    second.start()
    lines = [
        "set=1",
        f"public_key={base64.b64decode(rotation.next['client'].public).hex()}",
        f"succeeds={'00' * 32}",
        "allowed_ip=10.86.0.3/32",
    ]
    assert request(tunnel.server, *lines) == "errno=0\n\n"
    address = tunnel.server_addresses[4]
    flows = [
        Transfer(host, server, address, 20 * MEGABYTE, seed=seed) for seed, host in enumerate((client, other))
    ]
    for flow in flows:
        flow.finish()
    shown = tunnel.server.shown("allowed-ips")
    assert shown[tunnel.client_key.public].startswith(tunnel.client_addresses[4])
    assert shown[rotation.next["client"].public] == "10.86.0.3/32"
