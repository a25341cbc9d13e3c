# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Searching for what a path takes, and what follows for a tunnel. The network is a function here."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from ansible_collections.culvert.vpn.plugins.module_utils._path_mtu import (
    ASSUMED,
    ECHO,
    KEPT,
    ROUTE,
    TOLD,
    Path,
    Search,
    judge,
    tunnel_mtu,
)
from hypothesis import given
from hypothesis import strategies as st

PATHS = st.integers(1280, 1500)


def explore(search: Search, takes: int, *, says: int = 0, answers: int = 65535, loss: float = 0.0) -> int:
    """Let a search run over a path; how many echoes it took.

    :param takes: the largest that passes.
    :param says: what a router on the way says then; 0 for nothing.
    :param answers: the largest that the other side answers.
    """
    random, sent = Random(takes), 0
    for _round in range(40):
        if search.done:
            return sent
        for size in search.sizes():
            sent += 1
            if random.random() < loss:
                continue
            if size > takes:
                if says and search.too_big(says):
                    break
            elif size <= answers:
                search.answered(size)
        search.end_round()
    raise AssertionError("no end")


@given(takes=PATHS, ceiling=st.sampled_from([1500, 1492, 9000]))
def test_what_passes_is_found_to_the_byte_where_nobody_says_anything(takes: int, ceiling: int) -> None:
    search = Search(ceiling, 576)
    assert explore(search, takes) < 120
    assert search.best == min(takes, ceiling)
    assert search.confirmed
    assert search.swallowed == (takes < ceiling)


@given(takes=PATHS)
def test_what_routers_say_is_tried_and_believed_when_it_passes(takes: int) -> None:
    search = Search(1500, 1280)
    assert explore(search, takes, says=takes if takes < 1500 else 0) <= 8
    assert search.best == takes
    assert not search.swallowed


@given(takes=PATHS, lie=st.integers(0, 1600))
def test_a_lie_does_no_harm_but_to_make_packets_smaller(takes: int, lie: int) -> None:
    """Nothing larger than what passes is ever the result, and nothing smaller than a router named."""
    search = Search(1500, 1280)
    explore(search, takes, says=lie)
    assert min(takes, max(lie, 1280)) <= search.best <= takes or search.best == takes


@given(takes=PATHS, present=PATHS, loss=st.sampled_from([0.1, 0.3, 0.6]))
def test_what_gets_lost_makes_no_packet_too_large(takes: int, present: int, loss: float) -> None:
    search = Search(1500, 576, present)
    explore(search, takes, loss=loss)
    assert search.best <= takes


@pytest.mark.parametrize("lost_rounds", [1, 2, 3, 4])
def test_what_the_tunnel_uses_is_tried_again_and_again(lost_rounds: int) -> None:
    """The size that the device has now gets lost, smaller ones do not: it is not given up at once."""
    search = Search(1500, 576, 1436)
    for number in range(20):
        if search.done:
            break
        for size in search.sizes():
            if size <= (1399 if number < lost_rounds else 1436):
                search.answered(size)
        search.end_round()
    assert search.best == 1436


def test_silence_ends_the_search_soon() -> None:
    search = Search(1500, 576, 1480)
    assert explore(search, 0) == 9
    assert search.silent
    assert not search.swallowed


def test_who_answers_small_echoes_alone_says_nothing_about_the_path() -> None:
    """Some servers and firewalls do."""
    search = Search(1500, 576)
    explore(search, 1500, answers=900)
    assert not search.confirmed
    assert not search.swallowed
    assert judge(search, 4, 1500, None) == (1500, ROUTE)


@pytest.mark.parametrize(
    ("search", "device_mtu", "expected"),
    [
        (Search(1500, 576, best=1500), 1300, (1500, ECHO)),
        (Search(1400, 576, told=1400), 1420, (1400, TOLD)),
        (Search(1500, 576), None, (1500, ROUTE)),
        (Search(1500, 576), 1420, (1480, KEPT)),
        (Search(1500, 576), 1300, (1360, KEPT)),
        (Search(1500, 576), 1440, (1500, KEPT)),
        (Search(1500, 576), 1441, (1500, ROUTE)),
        (Search(1500, 576), 68, (1500, ROUTE)),
    ],
    ids=[
        "answered",
        "told",
        "no device yet",
        "as usual",
        "less than usual",
        "confirmed before",
        "more",
        "absurd",
    ],
)
def test_what_a_search_says_and_nothing_unconfirmed_raises_the_mtu(
    search: Search, device_mtu: int | None, expected: tuple[int, str]
) -> None:
    assert judge(search, 4, 1500, device_mtu) == expected


@pytest.mark.parametrize(
    ("path", "mtu"),
    [
        (Path(4, 1500, ECHO), 1440),
        (Path(6, 1500, ECHO), 1420),
        (Path(4, 1500, ROUTE), 1420),
        (Path(6, 1500, ROUTE), 1420),
        (Path(4, 1500, ASSUMED), 1420),
        (Path(4, 1492, ECHO), 1424),
        (Path(6, 1492, ECHO), 1408),
        (Path(4, 1360, KEPT), 1300),
        (Path(4, 1500, KEPT), 1440),
        (Path(4, 1400, TOLD), 1328),
        (Path(6, 65535, ROUTE), 65440),
    ],
)
def test_a_path_leaves_room_for_padding_too(path: Path, mtu: int) -> None:
    found = tunnel_mtu([path], True)
    assert (found["mtu"], found["inner"], found["mss4"], found["mss6"]) == (mtu, mtu, 0, 0)


def test_the_narrowest_path_counts() -> None:
    paths = [Path(4, 1500, ECHO), Path(6, 1400, ECHO), Path(4, 1392, ECHO)]
    assert tunnel_mtu(paths, True) == {"mtu": 1312, "inner": 1312, "mss4": 0, "mss6": 0, "path_mtu": 1392}
    assert tunnel_mtu([], True)["mtu"] == 1420


@pytest.mark.parametrize(
    ("version", "tunnel_ipv6", "expected"),
    [
        (4, True, {"mtu": 1280, "inner": 1216, "mss4": 1176, "mss6": 1156, "path_mtu": 1280}),
        (6, True, {"mtu": 1280, "inner": 1200, "mss4": 1160, "mss6": 1140, "path_mtu": 1280}),
        (4, False, {"mtu": 1216, "inner": 1216, "mss4": 0, "mss6": 0, "path_mtu": 1280}),
    ],
)
def test_where_the_least_mtu_does_not_fit_tcp_is_held_to_what_does(
    version: int, tunnel_ipv6: bool, expected: dict[str, int]
) -> None:
    assert tunnel_mtu([Path(version, 1280, ECHO)], tunnel_ipv6) == expected


@given(
    version=st.sampled_from([4, 6]), path_mtu=st.integers(576, 65535), tunnel_ipv6=st.booleans(),
    how=st.sampled_from([ECHO, TOLD, ROUTE, ASSUMED]), peer_mtu=st.integers(1280, 9000),
)  # fmt: skip
def test_no_packet_that_fits_is_too_large_when_it_is_padded(
    version: int, path_mtu: int, tunnel_ipv6: bool, how: str, peer_mtu: int
) -> None:
    """By the peer either, whose device has another MTU, unless that is the usual one and ours, too."""
    inner = tunnel_mtu([Path(version, path_mtu, how)], tunnel_ipv6)["inner"]
    filled = min(-(-inner // 16) * 16, 1420 if inner == 1420 else max(peer_mtu, inner))
    assert filled + (60 if version == 4 else 80) <= path_mtu


def test_a_path_reports_itself() -> None:
    path = Path(4, 1500, ECHO, "gate.example.net", "198.51.100.7", "eth0")
    assert path.report() == {
        "endpoint": "gate.example.net",
        "address": "198.51.100.7",
        "device": "eth0",
        "path_mtu": 1500,
        "how": "echo",
    }
    assert replace(path, how=ROUTE).inner_bytes == 1420
