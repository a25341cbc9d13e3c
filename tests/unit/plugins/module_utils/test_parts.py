# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading options, keys, the control socket's answer, echoes, and judging a tunnel."""

from __future__ import annotations

import base64
import ipaddress
from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.module_utils import _icmp, _probe, _x25519
from ansible_collections.culvert.vpn.plugins.module_utils._core import HostError, SpecError
from ansible_collections.culvert.vpn.plugins.module_utils._options import Options
from ansible_collections.culvert.vpn.plugins.module_utils._relay_key import KeySpec, KeyState, plan
from ansible_collections.culvert.vpn.plugins.module_utils._uapi import Peer, Relay, parse
from hypothesis import given
from hypothesis import strategies as st

NOW_S = 1_800_000_000.0
TARGET = ipaddress.ip_address("10.86.0.2")
PEER = Peer("A" * 43 + "=", "198.51.100.9:51820", ("10.86.0.0/16",), int(NOW_S) - 5)
DEVICE = _probe.DeviceFacts("culvert0", True, True, True, ("10.86.0.1",))
VIA = _probe.RouteFacts("culvert0")


def judged(relay: Relay | None, route: _probe.RouteFacts = VIA, echo: _icmp.Echo | None = None) -> list[str]:
    facts = _probe.TargetFacts(TARGET, route, echo or _icmp.Echo(str(TARGET), sent=1))
    return _probe.reasons_of_target(facts, DEVICE, relay, NOW_S)


def test_options_name_what_is_wrong() -> None:
    options = Options({"items": [{"size": "big"}], "extra": 1})
    (item,) = options.mappings("items")
    with pytest.raises(SpecError, match=r"^items\[0\]\.size: must be a whole number from 1 to 5, not 'big'$"):
        item.integer("size", 1, 5)
    with pytest.raises(SpecError, match=r"^extra: is not an option"):
        options.done()
    for read in (lambda: Options({"a": 1}).text("a"), lambda: Options({"a": "x"}).flag("a", True)):
        with pytest.raises(SpecError, match=r"^a: "):
            read()
    for wrong in ([], "text", 5):
        with pytest.raises(SpecError):
            Options(wrong)  # type: ignore[arg-type]
    assert Options({"a": None}).text("a", "default") == "default"


def test_the_public_key_of_rfc_7748() -> None:
    """Section 6.1, Bob's keys."""
    private = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    public = bytes.fromhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
    assert _x25519.public_key_of(private) == public


def test_generated_keys_are_clamped_and_differ() -> None:
    keys = [_x25519.generate_private_key() for _number in range(50)]
    assert len(set(keys)) == 50
    assert all(key[0] & 7 == 0 and key[31] & 0xC0 == 0x40 for key in keys)


@given(st.binary(min_size=32, max_size=32))
def test_a_key_survives_its_file(key: bytes) -> None:
    line = base64.b64encode(key)
    assert _x25519.from_base64(line) == _x25519.from_base64(line + b"\n") == key
    for spoilt in (line + b"\n\n", b" " + line, line[:-1], line[:-2], line + line):
        assert _x25519.from_base64(spoilt) is None


def test_a_key_file_is_planned() -> None:
    spec = KeySpec.from_params({"path": "/etc/culvert/a.key", "owner": "51820"})
    assert [change.action for change in plan(spec, KeyState())] == ["create"]
    there = KeyState(exists=True, mode=0o400, owner=51820, public_key="x")
    assert plan(spec, there) == []
    assert [change.action for change in plan(spec, replace(there, mode=0o600))] == ["protect"]
    with pytest.raises(SpecError, match="path"):
        plan(spec, replace(there, problem="is odd"))
    gone = KeySpec.from_params({"path": "/etc/culvert/a.key", "state": "absent"})
    assert [change.action for change in plan(gone, replace(there, problem="is odd"))] == ["delete"]
    for path in ("relative", "/a/directory/", ""):
        with pytest.raises(SpecError, match="path"):
            KeySpec.from_params({"path": path})


def test_an_answer_of_the_control_socket() -> None:
    text = f"listen_port=5\npublic_key={'01' * 32}\npreshared_key={'02' * 32}\nallowed_ip=::/0\nerrno=0\n\n"
    relay = parse(text)
    assert (relay.public_key, relay.listen_port, relay.fwmark) == (None, 5, 0)
    assert relay.peers[0].allowed_ips == ("::/0",)
    assert relay.peers[0].handshake_age_s(NOW_S) is None
    assert "02" * 32 not in repr(relay)


@pytest.mark.parametrize("text", ["", "nonsense", "errno=1\n\n", "errno=x\n\n", "listen_port=x\nerrno=0\n\n",
                                  "private_key=0g\nerrno=0\n\n", "public_key=zz\nerrno=0\n\n"])  # fmt: skip
def test_an_answer_that_is_none_is_not_quoted(text: str) -> None:
    with pytest.raises(HostError) as failed:
        parse(text, "/run/x.sock")
    assert "/run/x.sock" in str(failed.value)
    assert "0g" not in str(failed.value)


@given(st.binary(max_size=60))
def test_checksums_add_up(data: bytes) -> None:
    """RFC 1071: with its checksum in place, a packet sums to zero."""
    whole = _icmp.request(4, 7, 9, data)
    assert _icmp.checksum(whole) == 0


def test_replies_are_told_apart() -> None:
    reply = bytes([0, 0, 0, 0, 0, 7, 0, 9]) + b"token"
    assert _icmp.payload_of_reply(4, reply, raw=False) == (9, b"token")
    assert _icmp.payload_of_reply(4, bytes([0x46]) + bytes(23) + reply, raw=True) == (9, b"token")
    assert _icmp.payload_of_reply(6, bytes([129]) + reply[1:], raw=True) == (9, b"token")
    assert _icmp.payload_of_reply(4, bytes([8]) + reply[1:], raw=False) is None
    assert _icmp.payload_of_reply(4, b"\0\0", raw=False) is None


def test_the_peer_with_the_longest_prefix_owns_an_address() -> None:
    near = Peer("B" * 43 + "=", None, ("10.86.0.0/24", "::/0"))
    relay = Relay(peers=(PEER, near))
    assert _probe.owner_of(TARGET, relay) == near
    assert _probe.owner_of(ipaddress.ip_address("10.86.1.1"), relay) == PEER
    assert _probe.owner_of(ipaddress.ip_address("192.0.2.1"), relay) is None


@pytest.mark.parametrize(
    ("relay", "route", "words"),
    [
        (Relay(peers=(PEER,)), VIA, "does not answer although"),
        (Relay(), VIA, "in no peer's allowed IPs"),
        (Relay(peers=(replace(PEER, latest_handshake_s=0),)), VIA, "no handshake"),
        (Relay(peers=(replace(PEER, latest_handshake_s=0, endpoint=None),)), VIA, "it has to call first"),
        (Relay(peers=(replace(PEER, latest_handshake_s=int(NOW_S) - 400),)), VIA, "400 s ago"),
        (Relay(peers=(PEER,)), _probe.RouteFacts("eth0"), "leaves through eth0, not through culvert0"),
        (Relay(peers=(PEER,)), _probe.RouteFacts(refusal="Network is unreachable"), "Network is unreachable"),
    ],
)
def test_a_silent_target_has_its_reason(relay: Relay, route: _probe.RouteFacts, words: str) -> None:
    reasons = judged(relay, route)
    assert len(reasons) == 1
    assert words in reasons[0]


def test_a_target_that_answers_the_wrong_way_is_not_well() -> None:
    answered = _icmp.Echo(str(TARGET), sent=1, round_trips_s=[0.001])
    assert judged(Relay(), VIA, answered) == []
    assert "eth0" in judged(Relay(), _probe.RouteFacts("eth0"), answered)[0]
    assert judged(Relay(), _probe.RouteFacts("lo", local=True), answered) == []


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"exists": False}, "no device"),
        ({"up": False}, "is down"),
        ({"carrier": False}, "no carrier"),
        ({"addresses": ()}, "no address"),
    ],
)
def test_what_is_wrong_with_a_device(found: dict[str, Any], words: str) -> None:
    assert words in _probe.reasons_of_device(replace(DEVICE, **found), Relay())[0]


def test_a_device_in_order_and_a_relay_that_is_missing() -> None:
    assert _probe.reasons_of_device(DEVICE, Relay()) == []
    assert "no relay answers" in _probe.reasons_of_device(DEVICE, None)[0]
