# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module relay_key. It needs no network, but the same way of running a module."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.netns.modules.host import Host, Result

OWNER = "51820"


def make(host: Host, path: Path, check: bool = False, **params: object) -> Result:
    return host.module("relay_key", check=check, path=str(path), owner=OWNER, **params)


def assert_secret(private: str, *results: Result) -> None:
    """The key is in nothing that a module printed, not even its beginning."""
    assert len(private) == 44
    for result in results:
        assert private not in result.text
        assert private[:12] not in result.text


def test_a_key_is_written_once_and_only_the_public_one_is_told(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "culvert0.key"
    foretold = make(host, path, check=True)
    assert foretold.changed
    assert foretold["public_key"] is None
    assert not path.exists()

    done = make(host, path)
    assert done.changed
    assert done["diff"] == foretold["diff"]
    status = path.stat()
    assert stat.S_IMODE(status.st_mode) == 0o400
    assert status.st_uid == int(OWNER)
    text = path.read_text()
    assert text.endswith("=\n")
    assert host.run("wg", "pubkey", stdin=text).strip() == done["public_key"]

    again = make(host, path)
    foretold_again = make(host, path, check=True)
    assert not again.changed
    assert not foretold_again.changed
    assert again["public_key"] == foretold_again["public_key"] == done["public_key"]
    assert path.read_text() == text

    gone = make(host, path, state="absent")
    assert gone.changed
    assert not path.exists()
    assert not make(host, path, state="absent").changed
    assert_secret(text.strip(), foretold, done, again, foretold_again, gone)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["host"], "no temporary file is left"


def test_a_key_of_wg_is_taken_and_protected(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "culvert0.key"
    text = host.run("wg", "genkey")
    path.write_text(text)
    path.chmod(0o644)
    foretold = make(host, path, check=True)
    done = make(host, path)
    assert done.changed
    assert done["diff"] == foretold["diff"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    assert path.stat().st_uid == int(OWNER)
    assert path.read_text() == text
    assert done["public_key"] == host.run("wg", "pubkey", stdin=text).strip()
    assert_secret(text.strip(), foretold, done)


def test_what_is_no_key_is_refused_and_left_alone(host: Host, tmp_path: Path) -> None:
    secret = "hush" + "A" * 39 + "="
    for content in (
        "",
        "nonsense\n",
        f"{secret}\n{secret}\n",
        f" {secret}\n",
        secret[:-2] + "\n",
        secret[1:] + "\n",
    ):
        path = tmp_path / "culvert0.key"
        path.write_text(content)
        refused = make(host, path)
        refused.assert_refused("path", [str(path), "X25519"])
        assert "hush" not in refused.text
        assert path.read_text() == content
        path.unlink()
    link = tmp_path / "link.key"
    link.symlink_to("/etc/shadow")
    make(host, link).assert_refused("path", [str(link), "symbolic link"])
    make(host, tmp_path).assert_refused("path", [str(tmp_path)])
    make(host, tmp_path / "nowhere" / "a.key").assert_refused("path", ["nowhere", "does not exist"])
    assert make(host, tmp_path / "nowhere" / "a.key", check=True).changed
    relative = host.module("relay_key", path="some/where.key", owner="no-such-user")
    relative.assert_refused("owner", ["no-such-user"])


def test_runs_at_the_same_time_agree_on_one_key(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "culvert0.key"
    with ThreadPoolExecutor(4) as pool:
        results = [run.result() for run in [pool.submit(make, host, path) for _ in range(4)]]
    assert sorted(result.changed for result in results) == [False, False, False, True]
    assert len({result["public_key"] for result in results}) == 1


def test_a_reader_other_than_root_can_use_it(host: Host) -> None:
    host.sh("mount -t tmpfs none /mnt")
    make(host, Path("/mnt/culvert0.key"))
    read = ["setpriv", f"--reuid={OWNER}", "--clear-groups", "cat", "/mnt/culvert0.key"]
    assert host.run(*read) == host.run("cat", "/mnt/culvert0.key")
