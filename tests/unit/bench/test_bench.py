# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``make bench`` does with what it has measured: search, statistics, report and picture."""

from __future__ import annotations

from collections.abc import Callable
from xml.etree import ElementTree

import pytest

from bench.measure import round_trips_ms
from bench.plot import svg
from bench.report import NOTHING, Results, markdown, number
from bench.search import CONFIRM_S, Attempt, Trial, highest_clean_rate


def trial(rate: float, seconds: float, limit: float, generator: float = 1e9) -> Trial:
    """What a link with a limit and no queue does with a generator that has one, too."""
    sent = int(min(rate, generator) * seconds)
    return Trial(sent, min(sent, int(limit * seconds)), seconds, seconds)


def limited(limit: float, generator: float = 1e9) -> Attempt:
    return lambda rate, seconds: trial(rate, seconds, limit, generator)


@pytest.mark.parametrize("limit", [900, 24_800, 52_000, 90_000, 3_000_000])
@pytest.mark.parametrize("guess", [10_000, 60_000, 400_000])
def test_the_limit_is_found_from_any_guess(limit: float, guess: float) -> None:
    assert limit * 0.92 <= highest_clean_rate(limited(limit), guess) <= limit * 1.001


def test_the_generator_may_be_the_limit() -> None:
    asked: list[float] = []

    def attempt(rate: float, seconds: float) -> Trial:
        asked.append(rate)
        return trial(rate, seconds, 1e9, generator=50_000)

    assert highest_clean_rate(attempt, 40_000) == pytest.approx(50_000, rel=0.01)
    assert max(asked) == 60_000


def test_nothing_gets_through() -> None:
    assert highest_clean_rate(limited(0), 50_000) == 0


def disturbed(limit: float, disturbance: Callable[[int, float], Trial | None]) -> Attempt:
    """A link on which some trials, by their number and rate, go otherwise."""
    numbers = iter(range(1000))

    def attempt(rate: float, seconds: float) -> Trial:
        return disturbance(next(numbers), rate) or trial(rate, seconds, limit)

    return attempt


def test_a_small_loss_gets_a_second_chance() -> None:
    once = disturbed(50_000, lambda number, _: Trial(1000, 990, 1, 1) if number == 0 else None)
    assert highest_clean_rate(once, 40_000) >= 46_000


def test_a_lucky_short_trial_is_not_believed() -> None:
    def attempt(rate: float, seconds: float) -> Trial:
        lucky = seconds < CONFIRM_S and 60_000 < rate < 80_000
        return trial(rate, seconds, 1e9 if lucky else 30_000)

    assert 26_000 <= highest_clean_rate(attempt, 70_000) <= 30_000


def test_what_is_still_queued_at_the_end_does_not_count_as_rate() -> None:
    full_queue = Trial(100_000, 100_000, sending_s=1.0, receiving_s=2.0)
    assert not full_queue.clean
    assert full_queue.delivered == 50_000
    assert Trial(0, 0, 1, 0).loss == 1


@pytest.fixture
def results() -> Results:
    measured = Results(
        {"raw": "raw veth", "compiled": "ours", "wireguard-go": "wireguard-go", "tinc": "tinc"}
    )
    for rate in (2.0, 4.0, 3.0):
        ends = {"tcp1-up.client_cpu_s_gb": 1.2, "tcp1-up.server_cpu_s_gb": 1.3}
        measured.add(
            "compiled", {"tcp1-up.gbit_s": rate, "tcp1-down.gbit_s": rate, "idle.rtt_ms": 0.4, **ends}
        )
    measured.add("wireguard-go", {"tcp1-up.gbit_s": 0.5, "tcp1-down.gbit_s": 0.5, "udp64.packets_s": 25_123})
    measured.add("raw", {"tcp1-up.gbit_s": 15})
    return measured


def test_medians_ratios_and_spread(results: Results) -> None:
    assert results.names == ["raw", "compiled", "wireguard-go"]
    assert results.median("compiled", "tcp1-up.gbit_s") == 3
    assert results.ratio("compiled", "tcp1-up.gbit_s", "wireguard-go") == 6
    assert results.spread("compiled", "tcp1-up.gbit_s") == pytest.approx(1 / 3)
    assert results.spread("raw", "tcp1-up.gbit_s") is None
    assert results.median("tinc", "tcp1-up.gbit_s") is None
    assert results.ratio("compiled", "tcp1-up.gbit_s", "openvpn") is None


def test_report(results: Results) -> None:
    text = markdown(results, "Heading", ["A note."])
    assert "| ours | 3.00 ± 33% | 3.00 ± 33% |" in text
    assert "| wireguard-go | 25,100 |" in text
    assert "| ours | 1.20 / 1.30 |" in text
    assert "| ÷ wireguard-go |" in text
    assert "÷ openvpn" not in text
    assert "4 streams" not in text
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    assert all(len({line.count("|") for line in table.strip().splitlines()}) == 1 for table in tables)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, NOTHING), (0, "0.00"), (0.456, "0.46"), (12.34, "12.3"), (123.4, "123"), (25_123, "25,100")],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


def test_the_picture_is_svg_without_what_was_not_measured(results: Results) -> None:
    drawn = ElementTree.fromstring(svg(results))
    texts = [element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert "One TCP stream, Gbit/s" in texts
    assert "Four TCP streams, Gbit/s" not in texts
    assert "raw veth" not in texts
    assert "3.00" in texts
    assert ElementTree.fromstring(svg(Results({}))) is not None


def test_round_trips() -> None:
    line = "64 bytes from 203.0.113.2: icmp_seq=1 ttl=63 time=0.512 ms"
    assert round_trips_ms(f"PING\n{line}\n{line.replace('0.512', '12.1')}\n") == [0.512, 12.1]
