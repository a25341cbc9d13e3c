# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks the kernel and the model the same questions; runs on a host of ``test_fib_kernel.py``.

One line of JSON in, one out: ``{"batches": [[arguments of ip, lines], ...], "questions": [...]}`` becomes
``{"answers": [[what the kernel says, what the model says], ...]}``.
"""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from ansible_collections.culvert.vpn.plugins.module_utils import _facts, _fib
from ansible_collections.culvert.vpn.plugins.module_utils import _routing_kernel as kernel
from ansible_collections.culvert.vpn.plugins.module_utils._document import Document
from ansible_collections.culvert.vpn.plugins.module_utils._netlink import FAMILIES, netlink_error, rtnetlink

# include/uapi/linux/rtnetlink.h: answer with the entry of the table and not with what became of it
RTM_F_FIB_MATCH = 0x2000


def _refuse_to_run(command: list[str], stdin: str) -> tuple[int, str, str]:
    raise AssertionError(f"{command} is not needed for this")


def ask_kernel(ipr: Any, names: dict[int, str], question: Mapping[str, Any]) -> list[Any]:
    version = 6 if ":" in question["destination"] else 4
    indexes = {name: index for index, name in names.items()}
    arguments: dict[str, Any] = {
        "family": FAMILIES[version],
        "dst": question["destination"],
        "flags": RTM_F_FIB_MATCH,
    }
    if question["source"]:
        arguments["src"] = question["source"]
        arguments["src_len"] = 128 if version == 6 else 32
    if question["mark"]:
        arguments["mark"] = question["mark"]
    for name in ("iif", "oif"):
        if question[name]:
            arguments[name] = indexes[question[name]]
    try:
        message = ipr.route("get", **arguments)[0]
    except netlink_error() as error:
        return ["error", errno.errorcode[error.code]]
    return describe(kernel._route_of(message, version, names))


def describe(route: Any) -> list[Any]:
    return [route.type, route.destination, route.metric, route.device, route.gateway]


def main() -> None:
    document = Document.empty("fib")
    with rtnetlink() as ipr:
        names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in ipr.get_links()}
        for line in sys.stdin:
            task = json.loads(line)
            for arguments, lines in task["batches"]:
                # With -force: random lines may contradict each other. What is then there is read back.
                subprocess.run(
                    ["ip", *arguments, "-force", "-batch", "-"],
                    input="\n".join(lines) + "\n",
                    text=True,
                    capture_output=True,
                    check=False,
                )
            facts = _facts.observe(_refuse_to_run, document, ("", ""))
            answers = []
            for question in task["questions"]:
                model = _fib.outcomes(facts.rules, facts.routes, **question)
                answers.append(
                    [
                        ask_kernel(ipr, names, question),
                        [None if route is None else describe(route) for route in model],
                    ]
                )
            print(json.dumps({"answers": answers}), flush=True)


if __name__ == "__main__":
    main()
