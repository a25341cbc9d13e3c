# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What makes a fleet impossible, found before any host is changed; and how hosts are read."""

from __future__ import annotations

import ipaddress
import itertools
from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet_check import overlaps, problems
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet_hosts import Host, Run, host_of
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet_join import join
from ansible_collections.culvert.vpn.plugins.plugin_utils._registry import Registry
from hypothesis import given, settings
from hypothesis import strategies as st

KEY = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
FLEET = Run(
    {
        "s1": Host("s1", server=True, here=True, networks=("10.1.0.0/24",)),
        "c1": Host("c1", client=True, here=True, networks=("10.2.0.0/24", "fd00:2::/48")),
        "c2": Host("c2", client=True, here=True, servers=("s1",), acl=({"to": "10.0.0.0/8"},)),
    },
    "10.86.0.0/16",
    "fd86:ea04:1115::/64",
)
REGISTRY = join(None, FLEET).registry


def fleet(name: str = "", **change: Any) -> Run:
    """The fleet with one host changed."""
    hosts = dict(FLEET.hosts)
    if name:
        hosts[name] = replace(hosts.get(name, Host(name, client=True, here=True)), **change)
    return replace(FLEET, hosts=hosts)


@pytest.mark.parametrize("registry", [None, REGISTRY])
def test_a_fleet_that_can_be_has_no_problems(registry: Registry | None) -> None:
    assert problems(registry, FLEET) == []


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (replace(FLEET, hosts={}), "has no host in vpn_servers or vpn_clients"),
        (fleet("s1", server=False, client=True), "has no server: put at least one host"),
        (fleet("s1", client=True), "s1 is in vpn_servers and in vpn_clients"),
        (fleet("c1", pin="10.87.0.1/16"), "c1: relay_address 10.87.0.1/16 is not an address of 10.86.0.0/16"),
        (fleet("c1", pin="10.86.0.1"), "with its prefix length (/16)"),
        (fleet("c1", pin="10.86.0.0/16"), "is not an address of"),
        (fleet("c1", pin6="fd87::1/64"), "c1: relay_address6 fd87::1/64 is not an address of fd86:"),
        (fleet("c1", pin=REGISTRY.hosts["c2"].address), "which c2 has"),
        (fleet("c1", networks=("10.2.0.1/24",)), "c1: client_networks: 10.2.0.1/24 has host bits set"),
        (fleet("s1", networks=("x",)), "s1: server_site_networks: 'x'"),
        (fleet("c2", networks=("10.0.0.0/8",)), "overlaps with 10.0.0.0/8 behind c2"),
        (fleet("c2", servers=("s1", "c1")), "c2: client_servers: c1 is no host of the group vpn_servers"),
        (fleet("c2", servers=("s9",)), "c2: client_servers: s9"),
        (fleet("c2", acl=({"to": "x"},)), "c2: client_acl"),
        (fleet("c2", problems=("c2: client_acl is no list.",)), "c2: client_acl is no list"),
        (fleet("c2", network="10.99.0.0/16"), "relay_network of c2 is 10.99.0.0/16, that of the fleet"),
        (replace(FLEET, network=""), "relay_network: "),
        (replace(FLEET, network="fd86::/64"), "not a network of IPv4"),
        (replace(FLEET, network="10.86.0.1/16"), "has host bits set"),
        (replace(FLEET, network6="10.0.0.0/8"), "not a network of IPv6"),
        (replace(FLEET, network="10.86.0.0/30"), "has room for 2 hosts, and 3 need an address"),
        (fleet("c2", public_key=KEY), ""),
    ],
)
def test_what_makes_a_fleet_impossible(run: Run, says: str) -> None:
    found = problems(REGISTRY if "which" in says else None, run)
    if not says:
        assert found == []
        run = replace(run, hosts={**run.hosts, "c1": replace(run.hosts["c1"], public_key=KEY)})
        found, says = problems(None, run), "c1 and c2 have one key pair"
    assert any(says in problem for problem in found), found
    assert all(problem.endswith(".") for problem in found), found


def test_all_that_is_wrong_is_said_at_once() -> None:
    hosts = {
        **fleet("c1", pin="10.87.0.1/16", networks=("x",)).hosts,
        "c3": Host("c3", server=True, client=True, here=True),
        "c4": Host("c4", client=True, pin="10.86.0.9/16"),
        "c5": Host("c5", client=True, pin="10.86.0.9/16"),
    }
    found = problems(None, replace(FLEET, hosts=hosts))
    assert len(found) == 4
    assert any("relay_address of c5 is 10.86.0.9, which is that of c4, too" in problem for problem in found)


@pytest.mark.parametrize("here", [("c1", "c2"), ("c1",), ("c2",), ()])
@pytest.mark.parametrize(
    ("pins", "ipv6"), [({"pin": "10.86.0.9/16"}, True), ({"pin6": "fd86:ea04:1115::9/64"}, False)]
)
def test_an_address_that_two_are_to_have_is_said_once(
    here: tuple[str, ...], pins: dict[str, str], ipv6: bool
) -> None:
    """By the checks, or by what gives hosts their addresses, whoever is here to get one."""
    hosts = {
        name: replace(each, here=name in here or each.server, ipv6=ipv6, **({} if each.server else pins))
        for name, each in FLEET.hosts.items()
    }
    for registry in (None, REGISTRY):
        found = problems(registry, replace(FLEET, hosts=hosts))
        assert len(found) == 1, found
        assert all(word in found[0] for word in ("c1", "c2", next(iter(pins.values())).partition("/")[0]))


def test_what_a_template_of_an_absent_host_needs_is_no_problem() -> None:
    assert problems(REGISTRY, fleet("c2", here=False, problems=("c2: client_networks cannot be …",))) == []


def test_a_run_without_any_server_that_is_there_or_known_is_refused() -> None:
    run = fleet("s1", here=False)
    (problem,) = problems(None, run)
    assert "No server has joined the fleet yet, and none of them (s1)" in problem
    known = join(None, fleet("s1", public_key=KEY)).registry
    assert problems(known, run) == []


@pytest.mark.parametrize("sign", [{"running": True}, {"registry_id": "4-ab"}])
def test_a_lost_registry_is_not_made_anew_from_some_of_the_hosts(sign: dict[str, Any]) -> None:
    everybody = fleet("c1", **sign)
    assert problems(None, everybody) == []
    some = replace(everybody, hosts={**everybody.hosts, "c2": Host("c2", client=True)})
    (problem,) = problems(None, some)
    assert "relays run already (on c1). Restore it" in problem
    assert "c2 cannot be reached or are not in this run" in problem
    assert "site_registry_adopt" in problem
    assert problems(None, replace(some, adopt=True)) == []
    assert problems(REGISTRY, some) == []
    assert problems(None, fleet("c2", here=False)) == [], "where nothing runs yet, nobody can be dropped"


def test_a_registry_that_is_older_than_its_servers_is_refused_before_anything_changes() -> None:
    for known in ("", *REGISTRY.lineage):
        assert problems(REGISTRY, fleet("s1", registry_id=known)) == []
    stale = fleet("s1", registry_id="2-theirs")
    (problem,) = problems(REGISTRY, stale)
    assert problem.startswith("The peers of s1 come from a registry (2-theirs) that this one (1-")
    assert "Update it and run again" in problem
    assert problems(REGISTRY, replace(stale, adopt=True)) == []
    merged = Registry(REGISTRY.hosts, (*REGISTRY.lineage, "2-theirs"), 2)
    assert problems(merged, stale) == []
    assert problems(REGISTRY, fleet("c1", registry_id="2-theirs")) == [], "one client stops nobody else"


# --- Overlaps -----------------------------------------------------------------------------------------------

PREFIXES = st.builds(
    lambda number, length: f"10.{number >> (8 - length) << (8 - length)}.0.0/{8 + length}",
    st.integers(0, 255),
    st.integers(0, 8),
)


@given(st.dictionaries(st.sampled_from("abcde"), st.lists(PREFIXES, max_size=3), max_size=5))
@settings(deadline=None)
def test_overlaps_are_found_exactly_where_there_are_some(networks: dict[str, list[str]]) -> None:
    def overlap(one: str, two: str) -> bool:
        return any(
            a.overlaps(b)
            for a, b in itertools.product(*(map(ipaddress.ip_network, networks[n]) for n in (one, two)))
        )

    pairs = [pair for pair in itertools.combinations(networks, 2) if overlap(*pair)]
    assert bool(overlaps(networks)) == bool(pairs)


def test_families_are_apart_and_one_host_may_repeat_itself() -> None:
    assert overlaps({"a": ["::/0"], "b": ["0.0.0.0/0"]}) == []
    assert overlaps({"a": ["10.0.0.0/8", "10.1.0.0/16", "10.0.0.0/8"]}) == []
    assert overlaps({"a": ["10.0.0.0/8", "10.1.0.0/16"], "b": ["10.1.1.0/24"]}) == [
        "10.1.1.0/24 behind b overlaps with 10.1.0.0/16 behind a: each lives in one place."
    ]


# --- How hosts are read -------------------------------------------------------------------------------------

IDENTITY = {"public_key": KEY, "endpoint": "c1:51820", "addresses": ["10.86.0.2/16"]}
FOUND = {
    "key": {"public_key": "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dh="},
    "addresses": ["10.86.0.3/16"],
    "ipv6": False,
    "registry_id": "4-ab",
    "relay": {"running": True},
}


def test_a_host_is_read_from_its_variables_and_facts() -> None:
    variables = {
        "relay_address": "10.86.0.9/16",
        "client_networks": ["10.2.0.0/24"],
        "server_site_networks": ["10.3.0.0/24"],
        "client_acl": [],
        "relay_identity": IDENTITY,
        "ansible_facts": {"culvert_host": FOUND, "relay_path": {"inner": 1380}},
    }
    assert host_of("c1", variables, ["vpn_clients"], here=True) == Host(
        name="c1",
        client=True,
        pin="10.86.0.9/16",
        networks=("10.2.0.0/24",),
        acl=(),
        here=True,
        public_key=KEY,
        endpoint="c1:51820",
        addresses=("10.86.0.3/16",),
        ipv6=False,
        mtu=1380,
        registry_id="4-ab",
        running=True,
    )
    absent = host_of("c1", variables, ["vpn_clients"], here=False)
    assert absent == Host("c1", client=True, pin="10.86.0.9/16", networks=("10.2.0.0/24",), acl=())


def test_a_key_that_is_none_is_not_taken_for_one() -> None:
    variables = {"relay_identity": {**IDENTITY, "public_key": "(made on its host by the first run)"}}
    assert host_of("c1", variables, ["vpn_clients"], here=True).public_key == ""
    variables["ansible_facts"] = {"culvert_host": {"key": {"public_key": KEY}}}
    assert host_of("c1", variables, ["vpn_clients"], here=True).public_key == KEY


@pytest.mark.parametrize(
    ("value", "drain"),
    [(True, True), ("yes", True), ("True", True), (1, True), (False, False), ("no", False), ("", False)],
)
def test_a_switch_may_come_as_text(value: Any, drain: bool) -> None:
    host = host_of("s1", {"server_drain": value}, ["vpn_servers"], here=True)
    assert (host.drain, host.problems) == (drain, ())


def test_what_cannot_be_read_is_a_problem_and_not_an_exception() -> None:
    class Variables(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            if name == "relay_address":
                raise RuntimeError("'nic' is undefined\nand so on")
            return super().__getitem__(name)

    variables = Variables(relay_address=1, server_drain="maybe", server_site_networks="10.0.0.0/8")
    host = host_of("s1", variables, ["vpn_servers"], here=True)
    assert host.problems == (
        "s1: relay_address cannot be worked out: 'nic' is undefined",
        "s1: server_site_networks is no list.",
        "s1: server_drain is 'maybe', neither true nor false.",
    )
