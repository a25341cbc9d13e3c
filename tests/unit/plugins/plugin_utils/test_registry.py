# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The registry's file: what it looks like, and that it is never half of it, whoever writes or dies."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.module_utils import _relay_peers_spec
from ansible_collections.culvert.vpn.plugins.plugin_utils._registry import (
    LINEAGE_MAX,
    Entry,
    Registry,
    RegistryError,
    locked,
    parse,
    plain,
    read,
    remove,
    render,
    serial_of,
    write,
)
from hypothesis import given
from hypothesis import strategies as st

SERVER = Entry(
    "server",
    "10.86.0.1/16",
    "fd86::1/64",
    "S" * 43 + "=",
    "gate.example.net:51820",
    ("10.9.0.0/16",),
    drain=True,
)
CLIENT = Entry(
    "client", "10.86.0.2/16", mtu=1380, acl=({"to": "10.9.0.0/16", "protocol": "tcp", "port": 22},)
)
SMALL = Registry().with_hosts({"gate": SERVER, "büro": CLIENT})


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "culvert_registry.txt")


# --- Text ---------------------------------------------------------------------------------------------------


def test_the_file_has_one_host_a_line_by_name() -> None:
    text = render(SMALL)
    assert text == (
        f'{{"format": 1, "serial": 1, "lineage": ["{SMALL.id}"],\n'
        ' "hosts": {\n'
        '  "büro": {"role": "client", "address": "10.86.0.2/16", "address6": "", "public_key": "", '
        '"endpoint": "", "networks": [], "mtu": 1380, "drain": false, '
        '"acl": [{"to": "10.9.0.0/16", "protocol": "tcp", "port": 22}]},\n'
        '  "gate": {"role": "server", "address": "10.86.0.1/16", "address6": "fd86::1/64", '
        f'"public_key": "{"S" * 43}=", "endpoint": "gate.example.net:51820", "networks": ["10.9.0.0/16"], '
        '"mtu": 0, "drain": true, "acl": null}\n'
        " }}\n"
    )
    assert parse(text) == SMALL
    assert render(parse(text)) == text


ENTRIES = st.builds(
    Entry,
    st.sampled_from(["server", "client"]),
    st.ip_addresses(v=4).map(lambda address: f"{address}/16"),
    st.one_of(st.just(""), st.ip_addresses(v=6).map(lambda address: f"{address}/64")),
    st.text(max_size=5),
    st.text(max_size=5),
    st.lists(st.sampled_from(["10.1.0.0/24", "fd00::/48"]), unique=True).map(tuple),
    st.integers(0, 9000),
    st.booleans(),
    st.one_of(st.none(), st.just(({"to": "10.0.0.0/8"},))),
)


@given(st.dictionaries(st.text(min_size=1, max_size=9), ENTRIES, max_size=6))
def test_what_is_written_is_what_is_read(hosts: dict[str, Entry]) -> None:
    registry = Registry().with_hosts(hosts)
    assert parse(render(registry)) == registry
    assert registry.sealed
    assert registry.with_hosts(dict(reversed(hosts.items()))) is registry


def _changed(**change: Any) -> str:
    data = json.loads(render(SMALL))
    data["hosts"]["gate"].update(change)
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "damaged"),
        (render(SMALL)[:300], "damaged"),
        ("[]", "it is no mapping"),
        ('{"format": 1, "serial": 1, "lineage": []}', "hosts is missing"),
        ('{"format": 1, "serial": 1, "lineage": [], "hosts": {"a": {}}}', "lineage is empty"),
        ('{"format": 1, "serial": true, "lineage": [], "hosts": {}}', "serial"),
        ('{"format": 0, "serial": 1, "lineage": [], "hosts": {}}', "format 0"),
        ('{"format": 1, "serial": 1, "lineage": [7], "hosts": {}}', "lineage"),
        ('{"format": 1, "serial": 1, "lineage": [], "hosts": {}, "more": 1}', "'more'"),
        (_changed(role="boss"), "gate has the role 'boss'"),
        (_changed(address="10.86.0.300/16"), "10.86.0.300"),
        (_changed(address="fd86::1/64"), "gate has the address fd86::1/64"),
        (_changed(networks=["10.9.0.1/16"]), "10.9.0.1/16"),
        (_changed(mtu="1420"), "gate has mtu '1420'"),
        (_changed(drain=0), "gate has drain 0"),
        (_changed(acl=["x"]), "acl"),
        (_changed(colour="red"), "gate has 'colour'"),
    ],
)
def test_a_damaged_registry_is_refused_with_what_to_do(text: str, says: str) -> None:
    with pytest.raises(RegistryError) as caught:
        parse(text, "/srv/registry.txt")
    assert "The registry /srv/registry.txt is damaged" in str(caught.value)
    assert says in str(caught.value)
    assert "Restore it from version control or a backup. Nothing was changed." in str(caught.value)


def test_a_newer_registry_is_refused_with_what_to_do() -> None:
    text = render(SMALL).replace('"format": 1', '"format": 4').replace('"role"', '"rôle"')
    with pytest.raises(RegistryError, match=r"newer version of culvert.vpn .*update the collection"):
        parse(text)


def test_conflicts_of_a_merge_are_called_that() -> None:
    lines = render(SMALL).splitlines()
    text = "\n".join(["<<<<<<< ours", lines[0], "=======", lines[0], ">>>>>>> theirs", *lines[1:]])
    for conflict in (text, "\n" + text):
        with pytest.raises(RegistryError, match="conflicts of a merge"):
            parse(conflict)


def test_plain_keeps_the_value_and_nothing_that_is_attached_to_it() -> None:
    class Tagged(str):
        __slots__ = ()

    class Lazy(dict[str, Any]):
        pass

    value = plain(Lazy({Tagged("a"): [Tagged("b"), (1, 2.5, True, None)]}))
    assert value == {"a": ["b", [1, 2.5, True, None]]}
    assert [type(each) for each in (value, *value, value["a"][0], value["a"][1][2])] == [dict, str, str, bool]
    with pytest.raises(ValueError, match="object"):
        plain([object()])


# --- Lineage ------------------------------------------------------------------------------------------------


def test_each_change_has_an_id_that_tells_where_it_comes_from() -> None:
    one = SMALL.with_hosts({"gate": SERVER})
    other = SMALL.with_hosts({"büro": CLIENT})
    back = one.with_hosts(SMALL.hosts)
    assert len({SMALL.id, one.id, other.id, back.id}) == 4, "the same hosts again are another state"
    assert one.id == SMALL.with_hosts({"gate": SERVER}).id
    assert back.lineage == (SMALL.id, one.id, back.id)
    assert [serial_of(id) for id in back.lineage] == [1, 2, 3]


def test_as_many_ids_are_remembered_as_the_hosts_count_on() -> None:
    registry = SMALL
    for number in range(LINEAGE_MAX + 5):
        registry = registry.with_hosts({**SMALL.hosts, "gate": Entry("server", mtu=number)})
    assert len(registry.lineage) == LINEAGE_MAX == _relay_peers_spec.LINEAGE_MAX
    assert registry.serial == LINEAGE_MAX + 6
    assert registry.sealed
    descent = _relay_peers_spec.Descent(registry.id, registry.lineage)
    for id in (SMALL.id, "7-x", "9999-x", "x", registry.id, registry.lineage[0], ""):
        assert descent.knows(id) == registry.knows(id) == (id not in ("9999-x", "x", "7-x"))


# --- File ---------------------------------------------------------------------------------------------------


def test_a_file_is_written_with_its_mode_and_read_again(path: str) -> None:
    assert read(path) is None
    with locked(path):
        write(path, SMALL)
    assert read(path) == SMALL
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o644
    assert os.listdir(os.path.dirname(path)) == ["culvert_registry.txt"]
    assert read(path) is read(path), "is parsed once"
    other = SMALL.with_hosts({})
    write(path, other)
    assert read(path) == other, "a file that was replaced is read anew"
    remove(path)
    remove(path)
    assert read(path) is None


def test_a_link_stays_a_link(path: str, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    os.symlink(tmp_path / "kept" / "registry.txt", path)
    with locked(path):
        write(path, SMALL)
    assert os.path.islink(path)
    assert os.listdir(tmp_path / "kept") == ["registry.txt"]


def test_what_cannot_be_read_or_written_is_said(path: str, tmp_path: Path, monkeypatch: Any) -> None:
    Path(path).write_bytes(b"\xff\xfe")
    with pytest.raises(RegistryError, match="is not text"):
        read(path)
    with pytest.raises(RegistryError, match="cannot be read: Is a directory"):
        read(str(tmp_path))
    missing = str(tmp_path / "no" / "registry.txt")
    assert read(missing) is None
    with pytest.raises(RegistryError, match="No such file"), locked(missing):
        pass

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    Path(path).write_text(render(SMALL))
    with pytest.raises(RegistryError, match="cannot be written: No space left"):
        write(path, SMALL.with_hosts({}))
    assert read(path) == SMALL
    assert os.listdir(tmp_path) == ["culvert_registry.txt"]


def test_a_lock_that_is_kept_is_not_waited_for_without_end(path: str) -> None:
    with locked(path) as locks:
        assert locks
        with pytest.raises(RegistryError, match="Another run"), locked(path, patience_s=0.1):
            pass
    with locked(path, patience_s=0.1):
        pass


def test_file_systems_without_locks_are_told_apart(path: str, monkeypatch: Any) -> None:
    def refuse(_descriptor: int, _how: int) -> None:
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(path) as locks:
        assert locks is False


# --- Several at a time --------------------------------------------------------------------------------------

WRITER = """
import sys
from ansible_collections.culvert.vpn.plugins.plugin_utils import _registry as r
path, who, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
for number in range(count):
    with r.locked(path):
        before = r.read(path) or r.Registry()
        r.write(path, before.with_hosts({**before.hosts, f"{who}-{number}": r.Entry(mtu=number)}))
    print(number, flush=True)
"""


def writer(path: str, who: str, count: int) -> subprocess.Popen[str]:
    folder = next(p for p in sys.path if (Path(p) / "ansible_collections" / "culvert").exists())
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, path, who, str(count)],
        env={**os.environ, "PYTHONPATH": folder},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_several_writers_lose_nothing(path: str) -> None:
    writers = [writer(path, who, 25) for who in "abc"]
    for process in writers:
        process.communicate(timeout=60)
        assert process.returncode == 0
    registry = read(path)
    assert registry is not None
    assert set(registry.hosts) == {f"{who}-{number}" for who in "abc" for number in range(25)}
    assert registry.serial == len(registry.lineage) == 75
    assert registry.sealed


def test_a_writer_that_is_killed_leaves_the_old_file_or_the_new_one(path: str) -> None:
    seed = random.Random(7)
    big = {f"host{n}": Entry(address="10.86.0.2/16", public_key="K" * 44) for n in range(400)}
    write(path, Registry().with_hosts(big))
    for attempt in range(12):
        process = writer(path, f"w{attempt}", 1000)
        assert process.stdout is not None
        process.stdout.readline()  # it is writing
        time.sleep(seed.random() / 20)
        process.send_signal(signal.SIGKILL)
        done = 1 + len(process.communicate()[0].splitlines())
        registry = parse(Path(path).read_text())
        assert registry.sealed
        mine = [name for name in registry.hosts if name.startswith(f"w{attempt}-")]
        assert len(mine) in (done, done + 1), "one may have been written and not been told of"
    with locked(path, patience_s=1):
        write(path, SMALL)
    assert os.listdir(os.path.dirname(path)) == ["culvert_registry.txt"], "leftovers go with the next writer"
