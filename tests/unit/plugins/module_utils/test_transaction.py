# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts of a transaction that need no kernel to change: its files, its code, and what is said of it."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.module_utils import (
    _installed,
    _lifeline,
    _pending,
    _processes,
    _restore,
    _snapshot,
)
from ansible_collections.culvert.vpn.plugins.module_utils import _kernel_things as things
from ansible_collections.culvert.vpn.plugins.module_utils._core import Change, HostError
from ansible_collections.culvert.vpn.plugins.module_utils._document import Document
from ansible_collections.culvert.vpn.plugins.module_utils._installed import InstalledCode, package_files
from ansible_collections.culvert.vpn.plugins.module_utils._lock import host_lock

NEXT = Document.from_params({"name": "20-client-culvert0", "devices": [{"name": "culvert0"}]})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host's /var/lib/culvert and /run of the test's own."""
    pending = tmp_path / "culvert" / "pending"
    monkeypatch.setattr(_pending, "PENDING", str(pending))
    monkeypatch.setattr(_pending, "_PARENT", str(pending.parent))
    monkeypatch.setattr(_pending, "OUTCOME", str(tmp_path / "outcome.json"))
    for name, file in (
        ("TRANSACTION", "transaction.json"),
        ("JOURNAL", "journal.jsonl"),
        ("BALLAST", "ballast"),
    ):
        monkeypatch.setattr(_pending, name, str(pending / file))
    return pending


def transaction(**more: Any) -> _pending.Transaction:
    values: dict[str, Any] = {
        "id": "5f0c6d1f8a3b2e47",
        "name": NEXT.name,
        "next": NEXT,
        "previous": None,
        "items": [],
        "controller": "",
        "boot": _pending.boot_identity(),
        "deadline_s": _pending.now_s() + 60,
        "confirm_timeout_s": 60,
        "guarded": True,
    }
    return _pending.Transaction(**{**values, **more})


def test_a_transaction_is_read_as_it_was_written(folder: Path) -> None:
    made = transaction(items=[["device culvert0", None, {"mode": "tun"}]], snapshot={"links": {}})
    _pending.create(made)
    assert _pending.load() == made
    assert _pending.load(made.id) == made
    assert _pending.load("another") is None
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "transaction.json").stat().st_mode & 0o777 == 0o600
    assert (folder / "ballast").stat().st_size == 64 * 1024
    _pending.remove()
    assert not folder.parent.exists()
    assert _pending.load() is None


def test_a_second_transaction_takes_nothing_from_the_first(folder: Path) -> None:
    _pending.create(transaction())
    with pytest.raises(HostError):
        _pending.create(transaction(id="another"))
    found = _pending.load()
    assert found is not None
    assert found.id == "5f0c6d1f8a3b2e47"
    assert [path.name for path in folder.parent.iterdir()] == ["pending"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 2}', '{"format": 1}'])
def test_a_damaged_transaction_says_the_way_out(folder: Path, text: str) -> None:
    _pending.create(transaction())
    (folder / "transaction.json").write_text(text)
    with pytest.raises(HostError, match=r"is damaged .* delete"):
        _pending.load()


def test_what_was_left_half_made_goes(folder: Path) -> None:
    (folder.parent / ".pending-dead" / "code").mkdir(parents=True)
    _pending.discard_unfinished()
    assert not folder.parent.exists()


def test_the_journal_of_a_process_that_was_killed_while_writing(folder: Path) -> None:
    _pending.create(transaction())
    _pending.note(step=0, item="device culvert0")
    _pending.note(done=0, made={"culvert0": 7}, lifeline="")
    _pending.note(step=1, item="IPv4 rule")
    with (folder / "journal.jsonl").open("a") as stream:
        stream.write('{"done": 1, "li')
    assert _restore.progress() == {"steps_done": 1, "step": "IPv4 rule", "blame": ""}


def test_the_first_step_that_changed_the_way_is_to_blame(folder: Path) -> None:
    _pending.create(transaction())
    for position, (item, lifeline) in enumerate(
        [("one", ""), ("two", "the way changed"), ("three", "again")]
    ):
        _pending.note(step=position, item=item)
        _pending.note(done=position, made={}, lifeline=lifeline)
    assert _restore.progress()["blame"] == "two: since then the way changed"


def test_a_sign_of_life_ends_with_its_process(folder: Path) -> None:
    _pending.create(transaction())
    assert not _pending.is_alive(_pending.WORKER)
    with _pending.alive(_pending.WORKER), _pending.alive(_pending.WORKER):
        assert _pending.is_alive(_pending.WORKER)
        assert not _pending.is_alive(_pending.GUARD)
    assert not _pending.is_alive(_pending.WORKER)


def test_outcomes_are_kept_for_those_who_ask_late(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _pending.write_outcome({"id": "one", "state": "rolled_back"})
    _pending.write_outcome({"id": "two", "state": "rolled_back"})
    assert _pending.outcome_of("one")
    latest = _pending.outcome_of("")
    assert latest is not None
    assert latest["id"] == "two"
    assert _pending.outcome_of("three") is None
    now_s = time.time()
    monkeypatch.setattr(_pending.time, "time", lambda: now_s + 4000)
    assert _pending.outcome_of("one") is None
    Path(_pending.OUTCOME).write_text("{")
    assert _pending.outcome_of("") is None


def test_the_lock_can_be_taken_again_by_its_holder(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    with host_lock(path=path):
        with host_lock(0.0, path=path):
            assert os.path.exists(path)
        assert os.path.exists(path), "the outer one still holds it"
        code = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        other = subprocess.run([sys.executable, "-c", code, path], stderr=subprocess.DEVNULL, check=False)
        assert other.returncode
    assert not os.path.exists(path)


def test_the_code_is_all_that_it_imports() -> None:
    files = package_files()
    assert "run.py" in files
    names = {Path(name).stem for name in files}
    for name, text in files.items():
        assert not re.search(r"^\s*(from|import) ansible", text, re.MULTILINE), name
        for module, listed in re.findall(r"^\s*from \.(\w*) import (\(?[^)\n]*)", text, re.MULTILINE):
            assert module or "(" not in listed, f"{name}: a list in brackets is not understood"
            assert {module} <= names if module else set(listed.split(", ")) <= names, name


def test_the_code_runs_alone(tmp_path: Path) -> None:
    for name, text in package_files().items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        _installed.command(str(tmp_path), "nonsense"),
        cwd=tmp_path / "culvert_host",
        env={"PYTHONPATH": "/nowhere"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: run.py ")
    assert not list(tmp_path.rglob("*.pyc"))


def test_the_removal_of_the_code_is_put_off_while_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_installed, "LIBRARY", str(tmp_path / "lib"))
    monkeypatch.setattr(_installed, "PENDING", str(tmp_path / "pending"))
    monkeypatch.setattr(_installed, "COMMAND", str(tmp_path / "bin" / "culvert"))
    monkeypatch.setattr(_installed, "init_system", lambda: "")
    run: Any = None
    install = InstalledCode(True, run)
    for change in install.plan(install.observe()):
        install.apply(change)
    assert install.plan(install.observe()) == []
    (tmp_path / "lib" / "culvert_host" / "_of_another_version.py").write_text("")
    (again,) = install.plan(install.observe())
    install.apply(again)
    assert install.plan(install.observe()) == []
    (tmp_path / "pending").mkdir()
    removal = InstalledCode(False, run)
    command, change = removal.plan(removal.observe())
    removal.apply(command)
    assert not (tmp_path / "bin" / "culvert").exists()
    removal.apply(change)
    assert (tmp_path / "lib" / "run.py").exists()
    (tmp_path / "pending").rmdir()
    removal.apply(change)
    assert not (tmp_path / "lib").exists()
    assert removal.plan(removal.observe()) == []


def test_systemd_is_told_by_its_own_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_processes, "init_system", lambda: "systemd")
    ran: list[list[str]] = []

    def run(words: list[str], stdin: str) -> tuple[int, str, str]:
        ran.append(words)
        return 0, "", ""

    made = transaction(confirm_timeout_s=90)
    _processes.arm(made, run)
    armed = ran[-1]
    assert armed[0] == "systemd-run"
    assert {"--on-active=90", "--unit=culvert-rollback", "--collect"} <= set(armed)
    assert armed[-2:] == ["rollback", made.id]
    assert _processes.start_worker(made, run).process is None
    assert "--unit=culvert-apply" in ran[-1]
    _processes.disarm(made, run)
    assert ran[-1] == ["systemctl", "stop", "culvert-rollback.timer"]
    with pytest.raises(HostError, match="culvert-rollback"):
        _processes.arm(made, lambda words, stdin: (1, "", "no bus"))


def test_items_compare_as_they_are_kept() -> None:
    plan = [Change("rule", None, ("a", 1), "add_rule", object())]
    assert _pending.items_of(plan) == json.loads(json.dumps([["rule", None, ["a", 1]]]))


@pytest.mark.parametrize(
    ("variable", "found"),
    [
        ("10.7.0.1 50000 10.7.0.2 22", ("10.7.0.1", "10.7.0.2")),
        ("::ffff:10.7.0.1 50000 ::ffff:10.7.0.2 22", ("10.7.0.1", "10.7.0.2")),
        ("fe80::1%eth0 50000 fe80::2%eth0 22", ("fe80::1", "fe80::2")),
    ],
)
def test_the_controller_is_found_through_programs_that_drop_the_variable(
    variable: str, found: tuple[str, str]
) -> None:
    code = (
        "from ansible_collections.culvert.vpn.plugins.module_utils._lifeline import controller;"
        "print(tuple(controller()))"
    )
    # As sudo does: the child's environment has it no more, the parent's still has. The colon keeps sh there.
    script = f'env -u SSH_CONNECTION "$0" -c "{code}"; :'
    done = subprocess.run(
        ["sh", "-c", script, sys.executable],
        env={**os.environ, "SSH_CONNECTION": variable, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == str(found), done.stderr


def test_without_a_controller_nothing_is_measured() -> None:
    assert _lifeline.Lifeline("").check() == ""


def _route(**more: Any) -> things.Thing:
    attributes = {
        things.RTA_DST: socket.inet_aton("10.99.0.0"),
        things.RTA_OIF: struct.pack("=I", 3),
        things.RTA_TABLE: struct.pack("=I", 51820),
        **more.pop("attributes", {}),
    }
    head = (socket.AF_INET, 16, 0, 0, 0, more.pop("protocol", 42), 0, more.pop("type", 1), 0)
    return things.Thing("route", head, tuple(sorted(attributes.items())))


def test_a_thing_is_the_same_after_a_round_trip() -> None:
    route = _route()
    assert things.decode("route", things.encode(route)) == route
    assert str(route) == "IPv4 route 10.99.0.0/16 in table 51820"


def test_devices_get_their_present_numbers() -> None:
    hop = struct.pack("=HBBi", 16, 1, 0, 3) + struct.pack("=HH", 8, 5) + socket.inet_aton("10.7.0.9")
    other = struct.pack("=HBBi", 8, 4, 2, 4)
    route = _route(attributes={things.RTA_MULTIPATH: hop + other})
    assert things.devices_of(route) == {3, 4}
    moved = things.with_devices(route, lambda index: index + 10)
    assert things.devices_of(moved) == {13, 14}
    # What the kernel said about the state of a hop (dead, 1) is not a part of it; that it is on link (4) is.
    kept = things.decode("route", things.encode(moved)).get(things.RTA_MULTIPATH)
    assert [kept[2], kept[18]] == [0, 4]


def test_what_the_kernel_makes_itself_is_not_kept() -> None:
    assert _route(protocol=2, type=2).is_kernels
    assert not _route(protocol=2, type=1).is_kernels
    assert not _route(protocol=42, type=2).is_kernels


def test_a_route_with_a_next_hop_object_names_only_that() -> None:
    route = _route(attributes={things.RTA_NH_ID: struct.pack("=I", 7)})
    assert things.devices_of(things.decode("route", things.encode(route))) == set()


def test_the_settings_that_a_document_changes() -> None:
    document = Document.from_params({"name": "a", "sysctls": {"net.ipv4.ip_forward": 1}})
    found = _snapshot.settings_of(document, None)
    assert "net/ipv4/ip_forward" in found
    assert "net/ipv4/conf/lo/forwarding" in found
    assert _snapshot.settings_of(None) == []


def test_the_command_of_somebody_else_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_installed, "LIBRARY", str(tmp_path / "lib"))
    monkeypatch.setattr(_installed, "COMMAND", str(tmp_path / "culvert"))
    monkeypatch.setattr(_installed, "init_system", lambda: "")
    run: Any = None

    def items(present: bool) -> tuple[list[str], list[str]]:
        code = InstalledCode(present, run)
        return [change.item for change in code.plan(code.observe())], code.warnings

    command = tmp_path / "culvert"
    for text in (b"#!/bin/sh\nexec drain\n", b"\x7fELF\xff\xfe"):
        command.write_bytes(text)
        planned, warnings = items(present=True)
        assert str(command) not in planned
        assert any(warning.startswith(f"{command} is not of this collection") for warning in warnings)
        assert str(command) not in items(present=False)[0]
    command.unlink()
    command.symlink_to(tmp_path / "nowhere")
    assert str(command) not in items(present=True)[0]
    command.unlink()
    code = InstalledCode(True, run)
    for change in code.plan(code.observe()):
        code.apply(change)
    assert command.stat().st_mode & 0o777 == 0o755
    assert command.read_text().splitlines()[-1].endswith(f'{tmp_path}/lib/run.py culvert "$@"')
    # An older version of ours.
    command.write_text(command.read_text() + "\n")
    assert items(present=True) == ([str(command)], items(present=True)[1])
    assert str(command) in items(present=False)[0]
