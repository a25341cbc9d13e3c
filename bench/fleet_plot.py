# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cost of a rollout over the number of hosts as a picture: lines in SVG, drawn as bench.plot does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from bench.plot import FONT, INK, MARGIN, OTHERS, OURS, WIDTH
from bench.report import number

if TYPE_CHECKING:
    from bench.fleet import Row

HEIGHT, LEFT, TOP, BELOW = 150, 60, 44, 34
GRID = "#dee2e6"
COLOURS = (OURS[0], OTHERS[0])


@dataclass(frozen=True)
class Chart:
    """One chart: a title and its lines, each with what a row gives for it."""

    title: str
    lines: dict[str, Callable[[Row], float]]


CHARTS = (
    Chart(
        "Wall time of site.yml, seconds",
        {"first run": lambda row: row.first.wall_s, "run without a change": lambda row: row.again.wall_s},
    ),
    Chart(
        "Wall time per host, seconds",
        {
            "first run": lambda row: row.first.wall_s / row.hosts,
            "run without a change": lambda row: row.again.wall_s / row.hosts,
        },
    ),
    Chart(
        "Memory of the controller at most, MB",
        {
            "first run": lambda row: row.first.controller_bytes / 1e6,
            "run without a change": lambda row: row.again.controller_bytes / 1e6,
        },
    ),
)


def _text(x: float, y: float, text: str, *, anchor: str = "start", bold: bool = False, ink: str = INK) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{ink}"{weight}>{escape(text)}</text>'


def _axes(
    rows: Sequence[Row], place: Callable[[float, float], tuple[float, float]], top: float
) -> Iterable[str]:
    """Lines of the grid at zero, half and the top, and the numbers of hosts below."""
    for value in (0.0, top / 2, top):
        x, y = place(0, value)
        yield f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{WIDTH - MARGIN}" y2="{y:.1f}" stroke="{GRID}"/>'
        yield _text(x - 8, y + 4, number(value) if value else "0", anchor="end")
    for row in rows:
        x, y = place(row.hosts, 0)
        yield _text(x, y + 18, str(row.hosts), anchor="middle")


def _chart(chart: Chart, rows: Sequence[Row], y: float) -> Iterable[str]:
    most_hosts = max(row.hosts for row in rows)
    top = max(line(row) for line in chart.lines.values() for row in rows) or 1.0

    def place(hosts: float, value: float) -> tuple[float, float]:
        left, room = MARGIN + LEFT, WIDTH - 2 * MARGIN - LEFT - 40
        return left + room * hosts / most_hosts, y + TOP + HEIGHT * (1 - value / top)

    yield _text(MARGIN, y + 14, chart.title, bold=True)
    yield from _axes(rows, place, top)
    x = float(MARGIN)
    for (name, line), colour in zip(chart.lines.items(), COLOURS, strict=True):
        yield f'<rect x="{x}" y="{y + 22}" width="10" height="10" fill="{colour}"/>'
        yield _text(x + 15, y + 31, name)
        x += 25 + 7 * len(name)
        points = [place(row.hosts, line(row)) for row in rows]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
        for row, (px, py) in zip(rows, points, strict=True):
            yield f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{colour}"/>'
            yield _text(px, py - 7, number(line(row)), anchor="middle", ink=colour)


def svg(rows: Sequence[Row]) -> str:
    """All charts, one below the other; across: hosts."""
    parts: list[str] = []
    y = float(MARGIN)
    for chart in CHARTS:
        parts += _chart(chart, rows, y)
        y += TOP + HEIGHT + BELOW + MARGIN
    parts.append(
        _text(WIDTH - MARGIN, y - 4, "across: hosts of the fleet, a tenth of them servers", anchor="end")
    )
    y += MARGIN
    size = f'width="{WIDTH}" height="{y:.0f}" viewBox="0 0 {WIDTH} {y:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {FONT} fill="{INK}">'
    background = '<rect width="100%" height="100%" fill="#ffffff"/>'
    return "\n".join([head, background, *parts, "</svg>", ""])
