# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whom the clients ask for names, by each of the three mechanisms: before a deployment, with one, after it,
and after a reboot; with a capture on the network that nobody is to ask anything on.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dns_lab import (
    CLIENTS,
    FILE,
    GATE,
    LARGE,
    PROBE,
    REBINDING,
    RESOLVCONF,
    RESOLVED,
    SERVER,
    ZONE,
    DnsLab,
    describe,
    questions,
)
from fleet import NUMBERS
from leak_wire import Bridge

from tests.netns.pcap import TCP, UDP, Packet

pytestmark = pytest.mark.e2e

SITE, TEARDOWN = "playbooks/site.yml", "playbooks/teardown.yml"
READY_S = 60


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DnsLab]:
    made = DnsLab.make(tmp_path_factory.mktemp("dns"), NUMBERS["dns"])
    yield made
    made.fleet.down()


@pytest.fixture
def bridge(lab: DnsLab, tmp_path: Path) -> Iterator[Bridge]:
    """A capture of the outer network during one test."""
    capture = Bridge(f"culvert-{lab.fleet.name}-outer", tmp_path / "outer.pcap")
    yield capture
    capture.stop()


def variables(lab: DnsLab, **more: Any) -> dict[str, Any]:
    return {
        "server_resolver": "dnsmasq",
        "server_resolver_upstreams": [lab.upstream],
        # The lab's addresses are no more public than those of a tunnel.
        "server_resolver_private_domains": [ZONE],
        "client_dns_servers": ["server"],
        # Not what this is about, on a machine that may be busy with other tests.
        "relay_confirm_timeout_s": 240,
        **more,
    }


def deploy(lab: DnsLab, **more: Any) -> dict[str, int]:
    run = lab.fleet.play(SITE, "--diff", **variables(lab, **more))
    assert run.code == 0, run.output[-6000:]
    return run.changed()


@pytest.fixture(scope="module")
def before(lab: DnsLab) -> dict[str, str]:
    return lab.state()


@pytest.fixture(scope="module")
def deployed(lab: DnsLab, before: dict[str, str]) -> dict[str, int]:
    return deploy(lab)


def eventually(check: Callable[[], bool], what: str, timeout_s: float = READY_S) -> None:
    give_up = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < give_up, what
        time.sleep(0.5)


def asked(bridge: Bridge) -> list[Packet]:
    time.sleep(0.3)  # what was sent just now is in the kernel's buffer still
    return questions(bridge.packets())


def reboot(lab: DnsLab, host: str) -> None:
    """Restart, and wait until the host has applied its documents.

    A container has its network before it has a first process, and so answers us sooner than a host can.
    """
    subprocess.run(["docker", "restart", lab.fleet.container(host)], check=True, capture_output=True)
    applied = "systemctl is-active culvert-network.service || true"
    eventually(lambda: lab.fleet.shell(host, applied).strip() == "active", f"{host} does not start")


def test_without_a_tunnel_they_ask_outside(lab: DnsLab, before: dict[str, str], bridge: Bridge) -> None:
    """That the capture sees questions when there are some."""
    for client in CLIENTS:
        assert lab.names(client, PROBE) == [lab.upstream], client
        assert len(lab.names(client, LARGE)) == 254, client
        assert lab.ask(client, lab.outside), client
    seen = asked(bridge)
    assert {packet.source for packet in seen} == {lab.fleet.outer(n) for n in (21, 22, 23, 29)}
    assert {packet.protocol for packet in seen} == {UDP, TCP}


def test_each_resolves_through_the_tunnel_and_asks_nobody_else(
    lab: DnsLab, deployed: dict[str, int], bridge: Bridge
) -> None:
    for client in CLIENTS:
        eventually(
            lambda client=client: lab.names(client, PROBE) == [lab.upstream], f"{client} finds nothing"
        )
        assert len(lab.names(client, LARGE)) == 254, client
        assert lab.names(client, PROBE, over_tcp=True) == [lab.upstream], client
        assert lab.names(client, f"nobody.{ZONE}") == []
        for over_tcp in (False, True):
            assert not lab.ask(client, lab.outside, over_tcp), f"{client} can ask outside"
    assert not asked(bridge), describe(asked(bridge))


def test_the_servers_resolver_answers_the_tunnel_only(lab: DnsLab, deployed: dict[str, int]) -> None:
    listening = lab.fleet.shell(SERVER, "ss -Hlntup 'sport = :53'").splitlines()
    own = {line.split()[4].rpartition(":")[0].partition("%")[0].strip("[]") for line in listening}
    addresses = lab.fleet.shell(SERVER, "ip -o address show dev culvert0").split()
    assert own
    assert all(any(a.startswith(f"{one}/") for a in addresses) for one in own), listening
    tunnel = next(one for one in own if "." in one)
    # Linux takes packets for its addresses from any link.
    lab.fleet.shell("demo-internet", f"ip route replace {tunnel} via {lab.fleet.internet(11)}")
    assert not lab.ask("demo-internet", tunnel)
    assert not lab.ask("demo-internet", tunnel, over_tcp=True)
    assert lab.ask(SERVER, tunnel), "itself may ask"


def test_names_of_others_do_not_lead_into_the_tunnel(lab: DnsLab, deployed: dict[str, int]) -> None:
    assert all(lab.names(client, REBINDING) == [] for client in CLIENTS)


def test_a_second_run_changes_nothing(lab: DnsLab, deployed: dict[str, int]) -> None:
    assert set(deploy(lab).values()) == {0}


def test_what_somebody_writes_over_it_is_replaced(lab: DnsLab, deployed: dict[str, int]) -> None:
    theirs = f"# a DHCP client\nnameserver {lab.outside}\n"
    lab.fleet.shell(FILE, f"printf '{theirs}' >/etc/resolv.conf")
    lab.fleet.shell(RESOLVED, "resolvectl revert culvert0; systemctl start culvert-resolver")
    lab.fleet.shell(RESOLVCONF, "resolvconf -d tun.culvert0; systemctl start culvert-resolver")
    for client in CLIENTS:
        eventually(
            lambda client=client: lab.names(client, PROBE) == [lab.upstream], f"{client} finds nothing"
        )
    eventually(
        lambda: "culvert" in lab.fleet.shell(FILE, "cat /etc/resolv.conf"),
        "the host notices nothing by itself",
    )
    # What it is to have in the end is the same as before, for the comparison below.
    lab.fleet.shell(FILE, "systemctl stop culvert-resolver.path")
    lab.fleet.shell(
        FILE,
        f"printf '# by hand\\nnameserver {lab.outside}\\noptions timeout:1 attempts:1\\n' >/etc/resolv.conf",
    )
    lab.fleet.shell(FILE, "systemctl start culvert-resolver.service culvert-resolver.path")
    assert set(deploy(lab).values()) == {0}


def test_teardown_restores_byte_for_byte(
    lab: DnsLab, before: dict[str, str], deployed: dict[str, int]
) -> None:
    during = lab.state()
    assert all(during[client] != before[client] for client in CLIENTS)
    run = lab.fleet.play(TEARDOWN, **variables(lab))
    assert run.code == 0, run.output[-6000:]
    assert lab.state() == before
    for client in CLIENTS:
        # Not loaded but named by a unit of the lab's own is none.
        units = "systemctl list-units --all --no-legend 'culvert*' | grep -v not-found || true"
        assert lab.fleet.shell(client, units) == "", client
        assert lab.names(client, PROBE) == [lab.upstream]


@pytest.fixture(scope="module")
def deployed_by_name(lab: DnsLab) -> dict[str, int]:
    return deploy(lab, relay_endpoint_host=GATE, client_kill_switch=True)


def test_with_a_name_for_an_endpoint_only_that_is_asked_for_outside(
    lab: DnsLab, deployed_by_name: dict[str, int], bridge: Bridge
) -> None:
    for client in CLIENTS:
        eventually(
            lambda client=client: lab.names(client, PROBE) == [lab.upstream], f"{client} finds nothing"
        )
    assert not others_than_gate(lab, bridge)


def others_than_gate(lab: DnsLab, bridge: Bridge) -> list[Packet]:
    wire = b"".join(bytes([len(label)]) + label for label in GATE.encode().split(b"."))
    return [packet for packet in asked(bridge) if wire not in packet.payload]


def test_a_reboot_keeps_it(lab: DnsLab, deployed_by_name: dict[str, int], bridge: Bridge) -> None:
    """A cold boot: the tunnel's endpoint has to be looked up when all names are looked up in the tunnel."""
    for client in CLIENTS:
        reboot(lab, client)
    for client in CLIENTS:
        eventually(
            lambda client=client: lab.names(client, PROBE) == [lab.upstream], f"{client} finds nothing"
        )
        assert not lab.ask(client, lab.outside), client
    assert not others_than_gate(lab, bridge), describe(others_than_gate(lab, bridge))
    assert any(packet.ports[1] == 53 for packet in asked(bridge)), "the relays have asked"


def test_an_endpoint_that_moves_is_found_again(lab: DnsLab, deployed_by_name: dict[str, int]) -> None:
    moved = lab.fleet.outer(12)
    device = f"$(ip -o -4 address show to {lab.fleet.outer(11)} | cut -d' ' -f2)"
    lab.set_records(gate=12)
    lab.fleet.shell(
        SERVER,
        f"d={device}; ip address add {moved}/27 dev $d; ip address del {lab.fleet.outer(11)}/27 dev $d",
    )
    for client in CLIENTS:
        eventually(
            lambda client=client: (
                lab.names(client, f"x{time.monotonic_ns()}.{ZONE}") == []
                and lab.names(client, PROBE) == [lab.upstream]
            ),
            f"{client} does not find the server any more",
            180,
        )
