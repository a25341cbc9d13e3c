# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How far a rotation of keys is, and what each host is to have meanwhile; no host, no file."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.plugin_utils import _rotation
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet import ClientWish, name_of, peers_of_client
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet_hosts import Host, Run
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet_join import join, strangers
from ansible_collections.culvert.vpn.plugins.plugin_utils._registry import Entry, Registry


def key(name: str) -> str:
    return base64.b64encode(name.encode().ljust(32, b".")).decode()


def entry(name: str, following: bool = True, **more: Any) -> Entry:
    server = name.startswith("gate")
    values: dict[str, Any] = {
        "role": "server" if server else "client",
        "address": f"10.86.0.{sum(name.encode()) % 200}/16",
        "public_key": key(f"{name}-0"),
        "endpoint": f"{name}.example.net:51820" if server else "",
    }
    if following:
        values["next_public_key"] = key(f"{name}-1")
        if server:
            values["next_kem"] = f"kem of {name}"
    return Entry(**{**values, **more})


def agreed(name: str, *servers: str) -> Entry:
    ids = {key(f"{server}-1"): f"{name}-{server}" for server in servers}
    return entry(name, next_preshared=ids)


HOSTS = {
    "gate1": entry("gate1"),
    "gate2": agreed("gate2", "gate1"),
    "laptop": agreed("laptop", "gate1", "gate2"),
    "phone": entry("phone", following=False, role="external"),
}
MOVED = {
    "gate1": {key("gate2-1"), key("laptop-1")},
    "gate2": {key("gate1-1"), key("laptop-1")},
}


def test_each_end_of_a_pair_has_the_tunnel_it_had_and_its_successor() -> None:
    peers = peers_of_client(HOSTS, "laptop", ClientWish(("gate1", "gate2"), ("0.0.0.0/0",), 25))
    found = _rotation.with_successors(HOSTS, "laptop", peers, "/psk")
    assert [peer["public_key"] for peer in found] == [key(f"gate{n}-{k}") for n in (1, 2) for k in (0, 1)]
    assert found[0] == peers[0]
    assert found[1] == {
        "name": "gate1",
        "public_key": key("gate1-1"),
        "local_key": "alternate",
        "succeeds": key("gate1-0"),
        "endpoint": "gate1.example.net:51820",
        "persistent_keepalive": 25,
        "preshared_key_file": "/psk/laptop-gate1",
    }
    servers = [{"name": name, "public_key": HOSTS[name].public_key} for name in ("laptop", "phone")]
    assert [peer["public_key"] for peer in _rotation.with_successors(HOSTS, "gate1", servers)] == [
        key("laptop-0"),
        key("laptop-1"),
        key("phone-0"),
    ]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (entry("laptop", following=False), entry("gate1")),
        (agreed("laptop", "gate1"), entry("gate1", following=False)),
        (entry("laptop"), entry("gate1")),
        (agreed("laptop", "gate2"), entry("gate1")),
    ],
    ids=["client has no next key", "server has none", "nothing agreed", "agreed with another"],
)
def test_a_pair_that_cannot_move_yet_stays_as_it_is(one: Entry, other: Entry) -> None:
    hosts = {"laptop": one, "gate1": other}
    assert not _rotation.moves(one, other)
    peers = [{"name": "gate1", "public_key": other.public_key}]
    assert _rotation.with_successors(hosts, "laptop", peers) == peers
    assert _rotation.successors(hosts, "gate1") == []


def test_a_fleet_without_pre_shared_keys_moves_without() -> None:
    hosts = {"laptop": entry("laptop"), "gate1": entry("gate1", next_kem="")}
    assert _rotation.successors(hosts, "gate1") == [{"name": "laptop", "public_key": key("laptop-1")}]


def test_it_is_over_when_every_pair_has_moved() -> None:
    assert _rotation.unmoved(HOSTS, MOVED) == {}
    after = _rotation.finished(HOSTS)
    assert {name: e.public_key for name, e in after.items()} == {
        "gate1": key("gate1-1"),
        "gate2": key("gate2-1"),
        "laptop": key("laptop-1"),
        "phone": key("phone-0"),
    }
    assert after["gate1"].kem == "kem of gate1"
    assert after["laptop"].preshared == HOSTS["laptop"].next_preshared
    assert not any(e.next_public_key or e.next_kem or e.next_preshared for e in after.values())


def test_who_has_not_moved_is_named_with_the_reason() -> None:
    hosts = {**HOSTS, "desk": entry("desk", following=False), "tv": agreed("tv", "gate1")}
    moved = {"gate1": {key("gate2-1"), key("tv-1")}, "gate2": {key("gate1-1")}}
    found = _rotation.unmoved(hosts, moved)
    assert sorted(found) == ["desk", "laptop", "tv"]
    assert "no next key" in found["desk"]
    assert "no tunnel with gate1" in found["laptop"]
    assert "pre-shared key with gate2" in found["tv"]
    assert _rotation.unmoved(hosts, {**moved, **MOVED}, leave=["desk", "tv"]) == {}
    assert _rotation.unmoved(HOSTS, {"gate1": MOVED["gate1"]}) == {"gate2": "could not be asked"}


def test_who_is_left_behind_keeps_his_key() -> None:
    after = _rotation.finished(HOSTS, leave=["laptop"])
    assert after["laptop"] == HOSTS["laptop"]
    assert after["gate1"].public_key == key("gate1-1")
    assert not _rotation.moves(after["laptop"], after["gate1"])


def test_next_keys_are_written_down_and_a_lost_one_is_forgotten() -> None:
    bare = {"gate1": entry("gate1", following=False), "laptop": entry("laptop", following=False)}
    found = {
        "gate1": _rotation.Next(key("gate1-1"), "a kem"),
        "laptop": _rotation.Next(key("laptop-1"), "a client has none"),
        "nobody": _rotation.Next(key("x")),
    }
    after = _rotation.begun(bare, found)
    assert (after["gate1"].next_public_key, after["gate1"].next_kem) == (key("gate1-1"), "a kem")
    assert (after["laptop"].next_public_key, after["laptop"].next_kem) == (key("laptop-1"), "")
    assert "nobody" not in after
    same = {"laptop": _rotation.Next(key("laptop-1"))}
    assert _rotation.begun(HOSTS, same) == HOSTS
    other = _rotation.begun(HOSTS, {"laptop": _rotation.Next(key("laptop-2"))})["laptop"]
    assert (other.next_public_key, other.next_preshared) == (key("laptop-2"), {})
    assert _rotation.begun(HOSTS, {"laptop": _rotation.Next("no key")}) == HOSTS
    # Whose next key is its key already is only waiting for its files.
    done = _rotation.finished(HOSTS)
    assert _rotation.begun(done, {"laptop": _rotation.Next(key("laptop-1"))}) == done


def test_a_host_at_the_end_of_a_rotation_is_known_by_the_key_it_is_about_to_have() -> None:
    """Its key file is still the old one when site.yml looks at it."""
    registry = Registry().with_hosts(_rotation.finished(HOSTS))
    here = {
        name: Host(
            name,
            server=name.startswith("gate"),
            client=name == "laptop",
            here=True,
            public_key=key(f"{name}-0"),
            next_public_key=key(f"{name}-1"),
            endpoint=HOSTS[name].endpoint,
        )
        for name in ("gate1", "gate2", "laptop")
    }
    run = Run({**here, "phone": Host("phone", external=True, here=True)}, "10.86.0.0/16")
    done = join(registry, run)
    assert {name: done.registry.hosts[name].public_key for name in here} == {
        name: key(f"{name}-1") for name in here
    }
    assert done.registry.hosts["laptop"].preshared == HOSTS["laptop"].next_preshared
    assert strangers(registry, run) == []
    # In the middle of one, the key is the old one.
    moving = Registry().with_hosts(HOSTS)
    assert join(moving, run).registry.hosts["laptop"] == replace(HOSTS["laptop"], mtu=0)
    assert name_of(HOSTS, key("laptop-1")) == name_of(HOSTS, key("laptop-0")) == "laptop"
    assert name_of(HOSTS, "") == ""
