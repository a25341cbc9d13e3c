# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What makes a relay who it is, off one host and onto another."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.module_utils import _kept_secrets, _sealed, _x25519
from ansible_collections.culvert.vpn.plugins.module_utils._core import HostError, SpecError
from ansible_collections.culvert.vpn.plugins.module_utils._kept_secrets import Item, Place
from hypothesis import given
from hypothesis import strategies as st

KEY = bytes(range(32))
TLS_KEY = "-----BEGIN PRIVATE KEY-----\nbm90IGZvciBhbnlib2R5\n-----END PRIVATE KEY-----\n"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(_kept_secrets, "RUN_DIR", str(tmp_path))
    made = Place("culvert0", str(tmp_path / "etc"), str(tmp_path / "state"))
    for folder in (
        "etc/culvert0.psk",
        "etc/culvert0.tls",
        "etc/culvert0.one.psk",
        "state/culvert0",
        "state/culvert0.one",
    ):
        (tmp_path / folder).mkdir(parents=True)
    for path, text, mode in (
        ("etc/culvert0.key", _x25519.to_base64(KEY) + "\n", 0o400),
        ("etc/culvert0.next.key", "the next one", 0o400),
        ("etc/culvert0.psk/0123", "a pre-shared key", 0o400),
        ("etc/culvert0.psk/kem", "a seed", 0o400),
        ("etc/culvert0.tls/key.pem", TLS_KEY, 0o600),
        ("etc/culvert0.tls/certificate.pem", "a certificate", 0o644),
        ("etc/culvert0.conf", "not kept", 0o640),
        ("etc/culvert0.one.conf", "not ours", 0o640),
        ("etc/culvert0.one.key", "not ours", 0o400),
        ("etc/culvert0.one.psk/kem", "not ours", 0o400),
        ("etc/culvert1.key", "not ours", 0o400),
        ("state/culvert0/usage", "{}", 0o600),
        ("state/culvert0.one/usage", "not ours", 0o600),
    ):
        file = tmp_path / path
        file.write_text(text)
        file.chmod(mode)
    (tmp_path / "etc/culvert0.psk").chmod(0o700)
    (tmp_path / "etc/culvert0.tls").chmod(0o700)
    if os.geteuid() == 0:
        for path in ("", "key.pem", "certificate.pem"):
            os.chown(tmp_path / "etc/culvert0.tls" / path, 51820, 51821)
    return made


def public(private: bytes) -> str:
    return _x25519.to_base64(_x25519.public_key_of(private))


def params(place: Place, **more: Any) -> dict[str, Any]:
    return {"name": place.name, "config_dir": place.config_dir, "state_dir": place.state_dir, **more}


def test_keys_and_usage_of_one_interface_and_nothing_else(place: Place) -> None:
    items = {item.path: item for item in _kept_secrets.collect(place)}
    assert set(items) == {
        *("culvert0.key", "culvert0.next.key", "culvert0.psk", "culvert0.psk/0123", "culvert0.psk/kem"),
        *("culvert0.tls", "culvert0.tls/certificate.pem", "culvert0.tls/key.pem"),
        "usage",
    }
    assert (items["culvert0.psk"].mode, items["culvert0.psk"].content) == (0o700, None)
    assert (items["culvert0.psk/kem"].mode, items["culvert0.psk/kem"].content) == (0o400, b"a seed")


def test_onto_a_blank_host_by_what_the_modules_say_to_each_other(place: Place, tmp_path: Path) -> None:
    controller = _sealed.Receiver()
    found = _kept_secrets.backup(params(place, recipient=_x25519.to_base64(controller.public)))
    assert found["public_key"] == public(KEY)
    files = controller.open(base64.b64decode(found["sealed"]))
    # What Ansible carries, and may show or keep, has none of it.
    carried = json.dumps(found)
    wrapped = base64.b64encode(TLS_KEY.encode()).decode()
    seed = base64.b64encode(b"a seed").decode()
    for secret in (_x25519.to_base64(KEY), KEY.hex(), "a seed", seed, TLS_KEY.splitlines()[1], wrapped):
        assert secret not in carried
        assert secret not in repr(_kept_secrets.collect(place))

    blank = Place("culvert0", str(tmp_path / "new/etc"), str(tmp_path / "new/state"))
    offer = _kept_secrets.restore(params(blank), check_mode=False)
    assert offer["public_key"] is None
    key_file = tmp_path / "culvert-restore-culvert0.key"
    assert key_file.stat().st_mode & 0o777 == 0o400
    sealed = _sealed.seal(files, base64.b64decode(offer["recipient"]))
    wish = params(blank, sealed=base64.b64encode(sealed).decode())
    done = _kept_secrets.restore(wish, check_mode=False)
    assert (len(done["files"]), done["tls_key"]) == (9, True)
    assert not key_file.exists()
    assert _kept_secrets.collect(blank) == _kept_secrets.collect(place)
    assert not list(tmp_path.glob("new/etc/.*"))

    # What was sealed is of no use a second time; and what is there already is left alone.
    with pytest.raises(HostError, match="run again"):
        _kept_secrets.restore(wish, check_mode=False)
    offer = _kept_secrets.restore(params(blank), check_mode=False)
    with pytest.raises(HostError, match="not for this receiver"):
        _kept_secrets.restore(wish, check_mode=False)
    offer = _kept_secrets.restore(params(blank), check_mode=False)
    assert offer["public_key"] == public(KEY)
    sealed = _sealed.seal(files, base64.b64decode(offer["recipient"]))
    again = _kept_secrets.restore(params(blank, sealed=base64.b64encode(sealed).decode()), check_mode=False)
    assert again == {"changed": False, "files": [], "tls_key": True}


def test_check_mode_writes_nothing(place: Place, tmp_path: Path) -> None:
    blank = Place("culvert0", str(tmp_path / "new/etc"), str(tmp_path / "new/state"))
    offer = _kept_secrets.restore(params(blank), check_mode=True)
    files = _kept_secrets.dumped(place, _kept_secrets.collect(place))
    sealed = base64.b64encode(_sealed.seal(files, base64.b64decode(offer["recipient"]))).decode()
    done = _kept_secrets.restore(params(blank, sealed=sealed), check_mode=True)
    assert done["changed"]
    assert (len(done["files"]), done["tls_key"]) == (9, True)
    assert not (tmp_path / "new").exists()


def put(place: Place, items: list[Item], check_mode: bool = False) -> dict[str, Any]:
    """What a host says that these are restored on."""
    offer = _kept_secrets.restore(params(place), check_mode=check_mode)
    sealed = _sealed.seal(_kept_secrets.dumped(place, items), base64.b64decode(offer["recipient"]))
    wish = params(place, sealed=base64.b64encode(sealed).decode())
    return _kept_secrets.restore(wish, check_mode=check_mode)


def test_the_key_for_tls_is_put_back_as_it_was_and_for_whom(place: Place, tmp_path: Path) -> None:
    blank = Place("culvert0", str(tmp_path / "new/etc"), str(tmp_path / "new/state"))
    put(blank, _kept_secrets.collect(place))
    folder, was = tmp_path / "new/etc/culvert0.tls", tmp_path / "etc/culvert0.tls"
    assert (folder / "key.pem").read_text() == TLS_KEY
    for path, mode in (("", 0o700), ("key.pem", 0o600), ("certificate.pem", 0o644)):
        there, before = (folder / path).stat(), (was / path).stat()
        assert there.st_mode & 0o777 == mode
        assert (there.st_uid, there.st_gid) == (before.st_uid, before.st_gid)
    # Another one that was made meanwhile goes: clients know the one that was.
    (folder / "key.pem").write_text("made meanwhile")
    assert put(blank, _kept_secrets.collect(place))["files"] == [str(folder / "key.pem")]
    assert (folder / "key.pem").read_text() == TLS_KEY


@pytest.mark.parametrize("check_mode", [False, True])
def test_a_backup_from_before_tls_says_so_and_takes_nothing_away(
    place: Place, tmp_path: Path, check_mode: bool
) -> None:
    older = [item for item in _kept_secrets.collect(place) if not item.path.startswith("culvert0.tls")]
    blank = Place("culvert0", str(tmp_path / "new/etc"), str(tmp_path / "new/state"))
    done = put(blank, older, check_mode)
    assert (len(done["files"]), done["tls_key"]) == (6, False)
    assert not (tmp_path / "new/etc/culvert0.tls").exists()
    assert put(place, older, check_mode) == {"changed": False, "files": [], "tls_key": True}
    assert (tmp_path / "etc/culvert0.tls/key.pem").read_text() == TLS_KEY


def test_a_link_in_the_place_of_a_folder_leads_nowhere(place: Place, tmp_path: Path) -> None:
    items = [item for item in _kept_secrets.collect(place) if item.path == "culvert0.psk"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(0o755)
    psk = tmp_path / "etc" / "culvert0.psk"
    psk.rename(tmp_path / "etc" / "was")
    psk.symlink_to(elsewhere)
    with pytest.raises(HostError, match=r"cannot write .*/culvert0\.psk"):
        _kept_secrets.put_back(place, items)
    assert elsewhere.stat().st_mode & 0o777 == 0o755


def test_the_key_comes_last(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = _kept_secrets.collect(place)
    written: list[str] = []
    monkeypatch.setattr(_kept_secrets, "_write", lambda path, item: written.append(item.path))
    _kept_secrets.put_back(Place("culvert0", str(tmp_path / "x"), str(tmp_path / "y")), items)
    assert written[-1] == "culvert0.key"


@pytest.mark.parametrize(
    "wrong",
    [
        {"path": "../culvert0.key"},
        {"path": "culvert0.psk/../../passwd"},
        {"path": "/etc/passwd"},
        {"path": "culvert0.conf"},
        {"path": "culvert1.key"},
        {"path": "passwd"},
        {"path": ""},
        {"path": 7},
        {"root": "elsewhere"},
        {"mode": 0o4755},
        {"mode": True},
        {"owner": -1},
        {"group": "root"},
        {"content": "no base64!"},
    ],
)
def test_what_would_be_written_elsewhere_is_refused(wrong: dict[str, Any]) -> None:
    item = Item("config", "culvert0.key", 0o400, 51820, 51820, b"key").as_dict() | wrong
    data = json.dumps({"format": 1, "name": "culvert0", "files": [item]}).encode()
    with pytest.raises(HostError, match="not a relay's files"):
        _kept_secrets.loaded(data, Place())


FIELDS = st.sampled_from(["format", "name", "files", "root", "path", "mode"])
ANYTHING = st.recursive(
    st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(FIELDS, inner)
)


@given(st.binary() | ANYTHING.map(lambda value: json.dumps(value).encode()))
def test_what_is_no_backup_is_refused_whatever_it_is(data: bytes) -> None:
    with pytest.raises(HostError):
        _kept_secrets.loaded(data, Place())


def test_what_does_not_belong_there_is_not_backed_up(place: Place, tmp_path: Path) -> None:
    os.symlink("/etc/passwd", tmp_path / "etc/culvert0.link")
    with pytest.raises(HostError, match="neither a file nor a folder"):
        _kept_secrets.collect(place)


def test_without_a_key_there_is_nothing_to_back_up(tmp_path: Path) -> None:
    blank = Place("culvert0", str(tmp_path), str(tmp_path / "state"))
    with pytest.raises(HostError, match="no key"):
        _kept_secrets.backup(params(blank, recipient=public(KEY)))
    with pytest.raises(SpecError, match="recipient"):
        _kept_secrets.backup(params(blank, recipient="nobody"))


def test_what_is_sealed_is_for_one_receiver_and_comes_whole() -> None:
    receiver, other = _sealed.Receiver(), _sealed.Receiver()
    sealed = _sealed.seal(b"a secret", receiver.public)
    assert receiver.open(sealed) == b"a secret"
    assert b"secret" not in sealed
    assert _sealed.seal(b"a secret", receiver.public) != sealed
    with pytest.raises(HostError):
        other.open(sealed)
    for position in range(len(sealed)):
        changed = bytearray(sealed)
        # The highest bit of a public key is passed over by X25519, but is part of the key's derivation.
        changed[position] ^= 0x80
        with pytest.raises(HostError):
            receiver.open(bytes(changed))
    for length in range(len(sealed)):
        with pytest.raises(HostError):
            receiver.open(sealed[:length])
    with pytest.raises(HostError):
        _sealed.seal(b"a secret", bytes(32))
    assert base64.b64encode(receiver.private).decode() not in repr(receiver)
