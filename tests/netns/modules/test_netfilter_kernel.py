# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The model of iptables says what the kernel does: random rules and real packets.

host: lo, and the veth d0 (10.0.0.1/24, fd00::1/64) with a neighbour that never answers (10.0.0.2, fd00::2)

Packets are sent through the random chains at OUTPUT of mangle and filter. Behind them, in POSTROUTING, a rule
for each mark counts what came through.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.netns.modules.host import COLLECTIONS, PYTHON, Host

Send = Callable[[dict[str, Any]], list[Any]]
World = dict[str, list[str]]
MARKS = ("0x0", "0x1", "0x2", "0x3", "0x10", "0x1/0x1", "0x0/0x3", "0x2/0xf")
PACKETS = [
    *({"kind": "udp", "dport": port, "mark": mark, "uid": uid} for port, mark, uid in (
        (53, 0, 0), (53, 1, 0), (5300, 0, 1000), (123, 2, 0), (40000, 3, 1000)
    )),
    *({"kind": "tcp", "dport": port, "mark": mark, "uid": 0} for port, mark in ((22, 0), (443, 1))),
    {"kind": "icmp", "dport": 0, "mark": 0, "uid": 0},
    {"kind": "icmp", "dport": 0, "mark": 2, "uid": 0},
    {"kind": "answer", "dport": 0, "mark": 0, "uid": 0},
    {"kind": "answer", "dport": 0, "mark": 1, "uid": 0},
]  # fmt: skip
FAR = {4: "10.0.0.2", 6: "fd00::2"}
NEAR = {4: "10.0.0.1", 6: "fd00::1"}
NETS = {
    4: ("10.0.0.0/24", "10.0.0.2/32", "10.9.0.0/16", "0.0.0.0/0"),
    6: ("fd00::/64", "fd00::2", "fd09::/16"),
}


def maybe(draw: st.DrawFn, chance: int) -> bool:
    """Once in ``chance``."""
    return draw(st.integers(0, chance - 1)) == 0


@st.composite
def matches(draw: st.DrawFn, version: int) -> str:
    words: list[str] = []

    def add(text: str) -> None:
        words.append(f"! {text}" if maybe(draw, 4) else text)

    if maybe(draw, 4):
        side, net = draw(st.sampled_from(["-s", "-d"])), draw(st.sampled_from(NETS[version]))
        # iptables refuses a rule for what is in no network at all.
        if net == "0.0.0.0/0":
            words.append(f"{side} {net}")
        else:
            add(f"{side} {net}")
    if maybe(draw, 4):
        add(f"-o {draw(st.sampled_from(['d0', 'lo', 'd+', 'e0']))}")
    words += draw(layers(version))
    for module, options in (
        ("mark", [f"--mark {mark}" for mark in MARKS]),
        ("connmark", [f"--mark {mark}" for mark in MARKS]),
        (
            "conntrack",
            ["--ctstate NEW", "--ctstate RELATED,ESTABLISHED", "--ctdir REPLY", "--ctdir ORIGINAL"],
        ),
        ("addrtype", ["--dst-type LOCAL", "--src-type LOCAL", "--dst-type UNICAST"]),
        ("owner", ["--uid-owner 0", "--uid-owner 1000", "--uid-owner 5-2000", "--socket-exists"]),
        (
            "iprange",
            [f"--dst-range {NEAR[version]}-{FAR[version]}", f"--src-range {FAR[version]}-{FAR[version]}"],
        ),
    ):
        if maybe(draw, 7):
            option = draw(st.sampled_from(options))
            negated = maybe(draw, 4) and "--ctdir" not in option
            words.append(f"-m {module} {'! ' if negated else ''}{option}")
    # What the model does not know.
    words += ["-m length --length 0:60"] if maybe(draw, 20) else []
    words += ['-m comment --comment "-j DROP"'] if maybe(draw, 10) else []
    return " ".join(words)


@st.composite
def layers(draw: st.DrawFn, version: int) -> list[str]:
    if not maybe(draw, 2):
        return []
    echo = "-p icmp -m icmp --icmp-type 8" if version == 4 else "-p ipv6-icmp -m icmp6 --icmpv6-type 128"
    return [
        draw(
            st.sampled_from(
                [
                    "-p udp", "! -p udp", "-p tcp", echo, "-p udp -m udp --dport 53",
                    "-p udp -m udp ! --dport 53:200",
                    "-p udp -m multiport --dports 53,123,4000:65535", "-p tcp -m multiport ! --dports 22",
                    "-p tcp -m tcp --dport 22", "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN",
                    "-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN", "-p udp -m udp --sport 1:65535",
                    "-p udp -m multiport --ports 1:52,54:65535",
                ]
            )
        )
    ]  # fmt: skip


@st.composite
def targets(draw: st.DrawFn, table: str, chains: list[str]) -> str:
    kinds = ["ACCEPT", "ACCEPT", "DROP", "RETURN", ""] + (["jump"] * 4 if chains else [])
    kind = draw(st.sampled_from(kinds + (["mark"] * 8 if table == "mangle" else ["REJECT"])))
    if kind == "jump":
        return f"-{draw(st.sampled_from('jjg'))} {draw(st.sampled_from(chains))}"
    if kind != "mark":
        return f"-j {kind}" if kind else ""
    value, mask = (
        draw(st.sampled_from(["0x0", "0x1", "0x2", "0x13"])),
        draw(st.sampled_from(["", "/0x1", "/0x3"])),
    )
    return draw(
        st.sampled_from(
            [
                f"-j MARK --set-xmark {value}{mask}",
                f"-j MARK --set-mark {value}{mask}",
                "-j MARK --or-mark 0x4",
                "-j MARK --and-mark 0x11",
                "-j MARK --xor-mark 0x3",
                f"-j CONNMARK --set-xmark {value}{mask}",
                "-j CONNMARK --save-mark",
                "-j CONNMARK --restore-mark",
                "-j CONNMARK --save-mark --nfmask 0x3 --ctmask 0x1",
                "-j CONNMARK --restore-mark --nfmask 0x1 --ctmask 0x3",
            ]
        )
    )


@st.composite
def worlds(draw: st.DrawFn, version: int) -> World:
    made: World = {}
    for table in ("mangle", "filter"):
        policy = draw(st.sampled_from(["ACCEPT", "ACCEPT", "DROP"] if table == "filter" else ["ACCEPT"]))
        lines = [f":OUTPUT {policy} [0:0]", ":ONE - [0:0]", ":TWO - [0:0]"]
        for chain, further in (("OUTPUT", ["ONE", "TWO"]), ("ONE", ["TWO"]), ("TWO", [])):
            for _number in range(draw(st.integers(0, 4))):
                rule = f"{draw(matches(version))} {draw(targets(table, further))}".strip()
                lines.append(f"-A {chain} {rule}".strip())
        made[table] = lines
    return made


EVERY_TURN: World = {
    "mangle": [
        ":OUTPUT ACCEPT [0:0]", ":ONE - [0:0]", ":TWO - [0:0]",
        "-A OUTPUT -m mark --mark 0x1 -g TWO",
        "-A OUTPUT -j ONE",
        "-A OUTPUT -m mark --mark 0x13 -j CONNMARK --save-mark --nfmask 0x3 --ctmask 0x1",
        "-A ONE -o lo -j RETURN",
        "-A ONE -p udp -m udp --dport 53 -j MARK --set-xmark 0x13",
        "-A ONE -p udp -m udp --dport 123 -j DROP",
        "-A TWO -j CONNMARK --set-xmark 0x10",
        "-A TWO -j CONNMARK --restore-mark --nfmask 0x1 --ctmask 0x3",
    ],
    "filter": [
        ":OUTPUT DROP [0:0]", ":ONE - [0:0]", ":TWO - [0:0]",
        "-A OUTPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A OUTPUT -m owner --uid-owner 1000 -g ONE",
        "-A OUTPUT -p tcp -m tcp --dport 22 -j REJECT",
        "-A OUTPUT -p tcp -j TWO",
        "-A OUTPUT -p udp -m multiport --dports 53 -j ACCEPT",
        "-A ONE -p udp -m udp --dport 5300 -j ACCEPT",
        "-A TWO -m mark ! --mark 0x0 -j ACCEPT",
    ],
}  # fmt: skip


@pytest.fixture
def send(host: Host) -> Iterator[Send]:
    """Put rules into force and send. One process for the whole test, as its imports cost."""
    host.sh("""
        set -e
        ip link add d0 type veth peer name far0
        for name in d0 far0; do ip link set $name addrgenmode none up; done
        ip addr add 10.0.0.1/24 dev d0
        ip addr add fd00::1/64 dev d0 nodad
        ip neigh add 10.0.0.2 lladdr 02:00:00:00:00:02 dev d0 nud permanent
        ip neigh add fd00::2 lladdr 02:00:00:00:00:02 dev d0 nud permanent
        # Connections are tracked from here on, also while there are no rules that ask for them.
        iptables-nft -t nat -A POSTROUTING -m conntrack --ctstate INVALID
        ip6tables-nft -t nat -A POSTROUTING -m conntrack --ctstate INVALID
    """)
    process = subprocess.Popen(
        host.command([PYTHON, str(Path(__file__).with_name("netfilter_worker.py"))]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(COLLECTIONS)},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    requests, replies = process.stdin, process.stdout

    def ask(task: dict[str, Any]) -> list[Any]:
        requests.write(json.dumps(task) + "\n")
        requests.flush()
        answer: list[Any] = json.loads(replies.readline())
        return answer

    try:
        yield ask
    finally:
        process.kill()
        process.communicate()


def agree(kernel: dict[str, Any], model: dict[str, Any]) -> bool:
    if model["accepted"] is None:
        return bool(model["doubts"])
    if kernel["passed"] != model["accepted"]:
        return False
    return not kernel["passed"] or all(model[name] in (None, kernel[name]) for name in ("mark", "connmark"))


def compare(send: Send, version: int, world: World) -> list[Any]:
    answers = send({"version": version, "rules": world, "packets": PACKETS})
    differing = [
        (packet, kernel, model)
        for packet, (kernel, model) in zip(PACKETS, answers, strict=True)
        if not agree(kernel, model)
    ]
    assert not differing, (differing[0], world)
    return answers


SETTINGS = settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@SETTINGS
@given(world=worlds(4))
@example(world=EVERY_TURN)
def test_the_model_says_what_the_kernel_does_in_ipv4(send: Send, world: World) -> None:
    compare(send, 4, world)


@SETTINGS
@given(world=worlds(6))
@example(world=EVERY_TURN)
def test_the_model_says_what_the_kernel_does_in_ipv6(send: Send, world: World) -> None:
    compare(send, 6, world)


def test_nothing_is_left_open_that_can_be_known(send: Send) -> None:
    """And the packets of a world in which each turn is taken end in all ways, with all kinds of marks."""
    answers = compare(send, 4, EVERY_TURN)
    models = [model for _kernel, model in answers]
    assert {model["accepted"] for model in models} == {True, False}
    marks = [(model["mark"], model["connmark"]) for model in models if model["accepted"]]
    assert all(None not in pair for pair in marks)
    assert {mark for mark, _connmark in marks} >= {0, 0x13}
    assert "the policy of chain OUTPUT is DROP" in " ".join(model["by"] for model in models)
