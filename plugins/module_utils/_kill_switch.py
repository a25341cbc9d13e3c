# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Whether the chains that hold packets back are in force: the kill switch, and the guard of DNS."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ._core import HostError, MissingRequirement, Runner
from ._host import kernel_has_ipv6
from ._iptables import Table, target_of, tools

KILL_SWITCH = "CULVERT-KILLSWITCH"
DNS_GUARD = "CULVERT-DNS"
_FROM = "POSTROUTING"


@dataclass(frozen=True)
class Held:
    """One of the two, over both address families.

    :ivar state: ``on``, ``off`` (nothing of it is there) or ``broken``.
    :ivar missing: what is missing of a broken one, in words.
    """

    state: str = "off"
    missing: tuple[str, ...] = ()


def observe(run: Runner) -> tuple[Held, Held]:
    """The kill switch, and the guard of DNS.

    :raises HostError: the host's chains cannot be read.
    """
    mangle: dict[str, list[Table]] = {}
    for family in ("ipv4", "ipv6") if kernel_has_ipv6() else ("ipv4",):
        mangle[family] = []
        try:
            found = tools(run, family)
        except MissingRequirement:
            continue
        for tool in found.values():
            try:
                mangle[family].append(tool.read().get("mangle", Table()))
            except HostError:
                # The other backend's tables may be readable, and it is there then.
                continue
    return state_of(KILL_SWITCH, mangle), state_of(DNS_GUARD, mangle)


def state_of(name: str, mangle: Mapping[str, list[Table]]) -> Held:
    """Pure. :param mangle: by address family, the table mangle of each backend."""
    lacks = {family: _lacks(name, tables) for family, tables in mangle.items()}
    if all(lack is None for lack in lacks.values()):
        return Held("off")
    missing = [
        f"{family}: {'all of it' if lack is None else lack}" for family, lack in lacks.items() if lack != ""
    ]
    return Held("broken", tuple(missing)) if missing else Held("on")


def _lacks(name: str, tables: list[Table]) -> str | None:
    """What it lacks in one address family: empty for nothing, ``None`` when there is no such chain."""
    for table in tables:
        rules = table.chain(name)
        if rules is None:
            continue
        before = []
        for rule in table.rules.get(_FROM, ()):
            if target_of(rule) == name:
                break
            before.append(rule)
        else:
            return f"the jump from {_FROM} to {name}"
        open_door = next((rule for rule in before if target_of(rule) == "ACCEPT"), "")
        if open_door:
            return f"its effect, as the rule '{open_door}' of {_FROM} comes before it"
        if not any(target_of(rule) in ("DROP", "REJECT") for rule in rules):
            return f"the rule of {name} that drops"
        return ""
    return None
