# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Our relay beside the VPNs that Debian packages: throughput, processor time, round trips, memory.

    make bench      or, as root,      python -m bench.throughput

Needs root (network namespaces), and a quiet machine for numbers worth keeping. In every round each contender
is started anew in a network of its own (bench/topology.py), measured and taken away, in turns forwards and
backwards; the report has medians of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from bench import measure, packets
from bench.command import measured, say, summary, undisturbed
from bench.machine import describe
from bench.packaged import Nebula, OpenVpn, Tinc
from bench.plot import svg
from bench.report import Results, markdown
from bench.search import CONFIRM_S, LOSS
from bench.topology import Contender, Options, Raw, make_hosts
from bench.wireguard import CompiledRelay, DebianWireGuardGo, PythonRelay
from tests.netns.endpoints import REPOSITORY
from tests.netns.lab import Lab, LabError

CONTENDERS: dict[str, type[Contender]] = {
    kind.name: kind for kind in (Raw, CompiledRelay, PythonRelay, DebianWireGuardGo, OpenVpn, Nebula, Tinc)
}
METRICS = ("idle", "tcp1", "tcp4", "udp64", "udp1280", "udp64-down", "udp1280-down")
DEFAULT_METRICS = METRICS[:5]
QUICK_CONTENDERS = ("raw", "compiled", "python", "wireguard-go", "openvpn")
PROGRAMS = "gcc iperf3 ip nsenter setpriv sysctl ping ethtool wg wireguard-go openvpn openssl nebula tincd"


@dataclass(frozen=True)
class Plan:
    """What is measured, and what earlier rounds have told."""

    metrics: Sequence[str]
    seconds: int
    generator: Path
    guesses: dict[tuple[str, str], float] = field(default_factory=dict)
    "Contender and metric → the loss-free rate of the round before, near which the next search begins."


def measure_packets(contender: Contender, plan: Plan, metric: str) -> measure.Values:
    """A search for a loss-free rate, in one direction with one size."""
    size, _, direction = metric.removeprefix("udp").partition("-")
    guess = plan.guesses.get((contender.name, metric), contender.packets_guess)
    stream = packets.Stream(contender, plan.generator, int(size), direction == "down")
    rate = stream.loss_free(guess)
    if not rate:
        raise LabError(f"{metric}: loss at every rate")
    plan.guesses[contender.name, metric] = rate
    return {f"{metric}.packets_s": rate}


def measure_one(contender: Contender, plan: Plan) -> Generator[measure.Values, None, None]:
    """One round of one contender, measurement by measurement."""
    yield {"start.s": contender.first_reply_s()}
    measure.serve(contender)
    if "idle" in plan.metrics:
        yield measure.idle(contender)
    measure.warm_up(contender)
    for streams in (1, 4):
        if f"tcp{streams}" in plan.metrics:
            for down in (False, True):
                yield measure.tcp(contender, streams, down, plan.seconds)
    for metric in plan.metrics:
        if metric.startswith("udp"):
            yield measure_packets(contender, plan, metric)


def one_round(
    name: str, directory: Path, options: argparse.Namespace, plan: Plan
) -> Generator[measure.Values, None, None]:
    """Build the network, measure, and take it away again."""
    yield {"machine.busy_share": measure.busy_share()}
    lab = Lab(directory)
    try:
        hosts = make_hosts(lab, plain_wire=options.plain_wire)
        contender = CONTENDERS[name](hosts, Options(options.peers, options.disable_offloads))
        yield from measure_one(contender, plan)
    finally:
        with undisturbed():
            lab.close()


def run(options: argparse.Namespace, directory: Path) -> tuple[Results, list[str]]:
    """All rounds; returns the results and what went wrong."""
    results = Results({name: kind.title for name, kind in CONTENDERS.items()})
    failures: list[str] = []
    plan = Plan(options.metrics, options.seconds, packets.build(directory))
    start = time.monotonic()
    for turn in range(1, options.rounds + 1):
        say(f"==> round {turn} of {options.rounds} ({time.monotonic() - start:.0f} s)")
        for name in options.only if turn % 2 else reversed(options.only):
            print(f"    {name:<12}", end="", flush=True)
            try:
                with closing(one_round(name, directory / f"{turn}-{name}", options, plan)) as measurements:
                    for values in measurements:
                        results.add(name, values)
                        print(f" {text};" if (text := summary(values)) else "", end="", flush=True)
                say("")
            except (LabError, OSError, subprocess.SubprocessError) as error:
                failures.append(f"round {turn}, {name}: {error}")
                say(f" FAILED: {error}")
    return results, failures


def notes(results: Results, options: argparse.Namespace) -> list[str]:
    """On what, how, and how undisturbed it was measured."""
    packages = [CONTENDERS[name].package for name in options.only if CONTENDERS[name].package]
    wire = "without segmentation offload on the wire" if options.plain_wire else "veth with all its offloads"
    shares = [share for name in results.names for share in results.values[name]["machine.busy_share"]]
    busy = f"{statistics.median(shares):.0%} (at most {max(shares):.0%})" if shares else "not measured"
    told = [
        f"Machine: {describe([*packages, 'iperf3'])}.",
        f"Client to server: {wire}. Medians of {options.rounds} rounds, ± half of the range.",
        f"All of it shares {os.cpu_count()} cores. How busy others kept them before each round: {busy}.",
        f"The WireGuard servers know {options.peers} peers.",
    ]
    if any(metric.startswith("udp") for metric in options.metrics):
        lost = f"less than {LOSS:.1%} lost in {CONFIRM_S:g} s of evenly paced packets, none a superpacket"
        told.append(f"UDP without loss: {lost}.")
    return told


def write(results: Results, failures: list[str], options: argparse.Namespace) -> str:
    """Write the report's files; returns its text."""
    explained = notes(results, options)
    text = markdown(results, "Throughput, side by side", explained)
    directory: Path = options.output
    directory.mkdir(parents=True, exist_ok=True)
    stem = "throughput-plain-wire" if options.plain_wire else "throughput"
    (directory / f"{stem}.md").write_text(text)
    (directory / f"{stem}.svg").write_text(svg(results))
    raw = {"notes": explained, "options": vars(options), "values": results.values, "failures": failures}
    (directory / f"{stem}.json").write_text(json.dumps(raw, indent=1, default=str) + "\n")
    say(f"==> written: {directory / stem}.md, .svg, .json")
    return text


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.throughput", description=__doc__.splitlines()[0])
    add = parser.add_argument
    seconds = "of each TCP measurement; default %(default)s, at most 30"
    peers = "peers that a WireGuard server knows (%(default)s)"
    output = REPOSITORY / ".cache" / "bench"
    add("--quick", action="store_true", help="one TCP stream, fewer contenders, under two minutes")
    add("--only", nargs="+", choices=CONTENDERS, metavar="NAME", help=f"of: {', '.join(CONTENDERS)}")
    add(
        "--metrics",
        nargs="+",
        choices=METRICS,
        metavar="NAME",
        help=f"of: {', '.join(METRICS)}; default: the first five",
    )
    add("--rounds", type=int, default=3, metavar="N", help="default %(default)s, at most 20")
    add(
        "--seconds",
        type=int,
        default=2,
        metavar="S",
        help=seconds,
    )
    add("--plain-wire", action="store_true", help="no segmentation offload between client and server")
    add("--peers", type=int, default=10, metavar="N", help=peers)
    add("--disable-offloads", default="", metavar="LIST", help="given to our relay")
    add(
        "--output",
        type=Path,
        default=output,
        metavar="DIRECTORY",
        help="%(default)s",
    )
    options = parser.parse_args()
    if not (1 <= options.rounds <= 20 and 1 <= options.seconds <= 30 and 1 <= options.peers <= 5000):
        parser.error("--rounds, --seconds or --peers is out of bounds")
    options.only = options.only or list(QUICK_CONTENDERS if options.quick else CONTENDERS)
    options.metrics = options.metrics or (["tcp1"] if options.quick else list(DEFAULT_METRICS))
    return options


if __name__ == "__main__":
    sys.exit(measured(parse(), PROGRAMS, run, write))
