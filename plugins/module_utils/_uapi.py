# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Talks to a relay over WireGuard's userspace API (https://www.wireguard.com/xplatform/): "get", "set", and
"culvert", which only our own relay knows: what it refused lately, and why.

The answer to "get" holds the private key and the pre-shared keys. Of the private key only the public key that
belongs to it is kept; the others are kept in a form that prints as nothing, to be compared with wanted ones.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from . import _x25519
from ._core import HostError, SpecError
from ._options import Options
from ._relay_failover import Failover, parse_failover
from ._relay_limits import Limits, Usage, parse_usage
from ._relay_listeners import LAYER_IP, parse_certificate, parse_layer, parse_listeners
from ._relay_succession import Standing, Succession, parse_succession
from ._relay_ways import Current, Ways, parse_ways

SOCKET_DIRECTORY = "/run/wireguard"
# 1000 peers with a dozen allowed IPs each are 0.7 MB.
REPLY_MAX_BYTES = 16 * 1024 * 1024
DEFAULT_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Peer:
    """:ivar public_key: base64.
    :ivar endpoint: ``address:port`` or ``[address]:port``; ``None`` while it is not known.
    :ivar latest_handshake_s: Unix time, 0 for never.
    :ivar preshared_key: ``None`` for none.
    :ivar failover: priority in the failover group, ``None`` for no member. Only :func:`query_all` tells.
    :ivar limits: what the relay holds the peer to. Only :func:`query_all` tells.
    :ivar local_key: which of the relay's identities it belongs to. Only :func:`query_all` tells.
    :ivar succeeds: public key of the peer that it succeeds, empty for none. Only :func:`query_all` tells.
    :ivar endpoints: the list that it has, empty where there is none or one of plain UDP. Only
        :func:`query_all` tells, and what its ways are.
    """

    public_key: str
    endpoint: str | None = None
    allowed_ips: tuple[str, ...] = ()
    latest_handshake_s: int = 0
    rx_bytes: int = 0
    tx_bytes: int = 0
    persistent_keepalive_s: int = 0
    preshared_key: _x25519.SecretKey | None = field(default=None, repr=False)
    failover: int | None = None
    limits: Limits = field(default_factory=Limits)
    local_key: str = "primary"
    succeeds: str = ""
    endpoints: tuple[str, ...] = ()
    ways: Ways = field(default_factory=Ways)

    def handshake_age_s(self, now_s: float) -> int | None:
        """Seconds since the latest handshake; ``None`` for never."""
        return max(0, int(now_s) - self.latest_handshake_s) if self.latest_handshake_s else None


@dataclass(frozen=True)
class Relay:
    """:ivar public_key: base64, ``None`` when the relay has no key.
    :ivar failover: ``None`` without a failover group. Only :func:`query_all` tells.
    :ivar alternate_key: public key of its alternate identity, ``None`` without one. Only :func:`query_all`
        tells.
    :ivar layer: 3 for IP packets, 2 for Ethernet frames. Only :func:`query_all` tells.
    :ivar listeners: TCP ports on which it takes streams, by transport. Only :func:`query_all` tells.
    :ivar certificate: SHA-256 of the file whose certificate it shows there, in hexadecimal; empty where it
        does not say. Only :func:`query_all` tells.
    """

    public_key: str | None = None
    listen_port: int = 0
    fwmark: int = 0
    peers: tuple[Peer, ...] = field(default_factory=tuple)
    failover: Failover | None = None
    alternate_key: str | None = None
    layer: int = LAYER_IP
    listeners: Mapping[str, int] = field(default_factory=dict)
    certificate: str = ""


class Refused(HostError):
    """A relay refused a change; it did nothing of it.

    :ivar code: number of the error.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Rejection:
    """What a relay refused; see ``images/relay/src/culvert/rejections.py``.

    :ivar reason: ``mac1``, ``unknown_peer``, ``stale_timestamp``, ``bad_response``, ``source``,
        ``no_allowed_ip``, ``no_endpoint``, ``send_error``, or what a later relay may say.
    :ivar endpoint: where it came from, or was to go; empty where that is not known, as the next two.
    :ivar public_key: base64.
    :ivar address: the inner packet's source (``source``) or destination.
    :ivar count: how often.
    :ivar age_s: since the latest time.
    :ivar detail: of ``send_error`` the name of the error, such as ``EHOSTUNREACH``.
    """

    reason: str
    endpoint: str = ""
    public_key: str = ""
    address: str = ""
    count: int = 1
    age_s: int = 0
    detail: str = ""

    def as_dict(self) -> dict[str, Any]:
        """As ``relay_info`` has it."""
        return {
            "reason": self.reason,
            "endpoint": self.endpoint or None,
            "public_key": self.public_key or None,
            "count": self.count,
            "age_s": self.age_s,
        }


def rejections(path: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> tuple[Rejection, ...] | None:
    """What the relay behind the socket ``path`` refused lately, the latest first; ``None`` if nothing is
    listening there, or another program that does not know the question.
    """
    try:
        reply = _exchange(path, b"culvert=1\n\n", timeout_s)
    except HostError:
        return None
    return None if reply is None else parse_rejections(reply.decode("ascii", "replace"))


def parse_rejections(reply: str) -> tuple[Rejection, ...] | None:
    """Of the answer to ``culvert=1``. Keys, and fields at the end of a line, that are not known are passed
    over.
    """
    lines = [line.partition("=") for line in reply.splitlines()]
    if ("errno", "0") not in [(key, value) for key, _equals, value in lines]:
        return None
    found = [_rejection(value) for key, _equals, value in lines if key == "rejection"]
    return tuple(rejection for rejection in found if rejection)


def _rejection(text: str) -> Rejection | None:
    words = ["" if word == "-" else word for word in text.split()]
    words += [""] * (7 - len(words))
    reason, endpoint, public_key, address, count, age_s, detail = words[:7]
    if not reason or not count.isdigit() or not age_s.isdigit():
        return None
    return Rejection(reason, endpoint, public_key, address, int(count), int(age_s), detail)


def socket_path_of(options: Options, name: str) -> str:
    """The control socket's path, from option ``socket_path`` or from the interface's name."""
    return options.text("socket_path") or f"{SOCKET_DIRECTORY}/{name}.sock"


def interface_name(options: Options, option: str, default: str | None = None) -> str:
    name = options.required(option, default)
    if "/" in name or len(name.encode()) > 15:
        raise SpecError(option, f"{name!r} is not the name of an interface")
    return name


def query(path: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> Relay | None:
    """The state of the relay behind the socket ``path``; ``None`` when none is listening there.

    :raises HostError: something is, but does not answer as a relay.
    """
    reply = _exchange(path, b"get=1\n\n", timeout_s)
    return None if reply is None else parse(reply.decode("ascii", "replace"), path)


def failover(path: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> Failover | None:
    """The failover group of the relay behind the socket ``path``; ``None`` if it has none, or is none that
    knows the question.
    """
    return parse_failover(about(path, timeout_s))


def usage(path: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> dict[str, Usage]:
    """The peers of the relay behind the socket ``path`` that have a limit, by public key in base64; none of a
    relay that does not know the question.
    """
    return parse_usage(about(path, timeout_s))


def about(path: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> str:
    """What our own relay says of itself; empty where nothing is listening, or another program."""
    try:
        reply = _exchange(path, b"culvert=1\n\n", timeout_s)
    except HostError:
        return ""
    return "" if reply is None else reply.decode("ascii", "replace")


def query_all(path: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> Relay | None:
    """As :func:`query`, with the failover group and the peers' limits. A member's prefixes are its own then,
    without the group's.

    :raises HostError: as :func:`query`.
    """
    relay = query(path, timeout_s)
    if relay is None:
        return None
    said = about(path, timeout_s)
    found = with_limits(with_failover(relay, parse_failover(said)), parse_usage(said))
    found = replace(
        found,
        layer=parse_layer(said),
        listeners={row["transport"]: row["port"] for row in parse_listeners(said)},
        certificate=parse_certificate(said),
    )
    return with_succession(with_ways(found, parse_ways(said)), parse_succession(said))


def with_ways(relay: Relay, found: Mapping[str, Current]) -> Relay:
    """Pure part of :func:`query_all`."""
    if not found:
        return relay
    peers = [
        replace(peer, endpoints=found[peer.public_key].endpoints, ways=found[peer.public_key].ways)
        if peer.public_key in found
        else peer
        for peer in relay.peers
    ]
    return replace(relay, peers=tuple(peers))


def with_succession(relay: Relay, found: Succession) -> Relay:
    """Pure part of :func:`query_all`: what was a peer's before its successor took over is that peer's."""
    if not found.alternate_key and not found.peers:
        return relay
    heirs = {known.succeeds: key for key, known in found.peers.items() if known.succeeds}
    by_key = {peer.public_key: peer for peer in relay.peers}
    peers = []
    for peer in relay.peers:
        heir = by_key.get(heirs.get(peer.public_key, ""))
        known = found.peers.get(peer.public_key, Standing())
        if heir is not None:
            priority = heir.failover if peer.failover is None else peer.failover
            own = tuple(dict.fromkeys([*peer.allowed_ips, *heir.allowed_ips]))
            peer = replace(peer, allowed_ips=own, failover=priority)
        elif known.succeeds in by_key:
            peer = replace(peer, allowed_ips=(), failover=None)
        peers.append(replace(peer, local_key=known.local_key, succeeds=known.succeeds))
    return replace(relay, peers=tuple(peers), alternate_key=found.alternate_key or None)


def with_limits(relay: Relay, found: Mapping[str, Usage]) -> Relay:
    """Pure part of :func:`query_all`."""
    if not found:
        return relay
    peers = [
        replace(peer, limits=found[peer.public_key].limits) if peer.public_key in found else peer
        for peer in relay.peers
    ]
    return replace(relay, peers=tuple(peers))


def with_failover(relay: Relay, found: Failover | None) -> Relay:
    """Pure part of :func:`query_all`."""
    if found is None:
        return relay
    peers = []
    for peer in relay.peers:
        priority = found.priority_of(peer.public_key)
        own = peer.allowed_ips
        if priority is not None:
            own = tuple(prefix for prefix in own if prefix not in found.group.allowed_ips)
        peers.append(replace(peer, allowed_ips=own, failover=priority))
    return replace(relay, peers=tuple(peers), failover=found)


def instance(path: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> str | None:
    """The name that the process behind the socket ``path`` was given (``CULVERT_INSTANCE``), empty where it
    has none; ``None`` if nobody answers.
    """
    try:
        reply = _exchange(path, b"culvert=1\n\n", timeout_s)
    except HostError:
        return None
    if reply is None:
        return None
    lines = (line.partition("=") for line in reply.decode("ascii", "replace").splitlines())
    return next((value for key, _equals, value in lines if key == "instance"), "")


def configure(
    path: str,
    lines: Iterable[tuple[str, str | _x25519.SecretKey]],
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> None:
    """Have the relay behind the socket ``path`` change, in one request: it does all of it or nothing.

    :param lines: keys and values in the order of the request.
    :raises HostError: it is not there any more, or, as :class:`Refused`, refuses.
    """
    request = ["set=1"]
    for key, value in lines:
        request.append(f"{key}={value.reveal_hex() if isinstance(value, _x25519.SecretKey) else value}")
    reply = _exchange(path, "\n".join([*request, "\n"]).encode("ascii"), timeout_s)
    if reply is None:
        raise HostError(f"no relay listens on {path} any more: run again")
    key, _equals, code = reply.decode("ascii", "replace").strip().partition("=")
    if key != "errno" or not code.lstrip("-").isdigit():
        raise HostError(f"what is behind {path} does not speak WireGuard's userspace API")
    if int(code):
        # wireguard-go and the relay answer with negative numbers.
        number = abs(int(code))
        raise Refused(f"the relay behind {path} refuses the change: {os.strerror(number)}", number)


def _exchange(path: str, request: bytes, timeout_s: float) -> bytes | None:
    """The answer to one request, ``None`` when nothing listens. :raises HostError: nothing is answered."""
    deadline_s = time.monotonic() + timeout_s
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            # Refused: a socket file that a relay has left behind when it was killed.
            return None
        except OSError as error:
            raise HostError(f"cannot connect to {path}: {error.strerror or error}") from None
        try:
            connection.sendall(request)
            return _receive(connection, path, deadline_s)
        except OSError as error:
            raise HostError(f"the relay behind {path} does not answer: {error.strerror or error}") from None


def _receive(connection: socket.socket, path: str, deadline_s: float) -> bytes:
    """Up to the empty line that ends an answer."""
    reply = bytearray()
    while not reply.endswith(b"\n\n"):
        remaining_s = deadline_s - time.monotonic()
        if remaining_s <= 0:
            raise HostError(f"the relay behind {path} did not answer in time")
        connection.settimeout(remaining_s)
        chunk = connection.recv(65536)
        if not chunk:
            break
        reply += chunk
        if len(reply) > REPLY_MAX_BYTES:
            raise HostError(f"the answer of the relay behind {path} is longer than {REPLY_MAX_BYTES} bytes")
    return bytes(reply)


def parse(reply: str, path: str = "") -> Relay:
    """:raises HostError: it is not such an answer; the message does not quote it, as it may hold keys."""
    device: dict[str, str] = {}
    peers: list[dict[str, Any]] = []
    for line in reply.splitlines():
        key, _equals, value = line.partition("=")
        if key == "public_key":
            peers.append({"public_key": value, "allowed_ip": []})
        elif key == "allowed_ip" and peers:
            peers[-1]["allowed_ip"].append(value)
        elif key == "errno" or not peers:
            device[key] = value
        else:
            peers[-1][key] = value
    try:
        if int(device["errno"]):
            raise HostError(f"the relay behind {path} refuses to answer (errno {device['errno']})")
        private_key = device.get("private_key")
        return Relay(
            public_key=_public_key(private_key) if private_key else None,
            listen_port=int(device.get("listen_port", 0)),
            fwmark=int(device.get("fwmark", 0)),
            peers=tuple(_peer(peer) for peer in peers),
        )
    except (KeyError, ValueError):
        raise HostError(f"what is behind {path} does not speak WireGuard's userspace API") from None


def _public_key(private_key: str) -> str:
    return _x25519.to_base64(_x25519.public_key_of(bytes.fromhex(private_key)))


def _peer(values: Mapping[str, Any]) -> Peer:
    preshared_key = _x25519.SecretKey(bytes.fromhex(values.get("preshared_key", "")))
    return Peer(
        public_key=_x25519.to_base64(bytes.fromhex(values["public_key"])),
        endpoint=values.get("endpoint"),
        allowed_ips=tuple(values["allowed_ip"]),
        latest_handshake_s=int(values.get("last_handshake_time_sec", 0)),
        rx_bytes=int(values.get("rx_bytes", 0)),
        tx_bytes=int(values.get("tx_bytes", 0)),
        persistent_keepalive_s=int(values.get("persistent_keepalive_interval", 0)),
        preshared_key=preshared_key or None,
    )
