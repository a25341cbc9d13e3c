# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan from any document to any other, on a real kernel: where it leads, and that nothing is left to do.

one host:   nothing ── a ── b ── nothing        (b has to be reached from a ...)
another:    nothing ─────── b ── nothing        (... and to be what it is without a)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, note, settings

from tests.netns.modules.documents import BLANK, NAME, Led, assert_same, documents
from tests.netns.modules.host import Host


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Led, Led]]:
    """Two hosts that begin equal, and come back to that after each pair of documents."""
    made: list[Host] = []
    led: list[Led] = []
    try:
        for number in range(2):
            folder: Path = tmp_path_factory.mktemp(f"host{number}")
            made.append(Host(folder))
            # A TAP device's IPv6 addresses would be there only after a while, if nobody else claims them.
            made[-1].sh("echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad")
            led.append(Led(made[-1]))
        yield led[0], led[1]
    finally:
        for worker in led:
            worker.close()
        for host in made:
            host.close()


def one_device(addresses: list[str], **route: Any) -> dict[str, Any]:
    """A document of a device and a table, maybe with a route."""
    return {
        "name": NAME,
        "devices": [{"name": "culvert0", "addresses": addresses}],
        "tables": [{"name": "vpn", "id": 51820, "rule_priority": 31820, "routes": [route] if route else []}],
    }


# Three pairs that a plan once did not lead all the way. What it took for lost, the kernel keeps: routes whose
# source address goes (of IPv6, without the source), and IPv4 routes of a device whose last IPv6 address goes.
# Without making a failing pair smaller: on a real kernel that takes minutes.
@settings(
    max_examples=25,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(a=documents(), b=documents())
@example(
    a=one_device(
        ["10.86.0.2/16", "10.86.3.4/32", "10.86.0.1/16"],
        destination="10.99.0.0/16",
        device="culvert0",
        source="10.86.0.1",
    ),
    b=one_device(["10.86.3.4/32", "10.86.0.1/16", "10.86.0.2/16"]),
)
@example(
    a=one_device(["fd86::1/64"], destination="2001:db8:1::/48", device="culvert0", source="fd86::1"),
    b=one_device(["fd86::2/64"]),
)
@example(
    a=one_device(["fd86::1/64"], destination="10.99.0.0/16", device="culvert0"),
    b=one_device(["fd86::2/64"]),
)
def test_any_document_is_reached_from_any_other(
    hosts: tuple[Led, Led], a: dict[str, Any], b: dict[str, Any]
) -> None:
    one, other = hosts
    blank = one.state()
    assert other.state() == blank, "the pair before this one has left something"
    try:
        one.apply(a, None)
        assert one.apply(a, a) == []
        note(str(one.apply(b, a)))
        assert one.apply(b, a) == []
        assert one.apply(b, b) == []
        other.apply(b, None)
        assert_same(one.state(), other.state())
    finally:
        one.apply(BLANK, b)
        one.apply(BLANK, a)
        other.apply(BLANK, b)
    assert_same(one.state(), blank)
    assert_same(other.state(), blank)
