# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two identities and their peers in the configuration file, on the control socket, and in what is shown."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from culvert.about import read_about
from culvert.handover_state import read_state, restore_state, write_state
from culvert.keys import encode_base64
from culvert.show import render
from culvert.testing import World
from relay_rotation import FIRST, NOBODY, ONE, SECOND, THIRD, THREE, TWO, Bench, Rotation, private


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def rotating(bench: Bench) -> Bench:
    """In the middle of a rotation: TWO succeeds ONE."""
    assert (
        bench.code(f"private_key={private(FIRST)}", f"public_key={ONE.hex()}", "allowed_ip=10.0.0.1/32") == 0
    )
    assert (
        bench.code(
            f"alternate_private_key={private(SECOND)}",
            f"public_key={TWO.hex()}",
            "local_key=alternate",
            f"succeeds={ONE.hex()}",
        )
        == 0
    )
    assert bench.state() == {
        ONE: ("primary", None, ["10.0.0.1/32"]),
        TWO: ("alternate", ONE, []),
    }
    return bench


# --- The control socket -------------------------------------------------------------------------------------

PROMOTION = [f"private_key={private(SECOND)}", f"alternate_private_key={NOBODY}"]
OLD_GOES = [f"public_key={ONE.hex()}", "remove=true"]
NEW_STAYS = [f"public_key={TWO.hex()}", "update_only=true"]


@pytest.mark.parametrize(
    "request_",
    [
        [*PROMOTION, *OLD_GOES],
        [*reversed(PROMOTION), *OLD_GOES],
        [PROMOTION[0], *OLD_GOES],
        [*PROMOTION, *OLD_GOES, *NEW_STAYS, "replace_allowed_ips=true", "allowed_ip=10.0.0.1/32"],
        [*PROMOTION, *NEW_STAYS, "replace_allowed_ips=true", "allowed_ip=10.0.0.1/32", *OLD_GOES],
        [*PROMOTION, *NEW_STAYS, "local_key=primary", f"succeeds={NOBODY}", *OLD_GOES],
        [*PROMOTION, *NEW_STAYS, f"succeeds={NOBODY}", "allowed_ip=10.0.0.1/32", *OLD_GOES],
    ],
)
def test_the_end_of_a_rotation_is_one_request_in_any_order(rotating: Bench, request_: list[str]) -> None:
    assert rotating.code(*request_) == 0
    assert rotating.device.identity is not None
    assert rotating.device.identity.public == SECOND.public
    assert rotating.device.alternate is None
    assert rotating.state() == {TWO: ("primary", None, ["10.0.0.1/32"])}


@pytest.mark.parametrize(
    ("what", "request_"),
    [
        ("one key for both", [f"alternate_private_key={private(FIRST)}"]),
        ("one key for both", [f"private_key={private(THIRD)}", f"alternate_private_key={private(THIRD)}"]),
        ("promotion leaves ONE behind", PROMOTION),
        ("promotion leaves ONE behind", [*PROMOTION, f"public_key={ONE.hex()}", "allowed_ip=10.0.0.9/32"]),
        ("the alternate goes and TWO stays", [f"alternate_private_key={NOBODY}"]),
        ("succeeds itself", [f"public_key={THREE.hex()}", f"succeeds={THREE.hex()}"]),
        ("succeeds nobody", [f"public_key={THREE.hex()}", f"succeeds={'99' * 32}"]),
        ("two successors", [f"public_key={THREE.hex()}", f"succeeds={ONE.hex()}"]),
        ("a chain", [f"public_key={THREE.hex()}", f"succeeds={TWO.hex()}"]),
        ("a chain", [f"public_key={THREE.hex()}", f"public_key={ONE.hex()}", f"succeeds={THREE.hex()}"]),
        ("a circle", [f"public_key={ONE.hex()}", f"succeeds={TWO.hex()}"]),
        (
            "the predecessor goes in the same request",
            [*OLD_GOES, f"public_key={THREE.hex()}", f"succeeds={ONE.hex()}"],
        ),
        ("no such place", [f"public_key={ONE.hex()}", "local_key=secondary"]),
        ("no such place", [f"public_key={ONE.hex()}", "local_key="]),
        ("no key", [f"public_key={TWO.hex()}", "succeeds="]),
        ("no key", [f"public_key={TWO.hex()}", "succeeds=00"]),
        ("no key", ["alternate_private_key="]),
        ("a device's line behind a peer", [f"public_key={ONE.hex()}", f"alternate_private_key={NOBODY}"]),
        ("a peer's line before all peers", ["local_key=primary"]),
    ],
)
def test_nothing_is_done_of_what_makes_no_sense(rotating: Bench, what: str, request_: list[str]) -> None:
    before = (rotating.state(), rotating.ask("get=1"))
    assert rotating.code(*request_, f"public_key={'aa' * 32}") == -errno.EINVAL, what
    assert (rotating.state(), rotating.ask("get=1")) == before


def test_no_alternate_identity_no_peers_of_it(bench: Bench) -> None:
    assert bench.code(f"public_key={ONE.hex()}", "local_key=alternate") == -errno.EINVAL
    assert list(bench.device.peers()) == []
    assert bench.code(f"public_key={ONE.hex()}", "local_key=primary", f"succeeds={NOBODY}") == 0
    assert bench.peer(ONE).kin is None


def test_our_own_keys_are_no_peers(rotating: Bench) -> None:
    assert rotating.code(f"public_key={SECOND.public.hex()}", "allowed_ip=10.0.0.1/32") == 0
    assert set(rotating.state()) == {ONE, TWO}
    assert rotating.code(f"public_key={THREE.hex()}", f"succeeds={SECOND.public.hex()}") == -errno.EINVAL
    with pytest.raises(ValueError, match="own peer"):
        rotating.device.add_peer(SECOND.public)
    # A peer whose key becomes our own goes, as with the first identity.
    assert rotating.code(f"public_key={THIRD.public.hex()}", "allowed_ip=10.0.0.3/32") == 0
    assert rotating.code(f"alternate_private_key={private(THIRD)}") == 0
    assert set(rotating.state()) == {ONE, TWO}


def test_another_alternate_key_is_taken_by_its_peers(rotating: Bench) -> None:
    identity = rotating.peer(TWO).static_static
    assert rotating.code(f"alternate_private_key={private(THIRD)}") == 0
    assert rotating.peer(TWO).static_static != identity
    assert rotating.state()[TWO][:2] == ("alternate", ONE)


def test_an_ordinary_new_key_leaves_the_alternates_peers_alone(rotating: Bench) -> None:
    secrets = [rotating.peer(key).static_static for key in (ONE, TWO)]
    assert rotating.code(f"private_key={private(THIRD)}") == 0
    assert rotating.peer(ONE).static_static != secrets[0]
    assert rotating.peer(TWO).static_static == secrets[1]


def test_the_two_may_change_places(rotating: Bench) -> None:
    """What comes after a promotion that was too early."""
    secrets = [rotating.peer(key).static_static for key in (ONE, TWO)]
    assert rotating.code(f"private_key={private(SECOND)}", f"alternate_private_key={private(FIRST)}") == 0
    assert rotating.state()[ONE][0] == "alternate"
    assert rotating.state()[TWO][0] == "primary"
    assert [rotating.peer(key).static_static for key in (ONE, TWO)] == secrets


def test_what_is_so_already_changes_nothing(rotating: Bench) -> None:
    successor = rotating.peer(TWO)
    successor.latest_timestamp = b"timestamp..."
    lines = [f"public_key={TWO.hex()}", "local_key=alternate", f"succeeds={ONE.hex()}"]
    assert rotating.code(f"alternate_private_key={private(SECOND)}", *lines) == 0
    assert rotating.peer(TWO) is successor
    assert rotating.state()[TWO] == ("alternate", ONE, [])


def test_a_successor_takes_keepalive_and_endpoint_where_it_has_none(bench: Bench) -> None:
    assert (
        bench.code(
            f"private_key={private(FIRST)}",
            f"public_key={ONE.hex()}",
            "endpoint=198.51.100.9:1",
            "persistent_keepalive_interval=25",
            f"public_key={TWO.hex()}",
            f"succeeds={ONE.hex()}",
            f"public_key={THREE.hex()}",
        )
        == 0
    )
    assert str(bench.peer(TWO).endpoint) == "198.51.100.9:1"
    assert bench.peer(TWO).keepalive_interval_s == 25
    assert (
        bench.code(f"public_key={'44' * 32}", f"succeeds={THREE.hex()}", "persistent_keepalive_interval=0")
        == 0
    )
    assert bench.peer(bytes.fromhex("44" * 32)).keepalive_interval_s == 0


def test_replace_peers_begins_anew(rotating: Bench) -> None:
    assert (
        rotating.code("replace_peers=true", f"alternate_private_key={NOBODY}", f"public_key={THREE.hex()}")
        == 0
    )
    assert rotating.state() == {THREE: ("primary", None, [])}
    assert len(rotating.device.succession) == 0


# --- What is told -------------------------------------------------------------------------------------------


def test_what_is_told(rotating: Bench) -> None:
    shown = rotating.ask("get=1")
    assert f"private_key={private(FIRST)}\n" in shown
    assert private(SECOND) not in shown
    assert "succeeds" not in shown
    assert "local_key" not in shown
    told = rotating.ask("culvert=1")
    assert f"\nalternate_public_key={SECOND.public.hex()}\n" in told
    assert f"\nlocal_key={TWO.hex()} alternate\n" in told
    assert f"\nsuccession={TWO.hex()} {ONE.hex()} waiting\n" in told
    for secret in (FIRST, SECOND):
        assert private(secret) not in told
    assert rotating.code(*PROMOTION, *OLD_GOES) == 0
    told = rotating.ask("culvert=1")
    assert not any(word in told for word in ("alternate", "local_key", "succession"))


def test_it_is_shown_as_json_and_for_a_person(rotating: Bench) -> None:
    about = read_about(rotating.ask("culvert=1"))
    assert about["alternate_public_key"] == encode_base64(SECOND.public)
    names = [encode_base64(key) for key in (ONE, TWO)]
    assert about["bonds"] == {
        names[1]: {"local_key": "alternate", "succeeds": names[0], "succession": "waiting"}
    }
    peer: dict[str, Any] = {
        "endpoint": None,
        "allowed_ips": [],
        "latest_handshake_s": 0,
        "rx_bytes": 0,
        "tx_bytes": 0,
        "persistent_keepalive_s": 0,
    }
    peers = [peer | {"public_key": name} | about["bonds"].get(name, {}) for name in names]
    device = {"name": "cvt0", "public_key": None, "listen_port": 0, "fwmark": 0, **about, "peers": peers}
    text = render(device)
    assert f"  alternate public key: {encode_base64(SECOND.public)}" in text
    assert "  local key: alternate" in text
    assert f"  succeeds: {names[0]} (waiting for its first session)" in text
    assert read_about("")["bonds"] is None


# --- One relay after another --------------------------------------------------------------------------------


def test_a_handover_in_the_middle_of_a_rotation() -> None:
    rotation = Rotation(World())
    rotation.begin(rotation.server)
    rotation.talk(0.5)
    rotation.begin(rotation.client)
    rotation.talk(0.5)
    assert rotation.moved()
    for side in (rotation.client, rotation.server):
        bench = Bench()
        bench.relay.device = side.host.device
        state = write_state(bench.relay, "1", rotation.world.now)
        heir = Bench()
        restore_state(heir.relay, read_state(state, rotation.world.now), rotation.world.now)
        side.host.device = heir.device
        assert heir.device.alternate is not None
        assert heir.device.alternate.public == side.next.public
        assert [name for _, _, name in heir.device.succession.states()] == ["active"]
    rotation.talk(1.0)
    assert rotation.moved()
    for side in (rotation.client, rotation.server):
        rotation.finish(side)
        rotation.talk(1.0)
    assert rotation.lost() == []


@pytest.mark.parametrize(
    ("what", "entry"),
    [
        ("twice", [0, 1, 0, 1]),
        ("itself", [0, 0]),
        ("chain", [1, 0, 2, 1]),
    ],
)
def test_a_handover_believes_nothing(rotating: Bench, what: str, entry: list[int]) -> None:
    peers = [rotating.peer(ONE), rotating.peer(TWO), rotating.device.add_peer(THREE)]
    rotating.device.remove_peer(TWO)
    peers[1] = rotating.device.add_peer(TWO)
    keys = [peers[number].public_key.hex() for number in entry]
    values = [
        {"successor": one, "predecessor": other, "carries": False, "silent": False, "follows": False}
        for one, other in zip(keys[::2], keys[1::2], strict=True)
    ]
    for bad in ([{}], [7], [{"successor": ONE.hex(), "predecessor": TWO.hex(), "carries": "yes"}]):
        with pytest.raises(ValueError, match="is n"):
            rotating.device.succession.restore(bad, rotating.peer, 0.0)
    with pytest.raises(ValueError, match="two places"):
        rotating.device.succession.restore(values, rotating.peer, 0.0)
