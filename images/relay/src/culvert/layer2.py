# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a device does with Ethernet frames: it is a switch, whose ports are the peers and our own side.

Rules that hold in this file:

1. A frame goes to the port that its destination was learnt behind, or to all. Never back to where it came
   from. Our own side is the TAP device and whatever is bridged with it.
2. With client isolation, all that a peer sends goes to our own side and nowhere else: ARP, neighbour
   discovery and DHCP of one peer are not heard by another.
3. Group frames and those for unknown stations go everywhere, so of those only so many a second are taken
   from a port, and so many given to a peer (the storm limit). What is for a known station is not held up.
4. What :mod:`culvert.switch` refuses, because its source is at home elsewhere, is dropped.
5. Frames pass as they are, with their VLAN tags. What is longer than our own device's MTU allows is dropped.
6. Two peers of which one succeeds the other are one port, the predecessor's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from .batch import Buffer
from .constants import (
    KEY_BYTES,
    MAC_AGEING_RANGE_S,
    MAC_AGEING_S,
    MAC_LIMIT,
    MAC_LIMIT_RANGE,
    STORM_LIMIT_MOST_PER_S,
    STORM_LIMIT_PER_S,
)
from .document import flag, integer, number, octets, sequence, text
from .ethernet import HEADER_BYTES, MAX_FRAME_BYTES, TAGS_BYTES, Heading, read_heading
from .frame import PLAIN, VNET_HEADER_BYTES
from .ratelimit import TokenBucket
from .rejections import Reason
from .switch import Switch, Verdict

if TYPE_CHECKING:
    from .context import Context
    from .peer import Peer

__all__ = ["LAYER2_DEFAULTS", "Drop", "Layer2", "Layer2Settings", "Layer2State", "PortState"]

_HOST = b""
_ADDRESS_LENGTHS = (6, 8)


class Drop(Enum):
    """Why frames were dropped, as the control socket spells it."""

    MALFORMED = "malformed"
    "No Ethernet frame, from a group's address, PAUSE, or with a header of offloads that nobody uses here."
    OVERSIZED = "oversized"
    "Longer than the MTU of our device allows, or than fits in a datagram."
    STORM = "storm"
    "Group frames, and frames for unknown stations, beyond the storm limit."
    MOVED = "moved"
    "From an address that belongs to another port: a loop, a lie, or a station that was too quick."


@dataclass(frozen=True, slots=True)
class Layer2Settings:
    """What the configuration file says of the switch."""

    client_isolation: bool = False
    storm_limit_per_s: int = STORM_LIMIT_PER_S
    "Frames a second and port, for and from it; 0: as many as there are."
    mac_limit: int = MAC_LIMIT
    "Addresses behind each peer."
    mac_ageing_s: int = MAC_AGEING_S


LAYER2_DEFAULTS = Layer2Settings()


@dataclass(frozen=True, slots=True)
class PortState:
    """What there is to say of a port."""

    public_key: bytes
    "Empty for our own side."
    addresses: int
    dropped: int
    "Frames that it sent, or that were for it."


@dataclass(frozen=True, slots=True)
class Layer2State:
    """The switch, for the owner of the device."""

    settings: Layer2Settings
    addresses: int
    ports: Sequence[PortState]
    dropped: Mapping[Drop, int]
    unlearnt: int
    "Frames whose source was not learnt, for the port has as many addresses as it may."


class _Gate:
    """The storm limit of one port."""

    __slots__ = ("into", "out_of")

    def __init__(self, rate_per_s: int, now: float) -> None:
        self.out_of = TokenBucket(rate_per_s, rate_per_s, now)
        self.into = TokenBucket(rate_per_s, rate_per_s, now)


class Layer2:
    """The switch of one device.

    :param peers: all of them, by public key.
    """

    def __init__(self, context: Context, peers: Mapping[bytes, Peer]) -> None:
        self._context = context
        self._peers = peers
        self.settings = LAYER2_DEFAULTS
        self._switch = Switch(_HOST, self.settings.mac_limit, self.settings.mac_ageing_s)
        self._gates: dict[bytes, _Gate] = {}
        self._dropped: Counter[Drop] = Counter()
        self._dropped_at: Counter[bytes] = Counter()
        self._unlearnt = 0

    def configure(self, settings: Layer2Settings, now: float) -> None:
        """Other settings; what was learnt stays."""
        if settings.storm_limit_per_s != self.settings.storm_limit_per_s:
            self._gates.clear()
        self._switch.resize(settings.mac_limit, settings.mac_ageing_s, now)
        self.settings = settings

    # --- Frames ---------------------------------------------------------------------------------------------

    def send(self, frames: Sequence[Buffer], now: float) -> None:
        """Frames read from the TAP device (see :mod:`culvert.frame`), in order."""
        runs: dict[Peer, list[Buffer]] = {}
        for frame in frames:
            heading = self._heading(frame, _HOST)
            if heading is None or not self._learn(heading, _HOST, now):
                continue
            for peer in self._peers_for(heading, _HOST, now):
                runs.setdefault(peer, []).append(frame)
        for peer, run in runs.items():
            self._give(peer, run, now)

    def receive(self, peer: Peer, frame: Buffer, now: float) -> None:
        """A frame that a peer sealed, after a header of zeros; it is kept until it is written."""
        port = self._port(peer)
        heading = self._heading(frame, port)
        if heading is None or not self._learn(heading, port, now):
            return
        target = self._find(heading, now)
        if target == port or (target is None and not self._admits(port, now)):
            return
        isolated = self.settings.client_isolation
        if target is None or target == _HOST or isolated:
            self._context.incoming.append(frame)
        if not isolated and target != _HOST:
            for other in self._beyond(target, port, now):
                self._give(other, [frame], now)

    def _heading(self, frame: Buffer, port: bytes) -> Heading | None:
        """None for what is dropped."""
        size = len(frame) - VNET_HEADER_BYTES
        if size > min(self._context.mtu_bytes + HEADER_BYTES + TAGS_BYTES, MAX_FRAME_BYTES):
            self._drop(Drop.OVERSIZED, port)
            return None
        heading = None
        if frame[:VNET_HEADER_BYTES] == PLAIN:
            heading = read_heading(memoryview(frame)[VNET_HEADER_BYTES:])
        if heading is None:
            self._drop(Drop.MALFORMED, port)
        return heading

    def _learn(self, heading: Heading, port: bytes, now: float) -> bool:
        """Whether the frame may be from there."""
        verdict = self._switch.learn(heading.source, port, now)
        if verdict is Verdict.REFUSED:
            self._drop(Drop.MOVED, port)
            return False
        self._unlearnt += verdict is Verdict.FULL
        return True

    def _find(self, heading: Heading, now: float) -> bytes | None:
        return None if heading.is_group else self._switch.find(heading.target, now)

    def _peers_for(self, heading: Heading, port: bytes, now: float) -> Iterator[Peer]:
        target = self._find(heading, now)
        if target == port or (target is None and not self._admits(port, now)):
            return
        yield from self._beyond(target, port, now)

    def _beyond(self, target: bytes | None, port: bytes, now: float) -> Iterator[Peer]:
        """The peer behind a port, or all that a frame can be sent to but the one it came from."""
        if target is not None:
            peer = self._peers.get(target)
            if peer is not None:
                yield peer
            return
        for key, peer in self._peers.items():
            if key == port or self._port(peer) != key or not self._is_there(peer):
                continue
            if not self._bounded or self._gate(key, now).into.allow(now):
                yield peer
            else:
                self._drop(Drop.STORM, key)

    @staticmethod
    def _is_there(peer: Peer) -> bool:
        active = peer.active
        return active is not None and active.endpoint is not None and not active.barred

    def _give(self, owner: Peer, frames: list[Buffer], now: float) -> None:
        """Send frames to a port, by whoever carries for it."""
        peer = owner.active
        if peer is None:
            return
        limiter, key, note = peer.limiter, peer.public_key, self._context.rejections.note
        if limiter is not None and limiter.barred is not None:
            note(limiter.barred, key, now, public_key=key, count=len(frames))
        elif peer.endpoint is None:
            note(Reason.NO_ENDPOINT, key, now, public_key=key, count=len(frames))
        elif limiter is None:
            peer.send(frames, 0, len(frames), now)
        else:
            passed = limiter.outgoing(frames, now)
            if passed:
                peer.send(passed, 0, len(passed), now)
                limiter.spent()

    # --- Ports ----------------------------------------------------------------------------------------------

    @staticmethod
    def _port(peer: Peer) -> bytes:
        predecessor = None if peer.kin is None else peer.kin.predecessor
        return (peer if predecessor is None else predecessor).public_key

    @property
    def _bounded(self) -> bool:
        return self.settings.storm_limit_per_s > 0

    def _gate(self, port: bytes, now: float) -> _Gate:
        gate = self._gates.get(port)
        if gate is None:
            gate = self._gates[port] = _Gate(self.settings.storm_limit_per_s, now)
        return gate

    def _admits(self, port: bytes, now: float) -> bool:
        """Whether a frame that goes everywhere may come from there now."""
        if not self._bounded or self._gate(port, now).out_of.allow(now):
            return True
        self._drop(Drop.STORM, port)
        return False

    def _drop(self, why: Drop, port: bytes) -> None:
        self._dropped[why] += 1
        self._dropped_at[port] += 1

    def forget(self, peer: Peer) -> None:
        """A peer is going to be removed. What is behind it is its successor's, if it has one."""
        key = peer.public_key
        successor = None if peer.kin is None else peer.kin.successor
        if successor is None:
            self._switch.forget(key)
        else:
            self._switch.replace(key, successor.public_key)
        self._gates.pop(key, None)
        self._dropped_at.pop(key, None)

    def linked(self, successor: Peer, predecessor: Peer) -> None:
        """One peer succeeds another from now on: they are one port."""
        self._switch.replace(successor.public_key, predecessor.public_key)

    def owner(self, frame: Buffer, outgoing: bool) -> bytes | None:
        """The public key of the peer that the far end of a frame (without a header before it) is behind."""
        heading = read_heading(frame)
        if heading is None:
            return None
        return self._switch.peek(heading.target if outgoing else heading.source) or None

    # --- State ----------------------------------------------------------------------------------------------

    def state(self, now: float) -> Layer2State:
        self._switch.age(now)
        ports = (_HOST, *(key for key, peer in self._peers.items() if self._port(peer) == key))
        states = [PortState(key, self._switch.count(key), self._dropped_at[key]) for key in ports]
        return Layer2State(self.settings, len(self._switch), states, dict(self._dropped), self._unlearnt)

    def export(self) -> dict[str, Any]:
        """Settings and table of addresses, as JSON has them."""
        settings = self.settings
        return {
            "client_isolation": settings.client_isolation,
            "storm_limit_per_s": settings.storm_limit_per_s,
            "mac_limit": settings.mac_limit,
            "mac_ageing_s": settings.mac_ageing_s,
            "macs": [[mac.hex(), port.hex(), heard_s] for mac, port, heard_s in self._switch.entries()],
        }

    def restore(self, values: Mapping[str, Any], now: float) -> None:
        """What :meth:`export` wrote, for a device that has its peers. :raises ValueError: it did not write
        that.
        """
        settings = Layer2Settings(
            flag(values.get("client_isolation")),
            integer(values.get("storm_limit_per_s"), 0, STORM_LIMIT_MOST_PER_S),
            integer(values.get("mac_limit"), *MAC_LIMIT_RANGE),
            integer(values.get("mac_ageing_s"), *MAC_AGEING_RANGE_S),
        )
        self.configure(settings, now)
        for entry in sequence(values.get("macs")):
            address, port, heard_s = _entry(entry)
            if port != _HOST and port not in self._peers:
                raise ValueError("an address belongs to a peer that there is not")
            if heard_s > now:
                raise ValueError("an address was heard in time to come")
            self._switch.learn(address, port, heard_s)


def _entry(value: Any) -> tuple[bytes, bytes, float]:
    entry = sequence(value)
    if len(entry) != 3:
        raise ValueError("is no address with its port")
    address, port, heard_s = text(entry[0]), text(entry[1]), number(entry[2])
    size = len(address) // 2
    if size not in _ADDRESS_LENGTHS:
        raise ValueError("is no address")
    return octets(address, size), octets(port, KEY_BYTES if port else 0), heard_s
