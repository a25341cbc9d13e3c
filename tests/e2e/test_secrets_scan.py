# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The search for secrets finds what there is to be found: in every form, cut off, and packed."""

from __future__ import annotations

import base64
import gzip
import io
import json
import random
import time
import zipfile
import zlib
from pathlib import Path

import pytest
from controller_watch import Keeper, unframed
from secrets_scan import Pile, Secret

_RANDOM = random.Random(8)
KEY = _RANDOM.randbytes(32)
SEED = _RANDOM.randbytes(64)
TEXT = base64.b64encode(KEY)

FORMS = {
    "as it is": KEY,
    "as a key is written": TEXT,
    "without its padding": TEXT.rstrip(b"="),
    "URL-safe": base64.urlsafe_b64encode(KEY),
    "hexadecimal": KEY.hex().encode(),
    "hexadecimal, upper case": KEY.hex().upper().encode(),
    "hexadecimal, with colons": KEY.hex(":").encode(),
    "Python's escapes": repr(KEY).encode(),
    "Python's escapes in JSON": json.dumps(repr(KEY)).encode(),
    "numbers": json.dumps(list(KEY)).encode(),
    "base64 of base64": base64.b64encode(TEXT + b"\n"),
    "base64 of hexadecimal": base64.b64encode(KEY.hex().encode()),
    "base64, as a part of something longer": base64.b64encode(b"....." + KEY + b"..."),
    "base64 of base64, as a part of something longer": base64.urlsafe_b64encode(b"key: " + TEXT + b"..."),
    "the first half": KEY[:16],
    "the second half, in base64": base64.b64encode(KEY[16:]),
    "the second half of a key's text": TEXT[22:],
}


def find(data: bytes, value: bytes = KEY) -> list[str]:
    pile = Pile()
    pile.add("here", b"before\nwhich is " + data + b" at last\nafter\n")
    return [finding.form for finding in pile.find([Secret("key", value)])]


@pytest.mark.parametrize("form", FORMS)
def test_found(form: str) -> None:
    assert find(FORMS[form])


def zipped(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.py", b"KEY = '" + data + b"'")
    return buffer.getvalue()


@pytest.mark.parametrize("pack", [zipped, gzip.compress, zlib.compress], ids=["zip", "gzip", "zlib"])
def test_found_in_what_is_packed(pack: type[bytes]) -> None:
    packed = base64.b64encode(pack(b"arguments: " + TEXT))
    again = base64.urlsafe_b64encode(zipped(packed))
    for data in (b"'" + packed + b"'", b"'" + again + b"'"):
        assert TEXT not in data
        assert find(data)


def test_every_part_of_a_longer_one_is_found() -> None:
    for start in range(0, 64, 16):
        assert find(SEED[start : start + 16], SEED)


def test_nothing_is_found_where_nothing_is() -> None:
    """Neither public keys nor the archives that modules come in are taken for a secret."""
    noise = b"\n".join(base64.b64encode(_RANDOM.randbytes(32)) for _ in range(2000))
    assert find(noise + b"\n" + base64.b64encode(zipped(noise))) == []


def test_a_secret_is_not_shown() -> None:
    secret = Secret("server", KEY)
    shown = repr(secret) + str(Pile().find([secret]))
    assert repr(KEY)[2:10] not in shown
    assert TEXT.decode()[:8] not in shown


def test_an_answer_in_two_pieces_is_put_together() -> None:
    head = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\n\r\n"
    frames = [(1, TEXT[:20]), (2, b"a warning"), (1, TEXT[20:])]
    body = b"".join(bytes([kind, 0, 0, 0]) + len(data).to_bytes(4, "big") + data for kind, data in frames)
    assert TEXT not in body
    assert TEXT in unframed(head + body)
    assert unframed(b"HTTP/1.1 200 OK\r\n\r\n{}") == b""


def test_a_file_that_is_gone_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "tmp"
    folder.mkdir()
    keeper = Keeper(folder, tmp_path / "kept")
    inner = folder / "ansible-local-1"
    inner.mkdir()
    short, changed = inner / "short", folder / "changed"
    short.write_bytes(TEXT)
    changed.write_bytes(b"first")
    time.sleep(20 * Keeper.PAUSE_S)
    short.unlink()
    inner.rmdir()
    changed.with_suffix(".new").write_bytes(b"second")
    changed.with_suffix(".new").rename(changed)
    found = keeper.stop()
    assert sorted(found.values()) == sorted([TEXT, b"first", b"second"])
    assert not (tmp_path / "kept").exists()
