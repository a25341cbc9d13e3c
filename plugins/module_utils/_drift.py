# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What somebody changed of what the documents of a host say, in words.

Each stored document is planned against the host as it is, and nothing is done: the steps of that plan are
what is missing, or is other than it was made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import _store
from ._core import HostError, Runner, SpecError
from ._host_network import HostNetwork
from ._routes import Route, Rule


@dataclass(frozen=True)
class Drift:
    """One thing that is not as the document says.

    :ivar kind: ``device``, ``sysctls``, ``chain``, ``table``, ... as ``_host_network.Part``; ``document`` for
        one that cannot be looked at.
    :ivar item: what it is about, as in a plan.
    :ivar verb: the step that would mend it, such as ``set_route``.
    :ivar text: in words.
    :ivar route: of ``set_route``, the route that is missing or another.
    :ivar rule: of ``add_rule``, the rule that is missing.
    """

    document: str
    kind: str
    item: str
    verb: str
    text: str
    route: Route | None = None
    rule: Rule | None = None


def look(run: Runner) -> tuple[Drift, ...]:
    """All of the host's documents. What cannot be looked at is told as a drift of its own."""
    found: list[Drift] = []
    for name in _store.names():
        try:
            found += of_document(name, run)
        except (HostError, SpecError) as error:
            found.append(
                Drift(name, "document", name, "", f"{name} cannot be compared with the host: {error}")
            )
    return tuple(found)


def of_document(name: str, run: Runner) -> list[Drift]:
    """:raises HostError, SpecError: it cannot be read, or the host cannot."""
    stored = _store.load(name)
    if stored is None:
        return []
    network = HostNetwork(stored.document, stored.document, run, check_mode=True)
    plan = network.plan(network.observe())
    # The collection's own code is no part of the network.
    steps = [(change.data.part.kind, change.data.change) for change in plan]
    return [
        _drift(name, kind, change)
        for kind, change in steps
        if kind != "code" and not (kind == "device" and _left_by_the_relay(change))
    ]


def _left_by_the_relay(change: Any) -> bool:
    """A relay reads and writes superpackets, and so leaves the device when it ends; the next one does too."""
    return bool(change.action == "reattach" and set(change.after) == {"vnet_hdr"})


def _drift(name: str, kind: str, change: Any) -> Drift:
    data = change.data
    return Drift(
        document=name,
        kind=kind,
        item=change.item,
        verb=change.action,
        text=_words(kind, change),
        route=data[2] if change.action == "set_route" else None,
        rule=data if change.action == "add_rule" else None,
    )


def _words(kind: str, change: Any) -> str:
    if kind == "chain":
        return _chain_words(change)
    if change.before is None:
        return f"{change.item} is missing"
    if change.after is None:
        return f"{change.item} is there and should not be"
    if isinstance(change.before, (dict, list)) or isinstance(change.after, (dict, list)):
        return f"{change.item} is not as it was made"
    return f"{change.item} is {change.before}, and was {change.after}"


def _chain_words(change: Any) -> str:
    if change.after is None:
        return f"{change.item} is there and should not be"
    if change.before is None:
        return f"{change.item} is gone"
    if not change.before["jumps"]:
        return f"{change.item} is there, but nothing leads to it any more"
    if not change.before["rules"] and change.after["rules"]:
        return f"{change.item} is empty"
    return f"{change.item} was changed, or something was put before it"
