# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Either end may move to another address and port in the middle of a transfer; NAT entries may expire.

Roaming:      client  eth0 198.51.100.2 → .12 ────── cable ────── eth0 198.51.100.1 → .11  server
                      UDP  51820 → 51999                          UDP  51820 → 51998

NAT:          client ── nat (MASQUERADE --random-fully, entries live 2 s) ── server ── internet (as test_walk)
"""

from __future__ import annotations

import time

import pytest

from tests.netns.endpoints import PORT, Endpoint
from tests.netns.lab import Lab, await_output, eventually
from tests.netns.topology import OUTER, PAIRS, Path, behind_nat, direct_hosts, make_tunnel, path_hosts
from tests.netns.transfer import MEGABYTE, Transfer

NAT_ENTRY_S = 2
every_pair = pytest.mark.parametrize("pair", PAIRS, ids="-to-".join)


def move(endpoint: Endpoint, old: str, new: str, port: int) -> None:
    """Give an endpoint's host another outer address, and the endpoint another UDP port, at once."""
    endpoint.host.sysctl(
        "net.ipv4.conf.eth0.promote_secondaries", 1
    )  # else the new address goes with the old
    endpoint.host.add_address("eth0", f"{new}/24")
    endpoint.host.ip("address", "del", f"{old}/24", "dev", "eth0")
    endpoint.wg("set", endpoint.device, "listen-port", str(port))


@pytest.mark.parametrize("sender", ["client", "server"])
@pytest.mark.parametrize("mover", ["client", "server"])
@every_pair
def test_an_end_moves_in_the_middle_of_a_transfer(
    lab: Lab, pair: tuple[str, str], mover: str, sender: str
) -> None:
    """The other end learns the new endpoint from the first authenticated packet, without a new handshake."""
    client, server = direct_hosts(lab)
    server_outer, client_outer = OUTER[4]
    tunnel = make_tunnel(pair, client, server, server_outer).start()
    assert client.ping(tunnel.server_addresses[4], count=1).received == 1
    handshake_s = tunnel.client.handshake_s(tunnel.server_key.public)

    if sender == "client":
        flow = Transfer(client, server, tunnel.server_addresses[4], 6 * MEGABYTE, rate_bytes_s=3e6)
    else:
        flow = Transfer(server, client, tunnel.client_addresses[4], 6 * MEGABYTE, rate_bytes_s=3e6)
    time.sleep(0.7)
    if mover == "client":
        moved, other, key = tunnel.client, tunnel.server, tunnel.client_key
        move(moved, client_outer, "198.51.100.12", 51999)
        expected, back = "198.51.100.12:51999", tunnel.server_addresses[4]
    else:
        moved, other, key = tunnel.server, tunnel.client, tunnel.server_key
        move(moved, server_outer, "198.51.100.11", 51998)
        expected, back = "198.51.100.11:51998", tunnel.client_addresses[4]
    assert flow.running
    if mover != sender:
        moved.host.ping(back, count=1)  # only what the moved end sends can tell where it is now
    flow.finish()
    assert other.endpoint_of(key.public) == expected
    assert tunnel.client.handshake_s(tunnel.server_key.public) == handshake_s, "the session went on"


def forgetful_nat(path: Path) -> None:
    """Make the NAT forget UDP flows after NAT_ENTRY_S and use another source port for every new one."""
    for key in ("nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"):
        path.nat.sysctl(f"net.netfilter.{key}", NAT_ENTRY_S)
    path.nat.iptables("-t nat -F POSTROUTING")
    path.nat.iptables("-t nat -A POSTROUTING -o wan0 -p udp -j MASQUERADE --random-fully")


@every_pair
def test_a_keepalive_shorter_than_the_nats_memory_keeps_the_client_reachable(
    lab: Lab, pair: tuple[str, str]
) -> None:
    path = path_hosts(lab)
    forgetful_nat(path)
    tunnel = behind_nat(pair, path, keepalive_s=1).start()
    eventually(lambda: tunnel.server.handshake_s(tunnel.client_key.public), 5, "handshake")
    seen = tunnel.server.endpoint_of(tunnel.client_key.public)
    time.sleep(2.5 * NAT_ENTRY_S)
    assert path.server.ping(tunnel.client_addresses[4]).received == 3
    assert tunnel.server.endpoint_of(tunnel.client_key.public) == seen, "one NAT entry all the time"


@every_pair
def test_a_nat_entry_that_expired_is_replaced_by_the_next_keepalive(lab: Lab, pair: tuple[str, str]) -> None:
    keepalive_s = 3 * NAT_ENTRY_S
    path = path_hosts(lab)
    forgetful_nat(path)
    tunnel = behind_nat(pair, path, keepalive_s=keepalive_s).start()
    eventually(lambda: tunnel.server.handshake_s(tunnel.client_key.public), 5, "handshake")
    assert path.client.ping(tunnel.server_addresses[4], count=1).received == 1
    seen = tunnel.server.endpoint_of(tunnel.client_key.public)

    time.sleep(2 * NAT_ENTRY_S)
    assert path.server.ping(tunnel.client_addresses[4], count=1, wait_s=0.5).received == 0, (
        "the entry is gone"
    )
    eventually(
        lambda: tunnel.server.endpoint_of(tunnel.client_key.public) != seen,
        keepalive_s - 2 * NAT_ENTRY_S + 1,
        "keepalive through a new NAT entry",
    )
    assert tunnel.server.endpoint_of(tunnel.client_key.public).startswith(f"{path.nat_outside}:")
    assert path.server.ping(tunnel.client_addresses[4]).received == 3


def test_a_source_port_that_a_nat_swallows_is_given_up(lab: Lab) -> None:
    """What a dead NAT entry does to a flow; a relay whose port nobody chose takes another one."""
    path = path_hosts(lab)
    tunnel = behind_nat(("relay", "go"), path, keepalive_s=0)
    tunnel.client.settings.listen_port = 0
    tunnel.start()
    port = tunnel.client.wg("show", tunnel.client.device, "listen-port").strip()
    path.nat.iptables(f"-I FORWARD -p udp --sport {port} -j DROP")
    ping = path.client.spawn(["ping", "-n", "-i", "0.5", tunnel.server_addresses[4]], "ping")
    await_output(ping, "bytes from", 30)
    assert tunnel.client.wg("show", tunnel.client.device, "listen-port").strip() != port
    blocked = path.nat.iptables("-nvxL FORWARD").split("DROP", 1)[0].split()[-2]
    assert int(blocked) >= 2, "it was tried with the old port first"


def test_a_name_is_resolved_again_when_nobody_answers(lab: Lab) -> None:
    client, server = direct_hosts(lab)
    names = client.directory / "hosts"
    names.write_text("198.51.100.99 vpn.example.test\n")
    client.run(["mount", "--bind", str(names), "/etc/hosts"])  # in the host's own mount namespace
    tunnel = make_tunnel(("relay", "go"), client, server, "vpn.example.test").start()
    assert client.ping(tunnel.server_addresses[4], count=1, wait_s=1).received == 0
    assert tunnel.client.endpoint_of(tunnel.server_key.public) == f"198.51.100.99:{PORT}"
    names.write_text("198.51.100.1 vpn.example.test\n")
    ping = client.spawn(["ping", "-n", "-i", "0.5", tunnel.server_addresses[4]], "ping")
    await_output(ping, "bytes from", 25)
    assert tunnel.client.endpoint_of(tunnel.server_key.public) == f"198.51.100.1:{PORT}"
