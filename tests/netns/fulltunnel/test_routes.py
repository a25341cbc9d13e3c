# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A full tunnel takes what is the tunnel's, and leaves the rest of a host's network as it was."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.netns import services
from tests.netns.fulltunnel.leaks import of_programs, talking
from tests.netns.fulltunnel.network import (
    CLIENT,
    CONTAINER,
    DEVICE,
    GATEWAY,
    LAN,
    OUTSIDE,
    SERVER,
    UPLINKS,
    Network,
)
from tests.netns.lab import eventually
from tests.netns.pcap import TCP, UDP, Capture

# A service of the host: TCP and UDP on one port of one address; answers what it hears.
_ECHO = """
import select, socket, sys
address, port = sys.argv[1], int(sys.argv[2])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
listener = socket.create_server((address, port), family=family)
datagrams = socket.socket(family, socket.SOCK_DGRAM)
datagrams.bind((address, port))
print("ready", flush=True)
while True:
    for ready in select.select([listener, datagrams], [], [])[0]:
        if ready is datagrams:
            data, peer = datagrams.recvfrom(100)
            datagrams.sendto(data, peer)
        else:
            connection, _peer = listener.accept()
            connection.sendall(connection.recv(100))
            connection.close()
"""
_ASK = """
import socket, sys
protocol, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
asking = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
asking.settimeout(3)
asking.connect((address, port))
asking.sendall(b"hello")
print(asking.recv(100).decode())
"""
ECHO_PORT = 7007


def serve(network: Network, *devices: str) -> None:
    for device in devices:
        for address in CLIENT[device].values():
            process = network.script(network.client, _ECHO, address, str(ECHO_PORT))
            eventually(lambda p=process: "ready" in p.output(), 5, f"the service: {process.output()}")


def answers(network: Network, protocol: str, address: str) -> bool:
    argv = [*services.PYTHON, _ASK, protocol, address, str(ECHO_PORT)]
    return "hello" in network.outside.run(argv, check=False).stdout


def is_answered(network: Network, address: str) -> dict[str, bool]:
    """A connection, a datagram and an echo from outside."""
    return {
        "tcp": answers(network, "tcp", address),
        "udp": answers(network, "udp", address),
        "icmp": network.outside.ping(address, 2).received == 2,
    }


ALL = {"tcp": True, "udp": True, "icmp": True}


def strict(network: Network) -> None:
    """The reverse path filter as many distributions have it."""
    for device in ("all", "default", *UPLINKS):
        network.client.sysctl(f"net.ipv4.conf.{device}.rp_filter", 1)


@pytest.mark.parametrize("version", [4, 6])
def test_what_is_near_stays_near_and_the_rest_goes_through_the_tunnel(network: Network, version: int) -> None:
    services.serve_callers_address(network.outside, OUTSIDE[version])
    services.serve_callers_address(network.lan, LAN[version])
    network.deploy()
    network.await_tunnel(version)
    client, container = network.client, network.container
    with network.watched() as sent:
        assert services.ask_callers_address(client, OUTSIDE[version]) == SERVER[version]
        assert services.ask_callers_address(container, OUTSIDE[version]) == SERVER[version]
        own = {4: "192.168.50.1", 6: "fd00:50::1"}[version]
        assert services.ask_callers_address(client, LAN[version]) == own
        assert client.ping(CONTAINER[version], 1).received
        assert container.ping(LAN[version], 1).received
    assert sent.by(OUTSIDE[version]) == set()
    assert sent.by(LAN[version], protocol=TCP) == {"lan0"}


@pytest.mark.parametrize("kill_switch", [False, True])
@pytest.mark.parametrize("device", UPLINKS)
def test_who_comes_from_outside_is_answered_on_the_same_link(
    network: Network, device: str, kill_switch: bool
) -> None:
    """Whether the host's rule for that link comes before ours (up1), behind them (up2), or there is none."""
    strict(network)
    serve(network, device)
    before = {version: is_answered(network, CLIENT[device][version]) for version in (4, 6)}
    assert before == {4: ALL, 6: ALL}
    network.deploy(client_kill_switch=kill_switch)
    network.await_tunnel()
    with network.watched() as sent:
        for version in (4, 6):
            assert is_answered(network, CLIENT[device][version]) == ALL
    for version in (4, 6):
        assert sent.by(OUTSIDE[version]) == {device}


def test_who_comes_from_outside_is_answered_while_there_is_no_device(network: Network) -> None:
    """What would be answered into the tunnel is refused by then, before anything can mark it."""
    strict(network)
    serve(network, "up0")
    network.deploy()
    assert network.relay is not None
    network.relay.stop()
    network.client.ip("link", "del", DEVICE)
    assert network.client.ping(OUTSIDE[4], 1, wait_s=0.2).received == 0
    for version in (4, 6):
        assert answers(network, "tcp", CLIENT["up0"][version])
        assert network.outside.ping(CLIENT["up0"][version], 2).received == 2


def test_a_container_that_is_published_is_answered_on_the_link_it_was_asked_by(network: Network) -> None:
    network.client.iptables(
        f"-t nat -A PREROUTING -i up0 -p tcp --dport {ECHO_PORT} -j DNAT --to-destination {CONTAINER[4]}"
    )
    network.client.iptables(f"-I FORWARD -d {CONTAINER[4]} -p tcp --dport {ECHO_PORT} -j ACCEPT")
    process = network.script(network.container, _ECHO, CONTAINER[4], str(ECHO_PORT))
    eventually(lambda: "ready" in process.output(), 5, "the container's service")
    for kill_switch in (False, True):
        network.deploy(client_kill_switch=kill_switch)
        with network.watched() as sent:
            assert answers(network, "tcp", CLIENT["up0"][4])
        assert sent.by(OUTSIDE[4]) == {"up0"}


def test_ipv6_that_the_tunnel_does_not_carry_goes_nowhere(network: Network) -> None:
    services.serve_callers_address(network.outside, OUTSIDE[4])
    serve(network, "up0")
    network.deploy(ipv6=False)
    network.await_tunnel()
    plain = [item for item in of_programs(6) if not (item.get("bind") or item.get("device"))]
    with network.watched() as sent, talking(network, *plain) as talk:
        talk.go_on()
    beside = [line for line in sent.beside_the_tunnel() if LAN[6] not in line]
    assert beside == []
    # At once, so that programs go on to IPv4.
    done = network.client.run([*services.PYTHON, _ASK, "tcp", OUTSIDE[6], "8080"], check=False)
    assert "No route to host" in done.stderr
    assert services.ask_callers_address(network.client, OUTSIDE[4]) == SERVER[4]
    # And from outside the host is reached as ever.
    assert answers(network, "tcp", CLIENT["up0"][6])
    assert network.outside.ping(CLIENT["up0"][6], 2).received == 2


def test_a_controller_that_ipv6_beside_the_tunnel_would_cut_off_is_told(network: Network) -> None:
    """New connections would be answered. The one that Ansible works through would not."""
    made = network.documents(ipv6=False)
    network.client.network(made["relay"])
    program = f"""
import json, sys
from ansible_collections.culvert.vpn.plugins.module_utils import _facts, _refusals
from ansible_collections.culvert.vpn.plugins.module_utils._core import SpecError
from ansible_collections.culvert.vpn.plugins.module_utils._document import Document
from ansible_collections.culvert.vpn.plugins.module_utils._processes import run_command
document = Document.from_params(json.load(sys.stdin))
for peer, local in {[(OUTSIDE[v], CLIENT["up0"][v]) for v in (4, 6)]!r}:
    try:
        _refusals.check(document, None, _facts.observe(run_command, document, (peer, local)))
        print("fine")
    except SpecError as error:
        print(error)
"""
    paths = {"PYTHONPATH": str(Path(".cache/collections").resolve())}
    done = network.client.run([sys.executable, "-c", program], stdin=json.dumps(made["client"]), env=paths)
    over4, over6 = done.stdout.splitlines()
    assert over4 == "fine"
    assert "would end" in over6
    assert "allow: [controller_in_tunnel]" in over6


def test_the_tunnel_goes_on_when_dhcp_gives_another_gateway_and_address(network: Network) -> None:
    client = network.client
    # The network of up0 has another router, and the lease may be another address.
    network.router.add_address("to-up0", "198.51.100.14/28")
    network.deploy(client_kill_switch=True)
    network.await_tunnel()
    client.ip("route", "replace", "default", "via", "198.51.100.14", "dev", "up0")
    network.await_tunnel()
    # The last address takes the routes of the device along, as it does when a lease is lost.
    client.ip("addr", "del", "198.51.100.2/28", "dev", "up0")
    client.ip("addr", "add", "198.51.100.6/28", "dev", "up0")
    client.ip("route", "replace", "default", "via", GATEWAY["up0"][4], "dev", "up0")
    with network.watched() as sent:
        network.await_tunnel()
        network.await_tunnel(6)
    assert sent.by(SERVER[4], protocol=UDP) == {"up0"}
    assert {p.source for _device, p in sent.packets if p.destination == SERVER[4]} == {"198.51.100.6"}
    assert sent.beside_the_tunnel() == []
    # The uplink and its lease are lost, and the other one has a route by default.
    client.ip("addr", "del", "198.51.100.6/28", "dev", "up0")
    client.ip("link", "set", "up0", "down")
    with Capture(client, "up1") as capture:
        network.await_tunnel()
    assert any(packet.destination == SERVER[4] for packet in capture.packets)
