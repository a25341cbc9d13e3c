# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Bridges that are not there yet when a document is applied at boot.

Documents come before the network, and whoever keeps the host's bridges makes them later. So a TAP device is
made without its bridge, and a process waits for that and makes the device its port then.
"""

from __future__ import annotations

from collections.abc import Iterable

from . import _bridge_kernel
from ._document import Document


def missing(documents: Iterable[Document]) -> set[str]:
    """The bridges that these wish for, do not make themselves, and that there are not.

    :raises HostError: the host's devices cannot be read.
    """
    devices = [device for document in documents for device in document.devices]
    wished = {device.bridging.port_of or "" for device in devices} - {""}
    wished -= {device.name for device in devices if device.mode == "bridge"}
    return wished - _bridge_kernel.names() if wished else set()


def without(document: Document, bridges: Iterable[str]) -> Document:
    """The document as if nobody wished for these bridges."""
    gone = set(bridges)
    if not any(device.bridging.port_of in gone for device in document.devices):
        return document
    devices = [
        {key: value for key, value in params.items() if key not in ("bridge", "bridge_isolated")}
        if params.get("bridge") in gone
        else params
        for params in document.params["devices"]
    ]
    return Document.from_params({**document.params, "devices": devices})


def unbridged(document: Document) -> bool:
    """Whether a device is not in its bridge. :raises HostError: as :func:`missing`."""
    ports = {device.name: device.bridging.port_of for device in document.devices}
    return any(bridge and _bridge_kernel.bridge_of(name) != bridge for name, bridge in ports.items())
