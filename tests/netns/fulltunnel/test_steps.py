# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Between the steps of a plan: what may leave, and which way packets take."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.netns.fulltunnel.network import CLIENT, COLLECTIONS, DEVICE, LAN, OUTSIDE, Network

_WORKER = Path(__file__).with_name("step_worker.py")
MARK = "0xca6c"
ITEMS: list[dict[str, Any]] = [
    {"version": version, "to": to[version], "port": port, **more}
    for version in (4, 6)
    for port, (to, more) in enumerate(
        (
            (OUTSIDE, {}),
            (OUTSIDE, {"bind": CLIENT["up1"][version]}),
            (OUTSIDE, {"device": "up0"}),
            (OUTSIDE, {"device": "up2"}),
            (LAN, {}),
        ),
        start=4500,
    )
]
OF = {4: set(range(5)), 6: set(range(5, 10))}
ROUTES = {
    f"{name}{version}": f"-{version} route get {to[version]} {words}"
    for version in (4, 6)
    for name, to, words in (
        ("plain", OUTSIDE, ""),
        ("near", LAN, ""),
        ("marked", OUTSIDE, f"mark {MARK}"),
        ("answer", OUTSIDE, f"from {CLIENT['up2'][version]} mark {MARK}"),
    )
}


def steps(network: Network, document: dict[str, Any], previous: dict[str, Any] | None) -> list[Any]:
    """What is so before the first step, and after each."""
    done = network.client.run(
        [sys.executable, "-B", str(_WORKER)],
        stdin=json.dumps({"document": document, "previous": previous, "items": ITEMS, "routes": ROUTES}),
        env={"PYTHONPATH": str(COLLECTIONS)},
        timeout_s=90,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def started(network: Network, **variables: Any) -> dict[str, Any]:
    """The document of the client, on a host that has the relay and its device."""
    made = network.documents(**variables)
    network.client.network(made["relay"])
    return made["client"]


def test_nothing_leaves_once_the_kill_switch_is_there_until_it_is_gone(network: Network) -> None:
    wish = started(network, client_kill_switch=True)
    coming = steps(network, wish, None)
    empty = {"name": wish["name"]}
    going = steps(network, empty, wish)
    assert set(coming[0]["left"]) == set(going[-1]["left"]) == OF[4] | OF[6]
    for version in (4, 6):
        item = f"chain CULVERT-KILLSWITCH in mangle (ipv{version}) on "
        made = next(n for n, step in enumerate(coming) if step["item"].startswith(item))
        gone = next(n for n, step in enumerate(going) if step["item"].startswith(item))
        held = [*coming[made:], *going[:gone]]
        assert [step for step in held if OF[version] & set(step["left"])] == []
        # Before the routes move, and until they are back.
        assert not any("rule" in step["item"] or "route" in step["item"] for step in coming[:made])
        assert not any("rule" in step["item"] or "route" in step["item"] for step in going[gone:])


def test_answers_are_marked_before_the_kill_switch_comes_and_until_it_goes(network: Network) -> None:
    wish = started(network, client_kill_switch=True)
    names = {way: [step["item"] for step in found] for way, found in {
        "coming": steps(network, wish, None), "going": steps(network, {"name": wish["name"]}, wish)
    }.items()}  # fmt: skip
    for version in (4, 6):
        at = {
            (way, name): next(
                n for n, item in enumerate(items) if f"CULVERT-{name} in mangle (ipv{version})" in item
            )
            for way, items in names.items()
            for name in ("PREROUTING", "OUTPUT", "KILLSWITCH")
        }
        for name in ("PREROUTING", "OUTPUT"):
            assert at["coming", name] < at["coming", "KILLSWITCH"]
            assert at["going", "KILLSWITCH"] < at["going", name]


def three_rules(wish: dict[str, Any]) -> dict[str, Any]:
    """As the role had it before: the mark by the main table first, whatever rules the host has."""
    rules = [{"fwmark": "51820", "table": "main"}, {"table": "main", "suppress_prefixlength": 0}, {}]
    return {**wish, "tables": [{**wish["tables"][0], "rules": rules}]}


def test_from_three_rules_to_two_and_back_no_packet_goes_astray(network: Network) -> None:
    """Whatever the step, what is near stays near, the mark stays outside, the rest goes into the tunnel."""
    wish = started(network)
    former = three_rules(wish)
    network.client.network(former)
    there = steps(network, wish, former)
    back = steps(network, former, wish)
    assert len(there) > 8
    for step in (*there, *back):
        for version in (4, 6):
            ways = {name: step["routes"][f"{name}{version}"] for name in ("plain", "near", "marked")}
            assert ways == {"plain": DEVICE, "near": "lan0", "marked": "up0"}, step
    # What the two are for: a rule of the host's own that comes after ours.
    assert [step["routes"]["answer4"] for step in (there[0], there[-1])] == ["up0", "up2"]
    assert network.client.network(former)["changed"] is False
    assert network.client.network(wish)["changed"] is True
    rules = [line.split("\t")[1] for line in network.client.ip("rule").splitlines() if line.startswith("318")]
    # The table has a name where iproute2 reads the host's own files.
    assert [rule.replace(" vpn ", " 51820 ") for rule in rules] == [
        f"not from all fwmark {MARK} lookup main suppress_prefixlength 0 proto 51",
        f"not from all fwmark {MARK} lookup 51820 proto 51",
    ]
