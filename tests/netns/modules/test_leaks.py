# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""tunnel_probe looks for what goes around the tunnel.

host: up0 (veth, 198.51.100.7/24, 2001:db8:51::7/64; default routes to neighbours that never answer),
      culvert0 (TUN, 10.86.0.2/16, fd86::2/64), docker0 (veth, 172.17.0.1/16)
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.netns.endpoints import RELAY_SOURCE
from tests.netns.lab import eventually
from tests.netns.modules.control_socket import ControlSocket
from tests.netns.modules.host import Host, Result
from tests.netns.modules.test_probe import PRIVATE, answer

INTO_THE_TUNNEL = """
for family in -4 -6; do
    ip $family route add default dev culvert0 table 51820
    ip $family rule add priority 31820 lookup main suppress_prefixlength 0
    ip $family rule add priority 31821 lookup 51820
done
"""
KILL_SWITCH = """
for tool in iptables-nft ip6tables-nft; do
    $tool -t mangle -N CULVERT-KILLSWITCH
    for device in lo culvert0; do $tool -t mangle -A CULVERT-KILLSWITCH -o $device -j RETURN; done
    $tool -t mangle -A CULVERT-KILLSWITCH -j DROP
    $tool -t mangle -I POSTROUTING -j CULVERT-KILLSWITCH
done
"""


@pytest.fixture
def client(host: Host, tmp_path: Path) -> Host:
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text("nameserver 198.51.100.9\noptions timeout:1 attempts:1\n")
    host.sh(f"""
        for name in up0 docker0; do
            ip link add $name type veth peer name far-$name
            ip link set $name up
            ip link set far-$name up
        done
        ip addr add 198.51.100.7/24 dev up0
        ip addr add 2001:db8:51::7/64 dev up0 nodad
        ip addr add 172.17.0.1/16 dev docker0
        ip neigh add 198.51.100.9 lladdr 02:00:00:00:00:09 dev up0
        ip neigh add 2001:db8:51::9 lladdr 02:00:00:00:00:09 dev up0
        ip neigh add 172.17.0.2 lladdr 02:00:00:00:00:02 dev docker0
        ip route add default via 198.51.100.9
        ip route add default via 2001:db8:51::9
        mount --bind {resolv_conf} /etc/resolv.conf
    """)
    host.module("tun_device", name="culvert0", mtu=1420, addresses=["10.86.0.2/16", "fd86::2/64"])
    host.attach("culvert0")
    return host


def asks(host: Host, nameserver: str) -> None:
    host.sh(f"printf 'nameserver {nameserver}\\noptions timeout:1 attempts:1\\n' >/etc/resolv.conf")


def probe(host: Host, **params: Any) -> Result:
    return host.module("tunnel_probe", socket_path="/nowhere.sock", **{"timeout_s": 0.4, **params})


def checks(said: Result) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in said["checks"]}


def test_all_that_goes_around_the_tunnel_is_found(client: Host) -> None:
    found = checks(probe(client, full_tunnel=True))
    for name in ("ipv4_leak", "ipv6_leak", "dns_leak"):
        assert (found[name]["ok"], found[name]["value"]) == (False, "up0"), found[name]
        assert "up0" in found[name]["reasons"][0]
    assert (found["kill_switch"]["ok"], found["kill_switch"]["value"]) == (None, "off")


def settled(client: Host) -> str:
    """Its state, once what moves by itself after set-up and a first probe is still."""
    probe(client, full_tunnel=True)
    seen = [client.snapshot()]

    def is_still() -> bool:
        seen.append(client.snapshot())
        return seen[-1] == seen[-2] and " tentative" not in client.sh("ip addr")

    eventually(is_still, 20, "the host's state settles", interval_s=0.5)
    return seen[-1]


def test_nothing_is_found_where_all_goes_into_the_tunnel(client: Host) -> None:
    asks(client, "10.86.0.1")
    client.sh(INTO_THE_TUNNEL)
    before = settled(client)
    said = probe(client, full_tunnel=True, check=True)
    for name in ("ipv4_leak", "ipv6_leak", "dns_leak"):
        assert (checks(said)[name]["ok"], checks(said)[name]["reasons"]) == (True, [])
    assert client.snapshot() == before


def test_a_resolver_of_the_lan_leaks_although_all_else_goes_into_the_tunnel(client: Host) -> None:
    client.sh(INTO_THE_TUNNEL)
    found = checks(probe(client, full_tunnel=True))
    assert (found["ipv4_leak"]["ok"], found["ipv6_leak"]["ok"]) == (True, True)
    assert found["dns_leak"]["ok"] is False
    assert "198.51.100.9" in " ".join(found["dns_leak"]["reasons"])


def test_a_resolver_in_a_container_is_no_leak(client: Host) -> None:
    client.sh(INTO_THE_TUNNEL)
    asks(client, "172.17.0.2")
    here = checks(probe(client, full_tunnel=True))["dns_leak"]
    assert (here["ok"], here["reasons"]) == (True, [])
    # By another name it is a network like any other.
    assert checks(probe(client, full_tunnel=True, container_devices=["lxc+"]))["dns_leak"]["ok"] is False


def test_a_kill_switch_that_holds_and_one_that_does_not(client: Host) -> None:
    client.sh(INTO_THE_TUNNEL + KILL_SWITCH)

    def kill_switch(expected: bool = True) -> tuple[bool, str, str]:
        found = checks(probe(client, kill_switch=expected))["kill_switch"]
        return found["ok"], found["value"], " ".join(found["reasons"])

    assert kill_switch() == (True, "on", "")
    assert kill_switch(expected=False)[:2] == (False, "on")
    # Whoever makes a way out for all, makes one for us too.
    client.sh("iptables-nft -t mangle -I CULVERT-KILLSWITCH -o up0 -j RETURN")
    ok, value, reasons = kill_switch()
    assert (ok, value) == (False, "broken")
    assert "bound to up0" in reasons
    client.sh("iptables-nft -t mangle -D CULVERT-KILLSWITCH 1; ip6tables-nft -t mangle -F POSTROUTING")
    ok, value, reasons = kill_switch()
    assert (ok, value) == (False, "broken")
    assert "ipv6: the jump" in reasons
    client.sh("""
        for tool in iptables-nft ip6tables-nft; do $tool -t mangle -F; $tool -t mangle -X; done
    """)
    assert kill_switch()[:2] == (False, "off")
    assert kill_switch(expected=False) == (True, "off", "")


def test_resolvers_that_are_not_those_wished(client: Host) -> None:
    found = checks(probe(client, dns_servers=["10.86.0.1"]))["dns"]
    assert found["ok"] is False
    assert "asks 198.51.100.9" in found["reasons"][0]


def test_a_responder_is_asked(client: Host, tmp_path: Path) -> None:
    client.start(
        *("env", f"PYTHONPATH={RELAY_SOURCE}", sys.executable, "-m", "culvert", "respond"),
        *("--listen", "10.86.0.2", "--port", "51821"),
    )
    client.sh("until ss -Hlnt | grep -q 10.86.0.2:51821; do sleep 0.05; done")
    params: dict[str, Any] = {"responder": {"address": "10.86.0.2"}, "path_mtu": True}
    found = checks(probe(client, throughput_floor_mbit=1, **params))
    assert (found["responder"]["ok"], found["throughput"]["ok"]) == (True, True)
    assert (found["path_mtu"]["ok"], found["path_mtu"]["value"]) == (True, "to 1420, from 1420 of 1420 bytes")
    slow = checks(probe(client, throughput_floor_mbit=900000, **params))["throughput"]
    assert slow["ok"] is False
    assert len(slow["reasons"]) == 2
    # A packet that is cut is dropped on the way, as where nobody says so.
    client.sh("iptables-nft -A OUTPUT -p udp --dport 51821 -m length --length 1301: -j DROP")
    hole = checks(probe(client, **params))["path_mtu"]
    assert (hole["ok"], hole["value"]) == (False, "to 1300, from 1420 of 1420 bytes")
    gone = checks(probe(client, responder={"address": "10.86.0.2", "port": 9}, path_mtu=True))
    assert (gone["responder"]["ok"], gone["path_mtu"]["ok"]) == (False, None)


def test_sizes_are_found_by_echoes_where_there_is_no_responder(client: Host) -> None:
    params: dict[str, Any] = {"targets": [{"address": "10.86.0.1"}], "path_mtu": True}
    whole = checks(probe(client, **params))["path_mtu"]
    assert (whole["ok"], whole["value"]) == (True, "to 1420, from 1420 of 1420 bytes")
    client.sh("iptables-nft -A OUTPUT -p icmp -m length --length 1301: -j DROP")
    hole = checks(probe(client, **params))["path_mtu"]
    assert (hole["ok"], hole["value"]) == (False, "to 1300, from 1300 of 1420 bytes")


def test_drift_is_told_and_a_clock_that_is_off(client: Host) -> None:
    found = checks(probe(client, drift=True, reference_time_s=1000.0))
    assert (found["drift"]["ok"], found["drift"]["value"]) == (True, "none")
    assert found["clock"]["ok"] is False
    assert "ahead of" in found["clock"]["reasons"][0]
    document = {
        "chains": [{"name": "CULVERT-T", "jump": {"from": "INPUT"}, "rules": ["-i culvert0 -j ACCEPT"]}]
    }
    assert client.module("host_network", name="20-test", confirm="never", **document).changed
    client.sh("iptables-nft -F CULVERT-T")
    changed = checks(probe(client, drift=True))["drift"]
    assert changed["ok"] is False
    assert "CULVERT-T" in changed["reasons"][0]


def test_a_relay_that_ended_leaves_no_drift(client: Host) -> None:
    device = {"name": "culvert1", "addresses": ["10.87.0.2/16"]}
    assert client.module("host_network", name="10-test", confirm="never", devices=[device]).changed
    relay = client.attach("culvert1", 0x5001)
    relay.kill()
    relay.wait()
    found = checks(probe(client, drift=True))["drift"]
    assert (found["ok"], found["reasons"]) == (True, [])
    client.sh("ip addr del 10.87.0.2/16 dev culvert1")
    assert checks(probe(client, drift=True))["drift"]["ok"] is False


def test_a_target_may_be_left_out_where_the_device_lacks_its_family(client: Host) -> None:
    client.sh("ip -6 addr flush dev culvert0 scope global")
    targets = [{"address": "10.86.0.1"}, {"address": "fd86::1", "optional": True}]
    assert [target["address"] for target in probe(client, targets=targets)["targets"]] == ["10.86.0.1"]


def test_rejections_are_passed_on_and_keys_are_not(client: Host, tmp_path: Path) -> None:
    extra = "rejection=unknown_peer 198.51.100.9:51820 KEY= - 2 7\nerrno=0\n\n"
    control = ControlSocket(tmp_path / "relay.sock", answer().replace("errno=0\n\n", extra))
    said = client.module("tunnel_probe", socket_path=str(control.path), timeout_s=0.4)
    control.close()
    assert [(r["reason"], r["public_key"], r["age_s"]) for r in said["rejections"]] == [
        ("unknown_peer", "KEY=", 7)
    ]
    assert said["outer_addresses"] == ["198.51.100.7", "172.17.0.1", "2001:db8:51::7"]
    assert PRIVATE.hex() not in said.text
    assert "ab" * 32 not in said.text
