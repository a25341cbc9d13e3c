# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""With the kill switch, nothing leaves a client but the tunnel's own packets and what the exceptions list."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from tests.netns.fulltunnel.leaks import ELSEWHERE, MULTICAST, of_containers, of_programs, talking
from tests.netns.fulltunnel.network import CLIENT, DEVICE, LAN, OUTSIDE, Network, Sent
from tests.netns.lab import Process, eventually
from tests.netns.pcap import ICMP, ICMPV6, TCP, UDP

NUMBERS = {"udp": UDP, "tcp": TCP}


def leaving(sent: Sent, item: dict[str, Any]) -> set[str]:
    """The devices by which it left, of the one that it is bound to or of all."""
    version = 6 if ":" in item["to"] else 4
    number = NUMBERS.get(item["protocol"], {4: ICMP, 6: ICMPV6}[version])
    found = sent.by(item["to"], item.get("port", 0), UDP if item["protocol"] == "raw" else number)
    return found & {item.get("device", "")} if item.get("device") else found


def test_all_that_is_tried_leaves_a_host_without_a_tunnel(network: Network) -> None:
    """Or the other tests would say nothing."""
    with network.watched() as sent, talking(network) as talk:
        talk.go_on()
    tried = [item for version in (4, 6) for item in (*of_programs(version), *of_containers(version))]
    assert [item for item in tried if not leaving(sent, item)] == []


def test_nothing_leaves_whatever_happens_to_the_tunnel(network: Network) -> None:
    network.deploy(client_kill_switch=True)
    network.await_tunnel()
    client, relay = network.client, network.relay
    assert relay is not None
    with network.watched() as sent, talking(network) as talk:
        talk.go_on()  # the tunnel works
        relay.stop(signal.SIGKILL)
        talk.go_on()
        relay.start()
        network.await_tunnel()
        client.ip("route", "flush", "table", "51820")
        client.ip("-6", "route", "flush", "table", "51820")
        talk.go_on()
        client.ip("rule", "del", "priority", "31821")
        client.ip("-6", "rule", "del", "priority", "31821")
        talk.go_on()
        network.client.network(network.made["client"])  # mended by a run
        network.await_tunnel()
        relay.stop()
        client.ip("link", "del", DEVICE)
        talk.go_on()
        client.ip("route", "del", "default")
        client.ip("route", "add", "default", "via", "198.51.100.17", "dev", "up1")
        talk.go_on()
        network.documents(client_kill_switch=True, client_table_id=51830)
        network.client.network(network.made["relay"])
        relay.start()
        network.client.network(network.made["client"])  # changed by a run
        talk.go_on()
        network.await_tunnel()
    assert sent.beside_the_tunnel() == []
    assert sent.of_the_tunnel() > 20


def test_a_run_that_changes_the_exceptions_opens_nothing(network: Network) -> None:
    network.deploy(client_kill_switch=True)
    with network.watched() as sent, talking(network) as talk:
        for allowed in (["192.168.99.0/24"], ["192.168.98.0/24", "100::/64"], []):
            network.documents(client_kill_switch=True, client_kill_switch_allow=allowed)
            assert network.client.network(network.made["client"])["changed"]
            talk.go_on(1)
    assert sent.beside_the_tunnel() == []


def test_without_a_full_tunnel_the_rest_does_not_leave_at_all(network: Network) -> None:
    network.deploy(client_kill_switch=True, client_tunnel_prefixes=["203.0.113.128/25"])
    with network.watched() as sent, talking(network) as talk:
        talk.go_on()
    assert sent.beside_the_tunnel() == []
    assert network.client.ping("10.86.0.1", 1).received


EXCEPTIONS: list[Any] = [
    f"{LAN[4]}/32",
    {"to": LAN[6], "protocol": "udp", "port": 4301},
    {"to": "198.51.100.128/28", "protocol": "tcp", "port": 4302, "device": "up1"},
    {"to": OUTSIDE[6], "protocol": "icmp", "device": "up+"},
    {"to": "0.0.0.0/0", "protocol": 17, "device": "up2"},
]
# What passes by each of them, and its nearest neighbours, which do not.
PASSES = [
    {"protocol": "tcp", "to": LAN[4], "port": 4300},
    {"protocol": "icmp", "to": LAN[4]},
    {"protocol": "udp", "to": LAN[6], "port": 4301},
    {"protocol": "tcp", "to": OUTSIDE[4], "port": 4302, "device": "up1"},
    {"protocol": "icmp", "to": OUTSIDE[6], "device": "up0"},
    {"protocol": "udp", "to": ELSEWHERE[4], "port": 4305, "device": "up2"},
]
DOES_NOT = [
    {"protocol": "tcp", "to": "192.168.50.3", "port": 4300},
    {"protocol": "udp", "to": LAN[6], "port": 4302},
    {"protocol": "tcp", "to": LAN[6], "port": 4301},
    {"protocol": "udp", "to": "fd00:50::3", "port": 4301},
    {"protocol": "udp", "to": OUTSIDE[4], "port": 4302, "device": "up1"},
    {"protocol": "tcp", "to": OUTSIDE[4], "port": 4303, "device": "up1"},
    {"protocol": "tcp", "to": OUTSIDE[4], "port": 4302, "device": "up0"},
    {"protocol": "udp", "to": OUTSIDE[6], "port": 4304, "device": "up0"},
    {"protocol": "icmp", "to": ELSEWHERE[6], "device": "up0"},
    {"protocol": "tcp", "to": ELSEWHERE[4], "port": 4305, "device": "up2"},
    {"protocol": "udp", "to": ELSEWHERE[4], "port": 4305, "device": "up0"},
]


def test_each_exception_lets_itself_through_and_nothing_else(network: Network) -> None:
    for missing in ("192.168.50.3", "fd00:50::3"):
        # A neighbour that is not there would be asked for, and nothing be sent to it.
        version = ["-6"] if ":" in missing else []
        hardware = "02:00:00:00:00:03"
        network.client.ip(
            *version, "neigh", "add", missing, "lladdr", hardware, "dev", "lan0", "nud", "permanent"
        )
    network.deploy(client_kill_switch=True, client_kill_switch_allow=EXCEPTIONS)
    # Nothing but the chain is to be seen: without the tunnel's rules, the host's own routes have it all.
    for family in ("-4", "-6"):
        for priority in ("31820", "31821"):
            network.client.ip(family, "rule", "del", "priority", priority)
    with network.watched() as sent, talking(network, *PASSES, *DOES_NOT) as talk:
        talk.go_on()
    assert [item for item in PASSES if not leaving(sent, item)] == []
    held = [item for item in DOES_NOT if leaving(sent, item)]
    assert held == []


LINK = [
    {"protocol": "udp", "to": "255.255.255.255", "port": 67, "from_port": 68, "device": "up0"},
    {"protocol": "udp", "to": "198.51.100.17", "port": 67, "from_port": 68},  # a lease that is renewed
    {"protocol": "udp", "to": "ff02::1:2", "port": 547, "from_port": 546, "device": "up0"},
    *({"protocol": "icmp", "to": "ff02::2", "type": kind, "device": "up0"} for kind in (133, 135, 136)),
]
NOT_OF_THE_LINK = [
    {"protocol": "udp", "to": "255.255.255.255", "port": 67, "from_port": 6868, "device": "up0"},
    {"protocol": "udp", "to": "198.51.100.17", "port": 68, "from_port": 67},
    {"protocol": "udp", "to": "224.0.0.251", "port": 5353, "device": "up0"},
    {"protocol": "udp", "to": "224.0.0.252", "port": 5355, "device": "up0"},
    {"protocol": "udp", "to": "239.255.255.250", "port": 1900, "device": "up0"},
    {"protocol": "udp", "to": MULTICAST[6], "port": 5353, "device": "up0"},
    {"protocol": "icmp", "to": "ff02::1", "device": "up0"},
    {"protocol": "icmp", "to": "ff02::2", "type": 137, "device": "up0"},
]


def test_dhcp_and_neighbour_discovery_pass_and_other_multicast_does_not(network: Network) -> None:
    network.deploy(client_kill_switch=True)
    with network.watched() as sent, talking(network, *LINK, *NOT_OF_THE_LINK) as talk:
        talk.go_on()
    assert sent.by("255.255.255.255", 67) == {"up0"}
    assert sent.by("198.51.100.17", 67) == {"up1"}
    assert sent.by("ff02::1:2", 547) == {"up0"}
    kinds = {
        p.payload[0] for _device, p in sent.packets if p.destination == "ff02::2" and p.protocol == ICMPV6
    }
    assert kinds == {133, 135, 136}
    passed = [
        line for line in sent.beside_the_tunnel() if "(68, 67)" not in line and "(546, 547)" not in line
    ]
    assert passed == []


def test_containers_reach_the_host_and_what_is_behind_the_tunnel(network: Network) -> None:
    network.deploy(client_kill_switch=True)
    network.await_tunnel()
    assert network.container.ping("172.17.0.1", 1).received
    assert network.client.ping("172.17.0.2", 1).received
    assert network.client.ping("fd00:d0c::2", 1).received
    with network.watched() as sent:
        assert network.container.ping(OUTSIDE[4], 3).received == 3
        assert network.container.ping(OUTSIDE[6], 3).received == 3
    assert sent.beside_the_tunnel() == []


_OLD = """
import socket, sys, time
# Holds one connection and speaks on it: argv is the role, the protocol, address and port of the server.
role, protocol, address, port = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
end = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
if role == "server":
    end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    end.bind((address, port))
    print("ready", flush=True)
    if protocol == "tcp":
        end.listen()
        end = end.accept()[0]
    else:
        end.connect(end.recvfrom(10)[1])
else:
    end.connect((address, port))
    end.send(b"first")
end.settimeout(0.05)
while True:
    try:
        if end.recv(100):
            print("heard", flush=True)
    except OSError:
        pass
    try:
        end.send(b"again")
    except OSError:
        pass
    time.sleep(0.05)
"""


@pytest.mark.parametrize("tracked", [False, True])
def test_connections_that_are_older_than_the_deployment(network: Network, tracked: bool) -> None:
    """Those of the host's own do not go on beside the tunnel, whoever speaks first once they are tracked.
    Those that came in from outside do.
    """
    client, outside = network.client, network.outside
    if not tracked:
        for family in (4, 6):
            client.iptables("-F FORWARD", family)
            client.iptables("-t nat -F POSTROUTING", family)
    own = [("tcp", 4, 4401), ("tcp", 6, 4401), ("udp", 4, 443), ("udp", 6, 443)]
    outgoing = []
    for protocol, version, port in own:
        server = network.script(outside, _OLD, "server", protocol, OUTSIDE[version], str(port))
        _until(server, "ready")
        outgoing.append(network.script(client, _OLD, "client", protocol, OUTSIDE[version], str(port)))
        _until(outgoing[-1], "heard")
    incoming = []
    for version in (4, 6):
        incoming.append(network.script(client, _OLD, "server", "tcp", CLIENT["up0"][version], "2222"))
        _until(incoming[-1], "ready")
        network.script(outside, _OLD, "client", "tcp", CLIENT["up0"][version], "2222")
        _until(incoming[-1], "heard")
    network.deploy(client_kill_switch=True)
    network.await_tunnel()
    with network.watched() as sent:
        for process in incoming:
            heard = process.output().count("heard")
            _until(process, "heard", heard + 5)
        network.client.ping(OUTSIDE[4], 5, interval_s=0.2)
    ports = {p.ports for _device, p in sent.packets if p.ports[1] in (4401, 443)}
    assert ports == set()
    assert {p.ports[0] for _device, p in sent.packets if p.protocol == TCP} == {2222}


def _until(process: Process, word: str, times: int = 1) -> None:
    eventually(lambda: process.output().count(word) >= times, 10, f"{word}: {process.output()}")


def test_a_pattern_that_takes_the_uplink_for_a_bridge_is_refused(network: Network) -> None:
    network.documents(client_kill_switch=True, client_container_devices=["docker0", "up+"])
    network.client.network(network.made["relay"])
    before = network.client.state()
    refusal = network.client.try_network(network.made["client"])
    assert refusal["failed"]
    for word in ("up+ is let pass", "default route leads to up0", "client_container_devices"):
        assert word in refusal["msg"]
    assert network.client.state() == before
    # Nor would the uplinks' own names do.
    network.documents(client_kill_switch=True, client_container_devices=["up1"])
    assert network.client.try_network(network.made["client"])["failed"]


def test_all_of_it_is_undone(network: Network) -> None:
    before = network.client.state()
    network.deploy(
        client_kill_switch=True, client_kill_switch_allow=EXCEPTIONS, client_dns_servers=["10.86.0.1"]
    )
    assert "CULVERT-KILLSWITCH" in network.client.state()
    again = network.client.network(network.made["client"])
    assert not again["changed"]
    network.remove()
    assert network.client.state() == before


def test_all_of_it_is_undone_when_the_record_is_lost(network: Network) -> None:
    """What the role's entry point ``absent`` names is all that the role may have made."""
    made = network.documents(client_kill_switch=True, client_dns_servers=["10.86.0.1"])
    network.client.network(made["relay"])
    with_record = network.client.state()
    network.client.network(made["client"])
    network.client.run(["sh", "-c", "rm -rf /var/lib/culvert/network.d/20-*"])
    chains = [
        {key: chain[key] for key in ("name", "table", "family", "jump")} for chain in made["client"]["chains"]
    ]
    left = {"name": made["client"]["name"], "chains": chains, "tables": [{"name": "vpn", "id": 51820}]}
    network.client.network(left, state="absent")
    rules = [line for line in with_record.splitlines() if "CULVERT" in line]
    assert [line for line in network.client.state().splitlines() if "CULVERT" in line] == rules
