# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A relay's second identity and peers that succeed others: the file, the request, and what a relay says."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.module_utils import _x25519
from ansible_collections.culvert.vpn.plugins.module_utils._core import Change, SpecError
from ansible_collections.culvert.vpn.plugins.module_utils._relay_failover import parse_failover
from ansible_collections.culvert.vpn.plugins.module_utils._relay_file import FileConfig, parse, render
from ansible_collections.culvert.vpn.plugins.module_utils._relay_peers import Observed, plan
from ansible_collections.culvert.vpn.plugins.module_utils._relay_peers_spec import PeersSpec
from ansible_collections.culvert.vpn.plugins.module_utils._relay_succession import parse_succession
from ansible_collections.culvert.vpn.plugins.module_utils._uapi import (
    Peer,
    Relay,
    with_failover,
    with_succession,
)

OLD, NEW = (_x25519.SecretKey(bytes([0x40, number]) * 16) for number in (1, 2))
A0, A1, B0, B1 = (base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2, 3, 4))
NEXT = "/etc/culvert/culvert0.next.key"
FAILOVER = {"allowed_ips": ["0.0.0.0/0"]}


def hexed(key: str) -> str:
    return base64.b64decode(key).hex()


def older(key: str, address: str, **more: Any) -> dict[str, Any]:
    return {"public_key": key, "allowed_ips": [address], **more}


def younger(key: str, of: str, **more: Any) -> dict[str, Any]:
    return {"public_key": key, "local_key": "alternate", "succeeds": of, **more}


def spec_of(*peers: dict[str, Any], **params: Any) -> PeersSpec:
    return PeersSpec.from_params({"peers": list(peers), **params})


BEFORE = (older(A0, "10.86.0.1/32"), older(B0, "10.86.0.2/32"))
MOVING = (*BEFORE, younger(A1, A0), younger(B1, B0))
AFTER = (older(A1, "10.86.0.1/32"), older(B1, "10.86.0.2/32"))


def relay(*peers: Peer, of: _x25519.SecretKey = OLD, about: str = "") -> Relay:
    found = with_failover(Relay(of.public_key(), 51820, 51820, peers), parse_failover(about))
    return with_succession(found, parse_succession(about))


def observed(of: Relay | None, written: PeersSpec, key: _x25519.SecretKey = OLD, **more: Any) -> Observed:
    known = {"known_alternate": of.alternate_key, "identity": of.public_key} if of else {}
    return Observed(
        **{
            "text": render(written.config),
            "mode": 0o640,
            "relay": of,
            "key": key,
            "public_key": key.public_key(),
            **known,
            **more,
        }
    )


def request(steps: list[Change]) -> list[tuple[str, str]]:
    lines = [line for step in steps if step.action == "set" for line in step.data]
    return [
        (key, value.reveal_hex() if isinstance(value, _x25519.SecretKey) else value) for key, value in lines
    ]


def has(*addresses: str, key: str) -> Peer:
    return Peer(key, allowed_ips=addresses)


WAITING = f"""\
alternate_public_key={hexed(NEW.public_key())}
local_key={hexed(A1)} alternate
local_key={hexed(B1)} alternate
succession={hexed(A1)} {hexed(A0)} waiting
succession={hexed(B1)} {hexed(B0)} active
errno=0
"""


def moving() -> Relay:
    """A's successor waits; B's carries, and has the prefixes."""
    peers = has("10.86.0.1/32", key=A0), has(key=B0), has(key=A1), has("10.86.0.2/32", key=B1)
    return relay(*peers, about=WAITING)


def test_the_file_says_who_succeeds_whom() -> None:
    config = spec_of(*MOVING, alternate_private_key_file=NEXT).config
    text = render(config)
    assert f"AlternatePrivateKeyFile = {NEXT}\n" in text
    assert f"[Peer]\nPublicKey = {A1}\nLocalKey = alternate\nSucceeds = {A0}\n" in text
    assert parse(text) == config


def test_a_second_identity_and_successors_are_told_and_nothing_else() -> None:
    spec = spec_of(*MOVING, alternate_private_key_file=NEXT)
    now = relay(has("10.86.0.1/32", key=A0), has("10.86.0.2/32", key=B0))
    steps = plan(spec, observed(now, spec_of(*BEFORE), alternate=NEW))
    assert request(steps) == [
        ("alternate_private_key", NEW.reveal_hex()),
        ("public_key", hexed(A1)),
        ("local_key", "alternate"),
        ("succeeds", hexed(A0)),
        ("public_key", hexed(B1)),
        ("local_key", "alternate"),
        ("succeeds", hexed(B0)),
    ]
    shown = str([(step.before, step.after) for step in steps])
    assert NEW.public_key() in shown
    assert NEW.reveal_hex() not in shown


def test_a_relay_in_the_middle_of_it_has_nothing_to_be_told() -> None:
    spec = spec_of(*MOVING, alternate_private_key_file=NEXT)
    assert plan(spec, observed(moving(), spec, alternate=NEW)) == []


def test_the_alternate_identity_becomes_the_identity() -> None:
    """The older peers go, and the younger ones get what was theirs, in one request."""
    spec = spec_of(*AFTER, private_key_file=NEXT)
    before = spec_of(*MOVING, alternate_private_key_file=NEXT)
    steps = plan(spec, observed(moving(), before, NEW))
    assert request(steps) == [
        ("private_key", NEW.reveal_hex()),
        ("public_key", hexed(A0)),
        ("remove", "true"),
        ("public_key", hexed(B0)),
        ("remove", "true"),
        ("public_key", hexed(A1)),
        ("update_only", "true"),
        ("succeeds", "0" * 64),
        ("replace_allowed_ips", "true"),
        ("allowed_ip", "10.86.0.1/32"),
        ("public_key", hexed(B1)),
        ("update_only", "true"),
        ("succeeds", "0" * 64),
        ("replace_allowed_ips", "true"),
        ("allowed_ip", "10.86.0.2/32"),
    ]
    # Whose file has another path by then has nothing else to do.
    done = relay(has("10.86.0.1/32", key=A1), has("10.86.0.2/32", key=B1), of=NEW)
    again = spec_of(*AFTER)
    assert [step.action for step in plan(again, observed(done, spec, NEW))] == ["write"]


def test_who_is_left_at_the_old_identity_is_told_that_it_is_gone() -> None:
    """The relay would refuse to leave a peer without an identity."""
    wanted = (*AFTER[:1], BEFORE[1])
    about = "\n".join(line for line in WAITING.splitlines() if hexed(B1) not in line)
    now = relay(has(key=A0), has("10.86.0.2/32", key=B0), has("10.86.0.1/32", key=A1), about=about)
    written = spec_of(*BEFORE, younger(A1, A0), alternate_private_key_file=NEXT)
    lines = request(plan(spec_of(*wanted, private_key_file=NEXT), observed(now, written, NEW)))
    assert lines[-3:] == [("public_key", hexed(B0)), ("update_only", "true"), ("local_key", "primary")]


def test_an_identity_that_nobody_was_told_of_is_still_refused() -> None:
    other = _x25519.SecretKey(b"\x77" * 32)
    with pytest.raises(SpecError, match="is known to its peers as"):
        plan(spec_of(*AFTER), observed(moving(), spec_of(*MOVING, alternate_private_key_file=NEXT), other))


def test_a_rotation_of_many_is_no_removal_of_most() -> None:
    keys = [base64.b64encode(bytes([number, 9]) * 16).decode() for number in range(8)]
    old = [older(key, f"10.86.1.{number}/32") for number, key in enumerate(keys[:4])]
    new = [younger(key, of) for key, of in zip(keys[4:], keys[:4], strict=True)]
    lone = [older(B0, "10.86.0.2/32")]
    written = spec_of(*old, *new, *lone, alternate_private_key_file=NEXT)
    final = [older(key, f"10.86.1.{number}/32") for number, key in enumerate(keys[4:])]
    assert plan(spec_of(*final), observed(None, written, NEW, known_alternate=NEW.public_key()))
    with pytest.raises(SpecError, match="allow_removal"):
        plan(spec_of(*lone), observed(None, written, OLD))


def test_a_failover_group_belongs_to_the_older_member_until_it_goes() -> None:
    member = older(A0, "10.86.0.1/32", failover=1), older(B0, "10.86.0.2/32", failover=2)
    spec = spec_of(
        *member, younger(A1, A0), younger(B1, B0), alternate_private_key_file=NEXT, failover=FAILOVER
    )
    about = (
        f"failover_active={hexed(A1)}\nfailover_timeout_ms=2500\nfailover_return_ms=30000\n"
        f"failover_allowed_ip=0.0.0.0/0\nfailover_peer={hexed(A1)}\nfailover_priority=1\n"
        f"failover_peer={hexed(B0)}\nfailover_priority=2\n"
    )
    states = WAITING.replace("waiting", "moved").replace("active", "waiting").replace("moved", "active")
    peers = has(key=A0), has("10.86.0.2/32", key=B0), has("10.86.0.1/32", "0.0.0.0/0", key=A1), has(key=B1)
    assert plan(spec, observed(relay(*peers, about=about + states), spec, alternate=NEW)) == []


@pytest.mark.parametrize(
    ("peers", "complaint"),
    [
        ((older(A0, "10.86.0.1/32"), younger(A1, B0)), "is no peer of this list"),
        ((older(A0, "10.86.0.1/32"), younger(A1, A0), younger(B1, A1)), "one that succeeds another itself"),
        ((older(A0, "10.86.0.1/32"), younger(A1, A0), younger(B1, A0)), "another one succeeds already"),
        ((older(A0, "10.86.0.1/32"), younger(A1, A0, allowed_ips=["10.86.0.2/32"])), "none of its own"),
    ],
)
def test_what_cannot_be_is_refused(peers: tuple[dict[str, Any], ...], complaint: str) -> None:
    with pytest.raises(SpecError, match=complaint):
        spec_of(*peers, alternate_private_key_file=NEXT)


def test_a_peer_of_an_identity_that_there_is_not_is_refused() -> None:
    with pytest.raises(SpecError, match="alternate_private_key_file"):
        spec_of(*MOVING)


def test_answers_that_make_no_sense_are_passed_over() -> None:
    assert parse_succession("alternate_public_key=zz\nlocal_key=\nsuccession=aa bb\nsuccession").peers == {}
    assert parse_succession(f"alternate_public_key={'0' * 64}\n").alternate_key == ""
    assert FileConfig(alternate_key_file=NEXT).options() == [("AlternatePrivateKeyFile", NEXT)]
