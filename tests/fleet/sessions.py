# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the relays of a fleet say about their peers, and which of them a change has touched."""

from __future__ import annotations

import base64
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

# WireGuard replaces a session that works after two minutes, not before. Both ends write down the time when
# they hear of it, which on a busy machine is late.
_REKEY_AFTER_S = 120 - 15
_ANSWERED_WITHIN_S = 5.0


@dataclass(frozen=True)
class Session:
    """What a relay has of one peer.

    :ivar handshake_s: time of the latest handshake; 0 for none.
    :ivar received_bytes: since the relay knows the peer.
    """

    handshake_s: float = 0.0
    received_bytes: int = 0
    endpoint: str = ""
    allowed_ips: Sequence[str] = ()

    def goes_on(self, later: Session) -> bool:
        """Whether ``later`` is this session, or one that has followed it as the protocol wants it.

        A peer that was forgotten in between, and a relay that was started anew, count from zero.
        """
        if later.received_bytes < self.received_bytes:
            return False
        if not self.handshake_s:
            return not later.handshake_s
        new = later.handshake_s - self.handshake_s
        return new == 0 or new >= _REKEY_AFTER_S


# Host → peer → what the host's relay has of it, both by the names of the machines.
Sessions = Mapping[str, Mapping[str, Session]]


@dataclass
class Relay:
    """What a relay answered: its own public key, and its peers by theirs (base64)."""

    public_key: str
    peers: dict[str, Session] = field(default_factory=dict)


def _base64(hexadecimal: str) -> str:
    return base64.b64encode(bytes.fromhex(hexadecimal)).decode()


def public_key(private: str) -> str:
    """In base64; the private one is in hexadecimal, as the relay has it."""
    key = X25519PrivateKey.from_private_bytes(bytes.fromhex(private))
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


def ask(path: Path) -> Relay | None:
    """What the relay behind a control socket says; None when none answers."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_ANSWERED_WITHIN_S)
        try:
            connection.connect(str(path))
            connection.sendall(b"get=1\n\n")
            answer = b""
            while not answer.endswith(b"\n\n"):
                part = connection.recv(65536)
                if not part:
                    break
                answer += part
        except OSError:
            return None
    return _parse(answer.decode())


def _parse(answer: str) -> Relay | None:
    own, peers = "", list[tuple[str, dict[str, str], list[str]]]()
    for line in answer.splitlines():
        key, _equals, value = line.partition("=")
        if key == "private_key":
            own = public_key(value)
        elif key == "public_key":
            peers.append((_base64(value), {}, []))
        elif key == "allowed_ip" and peers:
            peers[-1][2].append(value)
        elif peers:
            peers[-1][1][key] = value
    relay = Relay(own)
    for public, values, networks in peers:
        seconds = int(values.get("last_handshake_time_sec", 0))
        nanoseconds = int(values.get("last_handshake_time_nsec", 0))
        received = int(values.get("rx_bytes", 0))
        session = Session(
            seconds + nanoseconds / 1e9, received, values.get("endpoint", ""), tuple(sorted(networks))
        )
        relay.peers[public] = session
    return relay if own else None


def changed(before: Sessions, after: Sessions) -> set[tuple[str, str]]:
    """(host, peer) for each peer that a relay has learnt of, has forgotten, or has another session with."""
    pairs = {
        (host, peer) for sessions in (before, after) for host, peers in sessions.items() for peer in peers
    }
    return {(host, peer) for host, peer in pairs if not _goes_on(before, after, host, peer)}


def _goes_on(before: Sessions, after: Sessions, host: str, peer: str) -> bool:
    old, new = before.get(host, {}).get(peer), after.get(host, {}).get(peer)
    return old is not None and new is not None and old.goes_on(new)
