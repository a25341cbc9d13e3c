# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A walk through a tunnel: what each packet does on its way, and what happens when something is missing.

┌───────────────┐      ┌────────────────┐      ┌─────────────────┐      ┌─────────────────┐
│ client        │      │ nat            │      │ server          │      │ internet        │
│ 192.168.86.2  ├──────┤ .1             │      │                 │      │                 │
│ 2001:db8:86::2│ eth0 │lan0  wan0      ├──────┤ eth0       eth1 ├──────┤ eth0            │
│               │      │    203.0.113.2 │      │ .1              │      │ 198.51.100.2    │
│ cvt0          │      │    MASQUERADE  │      │    198.51.100.1 │      │ 2001:db8:198::2 │
│ 10.86.0.2     │      │                │      │ MASQUERADE      │      │                 │
└──────┬────────┘      └────────────────┘      │ cvt0 10.86.0.1  │      └─────────────────┘
       │                                       └─────┬───────────┘
       └══════════════════ WireGuard ════════════════┘
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.netns.endpoints import DEVICE
from tests.netns.lab import Lab, eventually
from tests.netns.pcap import ECHO_REPLY, ECHO_REQUEST, Capture
from tests.netns.services import Ssh, ask_callers_address, probe, serve_callers_address
from tests.netns.topology import PAIRS, TABLE, behind_nat, path_hosts, send_everything

NOBODY = {4: "10.86.0.99", 6: "fd86:ea04:1115::99"}
every_pair = pytest.mark.parametrize("pair", PAIRS, ids="-to-".join)
both_families = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])


def echoes(capture: Capture) -> list[tuple[str, str]]:
    """The (kind, destination) of every echo packet of a capture, in order."""
    return [(packet.echo, packet.destination) for packet in capture.packets if packet.echo]


@every_pair
def test_pinging_ones_own_address_does_not_touch_the_tunnel(lab: Lab, pair: tuple[str, str]) -> None:
    path = path_hosts(lab)
    tunnel = behind_nat(pair, path).start()
    for end, addresses in (
        (tunnel.client, tunnel.client_addresses),
        (tunnel.server, tunnel.server_addresses),
    ):
        with Capture(end.host, DEVICE) as capture:
            for address in addresses.values():
                assert end.host.ping(address).received == 3
        assert echoes(capture) == []


@both_families
@every_pair
def test_pinging_the_server_shows_request_and_reply_on_both_devices(
    lab: Lab, pair: tuple[str, str], family: int
) -> None:
    path = path_hosts(lab)
    tunnel = behind_nat(pair, path).start()
    client_address, server_address = tunnel.client_addresses[family], tunnel.server_addresses[family]
    with Capture(path.client, DEVICE) as at_client, Capture(path.server, DEVICE) as at_server:
        assert path.client.ping(server_address, count=1).received == 1
    exchange = [(ECHO_REQUEST, server_address), (ECHO_REPLY, client_address)]
    assert echoes(at_client) == exchange
    assert echoes(at_server) == exchange


@every_pair
def test_ssh_in_both_directions_though_the_client_is_behind_a_nat(
    lab: Lab, pair: tuple[str, str], tmp_path: Path
) -> None:
    path = path_hosts(lab)
    tunnel = behind_nat(pair, path, keepalive_s=5).start()
    ssh = Ssh(tmp_path)
    ssh.serve(path.client)
    ssh.serve(path.server)

    # The keepalive alone makes the server know where the client is: nobody has sent anything yet.
    eventually(
        lambda: tunnel.server.handshake_s(tunnel.client_key.public), 5, "handshake begun by the keepalive"
    )
    assert tunnel.server.endpoint_of(tunnel.client_key.public).startswith(f"{path.nat_outside}:")
    for family in (4, 6):
        for host, address, caller in (
            (path.server, tunnel.client_addresses[family], tunnel.server_addresses[family]),
            (path.client, tunnel.server_addresses[family], tunnel.client_addresses[family]),
        ):
            assert ssh.run(host, address, "echo $SSH_CONNECTION").split()[::2] == [caller, address]
    assert path.server.ping("192.168.86.2", count=1, wait_s=1).received == 0, (
        "the client must be out of reach directly"
    )


@both_families
@pytest.mark.parametrize("server_kind", ["go", "relay"])
def test_an_address_of_no_peer_is_refused_by_the_senders_own_relay(
    lab: Lab, server_kind: str, family: int
) -> None:
    path = path_hosts(lab)
    tunnel = behind_nat(("relay", server_kind), path)
    tunnel.client.settings.peers[0].allowed_ips = [
        f"{address}/{128 if ':' in address else 32}" for address in tunnel.server_addresses.values()
    ]
    tunnel.start()
    assert path.client.ping(tunnel.server_addresses[family]).received == 3
    with Capture(path.server, DEVICE) as at_server:
        result = path.client.ping(NOBODY[family], wait_s=1)
    assert result.received == 0
    assert "unreachable" in result.output.lower(), result.output
    assert echoes(at_server) == [], "a packet for an address of no peer went to a peer"


@both_families
@pytest.mark.parametrize("client_kind", ["go", "relay"])
def test_an_address_that_nobody_has_is_refused_by_the_server(lab: Lab, client_kind: str, family: int) -> None:
    path = path_hosts(lab)
    tunnel = behind_nat((client_kind, "relay"), path).start()
    assert path.client.ping(tunnel.server_addresses[family]).received == 3
    result = path.client.ping(NOBODY[family], wait_s=1)
    assert result.received == 0
    assert "unreachable" in result.output.lower(), result.output


@every_pair
def test_the_internet_sees_the_servers_address(lab: Lab, pair: tuple[str, str]) -> None:
    path = path_hosts(lab)
    for address in path.internet_address.values():
        serve_callers_address(path.internet, address)
    tunnel = behind_nat(pair, path, everything=True)
    assert ask_callers_address(path.client, path.internet_address[4]) == path.nat_outside, "before the tunnel"
    tunnel.start()
    send_everything(tunnel.client)
    assert ask_callers_address(path.client, path.internet_address[4]) == path.server_inside[4]
    assert ask_callers_address(path.client, path.internet_address[6]) == path.server_inside[6]
    assert path.client.ping("192.168.86.1").received == 3, (
        "the local network stays reachable beside the tunnel"
    )


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_without_the_relay_nothing_leaves_in_the_clear(lab: Lab, how: signal.Signals) -> None:
    path = path_hosts(lab)
    for address in path.internet_address.values():
        serve_callers_address(path.internet, address)
    tunnel = behind_nat(("relay", "relay"), path, everything=True)
    relay = tunnel.client
    relay.persistent = tunnel.server.persistent = (
        True  # made beforehand, as on a host that Ansible configured
    )
    tunnel.start()
    send_everything(relay)
    targets = list(path.internet_address.values())
    uplink = " or ".join(f"host {address}" for address in targets)
    with Capture(path.client, "eth0", uplink) as capture:
        for address in targets:
            assert ask_callers_address(path.client, address), f"{address} through the tunnel"
        relay.stop(how)
        assert relay.device_exists(), "the persistent device outlives the relay"
        for address in targets:
            assert path.client.ping(address, count=2, wait_s=1).received == 0
            assert ask_callers_address(path.client, address, timeout_s=2) == ""
        relay.start()
        for address in targets:
            assert ask_callers_address(path.client, address), f"{address} after the relay is back"
    assert capture.packets == []
    with Capture(path.client, "eth0", uplink) as control:
        path.client.ip("rule", "del", "lookup", TABLE)
        assert path.client.ping(targets[0], count=1).received == 1
    assert control.packets, "the capture must be able to see a leak"


def test_without_the_device_nothing_leaves_in_the_clear(lab: Lab) -> None:
    """The routes go with the device; the table's last entry still answers."""
    path = path_hosts(lab)
    tunnel = behind_nat(("relay", "relay"), path, everything=True).start()
    send_everything(tunnel.client)
    targets = list(path.internet_address.values())
    with Capture(path.client, "eth0", " or ".join(f"host {address}" for address in targets)) as capture:
        tunnel.client.stop()
        assert not tunnel.client.device_exists(), "a device that the relay made goes with it"
        for address in targets:
            assert path.client.ping(address, count=2, wait_s=1).received == 0
    assert capture.packets == []


@every_pair
def test_a_wrong_subnet_on_the_server_breaks_replies_and_the_probe_says_why(
    lab: Lab, pair: tuple[str, str]
) -> None:
    path = path_hosts(lab)
    tunnel = behind_nat(pair, path)
    tunnel.server.addresses = ["10.86.0.1/32"]
    tunnel.start()
    path.server.ip("route", "add", "default", "via", path.internet_address[4])
    with Capture(path.server, DEVICE) as capture:
        assert path.client.ping(tunnel.server_addresses[4], count=2, wait_s=1).received == 0
    assert echoes(capture) == [(ECHO_REQUEST, tunnel.server_addresses[4])] * 2, (
        "requests arrive, no reply leaves"
    )

    target = {"name": "client", "address": tunnel.client_addresses[4]}
    said = probe(path.server, device=DEVICE, targets=[target], count=1, timeout_s=1)
    assert said["ok"] is False, said
    reasons = " ".join(reason for entry in said["targets"] for reason in entry["reasons"])
    assert "eth1" in reasons, f"the probe must name the interface that replies take: {reasons}"
    assert DEVICE in reasons, f"the probe must name the device they should take: {reasons}"

    path.server.ip("route", "add", "10.86.0.0/24", "dev", DEVICE)
    assert path.client.ping(tunnel.server_addresses[4]).received == 3
    said = probe(path.server, device=DEVICE, targets=[target], count=1, timeout_s=1)
    assert said["ok"] is True, said
