# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""``culvert explain DESTINATION`` on the host: a numbered list, and at its end the cause and what to do."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from ._core import HostError, SpecError
from ._explain_host import explain

_MARKS = {True: "ok  ", False: "STOP", None: "?   "}
_WIDTH = 100


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="culvert explain",
        description="Follows a packet through this host and says where its way ends, and why. Sends one echo "
        "request into the tunnel and a few bytes to the peer's endpoint, and changes nothing.",
        epilog="Exit status: 0 if its way ends nowhere, 1 if it does, 2 if the question cannot be answered.",
    )
    made.add_argument("destination", metavar="DESTINATION", help="an address or a name")
    made.add_argument("--from", dest="source", metavar="ADDRESS", default="", help="if it is forwarded")
    made.add_argument("--protocol", default="", help="tcp, udp, icmp, icmp6 or a number")
    made.add_argument("--port", type=int, default=0, metavar="N", help="of TCP unless --protocol")
    made.add_argument(
        "--interface", default="", metavar="NAME", help="the tunnel's device, if there are several"
    )
    made.add_argument(
        "--time",
        type=float,
        metavar="S",
        help="the right time in seconds since 1970, to judge this host's clock",
    )
    made.add_argument("--json", action="store_true", help="print what module tunnel_probe returns")
    return made


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    try:
        found = explain(
            options.destination,
            interface=options.interface,
            source=options.source,
            protocol=options.protocol or ("tcp" if options.port else ""),
            port=options.port,
            reference_time_s=options.time,
        )
    except (SpecError, HostError) as error:
        sys.stderr.write(f"culvert explain: {error}\n")
        return 2
    sys.stdout.write(json.dumps(found, indent=2) + "\n" if options.json else text_of(found))
    return 0 if found["ok"] else 1


def text_of(found: dict[str, Any]) -> str:
    """What :func:`._explain.explain_facts` returns, for people."""
    lines = []
    for number, stage in enumerate(found["stages"], 1):
        head = f"{number:>2} {_MARKS[stage['ok']]} {stage['stage']}: "
        lines += textwrap.wrap(
            head + stage["text"], _WIDTH, subsequent_indent=" " * 8, break_on_hyphens=False
        )
    cause = found["cause"]
    lines.append("")
    if cause:
        lines += [f"Cause: {cause['text']}", f"To do: {cause['fix']}"]
    else:
        lines.append(f"Nothing here stops a packet for {found['destination']}.")
    return "\n".join(lines) + "\n"
