# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The failover group in the file, in what a relay says and in what it is told."""

from __future__ import annotations

import base64
import errno
import itertools
from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.module_utils import _relay_peers_host, _uapi, _x25519
from ansible_collections.culvert.vpn.plugins.module_utils._core import Change, HostError, SpecError
from ansible_collections.culvert.vpn.plugins.module_utils._relay_failover import (
    Failover,
    Group,
    Member,
    parse_failover,
)
from ansible_collections.culvert.vpn.plugins.module_utils._relay_file import (
    FilePeer,
    parse,
    render,
)
from ansible_collections.culvert.vpn.plugins.module_utils._relay_peers import Observed, plan
from ansible_collections.culvert.vpn.plugins.module_utils._relay_peers_spec import (
    PeersSpec,
)
from ansible_collections.culvert.vpn.plugins.module_utils._uapi import Peer, Refused, Relay, with_failover
from hypothesis import given
from hypothesis import strategies as st

SECRET = _x25519.SecretKey(b"\x40" * 32)
OWN = SECRET.public_key()
KEYS = [base64.b64encode(bytes([number]) * 32).decode() for number in range(1, 6)]
A, B, C = KEYS[:3]
EVERYTHING = ("0.0.0.0/0", "::/0")
HEX = {key: base64.b64decode(key).hex() for key in KEYS}

WRITTEN = f"""\
# Managed by culvert.vpn: changes made here are lost at the next run.
# Registry: 17-9f3a21c4
[Interface]
PrivateKeyFile = /etc/culvert/culvert0.key
ListenPort = 51820
FwMark = 51820
FailoverAllowedIPs = 0.0.0.0/0, ::/0
FailoverTimeout = 2.5
FailoverReturn = 30

[Peer]
PublicKey = {A}
AllowedIPs = 10.86.0.1/32
Failover = 1

[Peer]
PublicKey = {B}
AllowedIPs = 10.86.0.2/32
Failover = 0
"""


def wish(public_key: str, *allowed_ips: str, **more: Any) -> dict[str, Any]:
    return {"public_key": public_key, "allowed_ips": list(allowed_ips), **more}


def spec_of(*peers: dict[str, Any], **params: Any) -> PeersSpec:
    return PeersSpec.from_params({"peers": list(peers), **params})


def group(*allowed_ips: str, **more: Any) -> dict[str, Any]:
    return {"allowed_ips": list(allowed_ips or EVERYTHING), **more}


def observed(spec: PeersSpec, relay: Relay | None = None, **more: Any) -> Observed:
    """A host whose file is the wanted one."""
    values = {"text": render(spec.config), "mode": 0o640, "relay": relay, "key": SECRET, "public_key": OWN}
    return Observed(**{**values, "identity": relay.public_key if relay else None, **more})


def request(steps: list[Change]) -> list[str]:
    return [f"{key}={value}" for step in steps if step.action == "set" for key, value in step.data]


TWO = spec_of(
    wish(A, "10.86.0.1/32", failover=1),
    wish(B, "10.86.0.2/32", failover=0),
    failover=group(),
    registry={"id": "17-9f3a21c4"},
)


# --- The file -----------------------------------------------------------------------------------------------


def test_a_group_is_written_and_read_again() -> None:
    assert render(TWO.config) == WRITTEN
    assert parse(WRITTEN) == TWO.config
    assert TWO.config.failover == Group(EVERYTHING, 2500, 30000)


@pytest.mark.parametrize(
    ("params", "file"),
    [
        ({"timeout_s": 1, "return_s": 0}, ("1", "0")),
        ({"timeout_s": 60, "return_s": 3600}, ("60", "3600")),
        ({"timeout_s": 1.2345}, ("1.234", "30")),
    ],
)
def test_times_of_a_group(params: dict[str, Any], file: tuple[str, str]) -> None:
    spec = spec_of(wish(A, failover=1), failover=group(**params))
    options = dict(spec.config.options())
    assert (options["FailoverTimeout"], options["FailoverReturn"]) == file
    assert parse(render(spec.config)) == spec.config


def test_without_members_there_is_no_group() -> None:
    spec = spec_of(wish(A), failover={"allowed_ips": [], "timeout_s": 2.5, "return_s": 30})
    assert spec.config.failover is None
    assert "Failover" not in render(spec.config)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("FailoverTimeout = nonsense", Group()),
        ("failovertimeout = 1.5 # quick", Group(timeout_ms=1500)),
        ("FailoverReturn = inf", Group()),
        ("FailoverAllowedIPs = 10.0.0.0/8\nFailoverAllowedIPs = ::/0", Group(("10.0.0.0/8", "::/0"))),
        ("", None),
    ],
)
def test_a_group_written_by_hand(line: str, expected: Group | None) -> None:
    config = parse(f"[Interface]\n{line}\n[Peer]\nPublicKey = {A}\nFailover = many\n")
    assert config.failover == expected
    assert config.peers == (FilePeer(A),)


@pytest.mark.parametrize(
    ("params", "option", "words"),
    [
        ({"failover": group(timeout_s=0.5)}, "failover.timeout_s", "from 1 to 60"),
        ({"failover": group(timeout_s=True)}, "failover.timeout_s", "a number"),
        ({"failover": group(return_s=3601)}, "failover.return_s", "from 0 to 3600"),
        ({"failover": group("10.0.0.1/8")}, "failover.allowed_ips", "host bits set"),
        ({"failover": group("10.86.0.1/32")}, "failover.allowed_ips", "belongs to peers[0] already"),
        ({"failover": group(nonsense=1)}, "failover.nonsense", "not an option"),
        ({"peers": [wish(A)], "failover": group()}, "failover.allowed_ips", "no peer is a member"),
        ({"peers": [wish(A, failover=65536)]}, "peers[0].failover", "from 0 to 65535"),
        ({"registry": {"id": "a b"}}, "registry.id", "white space"),
        ({"registry": {"lineage": ["a", "b\nPrivateKey = x"]}}, "registry.lineage", "white space"),
        ({"registry": {"serial": 1}}, "registry.serial", "not an option"),
    ],
)
def test_refusals_name_the_option(params: dict[str, Any], option: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        PeersSpec.from_params({"peers": [wish(A, "10.86.0.1/32", failover=1)], **params})
    assert caught.value.option == option
    assert words in str(caught.value)


# --- What a relay says --------------------------------------------------------------------------------------

ANSWER = f"""\
batch=compiled
rejection=mac1 198.51.100.7:1 - - 3 4 -
failover_timeout_ms=2500
failover_return_ms=30000
failover_allowed_ip=0.0.0.0/0
failover_allowed_ip=::/0
failover_active={HEX[A]}
failover_peer={HEX[A]}
failover_priority=1
failover_state=active
failover_peer={HEX[B]}
failover_priority=0
failover_state=unknown
errno=0

"""
RUNNING = Failover(Group(EVERYTHING), A, (Member(A, 1, "active"), Member(B, 0, "unknown")))


def test_the_answer_of_a_relay_with_a_group() -> None:
    assert parse_failover(ANSWER) == RUNNING
    assert RUNNING.as_dict() == {
        "active": A,
        "allowed_ips": list(EVERYTHING),
        "timeout_s": 2.5,
        "return_s": 30,
        "members": [
            {"public_key": A, "priority": 1, "state": "active"},
            {"public_key": B, "priority": 0, "state": "unknown"},
        ],
    }


@pytest.mark.parametrize(
    "answer", ["", "errno=0\n\n", "errno=-22\n\n", "failover_timeout_ms=2500\nerrno=0\n\n"]
)
def test_the_answer_of_a_relay_without_a_group_or_of_an_old_one(answer: str) -> None:
    assert parse_failover(answer) is None


@given(st.lists(st.sampled_from(ANSWER.splitlines()) | st.text(max_size=20), max_size=20))
def test_any_answer_can_be_read(lines: list[str]) -> None:
    parse_failover("\n".join(lines))


def test_the_groups_prefixes_are_not_the_active_members_own() -> None:
    shown = Relay(
        OWN,
        peers=(
            Peer(A, allowed_ips=("10.86.0.1/32", *EVERYTHING)),
            Peer(B, allowed_ips=("10.86.0.2/32",)),
            Peer(C, allowed_ips=("10.86.0.3/32",)),
        ),
    )
    told = with_failover(shown, RUNNING)
    assert [peer.allowed_ips for peer in told.peers] == [
        ("10.86.0.1/32",),
        ("10.86.0.2/32",),
        ("10.86.0.3/32",),
    ]
    assert [peer.failover for peer in told.peers] == [1, 0, None]
    assert with_failover(shown, None) is shown


# --- What it is told ----------------------------------------------------------------------------------------


def test_from_one_server_to_two_in_one_request() -> None:
    alone = Relay(OWN, 51820, 51820, (Peer(A, allowed_ips=("10.86.0.1/32", *EVERYTHING)),))
    spec = spec_of(
        wish(A, "10.86.0.1/32", failover=1),
        wish(B, "10.86.0.2/32", failover=2),
        failover=group(timeout_s=1.5),
    )
    steps = plan(spec, observed(spec, alone))
    assert request(steps) == [
        "failover_timeout_ms=1500",
        "failover_return_ms=30000",
        "replace_failover_allowed_ips=true",
        "failover_allowed_ip=0.0.0.0/0",
        "failover_allowed_ip=::/0",
        f"public_key={HEX[A]}",
        "update_only=true",
        "failover=1",
        "replace_allowed_ips=true",
        "allowed_ip=10.86.0.1/32",
        f"public_key={HEX[B]}",
        "failover=2",
        "replace_allowed_ips=true",
        "allowed_ip=10.86.0.2/32",
    ]
    (step,) = steps
    assert step.after["interface"] == {
        "FailoverAllowedIPs": "0.0.0.0/0, ::/0",
        "FailoverTimeout": "1.5",
        "FailoverReturn": "30",
    }
    assert step.after[f"peer {B}"]["Failover"] == 2


def test_the_difference_alone_is_told() -> None:
    relay = Relay(
        OWN,
        51820,
        51820,
        (
            Peer(A, allowed_ips=("10.86.0.1/32",), failover=1),
            Peer(B, allowed_ips=("10.86.0.2/32",), failover=0),
        ),
        RUNNING,
    )
    assert plan(TWO, observed(TWO, relay)) == []
    drained = replace(
        TWO,
        config=replace(TWO.config, peers=(replace(TWO.config.peers[0], failover=1001), TWO.config.peers[1])),
    )
    assert request(plan(drained, observed(drained, relay))) == [
        f"public_key={HEX[A]}",
        "update_only=true",
        "failover=1001",
    ]
    slower = replace(TWO, config=replace(TWO.config, failover=Group(EVERYTHING, 5000, 30000)))
    assert request(plan(slower, observed(slower, relay))) == ["failover_timeout_ms=5000"]
    back = spec_of(wish(A, "10.86.0.1/32", *EVERYTHING), allow_removal=True)
    assert request(plan(back, observed(back, relay))) == [
        "replace_failover_allowed_ips=true",
        f"public_key={HEX[B]}",
        "remove=true",
        f"public_key={HEX[A]}",
        "update_only=true",
        "failover=none",
        "replace_allowed_ips=true",
        "allowed_ip=10.86.0.1/32",
        "allowed_ip=0.0.0.0/0",
        "allowed_ip=::/0",
    ]


def told(relay: Relay, lines: list[tuple[str, Any]]) -> Relay:
    """What a relay is after a request: its group, its members, and whose each prefix is."""
    old = relay.failover or Failover(Group())
    members = {member.public_key: member.priority for member in old.members}
    owners: dict[str, str] = dict.fromkeys(old.group.allowed_ips, "group")
    owners.update({prefix: peer.public_key for peer in relay.peers for prefix in peer.allowed_ips})
    keys = [peer.public_key for peer in relay.peers]
    times = {"failover_timeout_ms": old.group.timeout_ms, "failover_return_ms": old.group.return_ms}
    key = ""
    for name, value in lines:
        if name == "public_key":
            key = base64.b64encode(bytes.fromhex(value)).decode()
            keys += [key] if key not in keys else []
        elif name in times:
            times[name] = int(value)
        elif name in ("replace_allowed_ips", "replace_failover_allowed_ips"):
            owner = key if name == "replace_allowed_ips" else "group"
            owners = {prefix: whose for prefix, whose in owners.items() if whose != owner}
        elif name in ("allowed_ip", "failover_allowed_ip"):
            owners[value] = key if name == "allowed_ip" else "group"
        elif name == "failover" and value != "none":
            members[key] = int(value)
        elif name in ("failover", "remove"):
            members.pop(key, None)
            if name == "remove":
                keys.remove(key)
                owners = {prefix: whose for prefix, whose in owners.items() if whose != key}
        else:
            assert name == "update_only"

    def of(owner: str) -> tuple[str, ...]:
        return tuple(prefix for prefix, whose in owners.items() if whose == owner)

    found = Failover(
        Group(of("group"), times["failover_timeout_ms"], times["failover_return_ms"]),
        None,
        tuple(Member(*each) for each in members.items()),
    )
    peers = tuple(Peer(each, allowed_ips=of(each), failover=members.get(each)) for each in keys)
    return replace(relay, peers=peers, failover=found if found.group.allowed_ips or members else None)


@st.composite
def fleets(draw: st.DrawFn) -> PeersSpec:
    """Few prefixes among few peers and the group, so that they often move."""
    keys = draw(st.lists(st.sampled_from(KEYS), unique=True))
    member = st.none() | st.integers(0, 3)
    priorities = {key: draw(member) for key in keys}
    homes = [*keys, *(["group"] if any(p is not None for p in priorities.values()) else [])]
    prefixes = [f"10.86.0.{number}/32" for number in range(6)]
    owners = {prefix: draw(st.sampled_from(homes)) for prefix in prefixes if homes and draw(st.booleans())}
    return spec_of(
        *(wish(key, *(p for p in owners if owners[p] == key), failover=priorities[key]) for key in keys),
        failover={
            "allowed_ips": [p for p in owners if owners[p] == "group"],
            "timeout_s": draw(st.sampled_from([1.0, 2.5])),
            "return_s": draw(st.sampled_from([0, 30])),
        },
        allow_removal=True,
    )


@given(st.lists(fleets(), min_size=2, max_size=4))
def test_one_request_is_enough_and_no_prefix_is_without_an_owner_after_it(specs: list[PeersSpec]) -> None:
    relay = Relay(OWN, 51820, 51820)
    for spec in specs:
        steps = plan(spec, observed(spec, relay))
        assert len(steps) <= 1
        relay = told(relay, list(itertools.chain.from_iterable(step.data for step in steps)))
        config = spec.config
        assert {peer.public_key: (set(peer.allowed_ips), peer.failover) for peer in relay.peers} == {
            peer.public_key: (set(peer.allowed_ips), peer.failover) for peer in config.peers
        }
        if config.failover:
            assert relay.failover is not None
            assert set(relay.failover.group.allowed_ips) == set(config.failover.allowed_ips)
            assert relay.failover.group.timeout_ms == config.failover.timeout_ms
            assert relay.failover.group.return_ms == config.failover.return_ms
        else:
            assert relay.failover is None
        assert plan(spec, observed(spec, relay)) == []


# --- A relay that does not know groups ----------------------------------------------------------------------


def _backend(monkeypatch: pytest.MonkeyPatch, code: int, **params: Any) -> _relay_peers_host.PeersBackend:
    def refuse(_path: str, _lines: Any) -> None:
        raise Refused("the relay behind /run/x.sock refuses the change: Invalid argument", code)

    monkeypatch.setattr(_relay_peers_host, "configure", refuse)
    spec = spec_of(wish(A, failover=1), failover=group(), **params)
    return _relay_peers_host.PeersBackend(spec)


def _set(*lines: tuple[str, str]) -> Change:
    return Change("relay culvert0", None, None, "set", list(lines))


def test_an_old_relay_is_told_apart_from_a_request_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = _backend(monkeypatch, errno.EINVAL)
    with pytest.raises(HostError, match=r"does not know failover groups: upgrade that .*relay_image"):
        backend.apply(_set(("failover_timeout_ms", "2500")))
    with pytest.raises(Refused, match=r"refuses the change: Invalid argument$"):
        backend.apply(_set(("listen_port", "443")))
    with pytest.raises(Refused):
        _backend(monkeypatch, errno.EADDRINUSE).apply(_set(("failover_timeout_ms", "2500")))


def test_an_old_relay_that_is_replaced_after_this_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = _backend(monkeypatch, errno.EINVAL, replaced=True)
    backend.apply(_set(("public_key", HEX[A]), ("failover", "1")))
    assert "left as it is until it is replaced" in backend.warnings[0]
    with pytest.raises(Refused):
        backend.apply(_set(("listen_port", "443")))


def test_a_refusal_has_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_uapi, "_exchange", lambda *_args: b"errno=-22\n\n")
    with pytest.raises(Refused) as caught:
        _uapi.configure("/run/x.sock", [("failover", "1")])
    assert caught.value.code == errno.EINVAL
