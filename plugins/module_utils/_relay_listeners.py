# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Where a relay listens for streams, and which layer it carries, with its limits: options of ``[Interface]``
that it learns from its configuration file alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LAYER_IP, LAYER_ETHERNET = 3, 2
DEFAULT_ALPN = "http/1.1"
DEFAULT_STORM_LIMIT, DEFAULT_MAC_LIMIT, DEFAULT_MAC_AGEING_S = 1000, 1024, 300
PORT_MAX = 65535
STORM_LIMIT_MAX, MAC_LIMIT_MAX = 1_000_000, 65_536
MAC_AGEING_MIN_S, MAC_AGEING_MAX_S = 10, 86_400


@dataclass(frozen=True)
class Listeners:
    """:ivar tcp, tls: ports, 0 for none.
    :ivar certificate_file, private_key_file: paths, empty for none.
    :ivar alpn: what is offered by ALPN; empty for what a relay does when the file says nothing.
    """

    tcp: int = 0
    tls: int = 0
    certificate_file: str = ""
    private_key_file: str = ""
    alpn: str = ""

    def options(self) -> list[tuple[str, str]]:
        """What is written into the section ``[Interface]``, in this order."""
        return [
            ("ListenTCP", str(self.tcp or "")),
            ("ListenTLS", str(self.tls or "")),
            ("TLSCertificateFile", self.certificate_file),
            ("TLSPrivateKeyFile", self.private_key_file),
            ("TLSAlpn", self.alpn),
        ]


@dataclass(frozen=True)
class Ethernet:
    """What only a relay of layer 2 has.

    :ivar storm_limit: frames to all, per second and peer; 0 for no limit.
    :ivar mac_limit: addresses per peer.
    """

    client_isolation: bool = False
    storm_limit: int = DEFAULT_STORM_LIMIT
    mac_limit: int = DEFAULT_MAC_LIMIT
    mac_ageing_s: int = DEFAULT_MAC_AGEING_S

    def options(self) -> list[tuple[str, str]]:
        """What is written into the section ``[Interface]``, in this order."""
        every = (
            ("StormLimit", self.storm_limit, DEFAULT_STORM_LIMIT),
            ("MacLimit", self.mac_limit, DEFAULT_MAC_LIMIT),
            ("MacAgeing", self.mac_ageing_s, DEFAULT_MAC_AGEING_S),
        )
        return [
            ("ClientIsolation", "on" if self.client_isolation else ""),
            *((name, "" if value == default else str(value)) for name, value, default in every),
        ]


@dataclass(frozen=True)
class Layer:
    """:ivar number: 3 for IP packets, 2 for Ethernet frames."""

    number: int = LAYER_IP
    ethernet: Ethernet = field(default_factory=Ethernet)

    def options(self) -> list[tuple[str, str]]:
        """What is written into the section ``[Interface]``, in this order."""
        if self.number == LAYER_IP:
            return []
        return [("Layer", str(self.number)), *self.ethernet.options()]


def listeners_in_file(interface: Mapping[str, str]) -> Listeners:
    """Of the options of ``[Interface]``, by their names in small letters."""
    alpn = interface.get("tlsalpn", "")
    return Listeners(
        _number(interface, "listentcp", 0, PORT_MAX),
        _number(interface, "listentls", 0, PORT_MAX),
        interface.get("tlscertificatefile", ""),
        interface.get("tlsprivatekeyfile", ""),
        "" if alpn == DEFAULT_ALPN else alpn,
    )


def layer_in_file(interface: Mapping[str, str]) -> Layer:
    """Of the options of ``[Interface]``, by their names in small letters."""
    if interface.get("layer", "").strip() != str(LAYER_ETHERNET):
        return Layer()
    return Layer(
        LAYER_ETHERNET,
        Ethernet(
            interface.get("clientisolation", "").lower() == "on",
            _number(interface, "stormlimit", DEFAULT_STORM_LIMIT, STORM_LIMIT_MAX),
            _number(interface, "maclimit", DEFAULT_MAC_LIMIT, MAC_LIMIT_MAX),
            _number(interface, "macageing", DEFAULT_MAC_AGEING_S, MAC_AGEING_MAX_S),
        ),
    )


def _number(interface: Mapping[str, str], name: str, default: int, high: int) -> int:
    text = interface.get(name, "")
    valid = text.isascii() and text.isdigit() and len(text) < 10 and int(text) <= high
    return int(text) if valid else default


# --- What a running relay says ------------------------------------------------------------------------------


def parse_listeners(about: str) -> list[dict[str, Any]]:
    """Of the answer to ``culvert=1``: where the relay listens for streams, as ``relay_info`` has it."""
    found = []
    for line in about.splitlines():
        key, _equals, value = line.partition("=")
        words = value.split()
        if key == "listener" and len(words) >= 2 and words[0] in ("tcp", "tls") and words[1].isdigit():
            found.append({"transport": words[0], "port": int(words[1])})
    return found


def parse_certificate(about: str) -> str:
    """Of the answer to ``culvert=1``: SHA-256 of the file whose certificate the relay shows, in hexadecimal;
    empty where it shows none, or does not say.
    """
    lines = [line.partition("=") for line in about.splitlines()]
    return next((value.strip() for key, _equals, value in lines if key == "certificate"), "")


def parse_layer(about: str) -> int:
    """Of the answer to ``culvert=1``: the running relay's layer."""
    lines = [line.partition("=") for line in about.splitlines()]
    told = next((value.strip() for key, _equals, value in lines if key == "layer"), "")
    return LAYER_ETHERNET if told == str(LAYER_ETHERNET) else LAYER_IP
