# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tunnels over TCP: the same packets as over UDP, whatever becomes of the connection.

client  eth0 198.51.100.2 ──────────────── eth0 198.51.100.1  server: listens on TCP 8443
        cvt0 10.86.0.2    ═ WireGuard in ═ cvt0 10.86.0.1     UDP is dropped
                            TCP
"""

from __future__ import annotations

import itertools
import re
import signal
import sys
from pathlib import Path

import pytest

from tests.netns.endpoints import PORT, Culvert
from tests.netns.handover import Pings, take_over
from tests.netns.lab import Host, Lab, await_output, eventually
from tests.netns.streams import STREAM_PORT, await_streams, peer_of, stream_tunnel, streams_of
from tests.netns.topology import OUTER, Tunnel, direct_hosts, make_tunnel
from tests.netns.transfer import MEGABYTE, transfer

# What an inner TCP or ping may miss while a connection is made anew.
REDIAL_S = 5


def drop_udp(*hosts: Host) -> None:
    """The firewall that streams are for."""
    for host, family in itertools.product(hosts, (4, 6)):
        host.iptables("-A INPUT -p udp -j DROP", family=family)


def kill_connections(host: Host) -> None:
    """Reset those of the relay's port, from outside."""
    assert "ESTAB" in host.run(["ss", "-tnH", "sport", "=", f":{STREAM_PORT}"]).stdout
    host.run(["ss", "-K", "-tn", "sport", "=", f":{STREAM_PORT}"])


def started(lab: Lab, family: int = 4, *, frames: bool = True) -> tuple[Tunnel, Culvert, Culvert]:
    client, server = direct_hosts(lab)
    tunnel, one, two = stream_tunnel(client, server, family, frames=frames)
    drop_udp(client, server)
    tunnel.start()
    assert client.ping(tunnel.server_addresses[4]).received == 3
    return tunnel, one, two


@pytest.mark.parametrize(("family", "frames"), [(4, True), (6, True), (4, False), (6, False)])
def test_packets_and_transfers_both_ways(lab: Lab, family: int, frames: bool) -> None:
    tunnel, one, two = started(lab, family, frames=frames)
    client, server = one.host, two.host
    for inner in (4, 6):
        assert client.ping(tunnel.server_addresses[inner]).received == 3
        assert server.ping(tunnel.client_addresses[inner]).received == 3
    transfer(client, server, tunnel.server_addresses[4], 20 * MEGABYTE)
    transfer(server, client, tunnel.client_addresses[6], 20 * MEGABYTE)
    assert client.ping(tunnel.server_addresses[4], size_bytes=1300).received == 3
    found = streams_of(two)
    assert (found["connections"], found["strangers"], found["refused"]) == (1, 0, 0)
    shown = two.culvert("show", two.device)
    assert f"listening for streams: tcp {STREAM_PORT}" in shown
    assert two.endpoint_of(tunnel.client_key.public).startswith(
        f"[{OUTER[6][1]}]:" if family == 6 else f"{OUTER[4][1]}:"
    )


def test_theirs_and_ours_talk_to_each_other(lab: Lab) -> None:
    """A plain carrier of UDP over TCP, 20 lines of it, in front of wireguard-go."""
    client, server = direct_hosts(lab)
    tunnel = make_tunnel(("go", "relay"), client, server, OUTER[4][0])
    tunnel.server.settings.more = [f"ListenTCP = {STREAM_PORT}"]
    tunnel.client.settings.listen_port = 1000
    tunnel.client.settings.peers[0].endpoint = "127.0.0.1:9000"
    drop_udp(server)
    carrier = [sys.executable, "-c", CARRIER, OUTER[4][0], str(STREAM_PORT)]
    tunnel.server.start()
    process = client.spawn(carrier, "carrier")
    await_output(process, "connected", 5)
    tunnel.client.start()
    assert client.ping(tunnel.server_addresses[4]).received == 3
    transfer(client, server, tunnel.server_addresses[4], 2 * MEGABYTE)
    transfer(server, client, tunnel.client_addresses[6], 2 * MEGABYTE)
    assert process.running, process.output()


CARRIER = """
import socket, sys, threading
tcp = socket.create_connection((sys.argv[1], int(sys.argv[2])))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("127.0.0.1", 9000))
print("connected", flush=True)
def exactly(count):
    data = b""
    while len(data) < count:
        more = tcp.recv(count - len(data))
        if not more:
            sys.exit("hung up")
        data += more
    return data
def inwards():
    while True:
        udp.sendto(exactly(int.from_bytes(exactly(2), "big")), ("127.0.0.1", 1000))
threading.Thread(target=inwards).start()
while True:
    datagram = udp.recv(65535)
    tcp.sendall(len(datagram).to_bytes(2, "big") + datagram)
"""


def test_a_connection_that_is_killed_is_made_anew(lab: Lab) -> None:
    tunnel, one, two = started(lab)
    pings = Pings.start(one.host, tunnel.server_addresses[4], 0.02)
    handshake_s = two.handshake_s(tunnel.client_key.public)
    for _ in range(2):
        before = two.endpoint_of(tunnel.client_key.public)
        kill_connections(two.host)
        eventually(
            lambda before=before: two.endpoint_of(tunnel.client_key.public) != before,
            10,
            "another connection",
        )
        pings.await_more(20)
    assert pings.gap_s() < REDIAL_S
    assert two.handshake_s(tunnel.client_key.public) - handshake_s <= REDIAL_S + 1
    await_streams(two, connections=1, strangers=0)


def test_a_server_that_starts_again_is_dialled_until_it_is_there(lab: Lab) -> None:
    tunnel, one, two = started(lab)
    two.stop()
    assert one.host.ping(tunnel.server_addresses[4], count=1, wait_s=1).received == 0
    two.start()
    eventually(
        lambda: one.host.ping(tunnel.server_addresses[4], count=1, wait_s=1).received, 20, "answers again"
    )


def test_a_half_open_connection_is_found_out_and_made_anew(lab: Lab) -> None:
    """Its packets are dropped: nobody is told, and what is sent is not acknowledged."""
    tunnel, one, two = started(lab)
    [port] = re.findall(r":(\d+)$", two.endpoint_of(tunnel.client_key.public))
    for host, way in ((one.host, "--dport"), (two.host, "--sport")):
        end = f"-p tcp {way} {STREAM_PORT} {'--sport' if way == '--dport' else '--dport'} {port}"
        host.iptables(f"-A OUTPUT {end} -j DROP")
    pings = one.host.spawn(["ping", "-n", "-i", "0.2", tunnel.server_addresses[4]], "ping")
    eventually(
        lambda: not two.endpoint_of(tunnel.client_key.public).endswith(f":{port}"), 40, "another connection"
    )
    await_output(pings, "bytes from", 5)
    # The server's end of the old one goes, too: with the peer's new one, or because nobody answers.
    await_streams(two, connections=1)


def test_a_relay_goes_on_listening_for_the_one_before(lab: Lab) -> None:
    """Connections end with their process and are made anew at once; the sessions go on."""
    tunnel, one, two = started(lab)
    pings = Pings.start(one.host, tunnel.server_addresses[4], 0.02)
    handshake_s = two.handshake_s(tunnel.client_key.public)
    before = take_over(two)
    pings.await_more(50)
    assert before.stop() == 0
    assert pings.gap_s() < REDIAL_S
    await_streams(two, connections=1, strangers=0)
    assert two.handshake_s(tunnel.client_key.public) - handshake_s <= REDIAL_S + 1
    # The client's end as well: it dials when it serves.
    client_before = take_over(one)
    pings.await_more(50)
    assert client_before.stop() == 0
    await_streams(two, connections=1, strangers=0)


def test_a_port_that_is_in_use_refuses_the_file(lab: Lab) -> None:
    tunnel, one, two = started(lab)
    two.host.spawn([sys.executable, "-c", OCCUPY, "9999"], "occupied")
    eventually(lambda: "9999" in two.host.run(["ss", "-ltn"]).stdout, 5, "a port in use")
    connections = streams_of(two)["connections"]
    two.settings.more = ["ListenTCP = 9999"]
    peer_of(two).keepalive_s = 7
    reload(two)
    assert two.process is not None
    await_output(two.process, "reload refused, nothing changed: ListenTCP = 9999: Address already in use")
    assert two.shown("persistent-keepalive") == {tunnel.client_key.public: "off"}, "all of it or nothing"
    two.settings.more = ["ListenTCP = 8444"]
    reload(two)
    await_output(two.process, "configuration reloaded")
    assert two.shown("persistent-keepalive") == {tunnel.client_key.public: "7"}
    listening = two.host.run(["ss", "-ltnH"]).stdout
    assert ":8444 " in listening
    assert f":{STREAM_PORT} " not in listening
    assert one.host.ping(tunnel.server_addresses[4]).received == 3, "connections that are there stay"
    assert streams_of(two)["connections"] == connections


OCCUPY = """
import socket, sys, time
sock = socket.create_server(("0.0.0.0", int(sys.argv[1])))
time.sleep(60)
"""


def reload(relay: Culvert) -> None:
    relay.write_settings()
    assert relay.process is not None
    relay.process.send_signal(signal.SIGHUP)


def test_a_peer_that_is_removed_is_hung_up_on(lab: Lab) -> None:
    tunnel, _, two = started(lab)
    [port] = re.findall(r":(\d+)$", two.endpoint_of(tunnel.client_key.public))
    established = ["ss", "-tnH", "state", "established", "dport", "=", f":{port}"]
    assert f":{port}" in two.host.run(established).stdout
    two.wg("set", two.device, "peer", tunnel.client_key.public, "remove")
    eventually(lambda: f":{port}" not in two.host.run(established).stdout, 5, "the end of the connection")


def test_streams_are_marked_as_datagrams_are(lab: Lab) -> None:
    client, server = direct_hosts(lab)
    tunnel, one, two = stream_tunnel(client, server)
    for end in (one, two):
        end.settings.fwmark = 0x51
        rule = f"-A OUTPUT -p tcp -m mark ! --mark 0x51 -m multiport --ports {STREAM_PORT} -j DROP"
        end.host.iptables(rule)
    tunnel.start()
    assert client.ping(tunnel.server_addresses[4]).received == 3
    assert two.host.path("/proc/net/dev").exists()


def test_a_relay_without_streams_has_none(lab: Lab) -> None:
    """No socket, no descriptor more than before."""
    client, server = direct_hosts(lab)
    tunnel = make_tunnel(("relay", "relay"), client, server, OUTER[4][0]).start()
    assert client.ping(tunnel.server_addresses[4]).received == 3
    for end in (tunnel.client, tunnel.server):
        assert end.process is not None
        links = [str(link.readlink()) for link in Path(f"/proc/{end.process.pid}/fd").iterdir()]
        assert sum("eventpoll" in link for link in links) == 1
        assert str(PORT) not in end.host.run(["ss", "-ltnH"]).stdout
        assert isinstance(end, Culvert)
        assert "streams" not in end.culvert("show", end.device)
