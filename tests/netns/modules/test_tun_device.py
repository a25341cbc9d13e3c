# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module tun_device on a real kernel."""

from __future__ import annotations

from typing import Any

import pytest

from tests.netns.modules.host import Host

NAME = "culvert0"
WISH: dict[str, Any] = {
    "name": NAME,
    "owner": "51820",
    "mtu": 1420,
    "addresses": ["10.86.0.1/16", "fd86:ea04:1115::1/64"],
}


def link(host: Host, name: str = NAME) -> dict[str, Any]:
    found: dict[str, Any] = host.json("ip", "-j", "-d", "link", "show", "dev", name)[0]
    return found


def addresses(host: Host, name: str = NAME) -> list[str]:
    info = host.json("ip", "-j", "addr", "show", "dev", name)[0]["addr_info"]
    return [f"{a['local']}/{a['prefixlen']}" for a in info if a["scope"] != "link"]


def link_local(host: Host) -> list[str]:
    info = host.json("ip", "-j", "-6", "addr", "show", "dev", NAME)[0]["addr_info"]
    return [a["local"] for a in info if a["scope"] == "link"]


def test_check_mode_then_run_then_again_then_absent(host: Host) -> None:
    before = host.snapshot()
    foretold = host.module("tun_device", check=True, **WISH)
    assert foretold.changed
    assert host.snapshot() == before

    done = host.module("tun_device", **WISH)
    assert done["diff"] == foretold["diff"], "check mode shows exactly the plan that a run executes"
    info = link(host)["linkinfo"]
    assert info["info_kind"] == "tun"
    expected = {"type": "tun", "pi": False, "vnet_hdr": False, "multi_queue": False, "persist": True}
    assert {key: info["info_data"][key] for key in expected} == expected
    assert info["info_data"]["user"] == 51820
    assert link(host)["mtu"] == 1420
    assert "UP" in link(host)["flags"]
    assert addresses(host) == WISH["addresses"]
    assert done["device"]["carrier"] is False

    deployed = host.snapshot()
    for check in (False, True):
        again = host.module("tun_device", check=check, **WISH)
        assert not again.changed
        assert again["diff"] == {"before": {}, "after": {}}
    assert host.snapshot() == deployed

    assert host.module("tun_device", check=True, name=NAME, state="absent").changed
    assert host.snapshot() == deployed
    assert host.module("tun_device", name=NAME, state="absent").changed
    assert host.snapshot() == before
    assert not host.module("tun_device", name=NAME, state="absent").changed


@pytest.mark.parametrize("mode", ["tun", "tap"])
def test_what_is_fixed_at_creation(host: Host, mode: str) -> None:
    wish = {"name": "t0", "mode": mode, "vnet_hdr": True, "multi_queue": True, "group": "51821", "up": False}
    assert host.module("tun_device", **wish).changed
    data = link(host, "t0")["linkinfo"]["info_data"]
    expected = {"type": mode, "pi": False, "vnet_hdr": True, "multi_queue": True, "group": 51821}
    assert {key: data[key] for key in expected} == expected
    assert "UP" not in link(host, "t0")["flags"]
    assert not host.module("tun_device", **wish).changed


def test_changes_by_hand_are_put_right(host: Host) -> None:
    host.module("tun_device", **WISH)
    index = link(host)["ifindex"]
    host.sh(f"""
        ip link set {NAME} mtu 1300 down
        ip addr del 10.86.0.1/16 dev {NAME}
        ip addr add 10.87.0.9/24 dev {NAME}
    """)
    done = host.module("tun_device", **WISH)
    assert set(done["diff"]["before"]) == {
        f"device {NAME} mtu",
        f"device {NAME} up",
        f"address 10.87.0.9/24 on {NAME}",
    }
    assert addresses(host) == WISH["addresses"]
    assert link(host)["mtu"] == 1420
    assert link(host)["ifindex"] == index
    assert not host.module("tun_device", **WISH).changed


def test_exclusive_and_additive_addresses(host: Host) -> None:
    host.module("tun_device", **WISH)
    host.attach(NAME)
    own = link_local(host)
    assert own, "the kernel has given the device a link-local address"
    one_more = {**WISH, "addresses": ["10.87.0.1/32"]}
    assert host.module("tun_device", **one_more, addresses_exclusive=False).changed
    assert set(addresses(host)) == {*WISH["addresses"], "10.87.0.1/32"}
    assert not host.module("tun_device", **one_more, addresses_exclusive=False).changed
    assert host.module("tun_device", **one_more).changed
    assert addresses(host) == ["10.87.0.1/32"]
    assert link_local(host) == own


def test_taking_the_link_down_keeps_ipv6_addresses(host: Host) -> None:
    host.module("tun_device", **WISH)
    down = {**WISH, "up": False}
    assert host.module("tun_device", **down).changed
    assert set(addresses(host)) == set(WISH["addresses"])
    assert not host.module("tun_device", **down).changed


def test_an_attached_relay_is_not_disturbed(host: Host) -> None:
    host.module("tun_device", **WISH)
    relay = host.attach(NAME, 0x5001)  # with vnet_hdr, which is the relay's choice
    index = link(host)["ifindex"]
    same = host.module("tun_device", **WISH)
    assert not same.changed
    assert same["device"]["carrier"] is True
    assert same["device"]["vnet_hdr"] is True
    changed = host.module("tun_device", **{**WISH, "mtu": 1380, "addresses": ["10.86.0.1/16"]})
    assert changed.changed
    assert (link(host)["mtu"], addresses(host)) == (1380, ["10.86.0.1/16"])
    before = host.snapshot()
    for option, value in (("owner", "0"), ("group", "7"), ("multi_queue", True)):
        refused = host.module("tun_device", **{**WISH, option: value})
        assert refused.failed
        assert refused.values["option"] == option
        assert "stop the relay first" in refused.msg
    assert host.snapshot() == before
    assert link(host)["ifindex"] == index
    assert relay.poll() is None


def test_owner_and_queues_change_when_nothing_is_attached(host: Host) -> None:
    host.module("tun_device", **WISH)
    index = link(host)["ifindex"]
    assert host.module("tun_device", **{**WISH, "owner": "51830", "group": "51831", "vnet_hdr": True}).changed
    data = link(host)["linkinfo"]["info_data"]
    assert (data["user"], data["group"], data["vnet_hdr"]) == (51830, 51831, True)
    assert link(host)["ifindex"] == index, "the device is the same one"
    many = {**WISH, "owner": "51830", "group": "51831", "vnet_hdr": True, "multi_queue": True}
    foretold = host.module("tun_device", check=True, **many)
    assert host.module("tun_device", **many)["diff"] == foretold["diff"]
    assert link(host)["linkinfo"]["info_data"]["multi_queue"] is True
    assert addresses(host) == WISH["addresses"]
    assert not host.module("tun_device", **many).changed


REFUSALS: list[tuple[dict[str, Any], str, list[str]]] = [
    ({"name": "sixteen-bytes-xx"}, "name", ["16 bytes", "15"]),
    ({"name": "a/b"}, "name", ["a/b"]),
    ({"addresses": ["10.86.0.1"], "mtu": 60}, "mtu", ["68"]),
    ({"mtu": 1200, "addresses": ["fd86::1/64"]}, "mtu", ["1280"]),
    ({"addresses": ["10.86.0.300/16"]}, "addresses[0]", ["10.86.0.300/16"]),
    ({"addresses": ["10.86.0.1/16", "10.86.0.1/24"]}, "addresses[1]", ["10.86.0.1/16", "10.86.0.1/24"]),
    ({"addresses": ["10.86.0.1/16", "10.86.7.1/24"]}, "addresses[1]", ["overlaps", "10.86.0.1/16"]),
    (
        {"addresses": ["198.51.100.99/25"]},
        "addresses[0]",
        ["198.51.100.7/24", "eth0"],
    ),
    ({"addresses": ["2001:db8::5/48"]}, "addresses[0]", ["2001:db8::7/64", "eth0"]),
    ({"owner": "nobody-at-all"}, "owner", ["nobody-at-all"]),
    ({"name": "eth0"}, "name", ["eth0", "veth"]),
    ({"name": "tap0", "mode": "tun"}, "mode", ["tap"]),
]


def test_refusals_name_the_option_and_change_nothing(host: Host) -> None:
    host.sh("""
        ip link add eth0 type veth peer name eth1
        ip link set eth0 addrgenmode none up
        ip addr add 198.51.100.7/24 dev eth0
        ip addr add 2001:db8::7/64 dev eth0 nodad
        ip tuntap add tap0 mode tap
    """)
    before = host.snapshot()
    for wish, option, words in REFUSALS:
        host.module("tun_device", **{"name": NAME, **wish}).assert_refused(option, words)
    host.module("tun_device", check=True, name="sixteen-bytes-xx").assert_refused("name", ["16 bytes"])
    assert host.snapshot() == before


def test_without_the_tun_driver_or_root_or_ipv6(host: Host) -> None:
    before = host.snapshot()
    host.sh("mount -t tmpfs none /dev/net")
    missing = host.module("tun_device", **WISH)
    assert missing.failed
    assert "/dev/net/tun is missing" in missing.msg
    host.sh("umount /dev/net")

    nobody = host.module("tun_device", wrap=("setpriv", "--bounding-set=-net_admin"), **WISH)
    assert nobody.failed
    assert "not root" in nobody.msg
    assert "become" in nobody.msg

    host.sh("echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6")
    no_ipv6 = host.module("tun_device", **WISH)
    assert no_ipv6.failed
    assert no_ipv6.values["option"] == "addresses[1]"
    assert "disable_ipv6" in no_ipv6.msg
    host.sh("echo 0 > /proc/sys/net/ipv6/conf/default/disable_ipv6")
    assert host.snapshot() == before
