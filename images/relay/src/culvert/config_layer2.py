# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration file's options for layer 2, and which others say nothing there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .config_values import read_integer, read_switch
from .constants import (
    MAC_AGEING_RANGE_S,
    MAC_AGEING_S,
    MAC_LIMIT,
    MAC_LIMIT_RANGE,
    STORM_LIMIT_MOST_PER_S,
    STORM_LIMIT_PER_S,
)
from .layer2 import Layer2Settings

__all__ = ["LAYER2_ROWS", "BadOption", "check_layer", "layer2_settings"]


class BadOption(ValueError):
    """An option makes no sense at this layer; the message begins with its name."""

    def __init__(self, option: str, message: str) -> None:
        super().__init__(message)
        self.option = option


def _read_layer(text: str) -> int:
    if text not in ("2", "3"):
        raise ValueError(f"{text[:20]!r} is neither 3 (packets, a TUN device) nor 2 (Ethernet, a TAP device)")
    return int(text)


def _number(low: int, high: int) -> Callable[[str], int]:
    return lambda text: read_integer(text, low, high)


LAYER2_ROWS: dict[str, tuple[str, Callable[[str], Any] | None]] = {
    "layer": ("Layer", _read_layer),
    "clientisolation": ("ClientIsolation", read_switch),
    "stormlimit": ("StormLimit", _number(0, STORM_LIMIT_MOST_PER_S)),
    "maclimit": ("MacLimit", _number(*MAC_LIMIT_RANGE)),
    "macageing": ("MacAgeing", _number(*MAC_AGEING_RANGE_S)),
}
"""Options of ``[Interface]``, as :mod:`culvert.config` has them."""

_GROUPS = "servers share no prefixes with Layer = 2: the spanning tree of the bridges chooses between them"
_NOT_AT_LAYER_2 = {
    "allowedips": "AllowedIPs: with Layer = 2 frames go by their Ethernet addresses, which are learnt",
    "failover": f"Failover: {_GROUPS}",
    "failoverallowedips": f"FailoverAllowedIPs: {_GROUPS}",
    "failovertimeout": f"FailoverTimeout: {_GROUPS}",
    "failoverreturn": f"FailoverReturn: {_GROUPS}",
    "framemessages": "FrameMessages: Layer = 2 needs them, at both ends",
}


def check_layer(layer: int, values: Mapping[str, Any]) -> None:
    """Whether the options of a section, whichever, say anything at this layer. :raises BadOption:"""
    if layer == 3:
        for option, (label, _) in LAYER2_ROWS.items():
            if option in values and option != "layer":
                raise BadOption(option, f"{label} says nothing without Layer = 2")
        return
    for option, reason in _NOT_AT_LAYER_2.items():
        # An empty list, and frame messages that are on, say what is so anyway.
        if option in values and values[option] != [] and values[option] is not True:
            raise BadOption(option, reason)


def layer2_settings(values: Mapping[str, Any]) -> Layer2Settings:
    """From the options of ``[Interface]``."""
    return Layer2Settings(
        client_isolation=values.get("clientisolation", False),
        storm_limit_per_s=values.get("stormlimit", STORM_LIMIT_PER_S),
        mac_limit=values.get("maclimit", MAC_LIMIT),
        mac_ageing_s=values.get("macageing", MAC_AGEING_S),
    )
