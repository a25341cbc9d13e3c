# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""With resolvers behind a full tunnel, no DNS leaves a client beside it, kill switch or not."""

from __future__ import annotations

from typing import Any

import pytest

from tests.netns.fulltunnel.leaks import ELSEWHERE, talking
from tests.netns.fulltunnel.network import CLIENT, LAN, OUTSIDE, UPLINKS, Network, Sent
from tests.netns.pcap import TCP, UDP

QUESTIONS: list[dict[str, Any]] = [
    {"protocol": protocol, "to": to[version], "port": port, **how}
    for version in (4, 6)
    for protocol in ("udp", "tcp")
    for port in (53, 853)
    for to, how in (
        (LAN, {}),
        (OUTSIDE, {}),
        (OUTSIDE, {"device": "up0"}),
        (ELSEWHERE, {"bind": CLIENT["up1"][version]}),
    )
]
# Nothing else is held back without the kill switch.
ELSE: list[dict[str, Any]] = [
    {"protocol": protocol, "to": to[version], "port": 54, **how}
    for version in (4, 6)
    for protocol in ("udp", "tcp")
    for to, how in ((LAN, {}), (OUTSIDE, {"device": "up0"}), (ELSEWHERE, {"bind": CLIENT["up1"][version]}))
]


def left(sent: Sent, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        item
        for item in items
        if sent.by(item["to"], item["port"], {"udp": UDP, "tcp": TCP}[item["protocol"]])
    ]


@pytest.mark.parametrize("servers", [[], ["10.86.0.1"]])
def test_questions_leave_only_where_the_host_asks_whom_it_likes(network: Network, servers: list[str]) -> None:
    """The guard, and that there would be something to guard."""
    network.deploy(client_dns_servers=servers)
    network.await_tunnel()
    with network.watched() as sent, talking(network, *QUESTIONS, *ELSE) as talk:
        talk.go_on()
    by_rules_of_its_own = [item for item in QUESTIONS if item["to"] in LAN.values() or item.get("bind")]
    assert (
        left(sent, QUESTIONS) == []
        if servers
        else all(i in left(sent, QUESTIONS) for i in by_rules_of_its_own)
    )
    for item in ELSE:
        # To IPv4, what is bound to a device and has no route there but by default is refused by the table.
        if not (item.get("device") and ":" not in item["to"]):
            assert item in left(sent, ELSE)


def test_an_exception_that_names_the_port_is_one_from_the_guard_too(network: Network) -> None:
    allowed = {"to": LAN[4], "protocol": "udp", "port": 53}
    network.deploy(client_dns_servers=["10.86.0.1"], client_kill_switch_allow=[allowed, f"{LAN[6]}/128"])
    with network.watched() as sent, talking(network, *QUESTIONS) as talk:
        talk.go_on()
    assert left(sent, QUESTIONS) == [{"protocol": "udp", "to": LAN[4], "port": 53}]


def test_containers_and_the_host_may_ask_each_other(network: Network) -> None:
    network.deploy(client_dns_servers=["10.86.0.1"])
    question = {"protocol": "udp", "to": "172.17.0.2", "port": 53}
    with network.watched("docker0", *UPLINKS) as sent, talking(network, question) as talk:
        talk.go_on()
    assert sent.by("172.17.0.2", 53) == {"docker0"}
