# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Devices that Ansible does not manage: the variable, the registry, and what servers get of them."""

from __future__ import annotations

import base64
import datetime
import hashlib
from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.module_utils._device_keys import key_id
from ansible_collections.culvert.vpn.plugins.plugin_utils import _fleet, _pairs, _rotation
from ansible_collections.culvert.vpn.plugins.plugin_utils._devices import (
    device_problems,
    devices_in,
    devices_of,
    prefixes_of,
)
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet_check import problems
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet_hosts import Host, Run
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet_join import join, strangers
from ansible_collections.culvert.vpn.plugins.plugin_utils._registry import (
    Entry,
    Registry,
    RegistryError,
    parse,
    render,
)

NETWORKS = ("10.86.0.0/16", "fd86:ea04:1115::/64")


def key_of(name: str) -> str:
    return base64.b64encode(hashlib.sha256(name.encode()).digest()).decode()


PSK = key_of("pre-shared")
PHONE: dict[str, Any] = {
    "name": "phone",
    "public_key": key_of("phone"),
    "address": "10.86.9.9",
    "address6": "fd86:ea04:1115::99/64",
    "servers": ["s1"],
    "expires_at": "2027-06-30T22:00:00Z",
    "rate_limit": "20M",
    "quota": "50G",
    "quota_period": "day",
    "acl": [{"to": "10.9.0.0/16", "protocol": "tcp", "port": 443}],
    "networks": ["10.77.0.0/24"],
    "keepalive": 25,
    "prefixes": "split",
    "dns": ["10.86.0.1"],
    "mtu": 1280,
}


@pytest.mark.parametrize("value", [[], [PHONE], [{"name": "a"}, {"name": "b", "quota": 5, "dns": []}]])
def test_what_is_well(value: Any) -> None:
    assert device_problems(value, ["s1"], ["s1"], NETWORKS) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "s1"}, "s1 is the name of a host, too"),
        ({"name": "my phone"}, "external_peers[0].name: 'my phone' is not"),
        ({"name": "../phone"}, "external_peers[0].name"),
        ({"name": None}, "external_peers[0].name"),
        ({"colour": "red"}, "external_peers[0] has 'colour', which is none of name, public_key"),
        ({"public_key": "x"}, "external_peers: phone.public_key is not"),
        ({"public_key": 7}, "external_peers[0].public_key is not text"),
        ({"preshared_key": ""}, "phone.preshared_key is not a WireGuard key"),
        ({"preshared_key": f"{PSK} {PSK}"}, "phone.preshared_key is not a WireGuard key"),
        ({"preshared_key": PSK[4:]}, "phone.preshared_key is not a WireGuard key"),
        ({"preshared_key": "A" * 43 + "="}, "phone.preshared_key is all zeros"),
        ({"preshared_key": [PSK]}, "external_peers[0].preshared_key is not text"),
        ({"private_key": "x"}, "has 'private_key', which is none of"),
        ({"address": "10.87.0.1"}, "phone.address: 10.87.0.1 is not an address of 10.86.0.0/16"),
        ({"address": "10.86.0.0"}, "phone.address"),
        ({"address6": "fd87::1"}, "phone.address6: fd87::1 is not"),
        ({"servers": ["c1"]}, "phone.servers: c1 is no host of the group vpn_servers"),
        ({"servers": "s1"}, "external_peers[0].servers is not a list"),
        ({"expires_at": "soon"}, "phone.expires_at: 'soon' is not a date"),
        ({"rate_limit": "9"}, "phone.rate_limit: '9' is not from 8k"),
        ({"rate_limit": True}, "external_peers[0].rate_limit is not text or a number"),
        ({"quota": "lots"}, "phone.quota: 'lots'"),
        ({"quota_period": "week"}, "phone.quota_period: 'week' is none of month, day, total"),
        ({"acl": [{"port": 1}]}, "phone.acl[0]"),
        ({"networks": ["10.77.0.1/24"]}, "phone.networks: 10.77.0.1/24 has host bits set"),
        ({"prefixes": "most"}, "phone.prefixes: 'most' is neither full nor split"),
        ({"dns": ["resolver"]}, "phone.dns: 'resolver' is not an address"),
        ({"mtu": 100}, "phone.mtu: 100 is not from 576"),
        ({"keepalive": 70000}, "phone.keepalive: 70000"),
    ],
)
def test_what_is_wrong_is_said_by_name(change: dict[str, Any], says: str) -> None:
    (found,) = device_problems([{**PHONE, **change}], ["s1", "c1"], ["s1"], NETWORKS)
    assert says in found
    assert found.endswith(".")
    assert PSK[4:-4] not in found


def test_a_list_that_is_none_and_names_that_are_there_twice() -> None:
    assert device_problems({"phone": {}}) == ["external_peers is not a list."]
    assert device_problems([PHONE, PHONE]) == ["external_peers: phone is there twice."]
    assert device_problems(["phone"]) == ["external_peers[0] is not a mapping."]


def test_a_device_in_its_one_form() -> None:
    when = datetime.datetime(2027, 7, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=2)))
    (phone,) = devices_of([{**PHONE, "expires_at": when}], NETWORKS)
    assert (phone.address, phone.address6) == ("10.86.9.9/16", "fd86:ea04:1115::99/64")
    assert phone.device == {
        "servers": ["s1"],
        "expires_at": "2027-06-30T22:00:00Z",
        "rate_limit": 20_000_000,
        "quota": 50_000_000_000,
        "quota_period": "day",
        "keepalive": 25,
    }
    (bare,) = devices_of([{"name": "bare"}], NETWORKS)
    assert bare.device == {}


def test_what_goes_into_its_tunnel() -> None:
    inside = ["10.86.0.0/16", "", "10.9.0.0/16"]
    assert prefixes_of("full", inside) == ["0.0.0.0/0", "::/0"]
    assert prefixes_of("split", inside) == ["10.86.0.0/16", "10.9.0.0/16"]
    assert prefixes_of(["10.1.0.0/16"], inside) == ["10.1.0.0/16"]


class Vaulted:
    """As ansible-core has text that is vaulted, before release 2.19."""

    __ENCRYPTED__ = True

    def __str__(self) -> str:
        return f"{PSK}\n"


def test_of_a_pre_shared_key_servers_and_the_registry_are_told_its_id() -> None:
    (phone,) = devices_of([{"name": "phone", "preshared_key": Vaulted()}])
    assert phone.preshared_key == base64.b64decode(PSK)
    assert phone.device == {"preshared_id": key_id("phone", base64.b64decode(PSK))}
    assert "preshared_key" not in repr(phone)
    registry = joined(None, run_of({**PHONE, "preshared_key": f"{PSK}\n"}, {"name": "tablet"}))
    id = registry.hosts["phone"].device["preshared_id"]
    assert PSK not in render(registry)
    with pytest.raises(RegistryError, match="phone has a preshared_id that is no id"):
        parse(render(registry).replace(id, f"../{id[3:]}"))
    peers = _pairs.with_key_files(
        registry.hosts, "s1", _fleet.peers_of_server(registry.hosts, "s1"), "/etc/psk"
    )
    files = {peer["name"]: peer.get("preshared_key_file") for peer in peers}
    assert files == {"s2": None, "c1": None, "phone": f"/etc/psk/{id}"}
    # That one is the device's only server.
    assert _pairs.device_keys(registry.hosts, "s1") == {"phone": id}
    assert _pairs.device_keys(registry.hosts, "s1", [id]) == {}
    assert _pairs.device_keys(registry.hosts, "s2") == _pairs.device_keys(registry.hosts, "c1") == {}
    everywhere = {name: [id, "0" * 32] for name in ("s1", "s2", "c1", "nobody")}
    both = ["0" * 32, id]
    assert _pairs.stale(registry.hosts, everywhere) == {
        "s1": ["0" * 32],
        "s2": both,
        "c1": both,
        "nobody": both,
    }
    # A change, the way back, and another name for the device.
    other = joined(registry, run_of({**PHONE, "preshared_key": key_of("other")}, {"name": "tablet"}))
    assert _pairs.stale(other.hosts, {"s1": [id]}) == {"s1": [id]}
    assert _pairs.device_keys(other.hosts, "s1", [id]) not in ({}, {"phone": id})
    without = joined(other, run_of(PHONE, {"name": "tablet"}))
    assert "preshared_id" not in without.hosts["phone"].device


def test_a_rotation_of_the_keys_of_hosts_leaves_that_of_a_device_as_it_is() -> None:
    registry = joined(None, run_of({**PHONE, "preshared_key": PSK}))
    id = registry.hosts["phone"].device["preshared_id"]
    following = {name: _rotation.Next(key_of(f"next {name}")) for name in ("s1", "s2", "c1")}
    rotating = _rotation.begun(registry.hosts, following)
    for hosts in (rotating, _rotation.finished(rotating)):
        peers = _fleet.peers_of_server(hosts, "s1")
        peers = _rotation.with_successors(hosts, "s1", _pairs.with_key_files(hosts, "s1", peers, "/p"), "/p")
        (phone,) = (peer for peer in peers if peer["name"] == "phone")
        assert (phone["preshared_key_file"], phone.get("local_key")) == (f"/p/{id}", None)
        assert _pairs.unused(hosts, "s1", [id]) == []
    assert _rotation.finished(rotating)["s1"].public_key == key_of("next s1")


def test_a_device_whose_key_is_not_made_needs_no_pre_shared_one_yet() -> None:
    registry = joined(None, run_of({"name": "tablet", "preshared_key": PSK}))
    assert _pairs.device_keys(registry.hosts, "s1") == {}
    id = registry.hosts["tablet"].device["preshared_id"]
    assert _pairs.stale(registry.hosts, {"s1": [id]}) == {}


# --- The registry -------------------------------------------------------------------------------------------


def run_of(*devices: dict[str, Any], here: bool = True, **more: Any) -> Run:
    hostvars = {"s1": {"external_peers": list(devices)}, "s2": {"external_peers": list(devices)}, "c1": {}}
    groups = {"all": list(hostvars), "vpn_servers": ["s1", "s2"], "vpn_clients": ["c1"]}
    found, wrong = devices_in(hostvars, groups, NETWORKS)
    hosts = {
        name: Host(
            name,
            server=name != "c1",
            client=name == "c1",
            here=here,
            public_key=key_of(name) if here else "",
            endpoint=f"{name}:51820" if here and name != "c1" else "",
        )
        for name in hostvars
    }
    return Run(
        **{"hosts": hosts | found, "network": NETWORKS[0], "network6": NETWORKS[1], "external": wrong, **more}
    )


def joined(registry: Registry | None, run: Run) -> Registry:
    done = join(registry, run)
    assert done.problems == problems(registry, run) == []
    assert parse(render(done.registry)) == done.registry
    return done.registry


def test_a_device_joins_with_an_address_and_keeps_it() -> None:
    registry = joined(None, run_of({"name": "tablet"}, PHONE))
    phone, tablet = registry.hosts["phone"], registry.hosts["tablet"]
    assert (phone.role, phone.addresses) == ("external", ["10.86.9.9/16", "fd86:ea04:1115::99/64"])
    assert phone.device["quota"] == 50_000_000_000
    assert tablet.public_key == ""
    assert len(tablet.addresses) == 2
    # Its key is made on the controller, and stays whatever runs come.
    made = replace(tablet, public_key=key_of("tablet"))
    registry = registry.with_hosts({**registry.hosts, "tablet": made})
    again = joined(registry, run_of(PHONE, {"name": "tablet"}))
    assert again is registry
    nobody = joined(registry, run_of(PHONE, {"name": "tablet"}, here=False, full=False))
    assert nobody.hosts["tablet"] == made
    other = joined(registry, run_of(PHONE, {"name": "tablet", "public_key": key_of("other")}))
    assert other.hosts["tablet"] == replace(made, public_key=key_of("other"))


def test_a_device_that_is_in_the_list_no_more_is_gone_after_any_run() -> None:
    registry = joined(None, run_of(PHONE, {"name": "tablet"}))
    done = join(registry, run_of({"name": "tablet"}, here=False, full=False))
    assert done.removed == ["phone"]
    assert set(done.registry.hosts) == {"s1", "s2", "c1", "tablet"}
    # A list that was lost takes nobody along unseen.
    many = joined(None, run_of(*({"name": f"d{n}"} for n in range(4))))
    (wrong,) = join(many, run_of()).problems
    assert "site_max_removals" in wrong


def test_a_name_that_was_a_host_s_brings_nothing_of_it_along() -> None:
    run = run_of()
    registry = joined(
        None,
        replace(
            run,
            hosts={**run.hosts, "phone": Host("phone", client=True, here=True, public_key=key_of("host"))},
        ),
    )
    assert registry.hosts["phone"].public_key == key_of("host")
    after = join(registry, run_of({"name": "phone"}, full=False))
    assert after.registry.hosts["phone"].public_key == ""
    assert after.registry.hosts["phone"].role == "external"


def test_what_cannot_be_is_refused_and_nothing_is_written() -> None:
    registry = joined(None, run_of(PHONE))
    wrong = run_of({**PHONE, "quota": "x"})
    assert any("phone.quota" in text for text in problems(registry, wrong))
    assert join(registry, wrong).problems
    stolen = run_of({**PHONE, "public_key": key_of("c1")})
    assert "c1 and phone have one public key: each device has its own." in problems(None, stolen)
    pinned = run_of({**PHONE, "address": registry.hosts["c1"].address})
    assert any("which c1 has" in text for text in problems(registry, pinned))
    overlap = run_of({**PHONE, "networks": ["10.1.0.0/16"]}, {"name": "b", "networks": ["10.1.1.0/24"]})
    assert any("behind b overlaps with 10.1.0.0/16 behind phone" in text for text in problems(None, overlap))
    hostvars = {"s1": {"external_peers": [PHONE]}, "s2": {}}
    found, (says,) = devices_in(hostvars, {"vpn_servers": ["s2", "s1"]}, NETWORKS)
    assert found == {}
    assert "external_peers of s2 is not that of s1" in says


def test_a_registry_that_is_only_read_has_no_strangers_among_devices() -> None:
    registry = joined(None, run_of())
    assert strangers(registry, run_of(PHONE)) == []


# --- What servers get ---------------------------------------------------------------------------------------


def test_servers_have_it_as_a_peer_and_clients_do_not() -> None:
    registry = joined(None, run_of({**PHONE, "servers": []}, {"name": "tablet"}))
    by_name = {peer["name"]: peer for peer in _fleet.peers_of_server(registry.hosts, "s1", keyless=True)}
    assert set(by_name) == {"s2", "c1", "phone"}, "a device whose key is not made is nobody's peer"
    assert by_name["phone"] == {
        "name": "phone",
        "public_key": key_of("phone"),
        "allowed_ips": ["10.86.9.9/32", "fd86:ea04:1115::99/128", "10.77.0.0/24"],
        "expires_at": "2027-06-30T22:00:00Z",
        "rate_limit": "20000000",
        "quota": "50000000000",
        "quota_period": "day",
    }
    peers = _fleet.peers_of_client(registry.hosts, "c1", _fleet.ClientWish(prefixes=("0.0.0.0/0",)))
    assert {peer["name"] for peer in peers} == {"s1", "s2"}
    assert _fleet.acls_of_clients(registry.hosts)["phone"]["rules"] == PHONE["acl"]
    assert _fleet.networks_behind_others(registry.hosts, "c1") == ["10.77.0.0/24"]
    assert _fleet.name_of(registry.hosts, key_of("phone")) == "phone"


def test_a_device_of_one_server_is_reached_through_it() -> None:
    registry = joined(None, run_of(PHONE))
    at_s1 = {peer["name"]: peer for peer in _fleet.peers_of_server(registry.hosts, "s1")}
    at_s2 = {peer["name"]: peer for peer in _fleet.peers_of_server(registry.hosts, "s2")}
    assert "phone" in at_s1
    assert "phone" not in at_s2
    assert at_s2["s1"]["allowed_ips"][-3:] == ["10.86.9.9/32", "fd86:ea04:1115::99/128", "10.77.0.0/24"]
    every = [prefix for peer in at_s2.values() for prefix in peer["allowed_ips"]]
    assert len(every) == len(set(every))


def test_a_device_whose_servers_are_gone_is_nobody_s() -> None:
    hosts = {
        "s1": Entry("server", "10.86.0.1/16", public_key="S"),
        "p": Entry("external", "10.86.0.2/16", public_key="P", device={"servers": ["s9"]}),
    }
    assert _fleet.peers_of_server(hosts, "s1") == []
