# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module that has a certificate made: with the relay's own command in the place of the container."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.module_utils import _one_shot
from ansible_collections.culvert.vpn.plugins.module_utils._core import HostError, SpecError, diff_of
from ansible_collections.culvert.vpn.plugins.module_utils._relay_certificate import (
    CertificateBackend,
    CertificateSpec,
    key_pin,
    read_certificate,
)

SOURCE = Path(__file__).parents[4] / "images/relay/src"
IMAGE = "culvert/relay:test"


class Host:
    """Its files, and the module."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commands: list[list[str]] = []

    def run(self, words: list[str], stdin: str) -> tuple[int, str, str]:
        """As `docker run` does: what comes after the image is the command."""
        self.commands.append(words)
        argv = [sys.executable, "-m", "culvert", *words[words.index(IMAGE) + 1 :]]
        environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False, env=environment)
        return done.returncode, done.stdout, done.stderr

    def module(self, check: bool = False, later: timedelta = timedelta(), **options: Any) -> dict[str, Any]:
        own = {"config_dir": str(self.folder), "image": IMAGE, "owner": str(os.geteuid())}
        spec = CertificateSpec.from_params({**own, "group": str(os.getegid()), **options})
        backend = CertificateBackend(spec, self.run, check)
        backend._now += later
        observed = backend.observe()
        steps = backend.plan(observed)
        for step in steps if not check else []:
            backend.apply(step)
        if steps and not check:
            observed = backend.observe()
        result = {"changed": bool(steps), "diff": diff_of(steps), "warnings": backend.warnings}
        return {**result, **backend.report(observed)}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(_one_shot, "find", lambda name: f"/usr/bin/{name}")
    return Host(tmp_path)


def test_a_certificate_is_made_once_and_the_key_goes_nowhere(host: Host) -> None:
    planned = host.module(check=True)
    assert (planned["changed"], planned["pin"], host.commands) == (True, "", [])
    made = host.module()
    assert made["changed"]
    key = Path(made["private_key_file"])
    assert key.stat().st_mode & 0o777 == 0o600
    assert key.parent.stat().st_mode & 0o777 == 0o700
    certificate = read_certificate(made["certificate_file"])
    assert certificate is not None
    assert made["pin"] == certificate.pin == key_pin(made["private_key_file"]) != ""
    again = host.module()
    assert not again["changed"]
    assert {**again, "changed": True, "diff": made["diff"]} == made
    assert len(host.commands) == 1
    assert key.read_text().splitlines()[1] not in repr([made, host.commands])


def test_what_expires_or_names_somebody_else_is_made_anew_with_the_same_key(host: Host) -> None:
    first = host.module(common_name="gate.example.net", days=100)
    assert not host.module(common_name="gate.example.net", days=100, later=timedelta(days=69))["changed"]
    assert host.module(days=100, later=timedelta(days=71), check=True)["changed"]
    second = host.module(common_name="other.example.net", days=200)
    assert second["changed"]
    assert second["pin"] == first["pin"]
    assert second["expires_at"] > first["expires_at"]
    assert not host.module(days=200)["changed"], "whom it names stays as it is"
    assert second["diff"]["before"] != second["diff"]["after"]


def test_a_lost_certificate_is_made_of_the_key_that_is_there(host: Host) -> None:
    first = host.module()
    Path(first["certificate_file"]).unlink()
    planned = host.module(check=True)
    assert planned["changed"]
    assert first["pin"] in repr(planned["diff"]["after"])
    assert host.module()["pin"] == first["pin"]


def test_the_folder_is_as_it_was_and_goes_again(host: Host) -> None:
    made = host.module()
    folder = Path(made["private_key_file"]).parent
    folder.chmod(0o755)
    assert host.module()["diff"]["before"][f"folder {folder}"]["mode"] == "0755"
    (folder / "mine").touch()
    with pytest.raises(SpecError, match="not made here: mine"):
        host.module(state="absent")
    (folder / "mine").unlink()
    assert host.module(state="absent")["changed"]
    assert not folder.exists()
    assert not host.module(state="absent")["changed"]


def test_own_files_are_looked_at_and_never_touched(host: Host, tmp_path: Path) -> None:
    made = host.module()
    mine = {name: made[name] for name in ("certificate_file", "private_key_file")}
    before = {path: (Path(path).read_bytes(), Path(path).stat().st_mtime_ns) for path in mine.values()}
    found = host.module(image=None, **mine)
    assert (found["changed"], found["pin"], found["warnings"]) == (False, made["pin"], [])
    assert {
        path: (Path(path).read_bytes(), Path(path).stat().st_mtime_ns) for path in mine.values()
    } == before
    assert len(host.commands) == 1
    (late,) = host.module(**mine, later=timedelta(days=3630))["warnings"]
    assert "expires on" in late
    other = Host(tmp_path / "other")
    other.folder.mkdir()
    strange = other.module()["certificate_file"]
    with pytest.raises(SpecError, match="is not a certificate in PEM of the key"):
        host.module(certificate_file=strange, private_key_file=mine["private_key_file"])
    with pytest.raises(SpecError, match="cannot be read by the relay's user"):
        host.module(**mine, owner="51821", group="51821")
    with pytest.raises(SpecError, match="not the user's own files"):
        host.module(state="absent", **mine)


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"config_dir": "etc"}, "config_dir"),
        ({"name": "../x"}, "config_dir"),
        ({"certificate_file": "/a"}, "private_key_file"),
        ({"certificate_file": "a", "private_key_file": "/b"}, "certificate_file"),
        ({"days": 0}, "days"),
        ({"image": None}, "image"),
        ({"other": 1}, "other"),
    ],
)
def test_malformed_options_are_named(host: Host, options: dict[str, Any], option: str) -> None:
    with pytest.raises(SpecError) as caught:
        host.module(**options)
    assert caught.value.option == option


def test_a_command_that_fails_is_an_error_and_leaves_the_key(host: Host) -> None:
    made = host.module()
    Path(made["certificate_file"]).unlink()
    with pytest.raises(
        HostError, match=r"`culvert certificate` in a container of .* failed: culvert: .*no name"
    ):
        host.module(common_name="not a name")
    assert key_pin(made["private_key_file"]) == made["pin"]


def test_files_with_something_else(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for content in (b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", os.urandom(99)):
        path.write_bytes(content)
        assert read_certificate(str(path)) is None
        assert key_pin(str(path)) == ""
    assert read_certificate(str(tmp_path / "none")) is None
