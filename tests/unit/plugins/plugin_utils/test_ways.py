# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ways of a fleet's hosts, and its layer: from what hosts say to the registry, and from there to peers."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.lookup.fleet import answer
from ansible_collections.culvert.vpn.plugins.plugin_utils import _fleet, _registry, _rotation
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet_check import problems
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet_hosts import Host, Run, host_of
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet_join import join
from ansible_collections.culvert.vpn.plugins.plugin_utils._registry import (
    Entry,
    Registry,
    RegistryError,
    parse,
    render,
)
from ansible_collections.culvert.vpn.plugins.plugin_utils._ways import transports_of

PIN, NEW_PIN = (base64.b64encode(bytes([number]) * 32).decode() for number in (7, 8))
KEYS = [base64.b64encode(bytes([number]) * 32).decode() for number in range(1, 6)]
OFFERS = {"udp": 51820, "tcp": 8443, "tls": 443}
OPTIONS = {
    "servers": [],
    "prefixes": [],
    "keepalive": 25,
    "keyless": False,
    "psk_dir": "",
    "transports": [],
    "ids": "",
}


def server(name: str = "gate", **more: Any) -> Entry:
    more.setdefault("public_key", KEYS[0])
    return Entry("server", "10.86.0.1/16", endpoint=f"{name}.example.net:51820", **more)


CLIENT = Entry("client", "10.86.0.2/16", public_key=KEYS[1])
DEVICE = Entry("external", "10.86.0.3/16", public_key=KEYS[2])
GATE = server(transports=OFFERS, tls_pin=(PIN,), tls_server_name="www.example.net")


def peers(path: Path, hosts: dict[str, Entry], host: str, **options: Any) -> dict[str, dict[str, Any]]:
    """What the lookup says, by name."""
    _registry.write(str(path / "registry.txt"), Registry().with_hosts(hosts))
    asked = {**OPTIONS, "registry": str(path / "registry.txt"), "host": host, **options}
    return {peer["name"]: peer for peer in answer("peers", asked)}


# --- The lookup ---------------------------------------------------------------------------------------------


def test_a_fleet_of_udp_alone_is_told_what_it_was_told(tmp_path: Path) -> None:
    hosts = {"gate": server(), "gate2": server("gate2", public_key=KEYS[3]), "c": CLIENT, "phone": DEVICE}
    assert peers(tmp_path, hosts, "c")["gate"] == {
        "name": "gate",
        "public_key": KEYS[0],
        "allowed_ips": ["10.86.0.1/32"],
        "endpoint": "gate.example.net:51820",
        "persistent_keepalive": 25,
        "failover": peers(tmp_path, hosts, "c")["gate"]["failover"],
    }
    of_server = peers(tmp_path, hosts, "gate")
    assert set(of_server["gate2"]) == {"name", "public_key", "allowed_ips", "endpoint"}
    assert set(of_server["c"]) == {"name", "public_key", "allowed_ips"}


def test_a_server_that_offers_streams_is_told_of_by_preference(tmp_path: Path) -> None:
    hosts = {"gate": GATE, "c": CLIENT, "phone": DEVICE}
    told = peers(tmp_path, hosts, "c")["gate"]
    ends = ["udp://gate.example.net:51820", "tcp://gate.example.net:8443", "tls://gate.example.net:443"]
    assert told["endpoints"] == ends
    assert (told["tls_pin"], told["tls_server_name"]) == ([PIN], "www.example.net")
    assert "endpoint" not in told
    other = peers(tmp_path, hosts, "c", transports=["tls", "udp"])["gate"]
    assert other["endpoints"] == [ends[2], ends[0]]
    plain = peers(tmp_path, hosts, "c", transports=["udp"])["gate"]
    assert plain["endpoint"] == "gate.example.net:51820"
    assert not {"endpoints", "tls_pin", "tls_server_name"} & set(plain)
    only = peers(tmp_path, hosts, "c", transports=["tcp"])["gate"]
    assert only["endpoints"] == [ends[1]]
    assert "tls_pin" not in only
    six = peers(tmp_path, {**hosts, "gate": replace(GATE, endpoint="[2001:db8::1]:51820")}, "c")["gate"]
    assert six["endpoints"][2] == "tls://[2001:db8::1]:443"


def test_frame_messages_are_the_same_from_both_sides(tmp_path: Path) -> None:
    hosts = {"gate": GATE, "old": server("old", public_key=KEYS[3]), "c": CLIENT, "phone": DEVICE}
    for one in ("gate", "old", "c"):
        for other, peer in peers(tmp_path, hosts, one, transports=["udp"] if one == "c" else []).items():
            framed = peer.get("frame_messages", False)
            assert framed == ("gate" in (one, other) and other != "phone"), (one, other)


def test_without_a_pin_there_is_no_endpoint_of_tls(tmp_path: Path) -> None:
    hosts = {"gate": replace(GATE, tls_pin=()), "c": CLIENT}
    assert peers(tmp_path, hosts, "c")["gate"]["endpoints"] == [
        "udp://gate.example.net:51820",
        "tcp://gate.example.net:8443",
    ]
    assert peers(tmp_path, hosts, "c", transports=["tls"])["gate"]["endpoints"] == []


def test_a_server_that_offers_nothing_that_is_wanted_is_an_error(tmp_path: Path) -> None:
    hosts = {"gate": server(), "gate2": replace(GATE, public_key=KEYS[3]), "c": CLIENT}
    with pytest.raises(ValueError, match=r"client_transports of c: gate offers udp, and that is none of tls"):
        peers(tmp_path, hosts, "c", transports=["tls"])
    found = peers(tmp_path, hosts, "c", transports=["tls"], servers=["gate2"])
    assert found["gate"]["endpoint"], "it is never sent to"
    assert found["gate2"]["endpoints"] == ["tls://gate.example.net:443"]


def test_at_layer_2_frames_go_by_what_was_learnt(tmp_path: Path) -> None:
    hosts = {"gate": replace(GATE, layer=2), "c": replace(CLIENT, layer=2, networks=("10.5.0.0/16",))}
    (told,) = peers(tmp_path, hosts, "c", prefixes=["0.0.0.0/0"]).values()
    assert told["allowed_ips"] == []
    assert "frame_messages" not in told
    assert peers(tmp_path, hosts, "gate")["c"]["allowed_ips"] == []


def test_a_successor_is_where_its_predecessor_is() -> None:
    hosts = {"gate": replace(GATE, next_public_key=KEYS[3]), "c": replace(CLIENT, next_public_key=KEYS[4])}
    found = _fleet.peers_of_client(hosts, "c", _fleet.ClientWish(keepalive=25))
    older, younger = _rotation.with_successors(hosts, "c", found)
    for option in ("endpoints", "tls_pin", "tls_server_name", "frame_messages", "persistent_keepalive"):
        assert younger[option] == older[option]


def test_where_peers_are_and_what_is_wrong_with_them() -> None:
    every = [
        {
            "public_key": KEYS[0],
            "endpoints": ["udp://a.example.net:1", "tls://[2001:db8::1]:443"],
            "tls_pin": [PIN],
        },
        {"public_key": KEYS[1], "endpoint": "tcp://192.0.2.1:5"},
    ]
    assert _fleet.endpoint_hosts(every) == ["a.example.net", "2001:db8::1", "192.0.2.1"]
    assert _fleet.peer_problems(every) == []
    bad = {"public_key": KEYS[2], "endpoint": "a:1", "endpoints": ["quic://a:1", "tls://a"], "tls_pin": ["x"]}
    assert [problem.partition(" ")[0] for problem in _fleet.peer_problems([bad])] == [
        "relay_peers[0].endpoints[0]:",
        "relay_peers[0].endpoints[1]:",
        "relay_peers[0].endpoints",
        "relay_peers[0].tls_pin[0]",
    ]
    (missing,) = _fleet.peer_problems([{"public_key": KEYS[2], "endpoint": "tls://a:1"}])
    assert "tls_pin is required" in missing


# --- The registry -------------------------------------------------------------------------------------------


def test_the_format_is_the_oldest_that_can_say_it() -> None:
    texts = {
        number: render(Registry().with_hosts(hosts))
        for number, hosts in {
            1: {"gate": server(), "c": CLIENT},
            2: {"gate": server(kem="k"), "c": CLIENT},
            3: {"gate": GATE, "c": CLIENT},
        }.items()
    }
    for number, text in texts.items():
        assert json.loads(text)["format"] == number
        assert render(parse(text)) == text
        assert parse(text).sealed
    assert json.loads(render(Registry().with_hosts({"c": replace(CLIENT, layer=2)})))["format"] == 3
    assert json.loads(texts[3])["hosts"]["gate"]["transports"] == OFFERS
    assert "layer" not in texts[3]


@pytest.mark.parametrize(
    "change",
    [
        {"transports": {"quic": 1}},
        {"transports": {"udp": "1"}},
        {"transports": {"udp": True}},
        {"transports": []},
        {"tls_pin": [1]},
        {"tls_pin": "x"},
        {"layer": 4},
        {"layer": "2"},
    ],
)
def test_a_damaged_one_is_refused(change: dict[str, Any]) -> None:
    data = json.loads(render(Registry().with_hosts({"gate": GATE})))
    data["hosts"]["gate"].update(change)
    with pytest.raises(RegistryError, match="is damaged: gate has"):
        parse(json.dumps(data))


# --- From hosts ---------------------------------------------------------------------------------------------


def said(name: str = "gate", role: str = "vpn_servers", here: bool = True, **variables: Any) -> Host:
    identity = variables.pop("identity", {})
    known = {"public_key": KEYS[0], "endpoint": "gate.example.net:51820", "addresses": [], "ipv6": False}
    return host_of(name, {"relay_identity": {**known, **identity}, **variables}, [role], here)


def joined(before: Registry | None, *hosts: Host) -> Registry:
    done = join(before, Run({host.name: host for host in hosts}, "10.86.0.0/16"))
    assert done.problems == []
    return done.registry


FULL = {"transports": OFFERS, "tls_pin": PIN, "tls_server_name": "www.example.net"}


def test_what_a_server_says_is_written_down_and_kept() -> None:
    first = joined(None, said(identity=FULL)).hosts["gate"]
    assert (first.transports, first.tls_pin, first.tls_server_name) == (OFFERS, (PIN,), "www.example.net")
    before = joined(None, said(identity=FULL))
    assert joined(before, said()) is before, "a host that does not say so has said so before"
    assert joined(before, said(identity={**FULL, "tls_pin": ""})) is before, "check mode knows of no pin"
    assert joined(before, said(here=False)) is before
    changed = joined(before, said(identity={**FULL, "tls_pin": [NEW_PIN, PIN]})).hosts["gate"]
    assert changed.tls_pin == (NEW_PIN, PIN)
    without = joined(before, said(identity={"transports": {"udp": 51820}, "tls_pin": PIN})).hosts["gate"]
    assert (without.transports, without.tls_pin, without.tls_server_name) == ({}, (), "")


def test_what_makes_no_sense_was_not_said() -> None:
    liar = {
        "transports": {"tls": "443", "tcp": 0, "quic": 5, "udp": None},
        "tls_pin": ["x", 5],
        "tls_server_name": "a b",
    }
    entry = joined(None, said(identity=liar)).hosts["gate"]
    assert (entry.transports, entry.tls_pin, entry.tls_server_name) == ({"tls": 443}, (), "")
    assert transports_of("udp") == transports_of(None) == {}
    client = said("c", "vpn_clients", identity={**FULL, "public_key": KEYS[1]})
    assert joined(None, said(), client).hosts["c"].transports == {}


def test_the_layer_comes_from_the_inventory_of_whoever_is_here() -> None:
    before = joined(None, said(relay_layer="2"))
    assert before.hosts["gate"].layer == 2
    assert joined(before, said(here=False)).hosts["gate"].layer == 3
    assert said(relay_layer=4).problems == ("gate: relay_layer is 4, neither 3 nor 2.",)


# --- Checks -------------------------------------------------------------------------------------------------


def fleet(*hosts: Host) -> list[str]:
    return problems(None, Run({host.name: host for host in hosts}, "10.86.0.0/16"))


S = Host("s1", server=True, here=True, public_key=KEYS[0])
C = Host("c1", client=True, here=True, public_key=KEYS[1])


def test_both_ends_of_a_tunnel_carry_the_same() -> None:
    assert fleet(replace(S, layer=2), replace(C, layer=2)) == []
    (wrong,) = fleet(replace(S, layer=2), C)
    assert wrong == (
        "s1 carries Ethernet frames (relay_layer: 2), and c1 IP packets (relay_layer: 3): both ends of a "
        "tunnel carry the same."
    )
    (wrong,) = fleet(S, replace(C, layer=2, here=False))
    assert wrong.startswith("s1 carries IP packets (relay_layer: 3), and c1 Ethernet frames")


def test_what_a_fleet_of_layer_2_cannot_have() -> None:
    s, c = replace(S, layer=2), replace(C, layer=2)
    phone = Host("phone", external=True, here=True, public_key=KEYS[2])
    (wrong,) = fleet(s, c, phone)
    assert wrong.startswith(
        "phone is a device of WireGuard, which carries IP packets, and s1 carries Ethernet"
    )
    (wrong,) = fleet(s, c, replace(s, name="s2", public_key=KEYS[3]))
    assert wrong.startswith("s1 and s2 are servers and carry Ethernet frames")
    (wrong,) = fleet(s, replace(c, acl=({"to": "10.0.0.0/8"},)))
    assert wrong.startswith("c1: client_acl is about IP packets")
