# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is in the fleet after a run, and at which address: whatever runs there were before."""

from __future__ import annotations

import base64
import hashlib
import ipaddress
from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet import address_in, tunnel_address
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet_hosts import Host, Run
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet_join import Joined, join
from ansible_collections.culvert.vpn.plugins.plugin_utils._registry import Entry, Registry, parse, render
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

NETWORK = "10.86.0.0/16"
NETWORK6 = "fd86:ea04:1115::/64"


def key_of(seed: str) -> str:
    return base64.b64encode(hashlib.sha256(seed.encode()).digest()).decode()


def host(name: str, here: bool = True, **more: Any) -> Host:
    """A host of the inventory; its key is that of its name unless told otherwise."""
    server = name.startswith("s")
    found: dict[str, Any] = {"public_key": key_of(name), "endpoint": f"{name}:51820"} if here else {}
    return Host(name, **{"server": server, "client": not server, "here": here, **found, **more})


def run_of(*hosts: Host | str, **more: Any) -> Run:
    every = [host(each) if isinstance(each, str) else each for each in hosts]
    return Run(**{"hosts": {h.name: h for h in every}, "network": NETWORK, "network6": NETWORK6, **more})


def joined(registry: Registry | None, run: Run) -> Registry:
    done = join(registry, run)
    assert done.problems == []
    return done.registry


def limited(registry: Registry | None, run: Run, *names: str) -> Joined:
    """The run with ``--limit`` to some hosts."""
    hosts = {
        name: each if name in names else host(name, here=False, pin=each.pin)
        for name, each in run.hosts.items()
    }
    return join(registry, replace(run, hosts=hosts, full=False))


def addresses(registry: Registry) -> dict[str, list[str]]:
    return {name: entry.addresses for name, entry in registry.hosts.items()}


# --- Whatever runs there were -------------------------------------------------------------------------------


class Runs(RuleBasedStateMachine):
    """An inventory that changes, and runs over parts of it. The network is small, so that hashes collide."""

    network = "10.86.0.0/27"

    def __init__(self) -> None:
        super().__init__()
        self.inventory = ["s1"]
        self.registry: Registry | None = None
        self.keys: dict[str, str] = {"s1": key_of("s1")}

    @rule(number=st.integers(0, 40))
    def add(self, number: int) -> None:
        name = f"c{number}"
        if name not in self.inventory and len(self.inventory) < 28:
            self.inventory.insert(number % (len(self.inventory) + 1), name)
            self.keys.setdefault(name, key_of(name))

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        if len(self.inventory) > 1:
            name = data.draw(st.sampled_from(self.inventory))
            self.inventory.remove(name)

    @rule()
    def reverse(self) -> None:
        self.inventory.reverse()

    @rule(data=st.data())
    def run_some(self, data: st.DataObject) -> None:
        """A limited run, or one in which some cannot be reached."""
        self.run(
            data.draw(st.sets(st.sampled_from(self.inventory), min_size=1)), full=data.draw(st.booleans())
        )

    @rule()
    def run_all(self) -> None:
        self.run(set(self.inventory), full=True)

    def run(self, here: set[str], full: bool) -> None:
        before = self.registry or Registry()
        hosts = [
            host(name, here=name in here, **({"public_key": self.keys[name]} if name in here else {}))
            for name in self.inventory
        ]
        run = Run({h.name: h for h in hosts}, self.network, NETWORK6, full, max_removals=99)
        done = join(self.registry, run)
        if done.problems:
            # A limited run keeps entries of who is gone, so that even these few may be too many.
            assert len(before.hosts.keys() | here) > 30
            return
        after = done.registry
        for name, entry in before.hosts.items():
            if name in after.hosts:
                assert after.hosts[name].addresses == entry.addresses, "somebody was moved"
            else:
                assert full, "a limited run dropped somebody"
                assert name not in self.inventory
        assert set(after.hosts) == (set(before.hosts) | here) & (
            set(self.inventory) if full else set(before.hosts) | here
        )
        again = join(after, run)
        assert again.registry is after, "the same again is no change"
        backwards = replace(run, hosts=dict(reversed(run.hosts.items())))
        assert join(self.registry, backwards).registry == after, "the order of the inventory decides"
        assert parse(render(after)) == after
        self.registry = after

    @invariant()
    def no_address_twice(self) -> None:
        given = [a for e in (self.registry or Registry()).hosts.values() for a in e.addresses]
        assert len(given) == len(set(given))
        for address in given:
            assert address_in(address, self.network if "." in address else NETWORK6)


TestRuns = Runs.TestCase
TestRuns.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


@given(st.lists(st.sampled_from(["s1", "c1", "c2", "c3", "c4"]), min_size=1, unique=True), st.data())
@settings(max_examples=60, deadline=None)
def test_without_collisions_it_does_not_matter_in_which_runs_they_joined(names: list[str], data: Any) -> None:
    whole = joined(None, run_of(*names))
    registry: Registry | None = None
    for name in data.draw(st.permutations(names)):
        registry = limited(registry, run_of(*names), name).registry
    assert registry is not None
    assert registry.hosts == whole.hosts


# --- Addresses ----------------------------------------------------------------------------------------------


def test_the_address_is_the_hash_that_it_was_without_a_registry() -> None:
    registry = joined(None, run_of("s1", "c1"))
    assert registry.hosts["c1"].address == tunnel_address(NETWORK, "c1")
    assert registry.hosts["c1"].address6 == tunnel_address(NETWORK6, "c1")


def colliding(network: str) -> tuple[str, str]:
    """Two names whose hashes fall on one address."""
    seen: dict[str, str] = {}
    for number in range(1000):
        name = f"c{number}"
        other = seen.setdefault(tunnel_address(network, name), name)
        if other != name:
            return other, name
    raise AssertionError


def test_names_that_fall_on_one_address_get_two_and_keep_them() -> None:
    small = "10.86.0.0/26"
    one, two = colliding(small)
    registry = joined(None, run_of("s1", two, network=small))
    first = registry.hosts[two].address
    assert first == tunnel_address(small, two)
    registry = joined(registry, run_of("s1", one, two, network=small))
    assert registry.hosts[two].address == first, "who was there first stays"
    assert registry.hosts[one].address not in ("", first)
    alone = joined(registry, run_of("s1", one, network=small))
    assert alone.hosts[one].address == registry.hosts[one].address, "not moved back when the place is free"


def test_a_host_from_before_the_registry_keeps_the_address_that_its_tunnel_has() -> None:
    old = host("c1", addresses=("10.86.77.77/16", "fe80::1/64"), registry_id="")
    registry = joined(None, run_of("s1", old))
    assert registry.hosts["c1"].address == "10.86.77.77/16"
    assert registry.hosts["c1"].address6 == tunnel_address(NETWORK6, "c1")
    thief = host("c0", addresses=("10.86.77.77/16",))
    later = joined(registry, run_of("s1", "c1", thief))
    assert later.hosts["c1"].address == "10.86.77.77/16"
    assert later.hosts["c0"].address == tunnel_address(NETWORK, "c0")


def test_a_pin_wins_and_is_kept_free() -> None:
    free = tunnel_address(NETWORK, "c2")
    pinned = host("c1", pin=free)
    registry = joined(None, run_of("s1", pinned, "c2"))
    assert registry.hosts["c1"].address == free
    assert registry.hosts["c2"].address not in ("", free)
    # Reserved also while the host that it is for was not in a run.
    early = limited(None, run_of("s1", pinned, "c2"), "s1", "c2").registry
    assert early.hosts["c2"].address != free
    assert "c1" not in early.hosts
    moved = joined(registry, run_of("s1", host("c1", pin="10.86.0.9/16"), "c2"))
    assert moved.hosts["c1"].address == "10.86.0.9/16"
    assert moved.hosts["c2"] == registry.hosts["c2"]
    unpinned = joined(moved, run_of("s1", "c1", "c2"))
    assert unpinned.hosts["c1"].address == "10.86.0.9/16", "an address that is in use is kept"


def test_two_hosts_may_change_places() -> None:
    registry = joined(None, run_of("s1", "c1", "c2"))
    one, two = registry.hosts["c1"].address, registry.hosts["c2"].address
    done = joined(registry, run_of("s1", host("c1", pin=two), host("c2", pin=one)))
    assert (done.hosts["c1"].address, done.hosts["c2"].address) == (two, one)


@pytest.mark.parametrize("there", [True, False])
def test_a_pin_takes_nobodys_address(there: bool) -> None:
    registry = joined(None, run_of("s1", "c1", "c2"))
    theirs = registry.hosts["c1"].address
    done = join(registry, run_of("s1", host("c1", here=there), host("c2", pin=theirs)))
    (problem,) = done.problems
    assert "c1" in problem
    assert "c2" in problem
    assert theirs.split("/")[0] in problem


def test_a_full_pool_says_how_many_fit() -> None:
    done = join(None, run_of("s1", *(f"c{n}" for n in range(6)), network="10.86.0.0/29"))
    (problem,) = done.problems
    assert problem == (
        "relay_network 10.86.0.0/29 has room for 6 hosts, and 7 need an address: take a larger network."
    )
    full = joined(None, run_of("s1", *(f"c{n}" for n in range(5)), network="10.86.0.0/29"))
    assert {ipaddress.ip_interface(e.address).ip.packed[-1] for e in full.hosts.values()} == set(range(1, 7))
    # Who left makes room, in the run that takes him out.
    later = joined(full, run_of("s1", *(f"c{n}" for n in range(1, 6)), network="10.86.0.0/29"))
    assert set(later.hosts) == {"s1", "c1", "c2", "c3", "c4", "c5"}


def test_without_ipv6_there_is_one_address_and_another_when_it_comes() -> None:
    registry = joined(None, run_of("s1", host("c1", ipv6=False)))
    assert registry.hosts["c1"].address6 == ""
    assert registry.hosts["s1"].address6
    later = joined(registry, run_of("s1", "c1"))
    assert later.hosts["c1"].address6 == tunnel_address(NETWORK6, "c1")
    assert later.hosts["c1"].address == registry.hosts["c1"].address
    assert joined(None, run_of("s1", network6="")).hosts["s1"].addresses == [tunnel_address(NETWORK, "s1")]


def test_another_network_takes_everybody_who_is_here_along() -> None:
    registry = joined(None, run_of("s1", "c1", "c2"))
    done = limited(registry, run_of("s1", "c1", "c2", network="10.99.0.0/16"), "s1", "c1").registry
    assert done.hosts["c1"].address == tunnel_address("10.99.0.0/16", "c1")
    assert done.hosts["c2"] == registry.hosts["c2"]


def test_a_network_that_has_grown_renumbers_nobody() -> None:
    registry = joined(None, run_of("s1", "c1", "c2"))
    larger = run_of("s1", "c1", "c2", "c3", network="10.80.0.0/12", network6="fd86:ea04:1115::/48")
    done = joined(registry, larger)
    for name in ("s1", "c1", "c2"):
        before, after = addresses(registry)[name], addresses(done)[name]
        assert [each.split("/")[0] for each in after] == [each.split("/")[0] for each in before]
        assert [each.split("/")[1] for each in after] == ["12", "48"]
    assert address_in(done.hosts["c3"].address, "10.80.0.0/12")


# --- Who is in it -------------------------------------------------------------------------------------------


def test_limited_runs_and_unreachable_hosts_drop_nobody() -> None:
    fleet = run_of("s1", "s2", "c1", "c2")
    registry = joined(None, fleet)
    assert limited(registry, fleet, "c1").registry is registry
    unreachable = run_of("s1", host("s2", here=False), "c1", host("c2", here=False))
    assert joined(registry, unreachable) is registry
    # Somebody else took c2 out of the inventory; this run is for c1 alone.
    assert limited(registry, run_of("s1", "s2", "c1"), "c1").registry is registry


def test_a_full_run_takes_out_who_is_not_in_the_inventory_any_more() -> None:
    registry = joined(None, run_of("s1", "c1", "c2"))
    done = join(registry, run_of("s1", "c1"))
    assert (done.added, done.removed, done.problems) == ([], ["c2"], [])
    assert set(done.registry.hosts) == {"s1", "c1"}
    assert done.registry.lineage == (*registry.lineage, done.registry.id)


def test_many_removals_have_to_be_meant() -> None:
    registry = joined(None, run_of("s1", *(f"c{n}" for n in range(9))))
    (problem,) = join(registry, run_of("s1", *(f"c{n}" for n in range(5)))).problems
    assert "4 hosts" in problem
    assert "c5, c6, c7, c8" in problem
    assert "site_max_removals to 4" in problem
    assert join(registry, run_of("s1", *(f"c{n}" for n in range(5)), max_removals=4)).problems == []
    assert join(registry, run_of("s1", *(f"c{n}" for n in range(6)))).problems == []


@pytest.mark.parametrize("names", [("s1", "new"), ("new",)])
def test_a_host_that_comes_back_under_another_name_keeps_its_address(names: tuple[str, ...]) -> None:
    registry = joined(None, run_of("s1", "old"))
    renamed = host("new", public_key=key_of("old"))
    done = limited(registry, run_of("s1", renamed), *names)
    assert done.problems == []
    assert (done.renamed, done.removed, done.added) == ([("old", "new")], [], [])
    assert done.registry.hosts["new"] == registry.hosts["old"]
    assert "old" not in done.registry.hosts


def test_renames_are_no_removals() -> None:
    registry = joined(None, run_of("s1", *(f"c{n}" for n in range(9))))
    other = [host(f"d{n}", public_key=key_of(f"c{n}")) for n in range(9)]
    done = join(registry, run_of("s1", *other))
    assert done.problems == []
    assert len(done.renamed) == 9


@pytest.mark.parametrize("there", [True, False])
def test_one_key_under_two_names_of_the_inventory_is_a_copied_disk(there: bool) -> None:
    registry = joined(None, run_of("s1", "c1"))
    clone = host("c2", public_key=key_of("c1"))
    (problem,) = join(registry, run_of("s1", host("c1", here=there), clone)).problems
    assert problem.startswith("c1 and c2 have one key pair")


def test_another_key_replaces_the_old_one_and_the_address_stays() -> None:
    registry = joined(None, run_of("s1", "c1"))
    done = joined(registry, run_of("s1", host("c1", public_key=key_of("another"))))
    assert done.hosts["c1"] == replace(registry.hosts["c1"], public_key=key_of("another"))
    lost = joined(registry, run_of("s1", host("c1", public_key="")))
    assert lost is registry, "a key that could not be read is not forgotten"


def test_what_the_inventory_says_of_absent_hosts_is_told_to_the_others() -> None:
    registry = joined(None, run_of("s1", "s2", "c1"))
    rule = {"to": "10.9.0.0/16"}
    run = run_of("s1", host("s2", here=False, drain=True), host("c1", here=False, acl=(rule,)))
    done = joined(registry, run)
    assert done.hosts["s2"] == replace(registry.hosts["s2"], drain=True)
    assert done.hosts["c1"] == replace(registry.hosts["c1"], acl=(rule,))
    unread = run_of("s1", host("s2", here=False, drain=True, problems=("?",)), host("c1", here=False))
    assert joined(registry, unread) is registry


def test_mtus_and_endpoints_outlast_a_run_that_does_not_know_them() -> None:
    registry = joined(None, run_of("s1", host("c1", mtu=1380)))
    assert registry.hosts["c1"].mtu == 1380
    assert joined(registry, run_of(host("s1", endpoint=""), "c1")) is registry
    assert joined(registry, run_of("s1", host("c1", mtu=0))).hosts["c1"].mtu == 0


# --- Where it comes from ------------------------------------------------------------------------------------


def test_a_new_registry_descends_from_what_its_hosts_have() -> None:
    fleet = run_of("s1", host("c1", registry_id="7-aa"), host("c2", registry_id="9-bb"))
    registry = joined(None, fleet)
    assert registry.lineage[:2] == ("7-aa", "9-bb")
    assert registry.serial == 10
    assert registry.sealed


def test_a_registry_that_is_there_takes_over_strangers_only_if_told_to() -> None:
    registry = joined(None, run_of("s1", "c1"))
    stranger = run_of("s1", host("c1", registry_id="7-aa"))
    assert joined(registry, stranger) is registry
    taken = joined(registry, replace(stranger, adopt=True))
    assert "7-aa" in taken.lineage
    assert taken.id != registry.id
    assert joined(taken, replace(stranger, adopt=True)) is taken


def test_an_edited_or_merged_registry_gets_an_id_of_its_own() -> None:
    registry = joined(None, run_of("s1", "c1"))
    theirs = joined(registry, run_of("s1", "c1", "c2"))
    ours = joined(registry, run_of("s1", "c1", "c3"))
    merged = Registry(
        {**ours.hosts, "c2": theirs.hosts["c2"]}, tuple(dict.fromkeys(theirs.lineage + ours.lineage)), 2
    )
    assert not merged.sealed
    done = joined(merged, run_of("s1", "c1", "c2", "c3"))
    assert done.hosts == merged.hosts
    assert done.lineage[:-1] == merged.lineage
    assert done.id not in merged.lineage


def test_one_address_twice_in_the_registry_is_refused() -> None:
    registry = joined(None, run_of("s1", "c1", "c2"))
    twice = {**registry.hosts, "c2": replace(registry.hosts["c2"], address=registry.hosts["c1"].address)}
    for fleet in (run_of("s1", "c1", "c2"), run_of("s1", host("c1", here=False), host("c2", here=False))):
        (problem,) = join(Registry(twice, registry.lineage, 1), fleet).problems
        assert problem.startswith("c1 and c2 have one tunnel address")


def test_an_entry_without_a_key_is_completed_by_a_later_run() -> None:
    registry = joined(None, run_of("s1", host("c1", public_key="")))
    assert registry.hosts["c1"] == replace(
        Entry(), address=tunnel_address(NETWORK, "c1"), address6=tunnel_address(NETWORK6, "c1")
    )
    done = joined(registry, run_of("s1", "c1"))
    assert done.hosts["c1"] == replace(registry.hosts["c1"], public_key=key_of("c1"))
