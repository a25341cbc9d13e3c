# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Finds out what goes around the tunnel, by sending something that nobody else sends and looking for it on
every other device.

One socket of AF_PACKET listens on all devices. What it hears is thrown away unless it leaves the host by a
device outside of the tunnel and holds one of the random words that were sent, so that a busy host's own
traffic costs a comparison for each packet. What the kernel could not hand over in time is counted: after that
nothing can be said of what was not seen. The tunnel's own packets are encrypted and never match.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import select
import socket
import string
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from ._core import HostError
from ._probe import Address

_ETH_P_ALL = 0x0003
_ETH_P_ARP = 0x0806
# include/uapi/linux/if_packet.h
_SOL_PACKET = 263
_PACKET_STATISTICS = 6
_PACKET_OUTGOING = 4
_SO_RCVBUFFORCE = 33
_BUFFER_BYTES = 8 * 1024 * 1024
_SNAP_BYTES = 600  # a word of ours is always near the beginning
_DISCARD_PORT = 9
_DESTINATION = {4: slice(16, 20), 6: slice(24, 40)}
_PRIVATE = tuple(
    ipaddress.ip_network(text)
    for text in (
        "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7", "fe80::/10",
    )
)  # fmt: skip
# What was sent is on its device within microseconds, unless a neighbour has to be asked for first.
_SETTLE_S = 0.4
LOOKUP_TIMEOUT_S = 3.0
# Not every C library has the second.
_NO_SUCH_NAME = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


@dataclass
class Trial:
    """Something that was sent, and where it was seen.

    :ivar kind: ``ipv4``, ``ipv6``, ``uplink`` or ``dns``.
    :ivar target: the address that it was sent to, or the name that was looked up.
    :ivar words: one of these in a packet, and it is this one.
    :ivar neighbour: of a target that the kernel takes for a neighbour, the question for it is a sign as well.
    :ivar refusal: why the kernel would not send it.
    """

    kind: str
    target: str
    words: tuple[bytes, ...]
    device: str = ""
    neighbour: bytes = b""
    refusal: str = ""
    seen: set[str] = field(default_factory=set)


@dataclass
class Lookup:
    """A name that nobody can have looked up before.

    :ivar answered: a resolver has said something, even if only that there is no such name.
    """

    name: str
    answered: bool = False
    done: bool = False
    trouble: str = ""

    def run(self) -> None:
        try:
            socket.getaddrinfo(f"{self.name}.", 80, type=socket.SOCK_STREAM)
            self.answered = True
        except socket.gaierror as error:
            self.answered = error.errno in _NO_SUCH_NAME
            self.trouble = error.strerror or str(error)
        except OSError as error:
            self.trouble = error.strerror or str(error)
        self.done = True


@dataclass(frozen=True)
class LeakFacts:
    """:ivar missed: packets that the kernel could not hand over.
    :ivar trouble: why nothing could be listened to.
    """

    trials: tuple[Trial, ...] = ()
    lookup: Lookup | None = None
    missed: int = 0
    trouble: str = ""

    def of(self, kind: str) -> list[Trial]:
        return [trial for trial in self.trials if trial.kind == kind]


class Listener:
    """Made by :func:`listening`."""

    def __init__(self, packets: socket.socket, inside: Sequence[str], container_devices: Sequence[str]):
        self._packets = packets
        self._inside = {*inside, "lo"}
        self._containers = tuple(container_devices)
        self._buffer = memoryview(bytearray(_SNAP_BYTES))
        self.missed = 0

    def hear(self, trials: Sequence[Trial], deadline_s: float) -> None:
        """Take in what there is until ``deadline_s`` (monotonic), and note where each trial was seen."""
        while select.select([self._packets], [], [], max(0.0, deadline_s - time.monotonic()))[0]:
            try:
                length, sender = self._packets.recvfrom_into(self._buffer)
            except OSError:
                # A device went away under the socket; the others are still heard.
                continue
            device, protocol, kind = sender[0], sender[1], sender[2]
            if kind == _PACKET_OUTGOING and device not in self._inside:
                self._note(bytes(self._buffer[:length]), device, protocol, trials)
            if time.monotonic() >= deadline_s:
                break

    def _note(self, packet: bytes, device: str, protocol: int, trials: Sequence[Trial]) -> None:
        # Resolvers may ask for a name in any mixture of upper and lower case.
        lower = packet.lower()
        for trial in trials:
            asked = bool(trial.neighbour) and device == trial.device and is_question(packet, protocol, trial)
            if not asked and not any(word in lower for word in trial.words):
                continue
            if not asked and matches(device, self._containers) and to_private(packet):
                continue
            trial.seen.add(device)

    def count_missed(self) -> int:
        """How many packets were lost since the last call."""
        stats = self._packets.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        return int(struct.unpack("II", stats)[1])


def is_question(packet: bytes, protocol: int, trial: Trial) -> bool:
    """Whether a packet asks for the hardware address of the trial's target: ARP, or neighbour solicitation
    (RFC 4861, section 4.3: type 135, the target at octet 8 of the message).
    """
    wanted = trial.neighbour
    if protocol == _ETH_P_ARP:
        return packet[24:28] == wanted
    if len(wanted) != 16 or len(packet) < 64 or packet[0] >> 4 != 6:
        return False
    return packet[6] == socket.IPPROTO_ICMPV6 and packet[40] == 135 and packet[48:64] == wanted


def matches(device: str, patterns: Sequence[str]) -> bool:
    """As in iptables: a ``+`` at the end stands for any end of the name."""
    return any(
        device.startswith(pattern[:-1]) if pattern.endswith("+") else device == pattern
        for pattern in patterns
    )


def to_private(packet: bytes) -> bool:
    """Whether a packet's destination is private."""
    version = packet[0] >> 4 if packet else 0
    raw = packet[_DESTINATION[version]] if version in _DESTINATION else b""
    if len(raw) not in (4, 16):
        return False
    address = ipaddress.ip_address(raw)
    return any(network.version == version and address in network for network in _PRIVATE)


def stays_here(device: str, address: str, container_devices: Sequence[str]) -> bool:
    """Whether what is sent there by that device goes to a container of this host."""
    ip = ipaddress.ip_address(address)
    private = any(network.version == ip.version and ip in network for network in _PRIVATE)
    return private and matches(device, container_devices)


@contextmanager
def listening(inside: Sequence[str], container_devices: Sequence[str]) -> Iterator[Listener]:
    """Listen on all devices but ``inside``, the tunnel's.

    :raises HostError: the process may not.
    """
    try:
        # Without the link layer's header, so that a packet begins with IP on every kind of device.
        packets = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL))
    except OSError as error:
        raise HostError(f"cannot listen on the host's devices: {error.strerror}; needs root") from None
    with packets:
        packets.setblocking(False)
        try:
            packets.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        except OSError:
            packets.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        yield Listener(packets, inside, container_devices)


def random_word() -> str:
    """Sixteen lower-case letters: a label of a name, and unlikely in anybody else's packet."""
    return "".join(secrets.choice(string.ascii_lowercase) for _n in range(16))


def trial_to(target: Address, uplink: str = "") -> Trial:
    """A datagram to be sent to ``target``, or, bound to it, out of ``uplink``."""
    return Trial(
        kind="uplink" if uplink else f"ipv{target.version}",
        target=str(target),
        words=(random_word().encode(),),
        device=uplink,
        neighbour=target.packed if uplink else b"",
    )


def send(trial: Trial) -> None:
    """Send the trial's datagram; a refusal of the kernel is noted in it."""
    family = socket.AF_INET6 if ":" in trial.target else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as connection:
            connection.setblocking(False)
            if trial.device:
                device = os.fsencode(trial.device) + b"\0"
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
            connection.sendto(b"culvert leak test " + trial.words[0], (trial.target, _DISCARD_PORT))
    except OSError as error:
        trial.refusal = error.strerror or str(error)


def look(
    inside: Sequence[str],
    container_devices: Sequence[str],
    datagrams: Sequence[Trial],
    dns_name: str = "",
    lookup_timeout_s: float = LOOKUP_TIMEOUT_S,
) -> LeakFacts:
    """Send the datagrams, look up a random name below ``dns_name`` (if one is given), and listen.

    Takes half a second, or as long as the lookup, at most ``lookup_timeout_s``. The lookup is the C
    library's, as that of most programs is; it cannot be ended, so it is left alone when it takes longer.
    """
    trials, lookup = list(datagrams), None
    if dns_name:
        word = random_word()
        lookup = Lookup(f"{word}.{dns_name}")
        trials.append(Trial("dns", lookup.name, (word.encode(),)))
    try:
        with listening(inside, container_devices) as listener:
            if lookup:
                threading.Thread(target=lookup.run, daemon=True).start()
            for trial in datagrams:
                send(trial)
            start_s = time.monotonic()
            listener.hear(trials, start_s + _SETTLE_S)
            while lookup and not lookup.done and time.monotonic() < start_s + lookup_timeout_s:
                listener.hear(trials, time.monotonic() + 0.05)
            listener.hear(trials, time.monotonic())
            missed = listener.count_missed()
    except HostError as error:
        return LeakFacts(lookup=lookup, trouble=str(error))
    return LeakFacts(tuple(trials), lookup, missed)
