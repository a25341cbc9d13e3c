# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a rollout costs: site.yml on simulated fleets of 10 to 100 hosts, first and without a change.

    make bench-fleet        or, as root,        python -m bench.fleet --sizes 100 --add

Needs root (network namespaces), and a quiet machine for numbers worth keeping; takes about twenty minutes on
two cores, of which the hundred hosts take half. The hosts are those of tests/fleet: real SSH, modules and
relays on the same cores as the controller, a stand-in for the container engine, and an image of a few
kilobytes. Fails if a client does not reach the internet through a server, or if the second run changes
anything.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from operator import attrgetter
from pathlib import Path

from bench.fleet_plot import svg
from bench.machine import describe
from bench.report import number, table
from tests.fleet.fleet import RELAY, Fleet, Run
from tests.fleet.usage import Peak, busy_s, cpu_s
from tests.netns.endpoints import REPOSITORY
from tests.netns.lab import Lab, LabError, remove_stale
from tests.netns.usage import resident_bytes

SIZES = (10, 25, 50, 100)
HOSTS_PER_SERVER = 10
# Entries a host, more than enough: of a hundred hosts, a server needs a hundred and a client eleven.
_NEIGHBOURS = 100
_TASK = re.compile(r"^(\S.*?) -{2,} +([\d.]+)s$", re.M)
_MEGABYTE = 1e6


@dataclass(frozen=True)
class Cost:
    """What one run cost.

    :ivar tasks: per host, of those that were not skipped.
    :ivar commands: per host, over SSH.
    :ivar foreign_s: processor time that others took of this machine meanwhile.
    :ivar slowest: tasks with the time they took for all hosts together.
    """

    wall_s: float
    tasks: float
    skipped: float
    commands: float
    controller_cpu_s: float
    hosts_cpu_s: float
    foreign_s: float
    controller_bytes: int
    slowest: Sequence[tuple[str, float]]


@dataclass(frozen=True)
class Row:
    """One size of a fleet.

    :ivar load: the machine's load average before the first run.
    """

    servers: int
    clients: int
    load: float
    first: Cost
    again: Cost
    server_relay_bytes: int
    client_relay_bytes: int

    @property
    def hosts(self) -> int:
        return self.servers + self.clients


def say(text: str) -> None:
    print(text, flush=True)


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(fleet: Fleet) -> tuple[Run, Cost]:
    """One run of site.yml; raises LabError when it fails."""
    hosts = list(fleet.machines.values())
    before = (cpu_s(hosts), _children_s(), busy_s(), sum(host.commands() for host in hosts))
    with Peak(fleet.network.controller) as peak:
        run = fleet.deploy().check()
    after = (cpu_s(hosts), _children_s(), busy_s(), sum(host.commands() for host in hosts))
    at_hosts, at_controller, busy, commands = (b - a for a, b in zip(before, after, strict=True))
    recaps = run.recap.values()
    cost = Cost(
        wall_s=run.wall_s,
        tasks=statistics.mean(recap.ok for recap in recaps),
        skipped=statistics.mean(recap.skipped for recap in recaps),
        commands=commands / len(hosts),
        controller_cpu_s=at_controller,
        hosts_cpu_s=at_hosts,
        foreign_s=max(0.0, busy - at_hosts - at_controller),
        controller_bytes=peak.bytes,
        slowest=slowest(run.output),
    )
    return run, cost


def slowest(output: str, count: int = 12) -> list[tuple[str, float]]:
    """The tasks that took the longest, as profile_tasks says; those of one name are added up."""
    times: dict[str, float] = {}
    for match in _TASK.finditer(output):
        times[match[1]] = times.get(match[1], 0.0) + float(match[2])
    return sorted(times.items(), key=lambda item: -item[1])[:count]


def measure_size(size: int) -> Row:
    servers = max(1, round(size / HOSTS_PER_SERVER))
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="culvert-fleet-") as name, Lab(Path(name)) as lab:
        began = time.monotonic()
        with Fleet.make(lab, Path(name), servers, size - servers) as fleet:
            say(f"{size} hosts are there after {time.monotonic() - began:.1f} s")
            _run, first = measure(fleet)
            say(f"  first run: {first.wall_s:.1f} s, {first.wall_s / size:.2f} s per host")
            fleet.await_sessions(120)
            check_traffic(fleet)
            run, again = measure(fleet)
            say(f"  no change: {again.wall_s:.1f} s, {again.wall_s / size:.2f} s per host")
            if run.changed():
                raise LabError(f"the second run has changed {sorted(run.changed())}:\n{run.output}")
            memory = {role: relay_bytes(fleet, role) for role in ("server", "client")}
    return Row(servers, size - servers, load, first, again, memory["server"], memory["client"])


@contextmanager
def room_for_neighbours(hosts: int) -> Iterator[None]:
    """Linux has one table of neighbours for all namespaces, and by default 1024 entries in it: hosts that are
    machines of their own need none of the others'. Taken back at the end.
    """
    limits = [Path(f"/proc/sys/net/ipv{version}/neigh/default/gc_thresh3") for version in (4, 6)]
    before = [limit.read_text() for limit in limits]
    try:
        for limit, value in zip(limits, before, strict=True):
            limit.write_text(str(max(int(value), hosts * _NEIGHBOURS)))
        yield
    finally:
        for limit, value in zip(limits, before, strict=True):
            limit.write_text(value)


def earlier(report: Path, sizes: Collection[int]) -> list[Row]:
    """What an earlier report has of other sizes than these."""
    if not report.exists():
        return []
    costs = ("first", "again")
    read = [{**row, **{name: Cost(**row[name]) for name in costs}} for row in json.loads(report.read_text())]
    return [row for row in (Row(**values) for values in read) if row.hosts not in sizes]


def check_traffic(fleet: Fleet) -> None:
    """Raises LabError when a client does not reach the internet host through a server."""
    lost = [name for name in fleet.names("client") if not fleet.reaches_internet(name)]
    if lost:
        raise LabError(f"do not reach the internet: {', '.join(lost)}")


def relay_bytes(fleet: Fleet, role: str) -> int:
    """Resident memory of a relay, on average."""
    pids = [fleet.machines[name].engine.container(RELAY).pid for name in fleet.names(role)]
    return round(statistics.mean(resident_bytes(pid) for pid in pids))


def markdown(rows: Sequence[Row], note: str) -> str:
    """The report: a table of sizes, and where the time of the largest no-change run goes."""
    cells = []
    for row in rows:
        for label, cost in (("first", row.first), ("no change", row.again)):
            values = [
                f"{row.servers} + {row.clients}",
                label,
                number(cost.wall_s),
                number(cost.wall_s / row.hosts),
            ]
            values += [number(cost.tasks), number(cost.commands)]
            values += [number(cost.controller_cpu_s / row.hosts), number(cost.hosts_cpu_s / row.hosts)]
            values += [number(cost.foreign_s / (cost.wall_s * (os.cpu_count() or 1)) * 100)]
            values += [number(cost.controller_bytes / _MEGABYTE)]
            cells.append(values)
    headings = [
        "servers + clients",
        "run",
        "wall time, s",
        "s per host",
        "tasks per host",
        "commands per host",
    ]
    headings += [
        "controller, CPU-s per host",
        "hosts, CPU-s per host",
        "others, % of the CPUs",
        "controller, MB at most",
    ]
    parts = [note, "", table(headings, cells)]
    memory = [
        [
            str(row.hosts),
            number(row.server_relay_bytes / _MEGABYTE),
            number(row.client_relay_bytes / _MEGABYTE),
        ]
        for row in rows
    ]
    parts.append(table(["hosts", "relay of a server, MB", "relay of a client, MB"], memory))
    last = rows[-1]
    parts.append(
        f"Where the {number(last.again.wall_s)} s of the run without a change of {last.hosts} hosts go:\n"
    )
    tasks = [[name, number(seconds), number(seconds / last.hosts)] for name, seconds in last.again.slowest]
    parts.append(table(["task", "s", "s per host"], tasks))
    return "\n".join(parts)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.fleet", description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, metavar="HOSTS", help="of the fleets")
    parser.add_argument(
        "--output", type=Path, default=REPOSITORY / ".cache" / "bench", help="folder of the report"
    )
    parser.add_argument(
        "--add",
        action="store_true",
        help="keep what the last report has of other sizes of fleets, whatever commit measured them",
    )
    parser.add_argument(
        "--publish", action="store_true", help="write the plot to docs/fleet-scale.svg as well"
    )
    return parser.parse_args()


def main() -> int:
    options = parse()
    if os.geteuid():
        say("the fleets are made of namespaces: run this as root")
        return 2
    remove_stale()
    options.output.mkdir(parents=True, exist_ok=True)
    rows = earlier(options.output / "fleet.json", options.sizes) if options.add else []
    for size in options.sizes:
        with room_for_neighbours(size):
            rows = sorted([*rows, measure_size(size)], key=attrgetter("hosts"))
        # A large size that fails must not lose the others.
        loads = ", ".join(f"{row.load:.1f}" for row in rows)
        note = f"{describe(['openssh-server'])}. Load average before each size: {loads}."
        (options.output / "fleet.md").write_text(markdown(rows, note))
        (options.output / "fleet.svg").write_text(svg(rows))
        (options.output / "fleet.json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    if options.publish:
        (REPOSITORY / "docs" / "fleet-scale.svg").write_text(svg(rows))
    say("\n" + (options.output / "fleet.md").read_text())
    say(f"==> written: {options.output / 'fleet'}.md, .svg, .json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
