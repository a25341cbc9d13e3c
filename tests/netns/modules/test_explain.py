# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``explain`` on a real client and a real server: what is in order, and the cause of each thing that is not.

The topology is that of ``pair.py``. Each test breaks one thing, has it explained on the host that can know,
and mends it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.netns.endpoints import RELAY_SOURCE, Key
from tests.netns.lab import Host, Lab, eventually
from tests.netns.modules import pair as pair_module
from tests.netns.modules.pair import CLIENT, DEVICE, IN_TUNNEL, OUTSIDE, OUTSIDE6, SERVER, Pair

OURS = "/usr/local/lib/culvert/run.py"


@pytest.fixture(scope="module")
def pair(machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with Lab(tmp_path_factory.mktemp("explain")) as lab:
        made = pair_module.make(lab)
        made.deploy()
        made.await_tunnel()
        yield made


@contextlib.contextmanager
def broken(host: Host, *commands: str, mend: tuple[str, ...] = ()) -> Iterator[None]:
    """``mend`` and applying the documents again make it whole."""
    try:
        for command in commands:
            host.run(["sh", "-ec", command])
        yield
    finally:
        for command in mend:
            host.run(["sh", "-ec", command])
        host.run([sys.executable, "-IB", OURS, "boot"])


def assert_cause(found: dict[str, Any], name: str, *words: str) -> None:
    assert found["cause"], found["stages"]
    assert found["cause"]["name"] == name, found
    for word in words:
        assert word in found["cause"]["text"], found["cause"]
    assert found["cause"]["fix"]


def test_a_way_that_is_in_order(pair: Pair) -> None:
    for host, destination in (
        (pair.client, OUTSIDE),
        (pair.client, OUTSIDE6),
        (pair.client, IN_TUNNEL["server"]),
        (pair.server, IN_TUNNEL["client"]),
    ):
        found = pair.explain(host, destination)
        assert (found["ok"], found["cause"]) == (True, None), found
        assert all(stage["ok"] for stage in found["stages"]), found["stages"]
        assert {"stage": "answer", "ok": True, "text": f"{destination} answers"} in found["stages"]


def test_what_stays_outside(pair: Pair) -> None:
    own = pair.explain(pair.client, CLIENT)
    assert own["ok"]
    assert "address of this host itself" in own["stages"][1]["text"]
    near = pair.explain(pair.client, "198.51.100.1")
    assert near["ok"]
    assert "198.51.100.0/28 is a network of this host" in near["stages"][3]["text"]
    assert "allowed IPs" not in [stage["stage"] for stage in near["stages"]]


@pytest.mark.parametrize(
    ("commands", "mend", "name", "words"),
    [
        (["ip route flush table 51820"], [], "table_emptied", ["table is empty", "leaves by up0"]),
        (["ip route del default dev culvert0 table 51820"], [], "table_emptied", ["lacks its route"]),
        (["ip rule del priority 31821"], [], "rule_removed", ["31821", "missing"]),
        (
            ["ip rule add to 198.51.100.128/28 priority 100 lookup main"],
            ["ip rule del priority 100"],
            "route_shadowed",
            ["rule 100: from all to 198.51.100.128/28 lookup 254", "comes before"],
        ),
        (
            ["ip route add 198.51.100.128/28 via 198.51.100.1"],
            ["ip route del 198.51.100.128/28"],
            "route_shadowed",
            ["198.51.100.128/28 via 198.51.100.1 dev up0", "more specific"],
        ),
        (
            ["ip route add unreachable 198.51.100.130"],
            ["ip route del 198.51.100.130"],
            "route_shadowed",
            ["unreachable 198.51.100.130/32"],
        ),
        (
            ["iptables -I OUTPUT -d 198.51.100.130 -j DROP"],
            ["iptables -D OUTPUT 1"],
            "output_dropped",
            ["chain OUTPUT: -d 198.51.100.130/32 -j DROP"],
        ),
        (["wg set culvert0 fwmark 0"], ["wg set culvert0 fwmark 51820"], "mark_stripped", ["no mark"]),
        (
            ["iptables -t mangle -A OUTPUT -p udp --dport 51820 -j MARK --set-mark 0x7"],
            ["iptables -t mangle -D OUTPUT -p udp --dport 51820 -j MARK --set-mark 0x7"],
            "mark_stripped",
            ["gives them 0x7 instead", "MARK --set-xmark 0x7"],
        ),
        (
            ["sysctl -qw net.ipv4.conf.up0.rp_filter=1 net.ipv4.conf.all.src_valid_mark=0"],
            ["sysctl -qw net.ipv4.conf.up0.rp_filter=0"],
            "rp_filter",
            ["rp_filter=1", "src_valid_mark is 0", "by culvert0"],
        ),
        (
            ["ip route del default via 198.51.100.1"],
            ["ip route add default via 198.51.100.1"],
            "endpoint_no_route",
            [f"no route to the endpoint {SERVER}:51820"],
        ),
        (
            ["iptables -I OUTPUT -p udp --dport 51820 -j DROP"],
            ["iptables -D OUTPUT 1"],
            "own_firewall",
            ["on their way out", "--dport 51820 -j DROP"],
        ),
        (
            ["iptables -A INPUT -s 203.0.113.1 -j DROP"],
            ["iptables -D INPUT 1"],
            "own_firewall",
            ["drops what 203.0.113.1 answers"],
        ),
        (["ip -6 rule del priority 31821"], [], "ipv6_leak", ["IPv6 leaves by up0", "31821"]),
        (["ip link set culvert0 down"], [], "device_down", ["culvert0 is down"]),
    ],
)  # fmt: skip
def test_the_cause_on_the_client(
    pair: Pair, commands: list[str], mend: list[str], name: str, words: list[str]
) -> None:
    with broken(pair.client, *commands, mend=tuple(mend)):
        assert_cause(pair.explain(pair.client, OUTSIDE), name, *words)
    pair.await_tunnel()


@pytest.mark.parametrize(
    ("commands", "mend", "name", "words"),
    [
        (["iptables -I FORWARD -j DROP"], ["iptables -D FORWARD 1"], "forward_dropped", ["FORWARD: -j DROP"]),
        (
            ["iptables -P FORWARD DROP", "iptables -F CULVERT-FORWARD"],
            ["iptables -P FORWARD ACCEPT"],
            "forward_dropped",
            ["the policy of chain FORWARD is DROP", "CULVERT-FORWARD"],
        ),
        (["iptables -t nat -F CULVERT-POSTROUTING"], [], "no_masquerade", ["10.86.0.2", "CULVERT-POST"]),
        (["sysctl -qw net.ipv4.ip_forward=0"], [], "forwarding_off", ["net.ipv4.ip_forward is 0"]),
        (
            ["iptables -I INPUT -p udp --dport 51820 -j DROP"],
            ["iptables -D INPUT 1"],
            "own_firewall",
            ["UDP port 51820", "--dport 51820 -j DROP"],
        ),
        (
            ["nft add table inet shop",
             "nft add chain inet shop in '{ type filter hook input priority 0; policy drop; }'",
             "nft add rule inet shop in tcp dport 22 accept"],
            ["nft delete table inet shop"],
            "own_firewall",
            ["table inet shop, chain in (policy drop)"],
        ),
    ],
)  # fmt: skip
def test_the_cause_on_the_server(
    pair: Pair, commands: list[str], mend: list[str], name: str, words: list[str]
) -> None:
    with broken(pair.server, *commands, mend=tuple(mend)):
        assert_cause(pair.explain(pair.server, IN_TUNNEL["client"]), name, *words)
    pair.await_tunnel()


def test_what_somebody_changed_is_told_even_if_it_stops_nothing(pair: Pair) -> None:
    commands = (
        "sysctl -qw net.ipv4.conf.all.src_valid_mark=0",
        "iptables -t mangle -I CULVERT-PREROUTING -p esp",
    )
    with broken(pair.client, *commands):
        found = pair.explain(pair.client, OUTSIDE)
    assert found["ok"], found
    (told,) = [stage["text"] for stage in found["stages"] if stage["stage"] == "as deployed"]
    assert "net.ipv4.conf.all.src_valid_mark is 0, and was 1" in told
    assert "chain CULVERT-PREROUTING in mangle (ipv4)" in told
    healed = pair.explain(pair.client, OUTSIDE)
    assert "as deployed" not in [stage["stage"] for stage in healed["stages"]]


def test_wrong_keys(pair: Pair) -> None:
    wrong = Key().public
    with restarted(pair):
        pair.stop_client()
        pair.start_client(server_key=wrong)
        rejected(pair, "mac1")
        assert_cause(pair.explain(pair.server, IN_TUNNEL["client"]), "wrong_key", CLIENT, "another key than")
        assert_cause(pair.explain(pair.client, OUTSIDE), "endpoint_silent", f"{SERVER}:51820")
    with restarted(pair):
        pair.stop_client()
        pair.stop_server()
        pair.start_server(client_key=wrong)
        pair.start_client()
        rejected(pair, "unknown_peer")
        found = pair.explain(pair.server, IN_TUNNEL["client"])
        assert_cause(found, "wrong_key", CLIENT, pair.client_key.public)


def test_wrong_allowed_ips(pair: Pair) -> None:
    with restarted(pair):
        pair.stop_client()
        pair.start_client(allowed=("10.86.0.0/16",))
        assert_cause(pair.explain(pair.client, OUTSIDE), "allowed_ips", f"{OUTSIDE} is in no peer's")
    with restarted(pair):
        pair.stop_client()
        pair.stop_server()
        pair.start_server(allowed=("10.86.0.77/32",))
        pair.start_client()
        pair.client.ping(OUTSIDE, 1, wait_s=1)
        rejected(pair, "source")
        found = pair.explain(pair.server, IN_TUNNEL["client"])
        assert_cause(found, "allowed_ips", "in no peer's", pair.client_key.public[:8])


def test_an_endpoint_that_cannot_be_reached(pair: Pair) -> None:
    client, router = pair.client, pair.router
    with broken(client, mend=("ip neigh flush dev up0",)):
        router.ip("link", "set", "to-client", "arp", "off")
        try:
            client.ip("neigh", "flush", "dev", "up0")
            assert_cause(pair.explain(client, OUTSIDE), "endpoint_no_neighbour", "198.51.100.1", "ARP")
        finally:
            router.ip("link", "set", "to-client", "arp", "on")
    pair.await_tunnel()
    for way, name, words in (
        ("REJECT --reject-with icmp-host-prohibited", "endpoint_refused", ["router 198.51.100.1"]),
        ("DROP", "endpoint_silent", [f"from the peer {pair.server_key.public[:8]}"]),
    ):
        router.iptables(f"-I FORWARD -p udp --dport 51820 -j {way}")
        try:
            assert_cause(pair.explain(client, IN_TUNNEL["server"]), name, *words)
        finally:
            router.iptables("-D FORWARD 1")
    with restarted(pair):
        pair.stop_server()
        found = pair.explain(client, OUTSIDE)
        assert_cause(found, "endpoint_refused", f"{SERVER} answers that nothing listens on UDP port 51820")


def test_a_relay_that_is_down(pair: Pair) -> None:
    with restarted(pair):
        pair.stop_client()
        assert_cause(pair.explain(pair.client, OUTSIDE), "relay_down", "no relay holds it")
        assert_cause(pair.explain(pair.client, IN_TUNNEL["server"]), "relay_down", DEVICE)


def test_a_clock_that_went_back(pair: Pair, tmp_path: Path) -> None:
    """The client's relay lives an hour ago."""
    (tmp_path / "sitecustomize.py").write_text(
        "import time\nnow = time.time_ns\ntime.time_ns = lambda: now() - 3600 * 10**9\n"
    )
    with restarted(pair):
        pair.stop_client()
        pair.start_client(env={"PYTHONPATH": f"{tmp_path}:{RELAY_SOURCE}"})
        rejected(pair, "stale_timestamp")
        assert_cause(pair.explain(pair.server, IN_TUNNEL["client"]), "clock", "clock went back", CLIENT)
        told = pair.explain(pair.client, OUTSIDE, "--time", "1000000000")
        assert_cause(told, "clock", "s ahead")


def test_the_command_for_people(pair: Pair) -> None:
    command = [sys.executable, "-IB", OURS, "explain"]
    fine = pair.client.run([*command, OUTSIDE])
    assert fine.stdout.startswith(f" 1 ok   device: {DEVICE} is up")
    assert fine.stdout.endswith(f"Nothing here stops a packet for {OUTSIDE}.\n")
    with broken(pair.client, "ip route flush table 51820"):
        stopped = pair.client.run([*command, OUTSIDE], check=False)
    assert stopped.returncode == 1
    assert " STOP route: " in stopped.stdout
    assert stopped.stdout.splitlines()[-2].startswith("Cause: 198.51.100.130 leaves by up0")
    assert stopped.stdout.splitlines()[-1].startswith("To do: ")
    for words in ([], ["nowhere.invalid"], [OUTSIDE, "--from", "here"], [OUTSIDE, "--protocol", "x"]):
        wrong = pair.client.run([*command, *words], check=False)
        assert wrong.returncode == 2
        assert not wrong.stdout


@contextlib.contextmanager
def restarted(pair: Pair) -> Iterator[None]:
    """Both relays run as they should afterwards."""
    try:
        yield
    finally:
        pair.stop_client()
        pair.stop_server()
        pair.start_server()
        pair.start_client()
        pair.await_tunnel()


def rejected(pair: Pair, reason: str) -> None:
    relay = pair.server_relay
    assert relay is not None
    eventually(
        lambda: f'"{reason}"' in relay.culvert("show", DEVICE, "--json"), 15, f"the server refuses: {reason}"
    )
