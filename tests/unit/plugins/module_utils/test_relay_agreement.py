# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module that agrees on pre-shared keys: with the relay's own command in the place of the container."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.module_utils import _one_shot
from ansible_collections.culvert.vpn.plugins.module_utils._core import HostError, SpecError, diff_of
from ansible_collections.culvert.vpn.plugins.module_utils._relay_agreement import (
    AgreementBackend,
    AgreementSpec,
    called,
    look,
    one_shot,
)
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

SOURCE = Path(__file__).parents[4] / "images/relay/src"
IMAGE = "culvert/relay:test"


class Host:
    """Its files, and the module."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.commands: list[tuple[list[str], str]] = []
        private = X25519PrivateKey.generate()
        (folder / "culvert0.key").write_text(base64.b64encode(private.private_bytes_raw()).decode() + "\n")
        self.public_key = base64.b64encode(private.public_key().public_bytes_raw()).decode()

    def run(self, words: list[str], stdin: str) -> tuple[int, str, str]:
        """As `docker run` does: what comes after the image is the command."""
        self.commands.append((words, stdin))
        argv = [sys.executable, "-m", "culvert", *words[words.index(IMAGE) + 1 :]]
        environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False, env=environment)
        return done.returncode, done.stdout, done.stderr

    def backend(self, check: bool = False, run: Any = None, **options: Any) -> AgreementBackend:
        own = {"config_dir": str(self.folder), "image": IMAGE, "owner": str(os.geteuid())}
        spec = AgreementSpec.from_params({**own, "group": str(os.getegid()), **options})
        return AgreementBackend(spec, run or self.run, check)

    def module(self, check: bool = False, run: Any = None, **options: Any) -> dict[str, Any]:
        backend = self.backend(check, run, **options)
        observed = backend.observe()
        steps = backend.plan(observed)
        for step in steps if not check else []:
            backend.apply(step)
        if steps and not check:
            observed = backend.observe()
        result = {"changed": bool(steps), "diff": diff_of(steps), "warnings": backend.warnings}
        return {**result, **backend.report(observed)}

    def secrets(self) -> list[str]:
        kept = [path for path in (self.folder / "culvert0.psk").iterdir() if path.suffix != ".pub"]
        return [path.read_text().strip() for path in [*kept, self.folder / "culvert0.key"]]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Host]:
    monkeypatch.setattr(_one_shot, "find", lambda name: f"/usr/bin/{name}")
    return lambda name: Host(tmp_path / name)


def wish(other: Host, kem: str, own: Host) -> dict[str, Any]:
    agree = [{"name": "gate1", "from": own.public_key, "public_key": other.public_key, "replaces": ""}]
    return {"agree": agree, "kems": {other.public_key: kem}}


def test_two_hosts_have_one_key_and_the_module_none(make: Callable[[str], Host]) -> None:
    client, server = make("client"), make("server")
    made = server.module(kem="current")
    assert made["changed"]
    assert not server.module(kem="current")["changed"]
    agreed = client.module(**wish(server, made["kem"]["current"], client))
    derived = server.module(derive=agreed["agreements"])
    [id] = derived["derived"]
    assert id == agreed["agreements"][0]["id"]
    assert not server.module(derive=agreed["agreements"])["changed"]
    files = [host.folder / "culvert0.psk" / id for host in (client, server)]
    assert files[0].read_text() == files[1].read_text()
    assert look(str(server.folder / "culvert0.psk")).protection == (0o700, os.geteuid(), os.getegid())
    passed = repr([made, agreed, derived, client.commands, server.commands])
    assert len(client.secrets()) == 2
    for secret in client.secrets() + server.secrets():
        assert secret not in passed
        assert base64.b64decode(secret).hex() not in passed
    gone = server.module(remove=[id, "0" * 32])
    assert gone["diff"]["before"] == {"pre-shared keys that nobody needs": [id]}
    assert not files[1].exists()
    assert not server.module(remove=[id])["changed"]


def test_check_mode_runs_nothing_and_says_what_it_would_do(make: Callable[[str], Host]) -> None:
    client, server = make("client"), make("server")
    kem = server.module(kem="current")["kem"]["current"]
    result = client.module(check=True, **wish(server, kem, client))
    assert result["changed"]
    assert result["agreements"] == []
    assert result["diff"]["after"]["pre-shared key with gate1"] == "agreed anew"
    assert client.commands == []
    assert not (client.folder / "culvert0.psk").exists()


def test_the_container_has_no_network_no_right_and_little_of_the_host(make: Callable[[str], Host]) -> None:
    host = make("host")
    words = _one_shot.container("docker", one_shot(host.backend(kem="current").spec), "culvert-agree-1")
    assert {"--network=none", "--read-only", "--cap-drop=ALL", "--log-driver=none", "--rm"} <= set(words)
    assert "--security-opt=no-new-privileges" in words
    assert f"--user={os.geteuid()}:{os.getegid()}" in words
    key, folder = f"{host.folder}/culvert0.key", f"{host.folder}/culvert0.psk"
    volumes = [word for word in words if word.startswith("--volume")]
    assert volumes == [f"--volume={key}:{key}:ro", f"--volume={folder}:{folder}:rw"]
    (host.folder / "culvert0.next.key").write_text("")
    assert one_shot(host.backend(kem="next").spec).read == (key, f"{host.folder}/culvert0.next.key")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            (2, "", "culvert: error: argument COMMAND: invalid choice: 'agree' (choose …)"),
            "is too old to agree",
        ),
        ((125, "", "docker: no such image\nSee docker run --help"), "failed: docker: no such image"),
        ((1, "", "culvert: agree: /x: No space left on device"), "failed: culvert: agree: /x: No space"),
        ((137, "", ""), "failed: no reason given"),
        ((0, "hello", ""), "answers what we do not know"),
    ],
)
def test_a_container_that_fails_is_an_error_that_says_why(
    make: Callable[[str], Host], answer: tuple[int, str, str], words: str
) -> None:
    with pytest.raises(HostError, match=words):
        make("host").module(run=lambda _words, _stdin: answer, kem="current")


def test_what_it_cannot_do_is_a_warning(make: Callable[[str], Host]) -> None:
    client, server = make("client"), make("server")
    kem = server.module(kem="current")["kem"]["current"]
    [made] = client.module(**wish(server, kem, client))["agreements"]
    other = make("other")
    other.module(kem="current")
    result = other.module(derive=[made])
    assert (result["missing"], result["derived"]) == ([made["id"]], [])
    assert result["warnings"] == [f"{made['id']} is an agreement for keys that this host does not have"]


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"config_dir": "etc"}, "config_dir"),
        ({"name": "../x"}, "config_dir"),
        ({"remove": ["../../passwd"]}, "remove"),
        ({"agree": [{"name": "a", "from": "x", "public_key": "y"}]}, "agree[0].from"),
        ({"derive": [dict.fromkeys(("id", "from", "to", "kem", "eph", "ct"), "x")]}, "derive[0].id"),
        ({"other": 1}, "other"),
    ],
)
def test_malformed_options_are_named(
    make: Callable[[str], Host], options: dict[str, Any], option: str
) -> None:
    with pytest.raises(SpecError) as caught:
        make("host").backend(**options)
    assert caught.value.option == option


def test_a_peer_without_ml_kem_key_is_refused(make: Callable[[str], Host]) -> None:
    client, server = make("client"), make("server")
    with pytest.raises(SpecError, match="has no ML-KEM-768 public key"):
        client.backend(**wish(server, "AAAA", client))


def test_without_a_private_key_or_an_image_nothing_is_run(make: Callable[[str], Host]) -> None:
    host = make("host")
    with pytest.raises(SpecError, match="image"):
        host.module(kem="current", image=None)
    (host.folder / "culvert0.key").unlink()
    with pytest.raises(HostError, match=r"relay_key makes it"):
        host.module(kem="current")
    assert host.commands == []


def test_of_a_configuration_it_is_told_whom_the_host_calls_and_with_which_key() -> None:
    text = """[Interface]
PrivateKeyFile = /etc/culvert/culvert0.key
[Peer]
# gate1
PublicKey = AAA=
PresharedKeyFile = /etc/culvert/culvert0.psk/0123
Endpoint = gate1:51820
[Peer]
PublicKey = BBB=
Endpoint = gate2:51820 # there
[Peer]
PublicKey = CCC=
PresharedKeyFile = /etc/x
[Peer]
PublicKey = DDD=
PresharedKey = secret
Endpoint = gate4:1
"""
    assert called(text) == {"AAA=": "0123", "BBB=": "", "DDD=": "inline"}
    assert called("") == {}


def test_strange_files_in_the_folder_are_nobodys_business(tmp_path: Path) -> None:
    (tmp_path / "external-phone").write_text("x")
    (tmp_path / "kem.pub").write_text("no key\n")
    (tmp_path / "next.kem").write_text("x")
    kept = look(str(tmp_path))
    assert (kept.ids, kept.kem) == (frozenset(), {})
    assert look(str(tmp_path / "none")).protection is None
