# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pre-shared keys of devices on their host: what comes of them, and what is refused without being shown."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.module_utils import _device_keys, _sealed, _x25519
from ansible_collections.culvert.vpn.plugins.module_utils._core import HostError, SpecError, diff_of
from ansible_collections.culvert.vpn.plugins.module_utils._device_keys import (
    DeviceKeysBackend,
    DeviceKeysSpec,
    decoded,
    key_id,
)
from hypothesis import given
from hypothesis import strategies as st

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
TEXT = base64.b64encode(KEY).decode()


def test_an_id_says_which_key_a_device_has_and_not_that_two_have_one() -> None:
    # As openssl has it. Another one would have every server ask for all keys again.
    assert key_id("phone", KEY) == "eca25cbc742b5ca60f13aa1dcbc53812"
    assert len({key_id("phone", KEY), key_id("phone", OTHER), key_id("laptop", KEY)}) == 3


@pytest.mark.parametrize("text", [TEXT, f"{TEXT}\n", f" {TEXT} \n"])
def test_a_key_as_wg_prints_it(text: str) -> None:
    assert decoded(text) == KEY


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (TEXT[:-1], "is not a WireGuard key"),
        (TEXT[:-2] + "9=", "is not a WireGuard key"),  # the same bytes, spelt in another way
        (base64.b64encode(KEY[:31]).decode(), "is not a WireGuard key"),
        (TEXT + TEXT, "is not a WireGuard key"),
        ("\udcff" * 44, "is not a WireGuard key"),
        ("", "is not a WireGuard key"),
        (None, "is not a WireGuard key"),
        (KEY, "is not a WireGuard key"),
        (base64.b64encode(bytes(32)).decode(), "is all zeros"),
    ],
)
def test_what_is_no_key_is_not_quoted(text: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        decoded(text)
    assert not text or str(text)[:20] not in str(caught.value)


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Of a host: its folders are here, and its files belong to who runs this."""
    monkeypatch.setattr(_device_keys, "RUN_DIR", str(tmp_path))
    return {
        "config_dir": str(tmp_path),
        "owner": str(os.getuid()),
        "group": str(os.getgid()),
        "devices": {"phone": key_id("phone", KEY), "laptop": key_id("laptop", OTHER)},
    }


def sealed(params: dict[str, Any], keys: dict[str, bytes]) -> dict[str, Any]:
    """The options of the second call, as the controller makes them of what the first one has returned."""
    public = _x25519.from_base64(_device_keys.offered(params)["recipient"].encode())
    assert public is not None
    found = base64.b64encode(_sealed.seal(_device_keys.dumped(keys), public)).decode()
    assert TEXT not in found
    return {**params, "sealed": found}


def run(params: dict[str, Any], check_mode: bool = False) -> dict[str, Any]:
    backend = DeviceKeysBackend(DeviceKeysSpec.from_params(params), check_mode)
    plan = backend.plan(backend.observe())
    for change in plan if not check_mode else ():
        backend.apply(change)
    return {"diff": diff_of(plan), **backend.report(backend.observe())}


def test_keys_are_files_of_the_relays_user_and_a_second_time_changes_nothing(
    params: dict[str, Any], tmp_path: Path
) -> None:
    keys = {"phone": KEY, "laptop": OTHER}
    folder = tmp_path / "culvert0.psk"
    rehearsal = run(params, check_mode=True)
    assert "pre-shared key of phone" in rehearsal["diff"]["after"]
    assert not folder.exists()
    found = run(sealed(params, keys))
    assert found["devices"] == ["laptop", "phone"]
    assert found["diff"] == rehearsal["diff"]
    assert all(_x25519.to_base64(key) not in str(found) for key in keys.values())
    assert folder.stat().st_mode & 0o777 == 0o700
    for name, key in keys.items():
        file = folder / params["devices"][name]
        assert file.stat().st_mode & 0o777 == 0o400
        assert base64.b64decode(file.read_text()) == key
    assert {path.name for path in folder.iterdir()} == set(params["devices"].values())
    assert not list(tmp_path.glob("culvert-device-keys*")), "the key of the offer is gone"
    assert run(sealed(params, keys))["diff"] == {"before": {}, "after": {}}


def test_what_is_not_meant_is_refused_and_nothing_written(params: dict[str, Any], tmp_path: Path) -> None:
    for keys, says in (
        ({"phone": OTHER}, "the key that came for phone is not the one"),
        ({"tablet": KEY}, "are not the keys of devices"),
        ({"phone": bytes(32)}, "are not the keys of devices"),
        ({"phone": KEY}, "a key that was to come has not come"),
    ):
        with pytest.raises(HostError, match=says):
            run(sealed(params, keys))
    earlier = sealed(params, {"phone": KEY})
    _device_keys.offered(params)
    with pytest.raises(HostError, match="not for this receiver"):
        run(earlier)
    with pytest.raises(HostError, match="run again"):
        run({**params, "sealed": base64.b64encode(bytes(80)).decode()})
    for change, says in (
        ({"devices": {"phone": "../../etc/passwd"}}, "is no id"),
        ({"devices": ["phone"]}, "is not a mapping"),
        ({"config_dir": "etc"}, "is not the absolute path"),
        ({"sealed": "nonsense!"}, "is not base64"),
        ({"sealed": "\u00e4"}, "is not base64"),
    ):
        with pytest.raises(SpecError, match=says):
            run({**params, **change})
    assert not list(tmp_path.glob("culvert0.psk/*"))


@given(st.binary(max_size=200) | st.text(max_size=60).map(str.encode))
def test_whatever_comes_is_keys_or_refused(data: bytes) -> None:
    try:
        found = _device_keys.loaded(data, {"phone": key_id("phone", KEY)})
    except HostError:
        return
    assert found == {} or found == {key_id("phone", KEY): KEY}


def test_nothing_shows_what_is_sealed(params: dict[str, Any]) -> None:
    assert "sealed" not in repr(DeviceKeysSpec.from_params({**params, "sealed": "AAAA"}))
