# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Networks that let no UDP pass, and bridges that a tunnel joins: deployed, used, deployed again, removed.

What a relay does when the firewall closes and opens under a transfer: tests/netns. Which options are refused,
and what a change of them does to a relay that runs: tests/fleet/test_transports.py.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest
from fleet import Fleet

pytestmark = pytest.mark.e2e

SERVER, CLIENT1, CLIENT2 = HOSTS = ["demo-server", "demo-client1", "demo-client2"]
SITE, TEARDOWN, STATUS, VERIFY = (
    f"playbooks/{name}.yml" for name in ("site", "teardown", "status", "verify")
)
BY_TLS = {"relay_transports": ["udp", "tls"]}
BRIDGED = {"relay_layer": 2, "relay_bridge": "br-lan"}
#: The machine behind the server, as inventories/demo/bridges.yml numbers them.
FAR = "192.168.77.11"
Snapshots = dict[str, dict[str, list[str]]]


def snapshots(fleet: Fleet) -> Snapshots:
    return {host: fleet.snapshot(host) for host in HOSTS}


def assert_same(before: Snapshots, after: Snapshots) -> None:
    for host, parts in before.items():
        for part, lines in parts.items():
            gone = [line for line in lines if line not in after[host][part]]
            new = [line for line in after[host][part] if line not in lines]
            assert lines == after[host][part], f"{host}: {part}: gone {gone}, new {new}"


def assert_nothing_changes(fleet: Fleet, **variables: object) -> None:
    run = fleet.play(SITE, "--diff", **variables)
    assert run.code == 0, run.output[-4000:]
    assert set(run.changed().values()) == {0}, run.output


def await_true(what: str, look: Callable[[], bool], timeout_s: float = 60) -> float:
    """Wait until it is so; returns the seconds that it took."""
    began = time.monotonic()
    while not look():
        assert time.monotonic() - began < timeout_s, f"still not: {what}"
        time.sleep(0.1)
    return time.monotonic() - began


def seen_as(fleet: Fleet, client: str) -> str:
    return fleet.shell(client, f"curl -sS --max-time 2 http://{fleet.internet(29)}/ 2>&1 || true").strip()


@pytest.fixture(scope="module")
def without_udp(fleet: Fleet) -> Snapshots:
    """Blank hosts between which no UDP passes. Asked twice: the first look may load kernel modules."""
    run = fleet.play("inventories/demo/udp.yml", lab_udp="dropped")
    assert run.code == 0, run.output
    snapshots(fleet)
    return snapshots(fleet)


@pytest.fixture(scope="module")
def over_tls(fleet: Fleet, without_udp: Snapshots) -> str:
    run = fleet.play(SITE, **BY_TLS)
    assert run.code == 0, run.output[-4000:]
    return run.output


def test_every_probe_passes_over_tls_and_the_tables_say_so(fleet: Fleet, over_tls: str) -> None:
    status = fleet.play(STATUS, status_egress_url=f"http://{fleet.internet(29)}/", **BY_TLS)
    assert status.code == 0, status.output[-4000:]
    for client in (CLIENT1, CLIENT2):
        assert re.search(rf"{client} .* {SERVER} +tls .* {fleet.internet(11)} +ok", status.output), (
            status.output
        )
    verified = fleet.play(VERIFY, verify_egress_url=f"http://{fleet.internet(29)}/", **BY_TLS)
    assert verified.code == 0, verified.output[-4000:]
    assert re.search(rf"{CLIENT1} +client +tls +ok ", verified.output), verified.output


def test_a_client_gets_through_soon_after_the_relays_have_started(
    fleet: Fleet, over_tls: str, record_property: Callable[[str, object], None]
) -> None:
    for host in (SERVER, CLIENT1):
        fleet.shell(host, "docker restart --time 2 culvert-culvert0")
    took_s = await_true("client1 reaches the internet", lambda: seen_as(fleet, CLIENT1) == fleet.internet(11))
    record_property("seconds from the start of the relays", round(took_s, 1))
    print(f"through TLS {took_s:.1f} s after the start of the relays")


def test_who_asks_for_a_web_page_gets_one(fleet: Fleet, over_tls: str) -> None:
    answer = fleet.shell(CLIENT2, f"curl -sik --max-time 10 https://{fleet.outer(11)}/")
    assert answer.startswith("HTTP/1.1 200 ")
    assert "<html" in answer.lower()
    assert not re.search("culvert|wireguard|vpn|python", answer, re.IGNORECASE)


def test_the_certificates_key_is_on_the_server_alone(fleet: Fleet, over_tls: str) -> None:
    listed = fleet.shell(SERVER, "stat -c '%n %a %u' /etc/culvert/culvert0.tls/*").split("\n")
    assert "/etc/culvert/culvert0.tls/key.pem 600 51820" in listed
    key = fleet.shell(SERVER, "cat /etc/culvert/culvert0.tls/key.pem").split("\n")[1]
    assert key not in over_tls
    assert key not in fleet.registry.read_text()
    assert fleet.shell(CLIENT1, "ls -d /etc/culvert/culvert0.tls 2>&1 || true").count("No such file") == 1


def test_over_tls_a_second_run_changes_nothing(fleet: Fleet, over_tls: str) -> None:
    assert_nothing_changes(fleet, **BY_TLS)


def test_teardown_leaves_neither_certificate_nor_key(
    fleet: Fleet, without_udp: Snapshots, over_tls: str
) -> None:
    run = fleet.play(TEARDOWN, **BY_TLS)
    assert run.code == 0, run.output[-4000:]
    assert_same(without_udp, snapshots(fleet))


@pytest.fixture(scope="module")
def offices(fleet: Fleet) -> Snapshots:
    """The same hosts, each with a bridge and a machine on it; UDP passes."""
    for playbook in ("udp", "bridges"):
        run = fleet.play(f"inventories/demo/{playbook}.yml")
        assert run.code == 0, run.output
    # As long as an address is tried out, it has no route.
    for host in HOSTS:
        await_true("addresses", lambda host=host: not fleet.shell(host, "ip -6 address show tentative"))
    return snapshots(fleet)


@pytest.fixture(scope="module")
def bridged(fleet: Fleet, offices: Snapshots) -> None:
    run = fleet.play(SITE, **BRIDGED)
    assert run.code == 0, run.output[-4000:]


def test_machines_behind_two_hosts_find_each_other_by_arp(fleet: Fleet, bridged: None) -> None:
    ping = f"ip netns exec box ping -c 1 -W 1 {FAR} >/dev/null 2>&1 && echo yes || true"
    await_true("an answer", lambda: fleet.shell(CLIENT1, ping).strip() == "yes")
    told = fleet.shell(CLIENT1, f"ip -n box neighbour show {FAR}")
    address = re.search(r"link/ether (\S+)", fleet.shell(SERVER, "ip -n box -o link show eth0"))
    assert address
    assert f"lladdr {address[1]}" in told
    run = fleet.play(VERIFY, **BRIDGED)
    assert run.code == 0, run.output[-4000:]


def test_at_layer_2_a_second_run_changes_nothing(fleet: Fleet, bridged: None) -> None:
    assert_nothing_changes(fleet, **BRIDGED)


def test_teardown_leaves_the_bridge_as_it_was(fleet: Fleet, offices: Snapshots, bridged: None) -> None:
    run = fleet.play(TEARDOWN, **BRIDGED)
    assert run.code == 0, run.output[-4000:]
    assert_same(offices, snapshots(fleet))
