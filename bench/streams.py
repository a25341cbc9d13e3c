# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Our relay's transports side by side: UDP, TCP with frame messages and without, TLS; and beside them OpenVPN
over TCP and the plainest TCP listener.

    make bench-streams      or, as root,      python -m bench.streams [--loss 1]

In every round each contender is started anew in a network of its own (bench/topology.py) and carries one TCP
stream up and one down, for a bounded time each. With --loss packets are lost between client and server, each
way, by chance; the cable then carries single packets, so that a loss is one packet's. With --delay the way is
a long one, for each packet: what a loss costs is told by both together.

Needs root, and a quiet machine for numbers worth keeping.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path

from bench import image, measure
from bench.command import measured, say, summary, undisturbed
from bench.machine import describe
from bench.packaged import OpenVpnTcp
from bench.report import NOTHING, TIMES, Results, number, table
from bench.streams_contenders import PlainListener, TcpRelay, TcpRelayWithoutFrames, TlsRelay, UdpRelay
from bench.topology import Contender, Hosts, Options, make_hosts
from tests.netns.endpoints import REPOSITORY
from tests.netns.lab import Lab, LabError

CONTENDERS: dict[str, type[Contender]] = {
    kind.name: kind
    for kind in (UdpRelay, TcpRelay, TcpRelayWithoutFrames, TlsRelay, OpenVpnTcp, PlainListener)
}
OTHERS = ("openvpn-tcp", "listener")
DIRECTIONS = {"tcp1-up": "up", "tcp1-down": "down"}
PROGRAMS = "iperf3 ip nsenter setpriv sysctl ping ethtool iptables wg openvpn openssl"
CONGESTION = "net.ipv4.tcp_{}congestion_control"
# What the transports have to reach: so many times either of the others, at no more CPU per GB than our UDP.
WANTED_TIMES = 10.0


def lose(hosts: Hosts, percent: float) -> None:
    """Packets are lost on the cable between client and server, each way."""
    chance = f"-m statistic --mode random --probability {percent / 100:.4f}"
    for host in (hosts.client, hosts.server):
        host.iptables(f"-t raw -A PREROUTING -i eth0 {chance} -j DROP")


def is_bad_line(options: argparse.Namespace) -> bool:
    """Whether packets are lost or late: then several streams at once tell more."""
    return bool(options.loss or options.delay)


def one_round(
    name: str, directory: Path, options: argparse.Namespace
) -> Generator[measure.Values, None, None]:
    """Build the network, measure, and take it away again."""
    yield {"machine.busy_share": measure.busy_share()}
    lab = Lab(directory)
    try:
        hosts = make_hosts(lab, plain_wire=options.plain_wire or options.loss > 0, delay_ms=options.delay)
        for host in lab.hosts:
            host.sysctl(CONGESTION.format(""), options.congestion)
        contender = CONTENDERS[name](hosts, Options())
        yield {"start.s": contender.first_reply_s()}
        measure.serve(contender)
        measure.warm_up(contender)
        yield measure.idle(contender)
        if options.loss:
            lose(hosts, options.loss)
        for streams in (1, 4) if is_bad_line(options) else (1,):
            for down in (False, True):
                yield measure.tcp(contender, streams, down, options.seconds)
    finally:
        with undisturbed():
            lab.close()


def run(options: argparse.Namespace, directory: Path) -> tuple[Results, list[str]]:
    """All rounds, in turns forwards and backwards; returns the results and what went wrong."""
    results = Results({name: kind.title for name, kind in CONTENDERS.items()})
    failures: list[str] = []
    if options.image:
        python = image.unpack(options.image, directory / "image")
        os.environ["CULVERT_COMMAND"] = shlex.join([*python, "-m", "culvert"])
        options.inside = image.versions(python)
    for turn in range(1, options.rounds + 1):
        say(f"==> round {turn} of {options.rounds}")
        for name in options.only if turn % 2 else reversed(options.only):
            print(f"    {name:<12}", end="", flush=True)
            try:
                with closing(one_round(name, directory / f"{turn}-{name}", options)) as measurements:
                    for values in measurements:
                        results.add(name, values)
                        print(f" {text};" if (text := summary(values)) else "", end="", flush=True)
                say("")
            except (LabError, OSError, subprocess.SubprocessError) as error:
                failures.append(f"round {turn}, {name}: {error}")
                say(f" FAILED: {error}")
    return results, failures


def cpu_s_gb(results: Results, name: str, key: str) -> float | None:
    """CPU-seconds for a GB (10^9 bytes received), both ends together; None when it was not measured."""
    ends = [results.median(name, f"{key}.{end}_cpu_s_gb") for end in ("client", "server")]
    return sum(end for end in ends if end is not None) if None not in ends else None


def throughput_table(results: Results) -> str:
    """A row for each contender: Gbit/s and CPU-seconds per GB of client and server, in both directions."""
    rows = []
    for name in results.names:
        cells = [results.titles[name]]
        for key in DIRECTIONS:
            spread = results.spread(name, f"{key}.gbit_s")
            more = f" ± {spread:.0%}" if spread is not None else ""
            cells.append(number(results.median(name, f"{key}.gbit_s")) + more)
        for key in DIRECTIONS:
            ends = (results.median(name, f"{key}.{end}_cpu_s_gb") for end in ("client", "server"))
            cells.append(" / ".join(number(end) for end in ends))
        rows.append(cells)
    headings = [f"Gbit/s {text}" for text in DIRECTIONS.values()]
    headings += [f"CPU-s/GB {text}, client / server" for text in DIRECTIONS.values()]
    return table(["", *headings], rows)


def bad_line_table(results: Results) -> str:
    """Of a line that loses or delays: Mbit/s of one and of four streams, and round trips meanwhile."""
    columns = {
        f"tcp{streams}-{way}": f"{streams} {TIMES} {way}" for streams in (1, 4) for way in ("up", "down")
    }
    rows = []
    for name in results.names:
        speeds = [results.median(name, f"{key}.gbit_s") for key in columns]
        cells = [number(1000 * speed if speed is not None else None) for speed in speeds]
        for way in ("up", "down"):
            trips = (results.median(name, f"tcp4-{way}.{unit}") for unit in ("rtt_ms", "rtt_95_ms"))
            cells.append(" / ".join(number(trip) for trip in trips))
        rows.append([results.titles[name], *cells])
    headings = [f"Mbit/s, {text}" for text in columns.values()]
    headings += [f"round trip, 4 {TIMES} {way}, ms: median / 95 %" for way in ("up", "down")]
    return table(["", *headings], rows)


def ratios(results: Results, reference: str) -> dict[str, dict[str, float]]:
    """Contender → direction → how many times the reference's throughput, for what was measured of both."""
    found: dict[str, dict[str, float]] = {}
    for name in results.names:
        for key, text in DIRECTIONS.items():
            ratio = results.ratio(name, f"{key}.gbit_s", reference)
            if name != reference and ratio is not None:
                found.setdefault(name, {})[text] = ratio
    return found


def ratio_table(results: Results, references: Sequence[str]) -> str:
    """How many times the throughput of each reference, up / down."""
    measured = [reference for reference in references if reference in results.names]
    against = {reference: ratios(results, reference) for reference in measured}
    rows = []
    for name in results.names:
        cells = [
            " / ".join(number(against[reference][name].get(text), TIMES) for text in DIRECTIONS.values())
            if name in against[reference]
            else NOTHING
            for reference in measured
        ]
        rows.append([results.titles[name], *cells])
    return table(["up / down", *(f"÷ {results.titles[reference]}" for reference in measured)], rows)


def verdicts(results: Results) -> list[str]:
    """What is asked of the transports that take frame messages, and whether it was so; a line for each."""
    lines = []
    for name in ("tcp", "tls"):
        for reference in OTHERS:
            for text, ratio in ratios(results, reference).get(name, {}).items():
                met = "reached" if ratio >= WANTED_TIMES else "NOT reached"
                title = f"{results.titles[name]}, {text}: {number(ratio, TIMES)} {results.titles[reference]}"
                lines.append(f"{title} ({WANTED_TIMES:g}{TIMES} wanted: {met})")
        for key, text in DIRECTIONS.items():
            ours, udp = cpu_s_gb(results, name, key), cpu_s_gb(results, "udp", key)
            if ours is not None and udp is not None:
                met = "below" if ours < udp else "NOT below"
                lines.append(
                    f"{results.titles[name]}, {text}: {number(ours)} CPU-s/GB at both ends,"
                    f" {met} UDP's {number(udp)}"
                )
    return lines


def usual_congestion_control() -> str:
    """Linux's default, or what is nearest to it of what may be used here: a machine that has BBR for all its
    TCP measures something else, since that paces what it sends.
    """
    allowed = Path("/proc/sys", *CONGESTION.format("allowed_").split(".")).read_text().split()
    return "cubic" if "cubic" in allowed else "reno"


def notes(results: Results, options: argparse.Namespace) -> list[str]:
    """On what, how, and how undisturbed it was measured."""
    packages = sorted({CONTENDERS[name].package for name in options.only} - {""})
    shares = [share for name in results.names for share in results.values[name]["machine.busy_share"]]
    busy = f"{statistics.median(shares):.0%} (at most {max(shares):.0%})" if shares else "not measured"
    wire = "veth with all its offloads"
    if is_bad_line(options) or options.plain_wire:
        wire = "without segmentation offload on the wire"
    lost = f", {options.loss:g} % of the packets lost each way" if options.loss else ""
    lost += f", {options.delay:g} ms on the way, each way" if options.delay else ""
    more = ", then four" if is_bad_line(options) else ""
    inside = [f"Our relay is that of its image: {options.inside}."] if options.inside else []
    return [
        *inside,
        f"Machine: {describe([*packages, 'iperf3'])}.",
        f"Client to server: {wire}{lost}. One TCP stream{more}, {options.seconds} s each way.",
        f"Congestion control of all TCP: {options.congestion}.",
        f"Medians of {options.rounds} rounds, ± half of the range.",
        f"All of it shares {os.cpu_count()} cores. How busy others kept them before each round: {busy}.",
    ]


def report(results: Results, options: argparse.Namespace) -> str:
    """The whole report as Markdown."""
    heading = "Streams, side by side" + (f", {options.loss:g} % loss" if options.loss else "")
    heading += f", {options.delay:g} ms" if options.delay else ""
    parts = [f"# {heading}\n", *(f"{note}\n" for note in notes(results, options))]
    if is_bad_line(options):
        parts.append(bad_line_table(results))
        return "\n".join(parts)
    parts.append(throughput_table(results))
    references = [name for name in ("udp", *OTHERS) if name in results.names]
    if len(results.names) > 1 and references:
        parts += ["## Ratios\n", ratio_table(results, references)]
    if lines := verdicts(results):
        parts += ["## What was wanted\n", "".join(f"* {line}\n" for line in lines)]
    return "\n".join(parts)


def write(results: Results, failures: list[str], options: argparse.Namespace) -> str:
    """Write the report's files; returns its text."""
    text = report(results, options)
    options.output.mkdir(parents=True, exist_ok=True)
    stem = "streams" + (f"-loss-{options.loss:g}" if options.loss else "")
    stem += f"-delay-{options.delay:g}" if options.delay else ""
    stem += f"-{options.congestion}" if options.congestion == "bbr" else ""
    (options.output / f"{stem}.md").write_text(text)
    raw = {"notes": notes(results, options), "options": vars(options), "values": results.values}
    (options.output / f"{stem}.json").write_text(
        json.dumps({**raw, "failures": failures}, indent=1, default=str) + "\n"
    )
    say(f"==> written: {options.output / stem}.md, .json")
    return text


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.streams", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--only", nargs="+", choices=CONTENDERS, metavar="NAME", help=f"of: {', '.join(CONTENDERS)}")
    add("--rounds", type=int, default=3, metavar="N", help="default %(default)s, at most 20")
    add("--seconds", type=int, default=3, metavar="S", help="each way; default %(default)s, at most 30")
    add("--loss", type=float, default=0.0, metavar="PERCENT", help="lost on the way, each way; at most 20")
    add("--delay", type=float, default=0.0, metavar="MS", help="of each packet, each way; at most 200")
    congestion = "of all TCP, in the tunnel and below it; default: cubic, or reno where that is not allowed"
    add("--congestion", choices=("cubic", "bbr", "reno"), default=usual_congestion_control(), help=congestion)
    saved = "the relay of an image, as make image saves it, in place of the checkout's"
    add("--image", type=Path, metavar="ARCHIVE", help=saved)
    add("--plain-wire", action="store_true", help="no segmentation offload between client and server")
    add("--output", type=Path, default=REPOSITORY / ".cache" / "bench", metavar="DIRECTORY")
    options = parser.parse_args(arguments)
    options.inside = ""
    if not (1 <= options.rounds <= 20 and 1 <= options.seconds <= 30 and 0 <= options.loss <= 20):
        parser.error("--rounds, --seconds or --loss is out of bounds")
    if not 0 <= options.delay <= 200:
        parser.error("--delay is out of bounds")
    options.only = options.only or list(CONTENDERS)
    return options


if __name__ == "__main__":
    sys.exit(measured(parse(), PROGRAMS, run, write))
