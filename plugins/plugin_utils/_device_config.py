# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Private to the collection: may change at any time.
"""The configuration of a device: the text that every WireGuard program reads, and its QR code.

A private or a pre-shared key is never in a ``repr``, an exception or a return value here, but in the text
that is asked for.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, field

from ansible_collections.culvert.vpn.plugins.module_utils import _x25519

#: Fits every path that IPv6 fits, mobile networks among them (docs/devices.md).
MTU_BYTES = 1280


class NoPainter(Exception):
    """The library segno is not there."""


@dataclass(frozen=True)
class DeviceConfig:
    """What a device has to know.

    :ivar name: the device's.
    :ivar public_key: the device's, base64.
    :ivar private_key: ``None`` where only the device has it.
    :ivar addresses: the device's in the tunnel, with prefix length.
    :ivar server: the server's name.
    :ivar endpoint: ``host:port`` of the server.
    :ivar prefixes: what goes into the tunnel.
    :ivar dns: addresses of name servers.
    :ivar keepalive: in seconds, 0 for none.
    :ivar preshared_key: ``None`` for none.
    """

    name: str
    public_key: str
    addresses: tuple[str, ...]
    server: str
    server_key: str
    endpoint: str
    prefixes: tuple[str, ...]
    dns: tuple[str, ...] = ()
    mtu: int = MTU_BYTES
    keepalive: int = 0
    private_key: bytes | None = field(default=None, repr=False)
    preshared_key: bytes | None = field(default=None, repr=False)

    def text(self) -> str:
        """As wg-quick and the programs for phones and desktops read it."""
        own = [f"{a.partition('/')[0]}/{128 if ':' in a else 32}" for a in self.addresses]
        peer = [
            ("PublicKey", self.server_key),
            ("PresharedKey", _x25519.to_base64(self.preshared_key) if self.preshared_key else ""),
            ("AllowedIPs", ", ".join(self.prefixes)),
            ("Endpoint", self.endpoint),
            ("PersistentKeepalive", str(self.keepalive or "")),
        ]
        interface = [("Address", ", ".join(own)), ("DNS", ", ".join(self.dns)), ("MTU", str(self.mtu or ""))]
        return "\n".join(
            [
                f"# {self.name}, through {self.server}",
                "[Interface]",
                *self._key_lines(),
                *(f"{name} = {value}" for name, value in interface if value),
                "",
                "[Peer]",
                *(f"{name} = {value}" for name, value in peer if value),
                "",
            ]
        )

    def _key_lines(self) -> list[str]:
        if self.private_key is not None:
            return [f"PrivateKey = {_x25519.to_base64(self.private_key)}"]
        return [
            "# The private key is on the device and nowhere else. Put it here, and take the # away: the one",
            f"# of which `wg pubkey` says {self.public_key}",
            "# PrivateKey =",
        ]


def private_key_in(text: bytes) -> bytes | None:
    """The private key of a configuration; ``None`` if there is none, or something else in its place."""
    for line in text.splitlines():
        name, _equals, value = line.partition(b"=")
        if name.strip().lower() == b"privatekey":
            return _x25519.from_base64(value.partition(b"#")[0].strip())
    return None


def painted(text: str, kind: str) -> bytes:
    """The QR code of a text as ``png``, ``svg`` or ``terminal`` (half blocks).

    :raises NoPainter: segno is not installed.
    :raises ValueError: the text is too long for a QR code.
    """
    try:
        import segno
    except ImportError:
        raise NoPainter from None
    try:
        code = segno.make(text, micro=False, error="l", boost_error=True, mode="byte", encoding="utf-8")
    except segno.DataOverflowError:
        raise ValueError("it is too long for a QR code") from None
    if kind == "terminal":
        lines = io.StringIO()
        code.terminal(out=lines, compact=True)
        return lines.getvalue().encode()
    stream = io.BytesIO()
    code.save(stream, kind=kind, scale=6, **({"xmldecl": False} if kind == "svg" else {}))
    return stream.getvalue()


def show_on_terminal(content: bytes) -> bool:
    """Write to the terminal of who runs this, and nowhere else: not to Ansible's output, which may be kept.

    :returns: whether there is one.

    Ansible's worker has left the terminal behind. Its parent, which waits for it, has it still.
    """
    for descriptor in range(3):
        path = f"/proc/{os.getppid()}/fd/{descriptor}"
        try:
            terminal = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            continue
        with open(terminal, "wb", buffering=0) as stream:
            if stream.isatty():
                # In raw mode a line feed alone does not go back to the beginning of the line.
                stream.write(content.replace(b"\n", b"\r\n"))
                return True
    return False
