# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module that has a certificate made: with the relay's own command in the place of the container."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.module_utils import _one_shot
from ansible_collections.culvert.vpn.plugins.module_utils._certificate_files import key_pin, read_certificate
from ansible_collections.culvert.vpn.plugins.module_utils._core import HostError, SpecError, diff_of
from ansible_collections.culvert.vpn.plugins.module_utils._relay_certificate import (
    CertificateBackend,
    CertificateSpec,
    Observed,
)
from culvert import certificate

SOURCE = Path(__file__).parents[4] / "images/relay/src"
DOCS = Path(__file__).parents[4] / "docs/transports.md"
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


# --- The user's own files -----------------------------------------------------------------------------------


class Certbot:
    """Files as certbot has them: links into a folder that root alone may enter."""

    def __init__(self, folder: Path) -> None:
        self.root, self.issued = folder, 0
        self.live, self.archive = (folder / name / "gate.example.net" for name in ("live", "archive"))
        for path in (self.live, self.archive):
            path.mkdir(parents=True)
            path.parent.chmod(0o700)
        self.renew(reuse_key=False)

    def renew(self, reuse_key: bool = True, days: int = 90) -> None:
        """The certificate has a chain behind it, and text between, as some authorities send it."""
        before, self.issued = self.archive / f"privkey{self.issued}.pem", self.issued + 1
        with_chain, key = (self.archive / f"{name}{self.issued}.pem" for name in ("fullchain", "privkey"))
        made, authority = self.root / f"made{self.issued}", self.root / f"authority{self.issued}"
        made.mkdir()
        if reuse_key:
            (made / "key.pem").write_bytes(before.read_bytes())
        for folder in (made, authority):
            certificate.make(str(folder), "gate.example.net", days)
        chain = "Issuer: Gr\u00fcn\n".encode("latin-1") + (authority / "certificate.pem").read_bytes()
        with_chain.write_bytes((made / "certificate.pem").read_bytes() + chain)
        key.write_bytes((made / "key.pem").read_bytes())
        key.chmod(0o600)
        for name, path in (("fullchain.pem", with_chain), ("privkey.pem", key)):
            (self.live / name).unlink(missing_ok=True)
            (self.live / name).symlink_to(f"../../archive/gate.example.net/{path.name}")

    @property
    def options(self) -> dict[str, Any]:
        paths = {"certificate_file": "fullchain.pem", "private_key_file": "privkey.pem"}
        return {"image": None, **{option: str(self.live / name) for option, name in paths.items()}}

    @property
    def pin(self) -> str:
        return key_pin(self.options["private_key_file"])

    def is_copied(self, result: dict[str, Any]) -> bool:
        """Byte for byte, as files that are the relay's user's alone."""
        pairs = [(self.options[name], result[name]) for name in ("certificate_file", "private_key_file")]
        return all(
            Path(mine).read_bytes() == Path(copy).read_bytes()
            and not Path(copy).is_symlink()
            and Path(copy).stat().st_mode & 0o777 == 0o600
            for mine, copy in pairs
        )

    def secrets(self) -> set[str]:
        """A line of each private key that there was."""
        return {path.read_text().splitlines()[1] for path in self.archive.glob("privkey*.pem")}


@pytest.fixture
def certbot(tmp_path: Path) -> Certbot:
    return Certbot(tmp_path / "letsencrypt")


def test_own_files_are_copied_once_whatever_links_lead_to_them(host: Host, certbot: Certbot) -> None:
    folder = host.folder / "culvert0.tls"
    planned = host.module(check=True, **certbot.options)
    assert (planned["changed"], planned["pin"], folder.exists()) == (True, certbot.pin, False)
    copied = host.module(**certbot.options)
    assert certbot.is_copied(copied)
    assert copied["private_key_file"] == f"{folder}/key.pem"
    assert copied["certificate_file"] == f"{folder}/certificate.pem"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (copied["pin"], copied["warnings"], host.commands) == (certbot.pin, [], [])
    assert copied["diff"] == planned["diff"]
    again = host.module(**certbot.options)
    assert (again["changed"], again["diff"]) == (False, {"before": {}, "after": {}})
    assert {**again, "changed": True, "diff": copied["diff"]} == copied


def test_copies_follow_what_is_renewed_and_nothing_shows_a_key(host: Host, certbot: Certbot) -> None:
    results = [host.module(**certbot.options)]
    first = results[0]
    certbot.renew(days=200)
    results.append(host.module(check=True, **certbot.options))
    assert results[-1]["changed"]
    assert not certbot.is_copied(first)
    results.append(host.module(**certbot.options))
    assert results[-1]["diff"] == results[-2]["diff"]
    assert list(results[-1]["diff"]["after"]) == [f"file {first['certificate_file']}"], "the key is the same"
    assert results[-1]["expires_at"] == results[-2]["expires_at"] > first["expires_at"]
    assert (results[-1]["pin"], results[-1]["warnings"]) == (first["pin"], [])
    certbot.renew(reuse_key=False)
    results.append(host.module(**certbot.options))
    (warning,) = results[-1]["warnings"]
    assert f"by the pin {first['pin']} and have to know {certbot.pin}" in warning
    assert certbot.is_copied(results[-1])
    assert sorted(os.listdir(host.folder / "culvert0.tls")) == [
        "certificate.pem",
        "key.pem",
        "key.pem.copied",
    ]
    assert len(certbot.secrets()) == 2
    assert not [secret for secret in certbot.secrets() if secret in repr(results)]


@pytest.mark.parametrize("reuse_key", [True, False])
def test_the_documented_hook_copies_a_renewed_certificate_and_no_other(
    host: Host, certbot: Certbot, tmp_path: Path, reuse_key: bool
) -> None:
    (hook,) = re.findall(r"```sh\n(#!/bin/sh\n# .*/renewal-hooks/.*?)```", DOCS.read_text(), re.DOTALL)
    copied = host.module(**certbot.options)
    folder, signals, docker = host.folder / "culvert0.tls", tmp_path / "signals", tmp_path / "bin/docker"
    docker.parent.mkdir()
    docker.write_text(f'#!/bin/sh\necho "$@" >> {signals}\n')
    docker.chmod(0o755)
    for there, here in (
        ("/etc/culvert/culvert0.tls", str(folder)),
        ("-o 51820", f"-o {os.geteuid()}"),
        ("-g 51820", f"-g {os.getegid()}"),
    ):
        assert there in hook
        hook = hook.replace(there, here)
    certbot.renew(reuse_key)
    path = f"{docker.parent}:{os.environ['PATH']}"
    subprocess.run(
        ["sh", "-c", hook], check=True, env={"PATH": path, "RENEWED_LINEAGE": str(certbot.live)}, timeout=30
    )
    assert certbot.is_copied(copied) == reuse_key
    assert signals.exists() == reuse_key
    if reuse_key:
        assert signals.read_text() == "kill --signal HUP culvert-culvert0\n"
    assert host.module(**certbot.options)["changed"] != reuse_key


@pytest.mark.parametrize("name", ["key.pem", "certificate.pem"])
def test_a_copy_that_others_may_read_or_that_is_gone_is_made_anew(
    host: Host, certbot: Certbot, name: str
) -> None:
    copied = host.module(**certbot.options)
    copy = host.folder / "culvert0.tls" / name
    copy.chmod(0o644)
    repaired = host.module(**certbot.options)
    assert repaired["diff"]["before"][f"file {copy}"]["mode"] == "0644"
    assert certbot.is_copied(repaired)
    copy.unlink()
    assert host.module(**certbot.options)["changed"]
    assert certbot.is_copied(copied)


def test_a_made_key_is_kept_beside_the_copy_and_comes_back(host: Host, certbot: Certbot) -> None:
    made = host.module(common_name="gate.example.net")
    key = Path(made["private_key_file"]).read_bytes()
    planned = host.module(check=True, **certbot.options)
    assert Path(made["private_key_file"]).read_bytes() == key
    copied = host.module(**certbot.options)
    assert copied["diff"] == planned["diff"]
    kept = host.folder / "culvert0.tls/key.pem.made"
    assert copied["diff"]["after"][f"made key {kept}"] == {"pin": made["pin"]}
    assert (kept.read_bytes(), kept.stat().st_mode & 0o777) == (key, 0o600)
    assert certbot.is_copied(copied)
    assert made["pin"] in copied["warnings"][0]
    certbot.renew(reuse_key=False)
    host.module(**certbot.options)
    assert kept.read_bytes() == key, "not another copy"
    planned = host.module(check=True, common_name="gate.example.net")
    assert (planned["changed"], planned["pin"]) == (True, made["pin"])
    back = host.module(common_name="gate.example.net")
    assert back["diff"] == planned["diff"]
    assert (back["pin"], Path(back["private_key_file"]).read_bytes()) == (made["pin"], key)
    assert sorted(os.listdir(kept.parent)) == ["certificate.pem", "key.pem"]
    assert certbot.pin in back["warnings"][0]
    assert not host.module(common_name="gate.example.net")["changed"]


def test_a_copied_key_does_not_become_the_made_one(host: Host, certbot: Certbot) -> None:
    host.module(**certbot.options)
    planned = host.module(check=True)
    assert (planned["changed"], planned["pin"], planned["expires_at"]) == (True, "", None)
    made = host.module()
    assert made["pin"] not in ("", certbot.pin)
    assert "that of a new one" in made["warnings"][0]
    assert sorted(os.listdir(host.folder / "culvert0.tls")) == ["certificate.pem", "key.pem"]
    assert not host.module()["changed"]


class Interrupted(Exception):
    pass


def interrupt(patched: pytest.MonkeyPatch, call: int, after: bool) -> None:
    """The run ends just before or after this call of those that change files."""
    calls = itertools.count()

    def patch(name: str) -> None:
        plain = getattr(os, name)

        def interrupted(*args: Any, **named: Any) -> None:
            is_last = next(calls) == call
            if is_last and not after:
                raise Interrupted
            try:
                plain(*args, **named)
            finally:
                if is_last:
                    raise Interrupted

        patched.setattr(os, name, interrupted)

    for name in ("fsync", "link", "rename", "replace", "unlink"):
        patch(name)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("own_next", [False, True])
@pytest.mark.parametrize("to_own", [False, True])
def test_an_interrupted_change_loses_no_made_key(
    host: Host, certbot: Certbot, monkeypatch: pytest.MonkeyPatch, to_own: bool, own_next: bool, after: bool
) -> None:
    """Wherever a change is interrupted, there or back: whichever is wanted next is reached."""

    def run(words: list[str], _stdin: str) -> tuple[int, str, str]:
        certificate.make(words[words.index("--directory") + 1])
        return 0, "", ""

    monkeypatch.setattr(host, "run", run)
    made = host.module()
    is_interrupted, call = True, 0
    while is_interrupted:
        host.module(**({} if to_own else certbot.options))
        with monkeypatch.context() as patched:
            interrupt(patched, call, after)
            try:
                host.module(**(certbot.options if to_own else {}))
                is_interrupted = False
            except (Interrupted, HostError):
                call += 1
        result = host.module(**(certbot.options if own_next else {}))
        assert result["pin"] == (certbot.pin if own_next else made["pin"])
        assert not own_next or certbot.is_copied(result)
        assert host.module()["pin"] == made["pin"]
        assert not host.module()["changed"]
    assert call >= 5


def test_absence_takes_the_copies_and_leaves_the_files(host: Host, certbot: Certbot) -> None:
    host.module()
    copied = host.module(**certbot.options)
    before = {path: path.read_bytes() for path in certbot.live.iterdir()}
    assert host.module(state="absent", check=True, **certbot.options)["changed"]
    assert certbot.is_copied(copied)
    assert host.module(state="absent", **certbot.options)["changed"]
    assert os.listdir(host.folder) == [certbot.root.name]
    assert {path: path.read_bytes() for path in certbot.live.iterdir()} == before
    assert not host.module(state="absent")["changed"]


def test_dates_of_own_files_are_warned_of(host: Host, certbot: Certbot) -> None:
    host.module(**certbot.options)
    (soon,) = host.module(**certbot.options, later=timedelta(days=61))["warnings"]
    assert "fullchain.pem expires on" in soon
    (late,) = host.module(**certbot.options, later=timedelta(days=91))["warnings"]
    assert "fullchain.pem has expired on" in late


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("fullchain", "", "certificate_file: .* is not a certificate in PEM"),
        ("fullchain", "{other}", "private_key_file: .* is not the key of the certificate in"),
        ("fullchain", "{leaf}-----BEGIN CERTIFICATE-----\nAAAA\n", "has a chain that cannot be read"),
        ("privkey", "", "private_key_file: .* is not a private key in PEM without a password"),
        ("privkey", "x" * (1 << 20) + "x", "is longer than 1048576 bytes"),
    ],
)
def test_own_files_that_no_relay_could_work_with_are_refused_and_the_copies_stay(
    host: Host, certbot: Certbot, name: str, content: str, why: str
) -> None:
    copied = host.module(**certbot.options)
    copies = {path: path.read_bytes() for path in Path(copied["private_key_file"]).parent.iterdir()}
    leaf, other = ((certbot.root / made / "certificate.pem").read_text() for made in ("made1", "authority1"))
    (certbot.live / f"{name}.pem").unlink()
    (certbot.live / f"{name}.pem").write_text(content.format(leaf=leaf, other=other))
    with pytest.raises(SpecError, match=why):
        host.module(**certbot.options)
    assert {path: path.read_bytes() for path in copies} == copies


def test_links_that_lead_nowhere_or_back_are_refused(host: Host, certbot: Certbot) -> None:
    made = host.module()
    (certbot.archive / "privkey1.pem").unlink()
    with pytest.raises(SpecError, match="a link that leads nowhere") as caught:
        host.module(**certbot.options)
    assert caught.value.option == "private_key_file"
    for name, target in (("fullchain.pem", "certificate_file"), ("privkey.pem", "private_key_file")):
        (certbot.live / name).unlink()
        (certbot.live / name).symlink_to(made[target])
    with pytest.raises(SpecError, match="which is for the copies"):
        host.module(**certbot.options)
    assert host.module()["pin"] == made["pin"]


def test_check_mode_without_the_library_says_that_there_would_be_copies(host: Host, certbot: Certbot) -> None:
    """Another task of the role would have installed it."""
    spec = CertificateSpec.from_params({"config_dir": str(host.folder), **certbot.options})
    backend = CertificateBackend(spec, host.run, True)
    assert backend.blank() == Observed()
    assert [step.action for step in backend.plan(backend.blank())] == ["folder"]
    assert backend.report(backend.blank())["pin"] == ""


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
