# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Looks for secrets in whatever a controller has sent, received, printed and written.

A secret is known by its bytes, as the host has it, and looked for by each half of it, so that one which was
cut off is found as well; as it is, in hexadecimal digits, in base64 of both alphabets at each of its three
alignments (so also as a part of something longer), base64 of that, decimal numbers and Python's escapes.
What is searched is unpacked before: base64 that holds an archive or a compressed stream, as Ansible sends
its modules, and what is in these.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

PART_BYTES = 16
#: A run of bytes that is found without a newline and a zero in it is long enough to be no accident.
_LEAST_RAW_BYTES = 8
_PACKED = re.compile(rb"[A-Za-z0-9+/_-]{48,}={0,2}")
_URL_SAFE = bytes.maketrans(b"+/", b"-_")
_STANDARD = bytes.maketrans(b"-_", b"+/")
_MOST_BYTES = 64 << 20
_DEPTH = 4


@dataclass(frozen=True)
class Secret:
    """Where it is at home, which may be said, and what it is, which may not: not by this one either."""

    name: str
    value: bytes

    def __repr__(self) -> str:
        return f"Secret({self.name!r})"


@dataclass(frozen=True)
class Finding:
    """A secret's name, the place that it was found in, and the form that it had."""

    secret: str
    place: str
    form: str


def _aligned(data: bytes) -> Iterator[bytes]:
    """What is left of `data` in the base64 of something that has it anywhere in it."""
    for before in range(3):
        text = base64.b64encode(bytes(before) + data)
        # Characters that have bits of what is before or after it.
        end = (before + len(data)) * 8 // 6
        yield text[-(-before * 8 // 6) : end]


def forms(part: bytes) -> Iterator[tuple[str, bytes]]:
    """The forms in which a part of a secret may appear."""
    raw = max(re.split(rb"[\n\0]", part), key=len)
    if len(raw) >= _LEAST_RAW_BYTES:
        yield "raw", raw
    yield "hex", part.hex().encode()
    yield "HEX", part.hex().upper().encode()
    yield "hex with colons", part.hex(":").encode()
    yield "escapes", repr(part)[2:-1].encode()
    yield "escapes in JSON", repr(part)[2:-1].replace("\\", "\\\\").encode()
    yield "numbers", ", ".join(map(str, part)).encode()
    yield "numbers, dense", ",".join(map(str, part)).encode()
    for text in _aligned(part):
        yield "base64", text
        yield "base64, URL-safe", text.translate(_URL_SAFE)
    for text in _aligned(part.hex().encode()):
        yield "base64 of hex", text


def needles(secret: Secret) -> dict[bytes, str]:
    """What to look for, with the name of its form."""
    found: dict[bytes, str] = {}
    value = secret.value
    for start in range(0, max(1, len(value) - PART_BYTES + 1), PART_BYTES):
        for form, needle in forms(value[start : start + PART_BYTES]):
            found.setdefault(needle, form)
    # base64 of base64: the inner one is that of the whole, as keys are written.
    for text in {base64.b64encode(value), base64.urlsafe_b64encode(value)}:
        bare = text.rstrip(b"=")
        for start in range(0, len(bare) - 20, 20):
            for outer in _aligned(bare[start : start + 20]):
                found.setdefault(outer, "base64 of base64")
                found.setdefault(outer.translate(_URL_SAFE), "base64 of base64")
    return found


def _inflated(data: bytes) -> Iterator[bytes]:
    if data[:4] == b"PK\3\4":
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                for name in archive.namelist():
                    yield archive.read(name)
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError):
            return
    elif data[:2] == b"\x1f\x8b" or data[:1] == b"\x78":
        try:
            # gzip or zlib, whichever it says it is; one that was cut off as far as it goes.
            yield zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(data, _MOST_BYTES)
        except zlib.error:
            return


class Pile:
    """Everything to be searched, each line of a place once: modules are sent hundreds of times."""

    def __init__(self) -> None:
        self._lines: dict[str, dict[bytes, None]] = {}

    def add(self, place: str, data: bytes, depth: int = _DEPTH) -> None:
        """Put bytes on it, and what is packed in them."""
        for unpacked in _inflated(data):
            self.add(place, unpacked, depth - 1)
        lines = self._lines.setdefault(place, {})
        for line in data.split(b"\n"):
            if line not in lines:
                lines[line] = None
                if depth > 0:
                    self._unpack(place, line, depth)

    def _unpack(self, place: str, line: bytes, depth: int) -> None:
        for match in _PACKED.finditer(line):
            text = match[0].rstrip(b"=").translate(_STANDARD)
            try:
                # One character alone is no byte.
                text = text[:-1] if len(text) % 4 == 1 else text
                data = base64.b64decode(text + b"=" * (-len(text) % 4))
            except binascii.Error:
                continue
            for unpacked in _inflated(data):
                self.add(place, unpacked, depth - 1)

    def find(self, secrets: Iterable[Secret]) -> list[Finding]:
        """Each secret that is in it, once for a place and a form."""
        texts = {place: b"\n".join(lines) for place, lines in self._lines.items()}
        found = {
            Finding(secret.name, place, form): None
            for secret in secrets
            for needle, form in needles(secret).items()
            for place, text in texts.items()
            if needle in text
        }
        return list(found)
