# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is kept of quotas: the book, the file, and a relay that is stopped and started with it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from culvert.config import parse_config
from culvert.context import EventKind
from culvert.device import Device
from culvert.handover_state import read_state, restore_state, write_state
from culvert.keys import encode_base64
from culvert.limits import MAX_QUOTA_BYTES, parse_moment
from culvert.relay import Relay
from culvert.testing import World
from culvert.transport.memory import MemoryNetwork
from culvert.tun import MemoryTun
from culvert.usage import SAVE_EVERY_S, UsageBook, UsageFile

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
NOW_S = parse_moment("2026-11-23T10:00:00Z")


def book_of(**used: int) -> UsageBook:
    book = UsageBook()
    for period, size in used.items():
        book.note(KEY, period.strip("_").replace("_", "-"), size)
    return book


# --- The book -----------------------------------------------------------------------------------------------


def test_what_is_written_is_read() -> None:
    book = book_of(_2026_11=5, _2026_11_23=7, total=MAX_QUOTA_BYTES)
    book.note(OTHER, "total", 0)
    again = UsageBook()
    again.read(book.format())
    assert again.format() == book.format()
    assert (again.used(KEY, "2026-11"), again.used(KEY, "2026-11-23")) == (5, 7)
    assert again.used(KEY, "2026-12") == 0


def test_periods_that_are_over_are_forgotten_and_no_others() -> None:
    book = book_of(
        _2026_10=1, _2026_11=2, _2026_12=3, _2026_11_22=4, _2026_11_23=5, _2026_11_24=6, _1970_01=7, total=8
    )
    book.forget_before(NOW_S)
    kept = {line.split()[1] for line in book.format().splitlines()[1:]}
    assert kept == {"2026-11", "2026-12", "2026-11-23", "2026-11-24", "total"}


def test_what_is_known_is_newer_than_the_file() -> None:
    book = book_of(total=9)
    book.read(book_of(total=5, _2026_11=3).format())
    assert (book.used(KEY, "total"), book.used(KEY, "2026-11")) == (9, 3)


@given(st.text(max_size=200))
def test_any_text_is_read(text: str) -> None:
    book = UsageBook()
    book.read(text)
    book.read(f"{encode_base64(KEY)} {text}\n{encode_base64(KEY)} total {text}")
    again = UsageBook()
    again.read(book.format())
    assert again.format() == book.format()


@pytest.mark.parametrize(
    "line",
    [
        "",
        "#",
        "x total 5",
        "KEY week 5",
        "KEY 2026-1 5",
        "KEY total -5",
        "KEY total 5 5",
        "KEY total 99999999999999999999",
        "KEY total",
    ],
)
def test_lines_that_are_passed_over(line: str) -> None:
    book = UsageBook()
    book.read(line.replace("KEY", encode_base64(KEY)))
    assert len(book) == 0


# --- The file -----------------------------------------------------------------------------------------------


def test_the_file_is_replaced_whole_and_nobody_else_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "usage"
    file = UsageFile(str(path), 0.0)
    file.save(book_of(total=1), 0.0)
    before = path.stat()
    assert before.st_mode & 0o777 == 0o600
    file.save(book_of(total=1), 60.0)
    assert path.stat().st_ino == before.st_ino, "nothing new, nothing written"
    file.save(book_of(total=2), 120.0)
    assert path.stat().st_ino != before.st_ino
    assert os.listdir(tmp_path) == ["usage"]
    assert file.due_s == 120.0 + SAVE_EVERY_S
    book = UsageBook()
    UsageFile(str(path), 0.0).load(book)
    assert book.used(KEY, "total") == 2


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "usage.new").symlink_to(victim)
    UsageFile(str(tmp_path / "usage"), 0.0).save(book_of(total=1), 0.0)
    assert victim.read_text() == "precious"
    assert not (tmp_path / "usage").is_symlink()


def test_a_folder_that_is_not_there_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = UsageFile(str(tmp_path / "none" / "usage"), 0.0)
    for size in range(3):
        file.save(book_of(total=size), 60.0 * size)
    (complaint,) = [record.message for record in caplog.records]
    assert complaint.startswith(
        f"UsageFile {tmp_path}/none/usage cannot be written: No such file or directory"
    )
    (tmp_path / "none").mkdir()
    file.save(book_of(total=2), 180.0)
    assert (tmp_path / "none" / "usage").exists()


def test_what_cannot_be_read_is_said_and_no_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "bytes").write_bytes(b"\xff\0\n" * 100)
    book = UsageBook()
    for name in ("pipe", "bytes", "none", "."):
        UsageFile(str(tmp_path / name), 0.0).load(book)
    assert len(book) == 0
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2


# --- A relay ------------------------------------------------------------------------------------------------


def relay_of(world: World, path: Path, quota: str = "TransferQuota = 10k") -> Relay:
    """One with one peer."""
    network = MemoryNetwork()
    relay = Relay(
        Device(world.wall_clock_ns, rng=world.rng),
        MemoryTun(),
        lambda port, mark: network.open("198.51.100.1", port),
        lambda: world.now,
    )
    text = f"[Interface]\nPrivateKey = {encode_base64(OTHER)}\nUsageFile = {path}\n"
    relay.load(parse_config(f"{text}[Peer]\nPublicKey = {encode_base64(KEY)}\n{quota}\n", "test"))
    return relay


def use(relay: Relay, size: int) -> None:
    peer = relay.device.peer(KEY)
    assert peer is not None
    peer.stats.rx_bytes += size


def used(relay: Relay) -> int:
    (state,) = relay.device.warden.states()
    return state.used_bytes


def test_usage_outlives_the_process(tmp_path: Path, world: World) -> None:
    relay = relay_of(world, tmp_path / "usage")
    use(relay, 4000)
    relay.close()
    relay = relay_of(world, tmp_path / "usage")
    assert used(relay) == 4000
    use(relay, 1000)
    relay.close()
    assert used(relay_of(world, tmp_path / "usage")) == 5000


def test_a_used_up_quota_is_used_up_after_a_restart(tmp_path: Path, world: World) -> None:
    relay = relay_of(world, tmp_path / "usage")
    use(relay, 10_000)
    relay.close()
    peer = relay_of(world, tmp_path / "usage").device.peer(KEY)
    assert peer is not None
    assert peer.barred


def test_usage_is_written_once_a_minute_at_most(tmp_path: Path, world: World) -> None:
    relay = relay_of(world, tmp_path / "usage")
    written = []
    for _ in range(300):
        use(relay, 1)
        world.now += 1
        moment = relay.get_timer()
        if moment is not None and moment <= world.now:
            relay.handle_timer()
        if (tmp_path / "usage").exists():
            written.append((tmp_path / "usage").stat().st_ino)
    changes = 1 + sum(one != two for one, two in pairwise(written))
    assert 4 <= changes <= 5
    assert f"{encode_base64(KEY)} 2026-09 300" in (tmp_path / "usage").read_text().replace("299", "300")


def test_a_reload_keeps_what_was_used(tmp_path: Path, world: World) -> None:
    relay = relay_of(world, tmp_path / "usage")
    use(relay, 4000)
    text = f"[Interface]\nPrivateKey = {encode_base64(OTHER)}\nUsageFile = {tmp_path}/other\n"
    peer = f"[Peer]\nPublicKey = {encode_base64(KEY)}\nTransferQuota = 20k\n"
    relay.load(parse_config(text + peer, "test"))
    assert used(relay) == 4000
    relay.load(parse_config(text, "test"))
    relay.load(parse_config(text + peer, "test"))
    assert used(relay) == 4000, "of a peer that was gone for a while, too"
    relay.close()
    assert "4000" in (tmp_path / "other").read_text()


def test_nothing_is_written_where_nobody_has_a_quota(tmp_path: Path, world: World) -> None:
    relay = relay_of(world, tmp_path / "usage", "RateLimit = 1M")
    use(relay, 4000)
    assert relay.device.get_timer() is not None
    world.now += 200
    relay.handle_timer()
    assert not (tmp_path / "usage").exists()


# --- Another process goes on --------------------------------------------------------------------------------


def handed_over(relay: Relay, world: World, change: Callable[[Any], None] = lambda document: None) -> Relay:
    """The successor, with what the document says after ``change``."""
    document = json.loads(write_state(relay, "0", world.now))
    assert "limits" in document["needs"]
    change(document)
    network = MemoryNetwork()
    new = Relay(
        Device(world.wall_clock_ns, rng=world.rng),
        MemoryTun(),
        lambda port, mark: network.open("198.51.100.1", port),
        lambda: world.now,
    )
    restore_state(new, read_state(json.dumps(document).encode(), world.now), world.now)
    return new


def test_a_successor_goes_on_with_what_was_used(tmp_path: Path, world: World) -> None:
    relay = relay_of(
        world, tmp_path / "usage", "TransferQuota = 10k\nRateLimit = 1M\nExpiresAt = 2030-01-01T00:00:00Z"
    )
    relay.device.warden.book.note(OTHER, "total", 77)
    use(relay, 4000)
    relay.before_handover()
    assert "4000" in (tmp_path / "usage").read_text()
    use(relay, 500)
    new = handed_over(relay, world)
    assert new.device.warden.states() == relay.device.warden.states()
    assert used(new) == 4500, "not what the file says"
    assert new.device.warden.book.used(OTHER, "total") == 77
    use(new, 5500)
    new.device.warden.look(world.now)
    assert new.device.events()[0].kind is EventKind.QUOTA_EXCEEDED


def test_a_barred_peer_is_barred_by_the_successor_and_told_of_once(tmp_path: Path, world: World) -> None:
    relay = relay_of(world, tmp_path / "usage")
    use(relay, 10_000)
    relay.device.warden.look(world.now)
    assert len(relay.device.events()) == 1
    new = handed_over(relay, world)
    peer = new.device.peer(KEY)
    assert peer is not None
    assert peer.barred
    assert new.device.events() == []
    world.now += 40 * 86400
    new.device.handle_timer(world.now)
    assert not peer.barred


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("expires_at_s", value) for value in (-1, 1e9, "1", None, 10**15)),
        *(("rate_bps", value) for value in (-1, 10**12, None)),
        *(("quota_bytes", value) for value in (2**63, True)),
        *(("quota_period", value) for value in ("week", 1)),
        *(("used_bytes", value) for value in (-1, "x")),
        *(("barred", value) for value in ("mac1", 0, None)),
        ("dropped", -1),
        ("period", 5),
    ],
)
def test_a_document_that_makes_no_sense_is_refused(
    tmp_path: Path, world: World, name: str, value: object
) -> None:
    relay = relay_of(world, tmp_path / "usage")

    def change(document: Any) -> None:
        document["peers"][0]["limiter"][name] = value

    with pytest.raises(ValueError, match=r"."):
        handed_over(relay, world, change)
