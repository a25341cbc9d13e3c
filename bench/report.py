# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From the values of all rounds to medians, ratios and Markdown tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

NOTHING = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"
REFERENCES = ("raw", "wireguard-go", "openvpn")
TCP = {
    "tcp1-up": "1 stream up",
    "tcp1-down": "1 stream down",
    "tcp4-up": "4 streams up",
    "tcp4-down": "4 streams down",
}
PACKETS = {
    "udp64": "64 bytes up",
    "udp1280": "1280 bytes up",
    "udp64-down": "64 bytes down",
    "udp1280-down": "1280 bytes down",
}
ROUND_TRIPS = {"idle": "idle", "tcp4-up": "4 streams up", "tcp4-down": "4 streams down"}


@dataclass
class Results:
    """Every value that was measured: contender → key → one value for each round it was measured in."""

    titles: dict[str, str]
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def add(self, name: str, values: Mapping[str, float]) -> None:
        rounds = self.values.setdefault(name, {})
        for key, value in values.items():
            rounds.setdefault(key, []).append(value)

    @property
    def names(self) -> list[str]:
        """The contenders with any value, in the order of the titles."""
        return [name for name in self.titles if name in self.values]

    def median(self, name: str, key: str) -> float | None:
        rounds = self.values.get(name, {}).get(key)
        return statistics.median(rounds) if rounds else None

    def ratio(self, name: str, key: str, reference: str) -> float | None:
        """How many times the reference's median; None when one of them was not measured."""
        ours, theirs = self.median(name, key), self.median(reference, key)
        return ours / theirs if ours is not None and theirs else None

    def spread(self, name: str, key: str) -> float | None:
        """Half of the range of the rounds as a share of the median; None for a single round."""
        rounds, middle = self.values.get(name, {}).get(key, []), self.median(name, key)
        return (max(rounds) - min(rounds)) / 2 / middle if len(rounds) > 1 and middle else None

    def has(self, key: str) -> bool:
        return any(key in rounds for rounds in self.values.values())


def number(value: float | None, unit: str = "") -> str:
    """Three significant digits, thousands separated, so that a column can be compared at a glance."""
    if value is None:
        return NOTHING
    if value >= 100:
        rounded = round(value, 2 - len(str(int(value))) + 1)
        return f"{rounded:,.0f}{unit}"
    return f"{value:.{1 if value >= 10 else 2}f}{unit}"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _measured(results: Results, columns: Mapping[str, str], unit: str) -> dict[str, str]:
    return {f"{key}.{unit}": heading for key, heading in columns.items() if results.has(f"{key}.{unit}")}


def _plain_table(results: Results, columns: Mapping[str, str]) -> str:
    """One row a contender, one column a key: medians, and ± half of the range in per cent."""
    rows = []
    for name in results.names:
        cells = [results.titles[name]]
        for key in columns:
            spread = results.spread(name, key)
            spread_text = f" ± {spread:.0%}" if spread is not None else ""
            cells.append(number(results.median(name, key)) + spread_text)
        rows.append(cells)
    return table(["", *columns.values()], rows)


def _ends_table(results: Results, columns: Mapping[str, str], unit: str) -> str:
    """Medians of client and server in each cell."""
    headings = {key: heading for key, heading in columns.items() if results.has(f"{key}.client_{unit}")}
    rows = []
    for name in results.names:
        if not any(results.median(name, f"{key}.client_{unit}") for key in headings):
            continue
        pairs = [
            " / ".join(number(results.median(name, f"{key}.{end}_{unit}")) for end in ("client", "server"))
            for key in headings
        ]
        rows.append([results.titles[name], *pairs])
    return table(["client / server", *headings.values()], rows) if headings else ""


def _ratio_table(results: Results, reference: str, columns: Mapping[str, str]) -> str:
    rows = [
        [results.titles[name], *(number(results.ratio(name, key, reference), TIMES) for key in columns)]
        for name in results.names
        if name != reference
    ]
    return table([f"÷ {results.titles[reference]}", *columns.values()], rows)


def _ratio_tables(results: Results) -> Iterable[str]:
    columns = {
        **{key: f"TCP {text}" for key, text in _measured(results, TCP, "gbit_s").items()},
        **{key: f"UDP {text}" for key, text in _measured(results, PACKETS, "packets_s").items()},
        **{key: f"round trip {text}" for key, text in _measured(results, ROUND_TRIPS, "rtt_ms").items()},
    }
    for reference in REFERENCES:
        if reference in results.names and len(results.names) > 1:
            yield _ratio_table(results, reference, columns)


def markdown(results: Results, heading: str, notes: Sequence[str]) -> str:
    """The whole report: what the machine was, absolute values, ratios."""
    parts = [f"# {heading}\n", *(f"{note}\n" for note in notes)]
    sections = (
        ("TCP throughput, Gbit/s (up: client to internet)", _measured(results, TCP, "gbit_s")),
        ("UDP without loss, packets a second (payload of each)", _measured(results, PACKETS, "packets_s")),
        ("Round trip, ms", _measured(results, ROUND_TRIPS, "rtt_ms")),
        ("Start of the client to the first echo reply, s", _measured(results, {"start": "start"}, "s")),
    )
    for title, columns in sections:
        if columns:
            parts += [f"## {title}\n", _plain_table(results, columns)]
    ends = (
        ("CPU-seconds per GB received", TCP, "cpu_s_gb"),
        ("Resident memory under load, MB", TCP, "resident_mb"),
    )
    for title, headings, unit in ends:
        if text := _ends_table(results, headings, unit):
            parts += [f"## {title}\n", text]
    ratios = list(_ratio_tables(results))
    if ratios:
        parts += ["## Ratios\n", "For round trips less is better.\n", *ratios]
    return "\n".join(parts)
