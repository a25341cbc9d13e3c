# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which packets a capture is about: the words a person writes, and the tests that they make.

A filter is a few terms joined by ``and``, each with an optional ``not`` before it::

    host ADDRESS   net PREFIX   port NUMBER   proto tcp|udp|icmp|icmp6|NUMBER   peer PUBLIC_KEY   in   out

``host``, ``net`` and ``port`` look at both ends of a packet. ``in`` is what came out of the tunnel, ``out``
what goes into it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import NamedTuple

from .batch import Buffer
from .ethernet import inner_packet
from .keys import decode_base64

__all__ = ["EVERYTHING", "CaptureFilter", "Inner", "parse_filter", "read_inner"]

_MAX_CHARACTERS = 1024
_MAX_TERMS = 32
_TERMS = "host, net, port, proto, peer, in, out"
_PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "icmp6": 58}
# Those whose header begins with two ports: TCP, UDP, DCCP, SCTP, UDP-Lite.
_WITH_PORTS = frozenset((6, 17, 33, 132, 136))
# RFC 8200 section 4: headers that another one follows. A fragment header is 8 bytes long, the others say it.
_EXTENSIONS = frozenset((0, 43, 44, 60))
_FRAGMENT = 44
_MAX_EXTENSIONS = 8


class Inner(NamedTuple):
    """What filters look at."""

    source: bytes
    target: bytes
    protocol: int
    ports: tuple[int, ...]
    "Source and target port; empty where there are none, or where they are in another fragment."
    outgoing: bool
    peer: bytes | None = None
    "The public key of the peer whose address the other end is."


_Test = Callable[[Inner], bool]


@dataclass(frozen=True, slots=True)
class CaptureFilter:
    """A parsed filter; one without tests matches everything."""

    text: str = ""
    "As it was written, but for blanks."
    tests: tuple[_Test, ...] = ()
    peers: frozenset[bytes] = frozenset()
    "The public keys that it names."

    def matches(self, packet: Buffer, outgoing: bool, owner: Callable[[bytes], bytes | None]) -> bool:
        """Whether a packet is meant.

        :param owner: the public key of the peer that a packed inner address belongs to.
        """
        if not self.tests:
            return True
        inner = read_inner(packet, outgoing)
        if inner is None:
            return False
        if self.peers:
            inner = inner._replace(peer=owner(inner.target if outgoing else inner.source))
        return all(test(inner) for test in self.tests)

    def matches_frame(
        self, frame: Buffer, outgoing: bool, owner: Callable[[Buffer, bool], bytes | None]
    ) -> bool:
        """Whether an Ethernet frame is meant: by the packet in it, if that is IP. One of ARP has neither
        address nor port that could match.

        :param owner: the public key of the peer that the far end of a frame is behind.
        """
        if not self.tests:
            return True
        packet = inner_packet(frame)
        inner = None if packet is None else read_inner(packet, outgoing)
        if inner is None:
            inner = Inner(b"", b"", -1, (), outgoing)
        if self.peers:
            inner = inner._replace(peer=owner(frame, outgoing))
        return all(test(inner) for test in self.tests)


EVERYTHING = CaptureFilter()


def read_inner(packet: Buffer, outgoing: bool) -> Inner | None:
    """The header fields of a packet; None where it is no IP packet. No bytes make this raise."""
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 20:
        later_fragment = (packet[6] << 8 | packet[7]) & 0x1FFF
        ports = () if later_fragment else _ports(packet, packet[9], (packet[0] & 15) * 4)
        return Inner(bytes(packet[12:16]), bytes(packet[16:20]), packet[9], ports, outgoing)
    if version == 6 and len(packet) >= 40:
        protocol, start, later_fragment = _upper_layer(packet)
        ports = () if later_fragment else _ports(packet, protocol, start)
        return Inner(bytes(packet[8:24]), bytes(packet[24:40]), protocol, ports, outgoing)
    return None


def _upper_layer(packet: Buffer) -> tuple[int, int, int]:
    """The protocol of an IPv6 packet, where its header is, and the fragment's offset."""
    protocol, start = packet[6], 40
    for _ in range(_MAX_EXTENSIONS):
        if protocol not in _EXTENSIONS or start + 8 > len(packet):
            break
        offset = 0
        length = 8
        if protocol == _FRAGMENT:
            offset = (packet[start + 2] << 8 | packet[start + 3]) >> 3
        else:
            length = (packet[start + 1] + 1) * 8
        protocol, start = packet[start], start + length
        if offset:
            return protocol, start, offset
    return protocol, start, 0


def _ports(packet: Buffer, protocol: int, start: int) -> tuple[int, ...]:
    if protocol not in _WITH_PORTS or start < 20 or start + 4 > len(packet):
        return ()
    return packet[start] << 8 | packet[start + 1], packet[start + 2] << 8 | packet[start + 3]


# --- From text ----------------------------------------------------------------------------------------------


def parse_filter(text: str) -> CaptureFilter:
    """:raises ValueError: it is no filter; the message says what is wrong with which word."""
    if len(text) > _MAX_CHARACTERS or not text.isprintable() or not text.isascii():
        raise ValueError(f"a filter is at most {_MAX_CHARACTERS} characters of ASCII text")
    words = text.split()
    if not words:
        return EVERYTHING
    tests: list[_Test] = []
    peers: set[bytes] = set()
    rest = iter(words)
    for word in rest:
        if len(tests) == _MAX_TERMS:
            raise ValueError(f"there are more than {_MAX_TERMS} terms")
        wanted = True
        while word == "not":
            wanted = not wanted
            word = _next(rest, "not", _TERMS)
        tests.append(_negated(_term(word, rest, peers), wanted))
        joint = next(rest, None)
        if joint is None:
            return CaptureFilter(" ".join(words), tuple(tests), frozenset(peers))
        if joint != "and":
            hint = ": for either of two things, run two captures" if joint == "or" else ""
            raise ValueError(f"{joint!r} where only 'and' can follow{hint}")
    raise ValueError(f"it ends with 'and': one of {_TERMS} must follow")


def _next(rest: Iterator[str], word: str, what: str) -> str:
    following = next(rest, None)
    if following is None:
        raise ValueError(f"it ends with {word!r}: one of {what} must follow")
    return following


def _negated(test: _Test, wanted: bool) -> _Test:
    return test if wanted else lambda inner: not test(inner)


def _term(word: str, rest: Iterator[str], peers: set[bytes]) -> _Test:
    if word in ("in", "out"):
        return lambda inner: inner.outgoing == (word == "out")
    make = _WITH_VALUE.get(word)
    if make is None:
        hint = f": write 'proto {word}'" if word in _PROTOCOLS else ""
        raise ValueError(f"{word!r} is none of {_TERMS}{hint}")
    what, test_of = make
    value = next(rest, None)
    if value is None:
        raise ValueError(f"it ends with {word!r}: {what} must follow")
    try:
        test = test_of(value)
    except ValueError:
        raise ValueError(f"{word} {value!r}: that is not {what}") from None
    if word == "peer":
        peers.add(decode_base64(value))
    return test


def _host(value: str) -> _Test:
    address = ip_address(value).packed
    return lambda inner: address in (inner.source, inner.target)


def _net(value: str) -> _Test:
    network = ip_network(value)
    size = network.max_prefixlen // 8
    shift = network.max_prefixlen - network.prefixlen
    wanted = int(network.network_address) >> shift

    def inside(address: bytes) -> bool:
        return len(address) == size and int.from_bytes(address) >> shift == wanted

    return lambda inner: inside(inner.source) or inside(inner.target)


def _number(value: str, maximum: int) -> int:
    if not (value.isdigit() and len(value) <= 5 and int(value) <= maximum):
        raise ValueError(value)
    return int(value)


def _port(value: str) -> _Test:
    port = _number(value, 65535)
    return lambda inner: port in inner.ports


def _protocol(value: str) -> _Test:
    protocol = _PROTOCOLS[value] if value in _PROTOCOLS else _number(value, 255)
    return lambda inner: inner.protocol == protocol


def _peer(value: str) -> _Test:
    key = decode_base64(value)
    return lambda inner: inner.peer == key


# A row for each term with a value: what that is, and the test it makes.
_WITH_VALUE: dict[str, tuple[str, Callable[[str], _Test]]] = {
    "host": ("an address", _host),
    "net": ("a prefix such as 10.0.0.0/8, with no bits set behind its length", _net),
    "port": ("a port between 0 and 65535", _port),
    "proto": ("tcp, udp, icmp, icmp6 or a number up to 255", _protocol),
    "peer": ("a public key of 44 characters", _peer),
}
