# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Containers that do one thing: an engine that hangs, and what comes of a failure. The engine is a script."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from ansible_collections.culvert.vpn.plugins.module_utils import _one_shot
from ansible_collections.culvert.vpn.plugins.module_utils._core import HostError
from ansible_collections.culvert.vpn.plugins.module_utils._one_shot import OneShot, carry_out

SHOT = OneShot("culvert/relay:test", ("agree", "--secrets", "/x"), 51820, 51820, ("/k",), ("/x",))


def run(words: list[str], stdin: str) -> tuple[int, str, str]:
    done = subprocess.run(words, input=stdin, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def engine(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    """A command docker that notes how it was called, and then does what the script says."""
    calls, path = folder / "calls", folder / "docker"
    path.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n{script}\n')
    path.chmod(0o755)
    monkeypatch.setattr(_one_shot, "find", lambda name: str(path) if name == "docker" else shutil.which(name))
    return calls


def test_what_goes_in_and_what_comes_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = engine(tmp_path, monkeypatch, "cat")
    assert carry_out(run, SHOT, "hello") == "hello"
    words = calls.read_text().split()
    assert {"--volume=/k:/k:ro", "--volume=/x:/x:rw", "--user=51820:51820", "--network=none"} <= set(words)
    assert words[words.index(SHOT.image) + 1 :] == list(SHOT.command)


def test_an_engine_that_hangs_hangs_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even one that does not listen to signals. What is left of the container is removed, by its name."""
    script = '[ "$1" = rm ] && exit 0\ntrap "" TERM\nwhile :; do sleep 0.1; done'
    calls = engine(tmp_path, monkeypatch, script)
    monkeypatch.setattr(_one_shot, "TIME_LIMIT_S", 0.2)
    monkeypatch.setattr(_one_shot, "GRACE_S", 0.2)
    with pytest.raises(HostError, match=r"did not end within 0\.2 s"):
        carry_out(run, SHOT)
    made, removed = calls.read_text().splitlines()
    name = next(word for word in made.split() if word.startswith("--name=")).partition("=")[2]
    assert removed == f"rm --force {name}"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exit 137", "`culvert agree` in a container of culvert/relay:test failed: no reason given"),
        ("exit 124", "failed: no reason given"),
        ("echo 'docker: no such image' >&2; exit 125", "failed: docker: no such image"),
        ("echo \"culvert: error: invalid choice: 'agree' (x)\" >&2; exit 2", "knows no `culvert agree`"),
    ],
)
def test_a_failure_is_an_error_that_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    calls = engine(tmp_path, monkeypatch, script)
    with pytest.raises(HostError, match=words):
        carry_out(run, SHOT)
    assert len(calls.read_text().splitlines()) == 1, "there is nothing to remove"


def test_without_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_one_shot, "find", lambda name: None)
    with pytest.raises(HostError, match="no command docker"):
        carry_out(run, SHOT)
