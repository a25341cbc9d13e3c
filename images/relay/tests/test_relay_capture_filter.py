# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of captures: what they match, what is none and why, and headers read out of anything."""

from __future__ import annotations

import re
import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from culvert.capture_filter import Inner, parse_filter, read_inner
from culvert.keys import encode_base64
from culvert.testing import udp_packet

KEY, OTHER = bytes([1] * 32), bytes([2] * 32)
NAME, OTHER_NAME = encode_base64(KEY), encode_base64(OTHER)
ONE, TWO = ip_address("10.86.0.1").packed, ip_address("10.86.0.2").packed


def owner(address: bytes) -> bytes | None:
    return {ONE: KEY, TWO: OTHER}.get(address)


def ipv6(next_header: int, rest: bytes) -> bytes:
    head = struct.pack(">IHBB", 6 << 28, len(rest), next_header, 64)
    return head + ip_address("fd86::1").packed + ip_address("fd86::2").packed + rest


def tcp(source: str, target: str, sport: int, dport: int, payload: bytes = b"") -> bytes:
    packet = bytearray(udp_packet(source, target, bytes(12) + payload))
    start = 40 if ":" in source else 20
    packet[6 if ":" in source else 9] = 6
    packet[start : start + 4] = struct.pack(">HH", sport, dport)
    packet[start + 12] = 5 << 4
    return bytes(packet)


PING = bytes([0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0]) + ONE + TWO + bytes([8, 0]) + bytes(6)
PING6 = ipv6(58, bytes([128]) + bytes(7))
UDP = udp_packet("10.86.0.1", "10.86.0.2", b"x")
UDP6 = udp_packet("fd86::1", "fd86::2", b"x")
TCP = tcp("10.86.0.1", "10.86.0.2", 4000, 443)
LATER = UDP[:6] + b"\x00\x10" + UDP[8:]
FIRST6 = ipv6(44, bytes([17, 0, 0, 1, 0, 0, 0, 7]) + struct.pack(">HHHH", 1000, 2000, 8, 0))
LATER6 = ipv6(44, bytes([17, 0, 0, 9, 0, 0, 0, 7]) + bytes(16))
OPTIONS6 = ipv6(0, bytes([60]) + bytes(7) + bytes([17, 1]) + bytes(14) + struct.pack(">HHHH", 53, 9, 8, 0))


@pytest.mark.parametrize(
    ("text", "packet", "outgoing", "expected"),
    [
        ("", UDP, True, True),
        ("out", UDP, True, True),
        ("out", UDP, False, False),
        ("in", UDP, False, True),
        ("not in", UDP, True, True),
        ("not not in", UDP, True, False),
        ("host 10.86.0.1", UDP, True, True),
        ("host 10.86.0.2", UDP, True, True),
        ("host 10.86.0.3", UDP, True, False),
        ("host fd86::2", UDP6, True, True),
        ("host fd86:0::2", UDP6, True, True),
        ("host fd86::2", UDP, True, False),
        ("net 10.86.0.0/24", UDP, True, True),
        ("net 10.87.0.0/16", UDP, True, False),
        ("net 0.0.0.0/0", UDP, True, True),
        ("net 0.0.0.0/0", UDP6, True, False),
        ("net ::/0", UDP6, True, True),
        ("net fd86::/16", UDP6, True, True),
        ("net fd87::/16", UDP6, True, False),
        ("port 2000", UDP, True, True),
        ("port 1000", UDP6, True, True),
        ("port 443", TCP, True, True),
        ("port 444", TCP, True, False),
        ("port 0", PING, True, False),
        ("port 2000", LATER, True, False),
        ("port 2000", FIRST6, True, True),
        ("port 2000", LATER6, True, False),
        ("port 53", OPTIONS6, True, True),
        ("proto udp", UDP, True, True),
        ("proto 17", UDP6, True, True),
        ("proto udp", LATER, True, True),
        ("proto udp", LATER6, True, True),
        ("proto udp", OPTIONS6, True, True),
        ("proto tcp", UDP, True, False),
        ("proto tcp", TCP, True, True),
        ("proto icmp", PING, True, True),
        ("proto icmp6", PING6, True, True),
        ("proto icmp6", PING, True, False),
        (f"peer {OTHER_NAME}", UDP, True, True),
        (f"peer {OTHER_NAME}", UDP, False, False),
        (f"peer {NAME}", UDP, False, True),
        (f"not peer {NAME}", UDP, False, False),
        (f"peer {NAME}", UDP6, False, False),
        ("host 10.86.0.1 and not port 443", UDP, True, True),
        ("host 10.86.0.1 and not port 443", TCP, True, False),
        ("  proto   tcp  and port 443 and out ", TCP, True, True),
        ("not proto tcp", b"\x75nothing", True, False),
    ],
)
def test_what_filters_match(text: str, packet: bytes, outgoing: bool, expected: bool) -> None:
    assert parse_filter(text).matches(packet, outgoing, owner) is expected
    assert parse_filter(text).matches(memoryview(packet), outgoing, owner) is expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("tcp", "'tcp' is none of host, net, port, proto, peer, in, out: write 'proto tcp'"),
        ("hots 10.0.0.1", "'hots' is none of"),
        ("host", "it ends with 'host': an address must follow"),
        ("host 10.0.0.300", "host '10.0.0.300': that is not an address"),
        ("host 10.0.0.0/8", "host '10.0.0.0/8': that is not an address"),
        ("host example.org", "host 'example.org': that is not an address"),
        ("net 10.0.0.1/8", "no bits set behind its length"),
        ("net 10", "that is not a prefix"),
        ("port 65536", "port '65536': that is not a port"),
        ("port -1", "that is not a port"),
        ("port ssh", "that is not a port"),
        ("proto 256", "that is not tcp, udp"),
        ("peer abc", "that is not a public key of 44 characters"),
        ("host 10.0.0.1 and", "it ends with 'and'"),
        ("host 10.0.0.1 host 10.0.0.2", "'host' where only 'and' can follow"),
        ("in or out", "'or' where only 'and' can follow: for either of two things, run two captures"),
        ("not", "it ends with 'not'"),
        ("and", "'and' is none of"),
        ("in\nout", "characters of ASCII text"),
        ("host 1\u0660.0.0.1", "characters of ASCII text"),
        ("in and " * 200 + "in", "characters of ASCII text"),
        (" and ".join(["in"] * 33), "there are more than 32 terms"),
    ],
)
def test_what_is_no_filter(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)) as caught:
        parse_filter(text)
    assert "\n" not in str(caught.value)


WORDS = st.sampled_from(
    [
        "host",
        "net",
        "port",
        "proto",
        "peer",
        "in",
        "out",
        "and",
        "not",
        "10.0.0.1",
        "fd86::/16",
        "53",
        "tcp",
        NAME,
    ]
)


@given(st.lists(WORDS, max_size=12), st.binary(max_size=120), st.booleans())
def test_any_words_are_a_filter_or_refused_and_any_bytes_are_looked_at(
    words: list[str], packet: bytes, outgoing: bool
) -> None:
    try:
        made = parse_filter(" ".join(words))
    except ValueError:
        return
    assert made.matches(packet, outgoing, owner) in (True, False)
    assert parse_filter(made.text).text == made.text


@given(st.integers(0, 255), st.binary(max_size=200))
def test_headers_are_read_out_of_anything(first: int, rest: bytes) -> None:
    inner = read_inner(bytes([first]) + rest, True)
    if inner is not None:
        assert isinstance(inner, Inner)
        assert len(inner.source) == len(inner.target) in (4, 16)
        assert len(inner.ports) in (0, 2)
