# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""TAP devices in bridges on a real kernel: a bridge of the host's own, and one that a document makes.

[ host:  br0 (the host's) ── lan0 ═ far0      culvert0 (a TAP, ours) ── br0 or br1 (ours) ]
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.netns.modules.host import Host
from tests.netns.modules.test_boot import boot
from tests.netns.modules.test_transaction import _OUTCOME, applied, change, commit, eventually, undone

NAME = "culvert0"
TAP: dict[str, Any] = {"name": NAME, "mode": "tap", "owner": "51820", "bridge": "br0"}
OWN: dict[str, Any] = {"name": "br1", "mode": "bridge", "stp": True, "addresses": ["10.86.0.1/24"]}
LAN = """
    sysctl -qw net.ipv6.conf.default.accept_dad=0
    ip link add br0 type bridge; ip link add lan0 type veth peer far0
    ip link set lan0 address 02:00:00:00:00:01 master br0; ip link set far0 up; ip link set lan0 up
    ip addr add 203.0.113.1/24 dev br0; ip link set br0 up
"""
# They tick.
_TIMERS = re.compile(r"\b(\w+_timer +[0-9.]+|state (UP|DOWN|UNKNOWN|LOWERLAYERDOWN)|NO-CARRIER,|,LOWER_UP) ?")


def link(host: Host, name: str = NAME) -> dict[str, Any]:
    found: dict[str, Any] = host.json("ip", "-j", "-d", "link", "show", "dev", name)[0]
    return found


def port(host: Host, name: str = NAME) -> tuple[str | None, bool]:
    """The device's bridge, and whether it is an isolated port of it."""
    found = link(host, name)
    data = found.get("linkinfo", {}).get("info_slave_data", {})
    return found.get("master"), bool(data.get("isolated", False))


def network(host: Host) -> str:
    return _TIMERS.sub("", host.snapshot())


def document(host: Host, *devices: dict[str, Any], check: bool = False, **more: Any) -> Any:
    return host.module(
        "host_network", check=check, name="10-l2", devices=list(devices), confirm="never", **more
    )


@pytest.fixture
def lan(host: Host) -> Host:
    host.sh(LAN)
    for name in ("br0", "far0"):
        eventually(lambda name=name: "fe80::" in host.sh(f"ip -6 addr show dev {name} -tentative"))
    return host


def test_a_port_of_the_hosts_bridge_from_check_mode_to_teardown(lan: Host) -> None:
    before, address = network(lan), link(lan, "br0")["address"]
    foretold = lan.module("tun_device", check=True, **TAP, bridge_isolated=True)
    assert network(lan) == before
    done = lan.module("tun_device", **TAP, bridge_isolated=True)
    assert done["diff"] == foretold["diff"]
    assert done["diff"]["after"][f"device {NAME} bridge"] == "br0"
    assert port(lan) == ("br0", True)
    assert (done["device"]["bridge"], done["device"]["bridge_isolated"]) == ("br0", True)
    assert link(lan)["address"].startswith("fe:"), "so that the bridge keeps its own"
    assert link(lan, "br0")["address"] == address
    assert lan.json("ip", "-j", "addr", "show", "dev", NAME)[0]["addr_info"] == []
    assert not lan.module("tun_device", **TAP, bridge_isolated=True).changed

    shared = lan.module("tun_device", **TAP)
    assert shared["diff"] == {
        "before": {f"device {NAME} isolated": True},
        "after": {f"device {NAME} isolated": False},
    }
    assert port(lan) == ("br0", False)
    assert not lan.module("tun_device", **{**TAP, "bridge": None}).changed, "not given: as it is"
    assert lan.module("tun_device", **{**TAP, "bridge": ""}).changed
    assert port(lan) == (None, False)
    assert lan.module("tun_device", name=NAME, state="absent").changed
    assert network(lan) == before


def test_what_is_refused(lan: Host) -> None:
    before = network(lan)
    for params, option, words in (
        ({**TAP, "bridge": "br7"}, "bridge", "there is no bridge br7"),
        ({**TAP, "bridge": "lan0"}, "bridge", "there is no bridge lan0"),
        ({**TAP, "mode": "tun"}, "bridge", "only Ethernet frames"),
        ({**TAP, "addresses": ["10.86.0.1/24"]}, "addresses", "belong to the bridge br0"),
        ({"name": "br0", "mode": "bridge"}, "name", "bridge of somebody else's"),
        ({"name": "br1", "mode": "bridge", "owner": "5"}, "owner", "nobody attaches to a bridge"),
        ({"name": "lan0", "mode": "bridge"}, "name", "no bridge but of kind veth"),
        ({"name": NAME, "mode": "tap", "bridge_isolated": True}, "bridge_isolated", "port of a bridge"),
        ({"name": NAME, "mode": "tap", "stp": True}, "stp", "is for mode bridge"),
    ):
        for check in (True, False):
            refused = lan.module("tun_device", check=check, **params)
            assert refused.failed
            assert (refused.values["option"], words in refused.msg) == (option, True), refused.msg
    assert not lan.module("tun_device", name="br0", mode="bridge", state="absent").changed, "it is not ours"
    assert network(lan) == before


def test_a_bridge_of_the_documents_own(lan: Host) -> None:
    before = network(lan)
    devices = OWN, {**TAP, "bridge": "br1"}
    foretold = document(lan, *devices, check=True)
    done = document(lan, *devices)
    assert done["diff"] == foretold["diff"]
    assert port(lan) == ("br1", False)
    assert link(lan, "br1")["linkinfo"]["info_data"]["stp_state"] == 1
    assert not document(lan, *devices).changed
    other = document(lan, {**OWN, "stp": False}, {**TAP, "bridge": "br1"})
    assert other["plan"] == ["device br1 stp", "document 10-l2"]
    # To the host's, and the document's goes.
    assert document(lan, TAP).changed
    assert port(lan) == ("br0", False)
    assert "br1" not in lan.sh("ip link")
    assert document(lan, {**TAP, "bridge": None}).changed
    assert port(lan) == (None, False)
    refused = document(lan, {**TAP, "bridge": "br1"}, OWN)
    assert refused.values["option"] == "devices[0].bridge", "it comes too late"
    assert document(lan, state="absent").changed
    assert network(lan) == before


def test_a_document_that_goes_to_the_other_layer(lan: Host) -> None:
    assert document(lan, {"name": NAME, "owner": "51820", "addresses": ["10.86.0.1/24"]}).changed
    assert document(lan, TAP).changed
    assert link(lan)["linkinfo"]["info_data"]["type"] == "tap"
    assert document(lan, {"name": NAME, "owner": "51820"}).changed
    assert link(lan)["linkinfo"]["info_data"]["type"] == "tun"
    refused = lan.module("tun_device", **TAP)
    assert refused.values["option"] == "mode", "the module alone does not know whose it is"


def test_what_nobody_confirms_is_undone(lan: Host) -> None:
    assert document(lan, TAP).changed
    before = network(lan)
    wish = {"name": "10-l2", "devices": [OWN, {**TAP, "bridge": "br1", "bridge_isolated": True}]}
    began = change(lan, "launch", document=wish)
    applied(lan)
    assert port(lan) == ("br1", True)
    assert commit(lan, "rolled_back", began["id"])["state"] == "rolled_back"
    assert port(lan) == ("br0", False)
    undone(lan)
    assert _OUTCOME.sub("", network(lan)) == before


def test_at_boot_a_device_joins_its_bridge_when_that_is_there(lan: Host) -> None:
    assert document(lan, TAP).changed
    lan.sh(f"ip link del {NAME}; ip link del br0")
    done = boot(lan)
    assert (done.returncode, done.stderr) == (0, "")
    assert port(lan) == (None, False), "all the rest is there meanwhile"
    lan.sh("ip link add br0 type bridge")
    eventually(lambda: port(lan) == ("br0", False))


def test_at_boot_with_the_bridge_there(lan: Host) -> None:
    devices = OWN, {**TAP, "bridge": "br1", "bridge_isolated": True}
    assert document(lan, *devices).changed
    lan.sh(f"ip link del {NAME}; ip link del br1")
    done = boot(lan)
    assert (done.returncode, done.stderr) == (0, "")
    assert port(lan) == ("br1", True)
    assert not document(lan, *devices).changed
