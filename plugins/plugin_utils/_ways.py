# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Private to the collection: may change at any time.
"""By which ways the hosts of a fleet reach each other: over UDP, TCP and TLS, at layer 3 or 2.

A server that offers UDP alone is told of as it always was, so that a fleet without streams has the registry,
the files and the relays that it had.
"""

from __future__ import annotations

import base64
import binascii
import re
import typing as t

from ansible_collections.culvert.vpn.plugins.plugin_utils._registry import LAYER_IP, Entry

#: As clients try them if nobody says otherwise: what costs least first.
ORDER = ("udp", "tcp", "tls")
LAYERS = {"3": LAYER_IP, "2": 2}
_PORT_MAX = 65535
_SHA256_BYTES = 32
_NAME = re.compile(r"[0-9A-Za-z._-]{1,253}", re.ASCII)


def offered(entry: Entry) -> tuple[str, ...]:
    """Return what a server offers."""
    return tuple(entry.transports) or ORDER[:1]


def framed(one: Entry, other: Entry) -> bool:
    """Tell whether two hosts say superpackets in one message: both are ours, and there may be a stream.

    It is the same from both sides. At layer 2 they always do, and are not told.
    """
    if one.external or other.external or one.layer != LAYER_IP:
        return False
    return any(set(offered(entry)) - {"udp"} for entry in (one, other) if entry.server)


def reached(entry: Entry, wanted: t.Sequence[str] = ()) -> dict[str, t.Any]:
    """Return how a peer that is a server is reached: options of `relay_peers`.

    :param wanted: by preference; empty for all that it offers.
    :raises ValueError: it offers none of them.
    """
    names = [name for name in dict.fromkeys(wanted or ORDER) if name in offered(entry)]
    if not names:
        raise ValueError(f"offers {', '.join(offered(entry))}, and that is none of {', '.join(wanted)}")
    if not entry.transports:
        return {"endpoint": entry.endpoint}
    host = entry.endpoint.rpartition(":")[0]
    # Without a pin anybody could answer. It is not known before the server was in a run.
    known = [name for name in names if host and (name != "tls" or entry.tls_pin)]
    if known == ["udp"]:
        return {"endpoint": f"{host}:{entry.transports['udp']}"}
    made: dict[str, t.Any] = {
        "endpoints": [f"{name}://{host}:{entry.transports[name]}" for name in known],
    }
    if "tls" in known:
        made["tls_pin"] = list(entry.tls_pin)
        made |= {"tls_server_name": entry.tls_server_name} if entry.tls_server_name else {}
    return made


# --- What hosts say -----------------------------------------------------------------------------------------


def transports_of(value: t.Any) -> dict[str, int]:
    """Return the ports by what a host says it offers, in our order; what makes no sense counts as not said.
    UDP alone is what every server offers, and is empty.
    """
    said = value if isinstance(value, dict) else {}
    found = {name: _port(said[name]) for name in ORDER if name in said}
    made = {name: port for name, port in found.items() if port}
    return {} if set(made) == {"udp"} else made


def pins_of(value: t.Any) -> tuple[str, ...]:
    """Return the pins that a host says, one or a list; what is none is left out."""
    said = value if isinstance(value, (list, tuple)) else [value]
    return tuple(dict.fromkeys(pin for pin in said if is_pin(pin)))


def server_name_of(value: t.Any) -> str:
    """Return the host name that a host says; empty if it is none."""
    return value if isinstance(value, str) and _NAME.fullmatch(value) else ""


def is_pin(value: t.Any) -> bool:
    """Tell whether something is a SHA-256 in base64."""
    try:
        raw = base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except (binascii.Error, ValueError):
        return False
    return len(raw) == _SHA256_BYTES and base64.b64encode(raw).decode() == value


def _port(value: t.Any) -> int:
    text = str(value)
    known = text.isascii() and text.isdigit() and len(text) <= len(str(_PORT_MAX))
    return int(text) if known and 0 < int(text) <= _PORT_MAX else 0
