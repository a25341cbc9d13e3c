# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The results as a picture: bar charts in SVG, for which nothing has to be installed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from bench.report import Results, number

OURS, OTHERS = ("#0b7285", "#66d9e8"), ("#868e96", "#ced4da")  # first and second bar of a contender
INK = "#212529"
WIDTH, LABEL_WIDTH, VALUE_WIDTH = 620, 170, 60
BAR, GAP, TOP, MARGIN = 13, 8, 44, 16
FONT = 'font-family="system-ui, sans-serif" font-size="12"'
OUR_NAMES = ("compiled", "python")


@dataclass(frozen=True)
class Chart:
    """One chart: a title and, for every bar of a contender, the key whose median it shows."""

    title: str
    bars: dict[str, str]

    def rows(self, results: Results) -> list[tuple[str, list[float]]]:
        """The contenders that every bar was measured of, with the medians. Raw would dwarf them all."""
        rows = []
        for name in results.names:
            values = [value for key in self.bars if (value := results.median(name, key)) is not None]
            if name != "raw" and len(values) == len(self.bars):
                rows.append((name, values))
        return rows


CHARTS = (
    Chart("One TCP stream, Gbit/s", {"tcp1-up.gbit_s": "up", "tcp1-down.gbit_s": "down"}),
    Chart("Four TCP streams, Gbit/s", {"tcp4-up.gbit_s": "up", "tcp4-down.gbit_s": "down"}),
    Chart(
        "CPU-seconds per GB, one TCP stream up (less is better)",
        {"tcp1-up.client_cpu_s_gb": "client", "tcp1-up.server_cpu_s_gb": "server"},
    ),
    Chart(
        "CPU-seconds per GB, one TCP stream down (less is better)",
        {"tcp1-down.client_cpu_s_gb": "client", "tcp1-down.server_cpu_s_gb": "server"},
    ),
    Chart(
        "UDP packets a second without loss",
        {"udp64.packets_s": "64 bytes", "udp1280.packets_s": "1280 bytes"},
    ),
    Chart(
        "Round trip under four TCP streams, ms (less is better)",
        {"tcp4-up.rtt_ms": "up", "tcp4-down.rtt_ms": "down"},
    ),
    Chart("Round trip when idle, ms (less is better)", {"idle.rtt_ms": "idle"}),
)


def _text(x: float, y: float, text: str, *, anchor: str = "start", bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{weight}>{escape(text)}</text>'


def _bars(results: Results, rows: Sequence[tuple[str, list[float]]], y: float) -> Iterable[str]:
    """The bars of a chart, from ``y`` downwards."""
    room = WIDTH - LABEL_WIDTH - VALUE_WIDTH - 2 * MARGIN
    most = max((value for _, values in rows for value in values), default=0.0) or 1.0
    left = MARGIN + LABEL_WIDTH
    for name, values in rows:
        yield _text(left - 8, y + BAR * len(values) / 2 + 4, results.titles[name], anchor="end")
        colours = OURS if name in OUR_NAMES else OTHERS
        for value, colour in zip(values, colours, strict=False):
            length = max(1.0, room * value / most)
            yield f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{BAR - 1}" fill="{colour}"/>'
            yield _text(left + length + 5, y + BAR - 3, number(value))
            y += BAR
        y += GAP


def svg(results: Results) -> str:
    """All charts that there are values for, one below the other."""
    parts: list[str] = []
    y = float(MARGIN)
    for chart in CHARTS:
        rows = chart.rows(results)
        if not rows:
            continue
        parts.append(_text(MARGIN, y + 14, chart.title, bold=True))
        if len(chart.bars) > 1:
            parts.append(_text(MARGIN, y + 31, f"upper bar: {', lower bar: '.join(chart.bars.values())}"))
        y += TOP
        parts += _bars(results, rows, y)
        y += len(rows) * (len(chart.bars) * BAR + GAP) + MARGIN
    size = f'width="{WIDTH}" height="{y:.0f}" viewBox="0 0 {WIDTH} {y:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {FONT} fill="{INK}">'
    background = '<rect width="100%" height="100%" fill="#ffffff"/>'
    return "\n".join([head, background, *parts, "</svg>", ""])
