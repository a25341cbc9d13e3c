# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What :mod:`culvert.about` says of streams: a line for each port that is listened on, and one of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .transport.stream import StreamStats, StreamTransport

__all__ = ["read_streams", "show_streams", "stream_lines"]


def stream_lines(streams: StreamTransport | None) -> str:
    """``listener=SCHEME PORT``, ``certificate=SHA256`` of the certificate's file, and
    ``streams=CONNECTIONS STRANGERS DROPPED_MESSAGES REFUSED``; nothing where no streams are in use.
    """
    if streams is None:
        return ""
    lines = [f"listener={scheme} {port}" for scheme, port in sorted(streams.ports.items())]
    if "tls" in streams.ports and streams.certificate_digest:
        lines.append(f"certificate={streams.certificate_digest}")
    lines.append("streams=" + " ".join(str(number) for number in streams.stats))
    return "".join(f"{line}\n" for line in lines)


def read_streams(values: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """``listeners`` and ``streams`` of ``culvert show --json``, by the lines of a key."""
    listeners = []
    for line in values.get("listener", ()):
        scheme, port = line.split(" ")[:2]
        listeners.append({"scheme": scheme, "port": int(port)})
    numbers = values.get("streams")
    streams = None
    if numbers:
        streams = dict(zip(StreamStats._fields, map(int, numbers[0].split(" ")), strict=False))
    return {"listeners": listeners, "streams": streams}


def show_streams(device: Mapping[str, Any]) -> list[str]:
    """Lines of ``culvert show``."""
    lines = []
    if device.get("listeners"):
        ports = ", ".join(f"{one['scheme']} {one['port']}" for one in device["listeners"])
        lines.append(f"  listening for streams: {ports}")
    streams = device.get("streams")
    if streams is not None:
        lines.append(
            f"  streams: {streams['connections']} connections, {streams['strangers']} of them strangers', "
            f"{streams['refused']} refused, {streams['dropped_messages']} messages dropped"
        )
    return lines
