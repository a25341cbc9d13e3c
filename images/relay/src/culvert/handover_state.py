# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a relay is, as one JSON document: the process that hands over writes it, its successor reads it.

A table for each kind of object, a row for each attribute. Rules:

1. An attribute that has its row's default is left out; what is missing has the default. So a row may be added
   without a word to older or newer versions.
2. What a version must not do without says so (``needs``): its name is in the document as soon as the
   attribute is not the default, and who does not know the name takes nothing over.
3. The reader believes nothing: whatever does not fit is ValueError, and then all of it is thrown away.
4. Reading sends nothing and runs no timer. Times are those of CLOCK_BOOTTIME, which both processes have.

The document holds every secret of the relay. It exists in memory and in a unix socket between two processes
of one owner, and nowhere else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

from .allowedips import Network
from .constants import (
    FAILOVER_RETURN_S,
    FAILOVER_TIMEOUT_S,
    HANDOVER_FORMAT,
    KEY_BYTES,
    MAX_PRIORITY,
    TIMESTAMP_BYTES,
)
from .context import Context
from .device import Device
from .document import flag, integer, mapping, number, octets, sequence, text
from .endpoint import NO_TARGET, SCHEMES, UDP, Endpoint, EndpointName, Target
from .keys import ZERO_KEY, Identity
from .member import Member
from .peer import Peer
from .relay import Relay
from .timers import Timer

__all__ = ["KNOWN", "Row", "read_listeners", "read_state", "restore_state", "write_state"]

KNOWN: frozenset[str] = frozenset(
    ("frames", "identities", "layer2", "limits", "streams", "succession", "ways")
)
"""What this version knows of that others must not do without."""
_NEVER, _ALWAYS = float("inf"), float("-inf")
# The two processes read one clock, and what lies between is a few seconds at most.
_MOST_S = 60.0
_LONGEST_LOCAL_BYTES = 64


@dataclass(frozen=True, slots=True)
class Kind:
    """How a value is written, and read again. :raises ValueError: from ``read``."""

    write: Callable[[Any], Any]
    read: Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One attribute of an object. (In the document its name has no underscore in front.)"""

    name: str
    kind: Kind
    default: Any = None
    needs: str = ""


def _up_to(most: int) -> Kind:
    return Kind(int, lambda value: integer(value, 0, most))


def _octets(length: int) -> Kind:
    return Kind(lambda value: bytes(value).hex(), lambda value: octets(value, length))


def _write_endpoint(endpoint: Endpoint | EndpointName) -> list[Any]:
    scheme = [endpoint.scheme] if endpoint.is_stream else []
    if isinstance(endpoint, EndpointName):
        return [endpoint.host, endpoint.port, *scheme]
    return [endpoint.host, endpoint.port, endpoint.scope_id, endpoint.local.hex(), *scheme]


def _read_scheme(scheme: str = UDP) -> str:
    if text(scheme) not in SCHEMES:
        raise ValueError("has a scheme that there is not")
    return scheme


def _read_endpoint(value: Any) -> Endpoint:
    host, port, scope_id, local, *scheme = sequence(value)
    try:
        return Endpoint(
            text(host),
            integer(port, 0, 2**16 - 1),
            integer(scope_id, 0, 2**32 - 1),
            octets(local, min(len(text(local)) // 2, _LONGEST_LOCAL_BYTES)),
            _read_scheme(*scheme),
        )
    except OSError:
        raise ValueError("is not the text of an address") from None


def _read_name(value: Any) -> EndpointName:
    host, port, *scheme = sequence(value)
    return EndpointName(text(host), integer(port, 0, 2**16 - 1), _read_scheme(*scheme))


def _read_place(value: Any) -> Endpoint | EndpointName:
    return _read_name(value) if len(sequence(value)) < 4 else _read_endpoint(value)


def _write_target(target: Target) -> list[Any]:
    return [target.server_name, *(pin.hex() for pin in target.pins)]


def _read_target(value: Any) -> Target:
    server_name, *pins = sequence(value)
    return Target(tuple(octets(pin, KEY_BYTES) for pin in pins), text(server_name))


def _by_key(kind: Kind) -> Kind:
    """A dictionary by public keys."""
    return Kind(
        lambda found: {key.hex(): kind.write(value) for key, value in found.items()},
        lambda found: {octets(key, KEY_BYTES): kind.read(value) for key, value in mapping(found).items()},
    )


def _write_configured(found: Sequence[Endpoint | EndpointName]) -> Any:
    if len(found) > 1:
        return [_write_endpoint(one) for one in found]
    # As it was when a peer had no more than one.
    return _write_endpoint(found[0]) if found else None


def _read_configured(value: Any) -> tuple[Endpoint | EndpointName, ...]:
    if not value:
        return ()
    first = sequence(value)[0]
    return tuple(map(_read_place, value)) if isinstance(first, list) else (_read_place(value),)


UINT16, UINT32, UINT64 = (_up_to(2**bits - 1) for bits in (16, 32, 64))
FLAG = Kind(bool, flag)
SECONDS = Kind(float, number)
PAST = Kind(float, number)
"A moment that must not be later than now."
TEXT = Kind(str, text)
KEY = _octets(KEY_BYTES)
ENDPOINT = Kind(_write_endpoint, _read_endpoint)
PLACES = Kind(
    lambda found: [_write_endpoint(one) for one in found],
    lambda value: tuple(_read_place(one) for one in sequence(value)),
)
_NAME = Kind(_write_endpoint, _read_name)
_CONFIGURED = Kind(_write_configured, _read_configured)
PART = Kind(lambda part: part.export(), mapping)
"""An object with ``export()`` and ``restore(mapping)`` of its own."""
PEER_REF = Kind(lambda peer: peer.public_key.hex(), lambda value: octets(value, KEY_BYTES))
"""Another peer of the device."""

RELAY = (
    Row("fwmark", UINT32, 0),
    Row("_fixed_port", UINT16, 0),
    Row("_configured_endpoints", _by_key(_CONFIGURED), {}),
)
NAMES = (Row("names", _by_key(_NAME), {}), Row("resolve_at", _by_key(SECONDS), {}))
CONTEXT = (Row("clock", PART),)
STATS = (Row("tx_bytes", UINT64, 0), Row("rx_bytes", UINT64, 0), Row("last_handshake_ns", UINT64, 0))
PEER = (
    Row("preshared_key", KEY, ZERO_KEY),
    Row("endpoint", ENDPOINT),
    Row("endpoints", PLACES, (), "streams"),
    Row("target", Kind(_write_target, _read_target), NO_TARGET),
    Row("frame_messages", FLAG, False, "frames"),
    Row("keepalive_interval_s", UINT16, 0),
    Row("unanswered", UINT32, 0),
    Row("last_heard_s", PAST, _ALWAYS),
    Row("awaiting_s", PAST, _NEVER),
    Row("initiated_s", PAST, _ALWAYS),
    Row("latest_timestamp", _octets(TIMESTAMP_BYTES), bytes(TIMESTAMP_BYTES)),
    Row("_attempts", UINT32, 0),
    Row("_another_keepalive", FLAG, False),
    Row("_last_minute", FLAG, False),
    Row("_sent_handshake_s", PAST, _ALWAYS),
    Row("_answered_initiation_s", PAST, _ALWAYS),
    Row("_stamper", PART),
    Row("_timers", PART),
)
GROUP = (Row("timeout_s", SECONDS, FAILOVER_TIMEOUT_S), Row("return_s", SECONDS, FAILOVER_RETURN_S))
MEMBER = (
    Row("echoes", FLAG),
    Row("_doublings", _up_to(16), 0),
    Row("_returned_s", PAST, _ALWAYS),
    Row("_steady_since_s", SECONDS, _NEVER),
    Row("eager_until_s", SECONDS, _ALWAYS),
)


# --- Writing ------------------------------------------------------------------------------------------------


def _write(target: object, rows: Sequence[Row], needs: set[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for row in rows:
        value = getattr(target, row.name)
        if value is None or value == row.default:
            continue
        written = row.kind.write(value)
        if row.kind is PART and not written:
            continue
        values[row.name.lstrip("_")] = written
        if row.needs:
            needs.add(row.needs)
    return values


def write_state(relay: Relay, version: str, now: float, listeners: Sequence[tuple[str, int]] = ()) -> bytes:
    """All of it. Nothing may be sent or received by ``relay`` from here on, see :mod:`culvert.handover`.

    :param listeners: scheme and port of the sockets that listen, which go along.
    """
    needs: set[str] = set()
    device = relay.device
    document: dict[str, Any] = {
        "format": HANDOVER_FORMAT,
        "version": version,
        "now_s": now,
        "relay": _write(relay, RELAY, needs) | _write(relay.names, NAMES, needs),
        "context": _write(device._context, CONTEXT, needs),
        "checkers": {key.hex(): one.export() for key, one in device._handshakes.checkers.items()},
        "peers": [_write_peer(device, peer, needs) for peer in device.peers()],
        "group": _write_group(device, needs),
        "usage": device.warden.keep_usage().format(),
    }
    if listeners:
        document["listeners"] = [list(one) for one in listeners]
    if device.identity is not None:
        document["private_key"] = device.identity.private_bytes().hex()
    if device.alternate is not None:
        document["alternate_private_key"] = device.alternate.private_bytes().hex()
        needs.add("identities")
    if device.succession:
        document["successions"] = device.succession.export()
        needs.add("succession")
    if device.layer2 is not None:
        document["layer2"] = device.layer2.export()
        needs.add("layer2")
    document["needs"] = sorted(needs)
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode("ascii")


def _write_peer(device: Device, peer: Peer, needs: set[str]) -> dict[str, Any]:
    values = _write(peer, PEER, needs)
    values["public_key"] = peer.public_key.hex()
    values["allowed_ips"] = [str(network) for network in device.allowed_ips(peer)]
    if peer.kin is not None and peer.kin.alternate:
        values["alternate"] = True
    values["stats"] = _write(peer.stats, STATS, needs)
    values["keypairs"] = peer.keypairs.export()
    if peer.endpoint is not None and peer.endpoint.is_stream:
        needs.add("streams")
    if peer.ways is not None:
        values["ways"] = peer.ways.export()
        needs.add("ways")
    if peer._pending is not None:
        values["pending"] = True
    if peer.limiter is not None:
        values["limiter"] = peer.limiter.export()
        needs.add("limits")
    return values


def _write_group(device: Device, needs: set[str]) -> dict[str, Any]:
    group = device.failover
    values = _write(group, GROUP, needs)
    values["allowed_ips"] = [str(network) for network in device.allowed_ips(group)]
    values["members"] = [
        _write(member, MEMBER, needs) | {"peer": peer.public_key.hex(), "priority": member.priority}
        for peer, member in group._members.items()
    ]
    if group.active is not None:
        values["active"] = group.active.public_key.hex()
    return values


# --- Reading ------------------------------------------------------------------------------------------------


def read_state(data: bytes, now: float) -> Mapping[str, Any]:
    """The document, if it is one that we know all of that matters.

    :raises ValueError: it is none, is of another format, needs what we do not know, or was written on
        another clock.
    """
    try:
        document = mapping(json.loads(data.decode("ascii")))
    except (ValueError, RecursionError):
        raise ValueError("the state is no document") from None
    if document.get("format") != HANDOVER_FORMAT:
        raise ValueError("the state has a format that this version does not know")
    unknown = {text(name) for name in sequence(document.get("needs"))} - KNOWN
    if unknown:
        raise ValueError(f"the state needs what this version does not know: {', '.join(sorted(unknown))}")
    if not 0.0 <= now - number(document.get("now_s")) <= _MOST_S:
        raise ValueError("the state was written by another clock than ours")
    return document


def read_listeners(document: Mapping[str, Any], most: int) -> list[tuple[str, int]]:
    """What the last descriptors are: sockets that listen, scheme and port of each.

    :raises ValueError: there are more labels than ``most``, or they are none.
    """
    labels = [sequence(label) for label in sequence(document.get("listeners", []))]
    if len(labels) > most or any(len(label) != 2 for label in labels):
        raise ValueError("listeners do not fit the descriptors")
    return [(text(scheme), integer(port, 1, 2**16 - 1)) for scheme, port in labels]


def _read(device: Device, target: object, rows: Sequence[Row], values: Mapping[str, Any], now: float) -> None:
    for row in rows:
        name = row.name.lstrip("_")
        if name not in values:
            continue
        try:
            value = row.kind.read(values[name])
            if row.kind is PART:
                getattr(target, row.name).restore(value)
                continue
            if row.kind is PAST and value > now:
                raise ValueError("is still to come")
            setattr(target, row.name, _peer(device, value) if row.kind is PEER_REF else value)
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{name} {error}") from None


def _peer(device: Device, public_key: bytes) -> Peer:
    peer = device.peer(public_key)
    if peer is None:
        raise ValueError("names a peer that there is not")
    return peer


def restore_state(relay: Relay, document: Mapping[str, Any], now: float) -> int:
    """Make a relay what the document says; the number of its sessions. Peers that it has already are kept,
    and have to be as new.

    :raises ValueError: something does not fit. The relay is of no use then.
    """
    device = relay.device
    if (device.layer2 is not None) != ("layer2" in sequence(document.get("needs"))):
        raise ValueError("the state is of another layer")
    device.set_identities(*_read_identities(document))
    entries = [mapping(entry) for entry in sequence(document.get("peers"))]
    keys = [octets(entry.get("public_key"), KEY_BYTES) for entry in entries]
    if len(set(keys)) != len(keys):
        raise ValueError("a peer is there twice")
    for gone in {peer.public_key for peer in device.peers()}.difference(keys):
        device.remove_peer(gone)
    peers = [device.add_peer(key) for key in keys]
    context = device._context
    _read(device, context, CONTEXT, mapping(document.get("context")), now)
    values = mapping(document.get("relay"))
    _read(device, relay, RELAY, values, now)
    _read(device, relay.names, NAMES, values, now)
    checkers = device._handshakes.checkers
    for key, values in mapping(document.get("checkers")).items():
        identity = octets(key, KEY_BYTES)
        if identity in checkers:
            checkers[identity].restore(mapping(values))
    usage = document.get("usage", "")
    if type(usage) is not str:
        raise ValueError("usage is not a text")
    device.warden.book.read(usage)
    for peer, entry in zip(peers, entries, strict=True):
        _read_peer(device, context, peer, entry, now)
    successions = sequence(document.get("successions", []))
    device.succession.restore(successions, lambda key: _peer(device, key), now)
    _read_group(device, mapping(document.get("group")), now)
    if device.layer2 is not None:
        device.layer2.restore(mapping(document.get("layer2")), now)
    return len(context.keypairs)


def _read_identities(document: Mapping[str, Any]) -> list[Identity | None]:
    """The primary and the alternate one."""
    keys = [document.get(name) for name in ("private_key", "alternate_private_key")]
    return [None if key is None else Identity(octets(key, KEY_BYTES)) for key in keys]


def _read_peer(device: Device, context: Context, peer: Peer, values: Mapping[str, Any], now: float) -> None:
    alternate = flag(values.get("alternate", False))
    if alternate and device.alternate is None:
        raise ValueError("a peer belongs to an identity that there is not")
    device.succession.bind(peer, alternate=alternate)
    _read(device, peer, PEER, values, now)
    _read(device, peer.stats, STATS, mapping(values.get("stats")), now)
    for network in _networks(values):
        device.allow(peer, network)
    for keypair in peer.keypairs.restore(context.batch, mapping(values.get("keypairs")), peer):
        if keypair.local_index in context.keypairs:
            raise ValueError("two sessions have one index")
        if keypair.created_s > now:
            # It would outlive its limit (section 6.2).
            raise ValueError("a session is still to come")
        context.keypairs[keypair.local_index] = keypair
    peer.restore_ways(values.get("ways"), now)
    if values.get("pending"):
        # Its ephemeral key stays behind: a new initiation at once is as good as an answer to the old one.
        peer._sent_handshake_s = _ALWAYS
        peer._timers.set(Timer.RETRANSMIT, now)
    if "limiter" in values:
        device.warden.restore(peer, mapping(values["limiter"]), now)


def _networks(values: Mapping[str, Any]) -> list[Network]:
    try:
        return [ip_network(text(network)) for network in sequence(values.get("allowed_ips"))]
    except ValueError:
        raise ValueError("allowed_ips is not a list of networks") from None


def _read_group(device: Device, values: Mapping[str, Any], now: float) -> None:
    group = device.failover
    _read(device, group, GROUP, values, now)
    for network in _networks(values):
        device.allow(group, network)
    for entry in map(mapping, sequence(values.get("members"))):
        peer = _peer(device, octets(entry.get("peer"), KEY_BYTES))
        group.join(peer, integer(entry.get("priority"), 0, MAX_PRIORITY))
        member: Member = group._members[peer]
        _read(device, member, MEMBER, entry, now)
    active = values.get("active")
    found = None if active is None else _peer(device, octets(active, KEY_BYTES))
    if found is not None and found not in group._members:
        raise ValueError("the active member is none")
    group.resume(found, now)
