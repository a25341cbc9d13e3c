# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the answer to ``culvert=1`` says of the switch of a device at layer 2, made and read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .keys import encode_base64
from .layer2 import Drop, Layer2State

__all__ = ["layer2_lines", "read_layer"]

_NUMBERS = {
    "storm_limit": "storm_limit",
    "mac_limit": "mac_limit",
    "mac_ageing": "mac_ageing_s",
    "mac_addresses": "addresses",
    "mac_unlearnt": "unlearnt",
}
"""Lines with one number, and what ``culvert show --json`` calls it."""


def layer2_lines(state: Layer2State) -> list[str]:
    """``mac_port`` has a port's public key (``-`` for our own side), addresses, and frames dropped there."""
    settings = state.settings
    lines = [
        "layer=2",
        f"client_isolation={'on' if settings.client_isolation else 'off'}",
        f"storm_limit={settings.storm_limit_per_s}",
        f"mac_limit={settings.mac_limit}",
        f"mac_ageing={settings.mac_ageing_s}",
        f"mac_addresses={state.addresses}",
        f"mac_unlearnt={state.unlearnt}",
    ]
    lines += [f"mac_dropped={why.value} {state.dropped.get(why, 0)}" for why in Drop]
    lines += [
        f"mac_port={port.public_key.hex() or '-'} {port.addresses} {port.dropped}" for port in state.ports
    ]
    return lines


def read_layer(values: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """``layer``, ``layer2`` (None for a device that carries packets), and ``ports``: what there is to say of
    each peer, by its public key in base64.
    """
    if values.get("layer") != ["2"]:
        return {"layer": 3, "layer2": None, "ports": None}
    layer2: dict[str, Any] = {"client_isolation": values.get("client_isolation") == ["on"]}
    layer2 |= {name: int(values[line][0]) for line, name in _NUMBERS.items() if line in values}
    ports = {}
    for line in values.get("mac_port", []):
        key, addresses, dropped = line.split(" ")[:3]
        if key == "-":
            layer2["host_addresses"] = int(addresses)
        else:
            port = {"mac_addresses": int(addresses), "dropped_frames": int(dropped)}
            ports[encode_base64(bytes.fromhex(key))] = port
    dropped_by = (line.split(" ")[:2] for line in values.get("mac_dropped", []))
    layer2["dropped"] = {why: int(count) for why, count in dropped_by}
    return {"layer": 2, "layer2": layer2, "ports": ports}
