# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""A TAP device as the port of a bridge, and a bridge that is made for it: what is wished, what is there, and
the pure plan between the two.

A bridge that was made here is told from others by its alias, so that nobody's own is ever changed or removed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ._core import Change, Plan, SpecError
from ._options import Options

#: What ``ip link`` shows as the alias of a bridge that was made here.
ALIAS = "made by culvert.vpn"


@dataclass(frozen=True)
class BridgeSpec:
    """The wish.

    :ivar port_of: the bridge that the device is a port of; empty for none, ``None`` for whatever it is.
    :ivar isolated: whether the port is kept from other ports that are isolated, too.
    :ivar stp: of a bridge, whether it speaks the spanning tree protocol.
    """

    port_of: str | None = None
    isolated: bool = False
    stp: bool = False

    @classmethod
    def from_options(cls, options: Options, mode: str) -> BridgeSpec:
        """:raises SpecError: an option is malformed, or does not go with the mode."""
        port_of = options.text("bridge")
        spec = cls(port_of, options.flag("bridge_isolated", False), options.flag("stp", False))
        if spec.port_of and mode != "tap":
            raise options.refuse("bridge", "is for mode tap: only Ethernet frames can be bridged")
        if spec.port_of and len(spec.port_of.encode()) > 15:
            raise options.refuse("bridge", f"{spec.port_of!r} is not a name that a network device can have")
        if spec.isolated and not spec.port_of:
            raise options.refuse("bridge_isolated", "is for a device that is the port of a bridge")
        if spec.stp and mode != "bridge":
            raise options.refuse("stp", "is for mode bridge")
        return spec


@dataclass(frozen=True)
class BridgeState:
    """What ``observe`` found.

    :ivar port_of: the bridge that the device is a port of, or what else it belongs to; empty for none.
    :ivar there: all bridges of the host, or those that there will be by then.
    :ivar made_here: of a bridge.
    """

    port_of: str = ""
    isolated: bool = False
    there: frozenset[str] = frozenset()
    stp: bool = False
    made_here: bool = False


def check(name: str, mode: str, exists: bool, spec: BridgeSpec, state: BridgeState) -> None:
    """:raises SpecError: names the option; nothing has been changed."""
    if mode == "bridge" and exists and not state.made_here:
        raise SpecError(
            "name",
            f"{name} is a bridge of somebody else's, which is not changed here; leave it out, and give its "
            "name as the bridge of the TAP device",
        )
    if spec.port_of and spec.port_of not in state.there:
        raise SpecError(
            "bridge",
            f"there is no bridge {spec.port_of} on this host: make it first, where the host's other devices "
            "are configured, or have it made here by a device of mode bridge that comes before",
        )


def plan(name: str, spec: BridgeSpec, state: BridgeState, fresh: bool, released: bool = False) -> Plan:
    """What makes the device the port that it should be.

    :param fresh: whether the device is made by a step before.
    :param released: whether it is to be no port although nothing is wished.
    """
    wished = "" if spec.port_of is None and released else spec.port_of
    changes: Plan = []
    now = state
    if wished is not None and wished != state.port_of:
        changes.append(Change(f"device {name} bridge", state.port_of or None, wished or None, "bridge"))
        now = BridgeState(wished)
    if wished and spec.isolated != now.isolated:
        before = None if fresh else now.isolated
        changes.append(Change(f"device {name} isolated", before, spec.isolated, "isolate"))
    return changes


def plan_stp(name: str, spec: BridgeSpec, state: BridgeState) -> Plan:
    """What a bridge that is there already lacks."""
    if spec.stp == state.stp:
        return []
    return [Change(f"device {name} stp", state.stp, spec.stp, "stp")]


def describe(mode: str, state: BridgeState) -> dict[str, Any]:
    """For the module's result and the diff."""
    if mode == "bridge":
        return {"stp": state.stp}
    return {"bridge": state.port_of or None, "bridge_isolated": state.isolated} if mode == "tap" else {}
