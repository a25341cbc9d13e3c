# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What :mod:`culvert.about` says of the ways to peers: which is used, what others there are, how to dial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .device import Device
from .endpoint import NO_TARGET, split_scheme
from .keys import encode_base64
from .peer import Peer

__all__ = ["read_ways", "show_way", "way_lines"]


def way_lines(device: Device, now: float) -> str:
    """For each peer that has several endpoints, or one that is a stream, or is at one
    ``way=KEY ENDPOINT STATE LIST PROBED SECONDS`` (``-`` for what there is not), and
    ``frame_messages=KEY on``, ``tls_pin=KEY PIN,…`` and ``tls_server_name=KEY NAME`` where that is so.
    """
    lines: list[str] = []
    for peer in device.peers():
        at_stream = peer.endpoint is not None and peer.endpoint.is_stream
        if peer.ways is None and not at_stream and not peer.frame_messages and peer.target == NO_TARGET:
            continue
        key = peer.public_key.hex()
        if peer.ways is not None or at_stream:
            lines.append(f"way={key} {_way(peer, now)}")
        if peer.frame_messages:
            lines.append(f"frame_messages={key} on")
        if peer.target.pins:
            lines.append(f"tls_pin={key} {','.join(map(encode_base64, peer.target.pins))}")
        if peer.target.server_name:
            lines.append(f"tls_server_name={key} {peer.target.server_name}")
    return "".join(f"{line}\n" for line in lines)


def _way(peer: Peer, now: float) -> str:
    endpoint = peer.endpoint or "-"
    if peer.ways is None:
        return f"{endpoint} {'trying' if peer.unanswered else 'fallback'} - - -"
    state, probed, probe_in_s = peer.ways.state(now)
    places = ",".join(map(str, peer.endpoints))
    probe = "- -" if probed is None else f"{probed} {round(probe_in_s)}"
    return f"{endpoint} {state} {places} {probe}"


def read_ways(values: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
    """``way``, ``frame_messages``, ``tls_pins`` and ``tls_server_name`` of ``culvert show --json``, by public
    key in base64.
    """
    found: dict[str, dict[str, Any]] = {}

    def peer_of(key: str) -> dict[str, Any]:
        return found.setdefault(encode_base64(bytes.fromhex(key)), {})

    for line in values.get("way", ()):
        key, *fields = line.split(" ")[:6]
        endpoint, state, places, probed, probe_in_s = (None if one == "-" else one for one in fields)
        peer_of(key)["way"] = {
            "endpoint": endpoint,
            "transport": None if endpoint is None else split_scheme(endpoint)[0],
            "state": state,
            "endpoints": places.split(",") if places else [],
            "probing": probed,
            "probing_in_s": None if probe_in_s is None else int(probe_in_s),
        }
    for line in values.get("frame_messages", ()):
        peer_of(line.split(" ")[0])["frame_messages"] = line.split(" ")[1] == "on"
    for line in values.get("tls_pin", ()):
        peer_of(line.split(" ")[0])["tls_pins"] = line.split(" ")[1].split(",")
    for line in values.get("tls_server_name", ()):
        peer_of(line.split(" ")[0])["tls_server_name"] = line.split(" ")[1]
    return found


def show_way(way: Mapping[str, Any] | None) -> list[str]:
    """The line of ``culvert show``."""
    if way is None:
        return []
    text = way["transport"] or "none"
    if way["state"] == "trying":
        text += ", no answer so far"
    if way["probing"] is not None:
        text += f", probing {way['probing']} in {way['probing_in_s']} s"
    if len(way["endpoints"]) > 1:
        text += f" (of {', '.join(way['endpoints'])})"
    return [f"  transport: {text}"]
