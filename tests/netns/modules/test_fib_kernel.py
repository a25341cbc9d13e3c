# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The model of policy routing says what the kernel says: random rules and routes, many questions.

host: lo, and the veths d0 (10.0.0.1/24, fd00::1/64), d1 (10.1.0.1/24, fd00:1::1/64), d2 (no address)
"""

from __future__ import annotations

import ipaddress
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.netns.modules.host import COLLECTIONS, PYTHON, Host

DEVICES = ("d0", "d1", "d2")
TABLES = (101, 102, 103, 254)
# Table 150 is never filled.
RULE_TABLES = (*TABLES, 150)
LENGTHS = {4: (0, 1, 8, 14, 16, 23, 24, 32), 6: (0, 1, 16, 30, 32, 47, 64, 128)}
# What each error means, as the type of route or rule; ENETUNREACH is also that there is no route.
REFUSALS: dict[str, set[int | None]] = {
    "EACCES": {8}, "EINVAL": {6}, "EHOSTUNREACH": {7}, "ENETUNREACH": {7, None}
}  # fmt: skip
Answer = dict[str, Any]
Ask = Callable[[list[Any], list[Any]], Answer]


def address(version: int, second: int, third: int, last: int) -> str:
    return f"10.{second}.{third}.{last}" if version == 4 else f"fd00:{second:x}:{third:x}::{last:x}"


def addresses(version: int) -> st.SearchStrategy[str]:
    small = st.integers(0, 3)
    return st.builds(address, st.just(version), small, small, st.integers(1, 3))


@st.composite
def prefixes(draw: st.DrawFn, version: int) -> str:
    length = draw(st.sampled_from([0, *LENGTHS[version]]))
    return str(ipaddress.ip_network(f"{draw(addresses(version))}/{length}", strict=False))


@st.composite
def routes(draw: st.DrawFn, version: int) -> str:
    kind = draw(st.sampled_from(["unicast"] * 6 + ["unreachable", "blackhole", "prohibit", "throw"]))
    words = ["route add", kind, draw(prefixes(version))]
    if kind == "unicast":
        device = draw(st.sampled_from(DEVICES))
        gateway = "10.0.0.254" if version == 4 else "fd00::fe"
        words += [f"via {gateway}"] if device == "d0" and draw(st.booleans()) else []
        words += [f"dev {device}"]
    words += [f"table {draw(st.sampled_from(TABLES))}"]
    return " ".join(words)


@st.composite
def rules(draw: st.DrawFn, version: int) -> str:
    words = ["rule add"] + (["not"] if draw(st.integers(0, 4)) == 0 else [])
    words += [f"from {draw(prefixes(version))}"] if draw(st.integers(0, 3)) == 0 else ["from all"]
    words += [f"to {draw(prefixes(version))}"] if draw(st.integers(0, 3)) == 0 else []
    if draw(st.integers(0, 2)) == 0:
        mask = draw(st.sampled_from(["", "/0x1", "/0x3", "/0xf0"]))
        words += [f"fwmark {draw(st.sampled_from([1, 2, 3, 0x10])):#x}{mask}"]
    words += (
        [f"iif {draw(st.sampled_from([*DEVICES, 'lo', 'gone0']))}"] if draw(st.integers(0, 5)) == 0 else []
    )
    words += [f"oif {draw(st.sampled_from([*DEVICES, 'gone0']))}"] if draw(st.integers(0, 5)) == 0 else []
    # What the model does not know: ports and protocols. The questions to the kernel have none.
    words += (
        [draw(st.sampled_from(["ipproto tcp dport 22", "sport 53"]))] if draw(st.integers(0, 7)) == 0 else []
    )
    priority = draw(st.integers(100, 120))
    words += [f"priority {priority}"]
    action = draw(st.sampled_from(["lookup"] * 8 + ["blackhole", "prohibit", "unreachable", "goto", "nop"]))
    if action == "lookup":
        words += [f"lookup {draw(st.sampled_from(RULE_TABLES))}"]
        if draw(st.booleans()):
            words += [f"suppress_prefixlength {draw(st.sampled_from([0, *LENGTHS[version]]))}"]
    else:
        words += [f"goto {draw(st.integers(priority + 1, 130))}" if action == "goto" else action]
    return " ".join(words)


def questions(version: int) -> list[dict[str, Any]]:
    own = [address(version, number, 0, 1) for number in (0, 1)]
    elsewhere = [address(version, *place) for place in product(range(4), (0, 3), (2,))]
    asked: list[tuple[str, str, int, str, str]] = []
    asked += [(to, "", mark, "", "") for to in [*own, *elsewhere] for mark in (0, 1, 2, 0x10, 0x13)]
    # Of what the host itself sends, IPv4 refuses a source that is not its own.
    asked += [(to, source, mark, "", "") for to in elsewhere for source in own for mark in (0, 1)]
    asked += [(to, elsewhere[-1], 0, iif, "") for to in [*own, *elsewhere] for iif in DEVICES]
    asked += [(to, "", 0, "", oif) for to in elsewhere for oif in DEVICES]
    names = ("destination", "source", "mark", "iif", "oif")
    return [dict(zip(names, question, strict=True)) for question in asked]


def worlds(version: int) -> st.SearchStrategy[tuple[list[str], list[str]]]:
    """Routes and rules. Which of two routes with the same prefix and metric is taken, is the kernel's own
    affair.
    """
    numbered = st.tuples(routes(version), st.integers(1, 99))
    metrics = st.lists(numbered, min_size=4, max_size=20, unique_by=lambda pair: pair[1])
    return st.tuples(
        metrics.map(lambda pairs: [f"{route} metric {metric}" for route, metric in pairs]),
        st.lists(rules(version), min_size=1, max_size=10),
    )


def every_turn(version: int) -> tuple[list[str], list[str]]:
    """A world in which each turn that a search can take is taken by some question."""
    all_of = "0.0.0.0/0" if version == 4 else "::/0"
    part, length = ("10.{}.0.0/16".format, 16) if version == 4 else ("fd00:{}::/32".format, 32)
    made = [
        f"unicast {all_of} dev d2 table 101 metric 1",
        f"unicast {part(3)} dev d2 table 101 metric 2",
        f"unreachable {part(1)} table 101 metric 3",
        f"throw {part(2)} table 101 metric 4",
        f"unicast {all_of} dev d1 table 102 metric 5",
        f"unicast {all_of} dev d2 table 103 metric 6",
        f"unicast {all_of} dev d0 table 254 metric 7",
    ]
    ruled = [
        f"priority 101 lookup 101 suppress_prefixlength {length}",
        "fwmark 0x1 iif lo priority 102 lookup 102",
        "not fwmark 0x2 priority 103 goto 105",
        "priority 104 lookup 103",
        "fwmark 0x10/0xf0 priority 105 prohibit",
    ]
    return [f"route add {route}" for route in made], [f"rule add {rule}" for rule in ruled]


@pytest.fixture
def ask(host: Host) -> Iterator[Ask]:
    """Put batches of ``ip`` into force and ask. One process for the whole test, as its imports cost."""
    host.sh("""
        set -e
        for number in 0 1 2; do
            ip link add d$number type veth peer name far$number
            for name in d$number far$number; do ip link set $name addrgenmode none up; done
        done
        for number in 0 1; do
            ip addr add 10.$number.0.1/24 dev d$number
            ip addr add fd00:$number::1/64 dev d$number nodad
        done
        # Otherwise the kernel judges the source of what comes in before it looks for a way out.
        for name in all default d0 d1 d2; do
            echo 0 > /proc/sys/net/ipv4/conf/$name/rp_filter
            echo 1 > /proc/sys/net/ipv4/conf/$name/accept_local
        done
        echo 1 > /proc/sys/net/ipv4/ip_forward
        echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
    """)
    worker = str(Path(__file__).with_name("fib_worker.py"))
    process = subprocess.Popen(
        host.command([PYTHON, worker]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(COLLECTIONS)},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    requests, replies = process.stdin, process.stdout

    def send(batches: list[Any], asked: list[Any]) -> Answer:
        requests.write(json.dumps({"batches": batches, "questions": asked}) + "\n")
        requests.flush()
        answer: Answer = json.loads(replies.readline())
        return answer

    try:
        yield send
    finally:
        process.kill()
        process.wait()


def agree(kernel: list[Any], model: list[Any] | None, bound: bool) -> bool:
    if kernel[0] != "error":
        return kernel == model
    kind = None if model is None else model[0]
    # A socket bound to a device may always try its luck there, IPv4 finds (net/ipv4/route.c).
    if bound and kernel[1] == "EHOSTUNREACH":
        return kind in (None, 6, 7, 8)
    return kind in REFUSALS[kernel[1]]


def compare(ask: Ask, version: int, made: list[str], ruled: list[str]) -> None:
    flush = [f"route flush table {table}" for table in TABLES if table != 254]
    # The main table keeps what the kernel put there itself.
    flush += ["route flush table 254 proto boot", "rule flush", "rule add lookup main priority 32766"]
    family, asked = f"-{version}", questions(version)
    answers = ask([[[family], flush], [[family], [*made, *ruled]]], asked)["answers"]
    differing = [
        (question, kernel, model)
        for question, (kernel, model) in zip(asked, answers, strict=True)
        if not agree(kernel, model[-1], version == 4 and bool(question["oif"]))
    ]
    assert not differing, differing[0]


SETTINGS = settings(max_examples=30, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@SETTINGS
@given(world=worlds(4))
@example(world=every_turn(4))
def test_the_model_says_what_the_kernel_says_in_ipv4(ask: Ask, world: Any) -> None:
    compare(ask, 4, *world)


@SETTINGS
@given(world=worlds(6))
@example(world=every_turn(6))
def test_the_model_says_what_the_kernel_says_in_ipv6(ask: Ask, world: Any) -> None:
    compare(ask, 6, *world)
