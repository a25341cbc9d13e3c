# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two identities and their peers in the configuration file: a rotation by files alone."""

from __future__ import annotations

import os
from ipaddress import ip_network
from pathlib import Path

import pytest

from culvert.config import load_config, parse_config
from culvert.errors import ConfigError, CulvertError
from culvert.keys import Identity, encode_base64
from relay_rotation import (
    AFTER,
    BEFORE,
    DURING,
    FIRST,
    ONE,
    SECOND,
    SUCCEEDS,
    THIRD,
    THREE,
    TWO,
    Bench,
    base64,
    section,
    unchanged,
    written,
)


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize("order", [1, -1])
def test_a_rotation_by_the_file_alone(bench: Bench, order: int) -> None:
    assert unchanged(bench, bench.load(written(FIRST, None, BEFORE)))
    config = bench.load(written(FIRST, SECOND, *DURING[::order]))
    assert unchanged(bench, config)
    assert bench.state() == {ONE: ("primary", None, ["10.0.0.1/32"]), TWO: ("alternate", ONE, [])}
    successor = bench.peer(TWO)
    assert (str(successor.endpoint), successor.keepalive_interval_s) == ("198.51.100.9:1", 25)
    successor.latest_timestamp = b"timestamp..."
    config = bench.load(written(SECOND, None, AFTER))
    assert unchanged(bench, config)
    assert bench.state() == {TWO: ("primary", None, ["10.0.0.1/32"])}
    assert bench.peer(TWO) is successor
    assert bench.device.alternate is None


def test_a_rotation_that_is_called_off_by_the_file(bench: Bench) -> None:
    bench.load(written(FIRST, SECOND, *DURING))
    predecessor = bench.peer(ONE)
    assert unchanged(bench, bench.load(written(FIRST, None, BEFORE)))
    assert bench.state() == {ONE: ("primary", None, ["10.0.0.1/32"])}
    assert bench.peer(ONE) is predecessor
    assert predecessor.kin is None


def test_a_promotion_by_the_file_binds_the_others_anew(bench: Bench) -> None:
    """A device that nobody gave new keys: by the file it belongs to whoever we are now."""
    other = section(THREE, "AllowedIPs = 10.0.0.3/32")
    bench.load(written(FIRST, SECOND, *DURING, other))
    secret = bench.peer(THREE).static_static
    assert unchanged(bench, bench.load(written(SECOND, None, AFTER, other)))
    assert bench.state()[THREE] == ("primary", None, ["10.0.0.3/32"])
    assert bench.peer(THREE).static_static != secret
    assert bench.peer(THREE).identity is bench.device.identity


def test_another_key_in_the_file_is_another_identity(bench: Bench) -> None:
    bench.load(written(FIRST, None, BEFORE))
    secret = bench.peer(ONE).static_static
    bench.load(written(THIRD, None, BEFORE))
    assert bench.peer(ONE).static_static != secret


@pytest.mark.parametrize("peers", [DURING, (AFTER,)])
def test_the_same_key_twice_is_no_alternate(bench: Bench, peers: tuple[str, ...]) -> None:
    """A promotion that was killed may leave that."""
    bench.load(written(FIRST, SECOND, *DURING))
    config = bench.load(written(SECOND, SECOND, *peers))
    assert unchanged(bench, config)
    assert bench.device.alternate is None
    assert bench.state()[TWO][0] == "primary"


def test_a_group_and_its_successors_by_the_file(bench: Bench) -> None:
    shared = "FailoverAllowedIPs = 0.0.0.0/0\n"
    before = (
        section(ONE, "AllowedIPs = 10.0.0.1/32", "Failover = 1"),
        section(THREE, "AllowedIPs = 10.0.0.3/32", "Failover = 2"),
    )
    successor = section(TWO, "LocalKey = alternate", SUCCEEDS)
    config = bench.load(written(FIRST, SECOND, shared, *before, successor))
    assert unchanged(bench, config)
    group = bench.device.failover
    assert group.priority(bench.peer(ONE)) == 1
    assert group.priority(bench.peer(TWO)) is None
    # Left to itself, the heir has the place; the file may say otherwise.
    for line, priority in (("Failover = 5", 5), ("", None)):
        bench.load(written(FIRST, SECOND, shared, *before, successor))
        config = bench.load(written(SECOND, None, shared, section(TWO, "AllowedIPs = 10.0.0.1/32", line)))
        assert unchanged(bench, config)
        assert group.priority(bench.peer(TWO)) == priority
        assert set(bench.device.allowed_ips(group)) == {ip_network("0.0.0.0/0")}


WRONG = [
    ("LocalKey = alternate", "there is no AlternatePrivateKey", None, ("LocalKey = alternate",)),
    ("Succeeds = ", "no other [Peer]", SECOND, (f"Succeeds = {encode_base64(TWO)}",)),
    ("Succeeds = ", "no other [Peer]", SECOND, (f"Succeeds = {encode_base64(THREE)}",)),
    ("AllowedIPs = ", "has that one's", SECOND, (SUCCEEDS, "AllowedIPs = 10.0.0.2/32")),
    ("Failover = ", "has that one's", SECOND, ("Failover = 0", SUCCEEDS)),
    ("Succeeds = ", "is not a key", SECOND, ("Succeeds = AAAA",)),
    ("LocalKey = ", "primary or alternate", SECOND, ("LocalKey = both",)),
]


@pytest.mark.parametrize(("where", "what", "alternate", "lines"), WRONG)
def test_what_is_wrong_in_a_file(
    where: str, what: str, alternate: Identity | None, lines: tuple[str, ...]
) -> None:
    text = written(FIRST, alternate, BEFORE, section(TWO, *lines))
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "x.conf")
    message = str(caught.value)
    assert what in message
    line = int(message.split(":")[1])
    assert text.split("\n")[line - 1].startswith(where)


def test_what_is_wrong_between_peers_in_a_file() -> None:
    def refused(*peers: str, alternate: Identity | None = SECOND) -> str:
        with pytest.raises(ConfigError) as caught:
            parse_config(written(FIRST, alternate, *peers), "x.conf")
        return str(caught.value)

    also = section(THREE, SUCCEEDS)
    assert "already has a successor" in refused(*DURING, also)
    chain = section(THREE, f"Succeeds = {encode_base64(TWO)}")
    assert "itself succeeds" in refused(*DURING, chain)
    circle = BEFORE.replace("AllowedIPs = 10.0.0.1/32", f"Succeeds = {encode_base64(TWO)}")
    assert "itself succeeds" in refused(circle, DURING[1])
    assert "of our AlternatePrivateKey" in refused(section(SECOND.public))
    assert "of our PrivateKey" in refused(section(FIRST.public))
    both = written(FIRST, SECOND).replace("[Interface]", "[Interface]\nAlternatePrivateKeyFile = k")
    with pytest.raises(ConfigError):
        parse_config(both, "x.conf")
    assert "does not belong in [Peer]" in refused(section(ONE, f"AlternatePrivateKey = {base64(THIRD)}"))
    assert "does not belong in [Interface]" in refused("LocalKey = primary")


def test_the_key_is_read_from_a_file(tmp_path: Path) -> None:
    path, key = tmp_path / "cvt0.conf", tmp_path / "next.key"
    path.write_text(written(FIRST, None) + "\nAlternatePrivateKeyFile = next.key\n")
    with pytest.raises(ConfigError, match=r"next\.key cannot be read"):
        load_config(str(path))
    key.write_text(base64(SECOND) + "\n")
    os.chmod(key, 0o400)
    config = load_config(str(path))
    assert config.alternate_private_key == SECOND.private_bytes()
    assert base64(SECOND) not in repr(config)
    assert repr(SECOND.private_bytes())[2:-1] not in repr(config)
    key.write_text("no key: " + base64(SECOND))
    with pytest.raises(ConfigError) as caught:
        load_config(str(path))
    assert base64(SECOND)[:8] not in str(caught.value)


def test_a_file_that_does_not_fit_changes_nothing(bench: Bench) -> None:
    """The port is another's: not one of the identities may have changed by then."""
    bench.load(written(FIRST, SECOND, *DURING))
    bench.network.open("198.51.100.1", 7)
    before = (bench.state(), bench.ask("get=1"))
    text = written(SECOND, None, "ListenPort = 7", AFTER)
    with pytest.raises(CulvertError):
        bench.load(text)
    assert (bench.state(), bench.ask("get=1")) == before
