# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What peers have used of their quotas, in memory and in a file that outlives the process.

A line for each peer and period: ``PUBLIC_KEY PERIOD BYTES``. Reading is lenient: a line that makes no sense
is passed over, for a relay that does not start because of it would cut off everybody.

What is on record is kept until its period is over by the clock, even if the peer goes, or the clock is wrong
for a while: a host without a clock of its own starts in 1970, and nobody's quota is new because of that.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from collections.abc import Iterator

from .keys import decode_base64, encode_base64
from .limits import MAX_QUOTA_BYTES, Period, period_name

__all__ = ["SAVE_EVERY_S", "UsageBook", "UsageFile"]

_HEADER = "# culvert usage 1: public key, period, bytes in both directions\n"
_MAX_FILE_BYTES = 64 * 2**20
_MAX_ENTRIES = 2**20
# Not more often than that, and at the end.
SAVE_EVERY_S = 60.0

_log = logging.getLogger("culvert")


class UsageBook:
    """Bytes by public key and name of the period (:func:`culvert.limits.period_name`)."""

    def __init__(self) -> None:
        self._used: dict[tuple[bytes, str], int] = {}

    def __len__(self) -> int:
        return len(self._used)

    def used(self, public_key: bytes, period: str) -> int:
        return self._used.get((public_key, period), 0)

    def note(self, public_key: bytes, period: str, used_bytes: int) -> None:
        """What a peer has used in a period, all in all."""
        key = (public_key, period)
        if key in self._used or len(self._used) < _MAX_ENTRIES:
            self._used[key] = min(used_bytes, MAX_QUOTA_BYTES)

    def forget_before(self, wall_s: float) -> None:
        """Drop the periods that are over."""
        today = period_name(Period.DAY, wall_s)
        # 2026-11 is not over on 2026-11-23; all others compare as text does.
        self._used = {key: used for key, used in self._used.items() if not key[1] < today[: len(key[1])]}

    def format(self) -> str:
        lines = [
            f"{encode_base64(public_key)} {period} {used}\n"
            for (public_key, period), used in sorted(self._used.items())
        ]
        return _HEADER + "".join(lines)

    def read(self, text: str) -> None:
        """Take over what a file says, but for what is known already. Nothing in it makes this raise."""
        for public_key, period, used in _entries(text):
            if (public_key, period) not in self._used:
                self.note(public_key, period, used)


def _entries(text: str) -> Iterator[tuple[bytes, str, int]]:
    for line in text.splitlines():
        words = line.split()
        if len(words) != 3 or not (words[2].isascii() and words[2].isdigit() and len(words[2]) <= 19):
            continue
        if not _is_period(words[1]):
            continue
        with contextlib.suppress(ValueError):
            yield decode_base64(words[0]), words[1], int(words[2])


def _is_period(text: str) -> bool:
    shape = "".join("0" if char in "0123456789" else char for char in text)
    return shape in ("0000-00", "0000-00-00") or text == Period.TOTAL.value


class UsageFile:
    """The file. It is replaced whole, so that a reader and the next process see one state or another."""

    def __init__(self, path: str, now: float) -> None:
        self.path = path
        self.due_s = now + SAVE_EVERY_S
        "When it may be written again."
        self._written = ""
        self._failed = ""

    def load(self, book: UsageBook) -> None:
        """Take over what it says. A file that cannot be read is worth a warning, and no more."""
        try:
            # Not blocking: a named pipe must not hold the relay up.
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(descriptor, "rb") as file:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise OSError(errno.EINVAL, "it is no regular file")
                text = file.read(_MAX_FILE_BYTES).decode("utf-8", "replace")
        except FileNotFoundError:
            return
        except OSError as error:
            _log.warning("UsageFile %s cannot be read: %s; quotas start anew", self.path, error.strerror)
            return
        book.read(text)

    def save(self, book: UsageBook, now: float) -> None:
        """Write what is new. That it cannot be written is said once, and again when the reason changes."""
        self.due_s = now + SAVE_EVERY_S
        text = book.format()
        if text == self._written:
            return
        beside = f"{self.path}.new"
        try:
            # Another's link of that name is not followed: whoever can make one there can write the file.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(beside)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(beside, flags, 0o600), "w", encoding="ascii") as file:
                file.write(text)
            os.replace(beside, self.path)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            if reason != self._failed:
                _log.warning(
                    "UsageFile %s cannot be written: %s; quotas start anew at a restart", self.path, reason
                )
            self._failed = reason
            return
        self._written, self._failed = text, ""
