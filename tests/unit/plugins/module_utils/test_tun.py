# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pure plan of a TUN device: from any state found to any wish, and what is refused."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.module_utils._bridge import BridgeState
from ansible_collections.culvert.vpn.plugins.module_utils._core import SpecError, diff_of
from ansible_collections.culvert.vpn.plugins.module_utils._tun import TunSpec, TunState, plan
from hypothesis import given
from hypothesis import strategies as st

A, B, SIX = (ipaddress.ip_interface(t) for t in ("10.86.0.1/16", "10.87.0.1/24", "fd86::1/64"))
THERE = TunState(kind="tun", index=3, owner=51820, mtu_bytes=1420, up=True, addresses=(A, SIX))
SAME: dict[str, Any] = {"name": "culvert0", "owner": 51820, "mtu": 1420, "addresses": [str(A), str(SIX)]}


def steps(params: dict[str, Any], state: TunState) -> list[tuple[str, Any]]:
    return [(change.action, change.after) for change in plan(TunSpec.from_params(params), state)]


def test_nothing_to_do() -> None:
    assert steps(SAME, THERE) == []


def test_a_new_device_is_made_before_it_is_configured() -> None:
    made = steps(SAME, TunState())
    assert [action for action, _after in made] == ["create", "mtu", "up", "add", "add"]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"mtu_bytes": 1500}, [("mtu", 1420)]),
        ({"up": False}, [("up", True)]),
        ({"owner": None}, [("reattach", {"owner": 51820})]),
        ({"persistent": False}, [("reattach", {"persistent": True})]),
        ({"packet_information": True}, [("reattach", {"packet_information": False})]),
        ({"vnet_hdr": True}, [("reattach", {"vnet_hdr": False})]),
        ({"vnet_hdr": True, "attached": True}, []),
        ({"addresses": (A, B, SIX)}, [("remove", None)]),
        ({"addresses": (A,)}, [("add", str(SIX))]),
        ({"addresses": (A,), "kernel_addresses": (SIX,)}, []),
    ],
)
def test_one_difference_is_one_change(found: dict[str, Any], expected: list[tuple[str, Any]]) -> None:
    assert steps(SAME, replace(THERE, **found)) == expected


def test_a_small_mtu_drops_ipv6_addresses() -> None:
    assert steps({"name": "culvert0", "mtu": 1000, "addresses": [str(A)]}, THERE) == [("mtu", 1000)]


def test_going_down_drops_ipv6_addresses_unless_the_kernel_keeps_them() -> None:
    down = {**SAME, "up": False}
    assert steps(down, THERE) == [("up", False), ("add", str(SIX))]
    assert steps(down, replace(THERE, keeps_ipv6_when_down=True)) == [("up", False)]


def test_queues_are_fixed_at_creation() -> None:
    many = {**SAME, "multi_queue": True}
    assert [action for action, _data in steps(many, THERE)][:2] == ["delete", "create"]
    with pytest.raises(SpecError) as refused:
        steps(many, replace(THERE, attached=True))
    assert refused.value.option == "multi_queue"


def test_absent() -> None:
    gone = {"name": "culvert0", "state": "absent"}
    assert steps(gone, TunState()) == []
    assert steps(gone, replace(THERE, attached=True)) == [("delete", None)]


@pytest.mark.parametrize(
    ("found", "option"),
    [
        ({"kind": "veth"}, "name"),
        ({"mode": "tap"}, "mode"),
        ({"attached": True, "persistent": False}, "name"),
        ({"attached": True, "owner": 5}, "owner"),
        ({"ipv6_disabled": "the kernel runs without IPv6"}, "addresses[1]"),
        ({"elsewhere": (("eth0", ipaddress.ip_interface("10.86.9.9/32")),)}, "addresses[0]"),
        ({"elsewhere": (("eth0", ipaddress.ip_interface("10.0.0.1/8")),)}, "addresses[0]"),
    ],
)
def test_what_a_host_does_not_allow(found: dict[str, Any], option: str) -> None:
    with pytest.raises(SpecError) as refused:
        steps(SAME, replace(THERE, **found))
    assert refused.value.option == option


def test_link_local_networks_never_overlap() -> None:
    local = ipaddress.ip_interface("fe80::5/64")
    wish = {"name": "culvert0", "addresses": ["fe80::1/64"]}
    steps(wish, TunState(elsewhere=(("eth0", local),)))


def test_addresses_of_one_device_may_share_a_network() -> None:
    TunSpec.from_params({"name": "t", "addresses": ["10.86.0.1/16", "10.86.0.2/16", "10.86.255.1/32"]})


@pytest.mark.parametrize("name", ["x" * 16, "ä" * 8, "a b", "a/b", "..", "a:b", "all", "", None, 5])
def test_names_the_kernel_does_not_take(name: Any) -> None:
    with pytest.raises(SpecError, match="name"):
        TunSpec.from_params({"name": name})


@given(st.text(min_size=1, max_size=20))
def test_a_name_is_taken_or_refused_by_its_bytes(name: str) -> None:
    try:
        spec = TunSpec.from_params({"name": name})
    except SpecError:
        return
    assert len(spec.name.encode()) <= 15


addresses = st.lists(st.sampled_from([A, B, SIX, ipaddress.ip_interface("10.88.0.1/30")]), unique=True)


@given(addresses, addresses, st.booleans(), st.booleans(), st.booleans())
def test_the_plan_leads_to_the_wish(
    have: list[Any], want: list[Any], exclusive: bool, was_up: bool, up: bool
) -> None:
    """Executed on a model of the kernel, it gives what was wished, and then there is nothing to do."""
    params = {
        "name": "t",
        "addresses": [str(a) for a in want],
        "addresses_exclusive": exclusive,
        "up": up,
    }
    state = TunState(kind="tun", up=was_up, addresses=tuple(have))
    changes = plan(TunSpec.from_params(params), state)
    for change in changes:
        if change.action == "up":
            kept = state.addresses if change.after else tuple(a for a in state.addresses if a.version == 4)
            state = replace(state, up=change.after, addresses=kept)
        elif change.action == "add":
            state = replace(state, addresses=(*state.addresses, change.data))
        else:
            state = replace(state, addresses=tuple(a for a in state.addresses if a != change.data))
    assert set(state.addresses) >= set(want)
    assert not exclusive or set(state.addresses) == set(want)
    assert plan(TunSpec.from_params(params), state) == []


def test_the_diff_holds_exactly_the_changes() -> None:
    changes = plan(TunSpec.from_params(SAME), replace(THERE, mtu_bytes=1500, addresses=(A, B, SIX)))
    assert diff_of(changes) == {
        "before": {"device culvert0 mtu": 1500, "address 10.87.0.1/24 on culvert0": "10.87.0.1/24"},
        "after": {"device culvert0 mtu": 1420},
    }


# --- Bridges ------------------------------------------------------------------------------------------------

BRIDGES = frozenset({"br0", "br1"})
PORT: dict[str, Any] = {"name": "t0", "mode": "tap", "bridge": "br0"}


def bridged(**found: Any) -> TunState:
    return TunState(kind="tun", mode="tap", up=True, bridging=BridgeState(there=BRIDGES, **found))


def test_a_new_tap_device_is_in_its_bridge_before_it_is_up() -> None:
    made = steps({**PORT, "bridge_isolated": True}, TunState(bridging=BridgeState(there=BRIDGES)))
    assert [action for action, _after in made] == ["create", "bridge", "isolate", "up"]


@pytest.mark.parametrize(
    ("found", "wish", "expected"),
    [
        ({"port_of": "br0"}, {}, []),
        ({}, {}, [("bridge", "br0")]),
        ({"port_of": "br1"}, {}, [("bridge", "br0")]),
        ({"port_of": "br1", "isolated": True}, {}, [("bridge", "br0")]),
        ({"port_of": "br0", "isolated": True}, {}, [("isolate", False)]),
        ({"port_of": "br1"}, {"bridge": None}, []),
        ({"port_of": "br1"}, {"bridge": ""}, [("bridge", None)]),
    ],
)
def test_one_difference_of_a_port(
    found: dict[str, Any], wish: dict[str, Any], expected: list[tuple[str, Any]]
) -> None:
    assert steps({**PORT, **wish}, bridged(**found)) == expected


def test_what_a_document_had_before_is_taken_back() -> None:
    spec = replace(TunSpec.from_params({"name": "t0", "mode": "tap"}), resets=frozenset({"bridge"}))
    (change,) = plan(spec, bridged(port_of="br0"))
    assert (change.action, change.before, change.after) == ("bridge", "br0", None)
    other = replace(TunSpec.from_params(PORT), resets=frozenset({"mode"}))
    before = TunState(kind="tun", up=True, bridging=BridgeState(there=BRIDGES))
    assert [change.action for change in plan(other, before)] == ["delete", "create", "bridge", "up"]
    with pytest.raises(SpecError, match="stop the relay first"):
        plan(other, replace(before, attached=True))


def test_a_bridge_is_only_changed_where_it_was_made_here() -> None:
    wish: dict[str, Any] = {"name": "br1", "mode": "bridge", "stp": True}
    assert [action for action, _after in steps(wish, TunState(tun_node=False))] == ["create", "up"]
    ours = TunState(kind="bridge", mode="bridge", up=True, bridging=BridgeState(made_here=True))
    theirs = replace(ours, bridging=BridgeState())
    assert steps(wish, ours) == [("stp", True)]
    assert steps({"name": "br1", "mode": "bridge", "state": "absent"}, ours) == [("delete", None)]
    assert steps({"name": "br1", "mode": "bridge", "state": "absent"}, theirs) == []
    with pytest.raises(SpecError, match="somebody else's"):
        steps(wish, theirs)
