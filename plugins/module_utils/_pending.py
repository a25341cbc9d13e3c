# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""The files of the one transaction that can be under way on a host.

``/var/lib/culvert/pending/`` is there from before the first change until the change is confirmed or undone::

    transaction.json   what is to be done and how to undo it; never changed
    journal.jsonl      a line before and after each step
    ballast            space on the disk that the way back may need
    worker, guard      held by ``flock`` as long as the process is alive that applies, and the one that waits
    code/              the code that undoes it, even when the installed one is on its way out

It is made under another name and renamed, so that it is whole whenever it is there. None of it holds secrets:
a document has none. Only root can read it all the same, as it tells how the host's network is laid out.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ._core import HostError, Plan, SpecError
from ._document import Document
from ._files import read_text, write_text
from ._installed import PACKAGE, PENDING, package_files

TRANSACTION = f"{PENDING}/transaction.json"
JOURNAL = f"{PENDING}/journal.jsonl"
BALLAST = f"{PENDING}/ballast"
CODE = f"{PENDING}/code"
WORKER, GUARD = "worker", "guard"
#: What became of the transactions that were undone, by id; the controller asks for it.
OUTCOME = "/run/culvert-outcome.json"
_OUTCOME_KEPT_S = 3600
_FORMAT = 1
_BALLAST_BYTES = 64 * 1024
_PARENT = os.path.dirname(PENDING)


@dataclass(frozen=True)
class Transaction:
    """:ivar next: the document that is to be in force; an empty one is to be forgotten.
    :ivar previous: the one that is now, ``None`` for none.
    :ivar items: the steps as they were shown.
    :ivar deadline_s: on CLOCK_BOOTTIME.
    :ivar generation: of ``previous``.
    :ivar local: the address of this host that the controller connected to.
    """

    id: str
    name: str
    next: Document
    previous: Document | None
    items: list[Any]
    controller: str
    boot: str
    deadline_s: float
    confirm_timeout_s: int
    guarded: bool
    generation: int = 0
    snapshot: Mapping[str, Any] = field(default_factory=dict)
    local: str = ""

    @property
    def overdue_s(self) -> float:
        """Seconds since the deadline; negative before it."""
        return now_s() - self.deadline_s


def now_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_identity() -> str:
    """What is different after a restart of the host, or of the container that the host is."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as boot_id:
        boot = boot_id.read().strip()
    with open("/proc/1/stat", encoding="ascii", errors="replace") as stat:
        started = stat.read().rpartition(")")[2].split()[19]
    return f"{boot}/{started}/{os.stat('/proc/self/ns/net').st_ino}"


def items_of(plan: Plan) -> list[Any]:
    """What of a plan is shown, to compare it with what is done."""
    items = [[change.item, change.before, change.after] for change in plan]
    return json.loads(json.dumps(items))  # type: ignore[no-any-return]


def create(transaction: Transaction) -> None:
    """Make the folder.

    :raises HostError: the file system refused; nothing is left behind.
    """
    folder = f"{_PARENT}/.pending-{transaction.id}"
    try:
        os.makedirs(_PARENT, 0o755, exist_ok=True)
        os.mkdir(folder, 0o700)
        _write(f"{folder}/ballast", "\0" * _BALLAST_BYTES)
        _write(f"{folder}/transaction.json", _text_of(transaction))
        for name in ("journal.jsonl", WORKER, GUARD):
            _write(f"{folder}/{name}", "")
        if transaction.guarded:
            os.makedirs(f"{folder}/code/{PACKAGE}", 0o700)
            for name, text in package_files().items():
                # Need not outlive a power cut: the boot has the installed code.
                with open(f"{folder}/code/{name}", "w", encoding="utf-8") as stream:
                    stream.write(text)
        os.rename(folder, PENDING)
        _sync(_PARENT)
    except OSError as error:
        _discard(folder)
        raise HostError(f"cannot write {PENDING}: {error.strerror}") from None
    except HostError:
        _discard(folder)
        raise


def _write(path: str, text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(handle, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def _sync(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _text_of(transaction: Transaction) -> str:
    content = {**vars(transaction), "format": _FORMAT}
    for key in ("next", "previous"):
        document = content[key]
        content[key] = None if document is None else dict(document.params)
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def load(identifier: str = "") -> Transaction | None:
    """The transaction that is pending; ``None`` when there is none, or another one than asked for.

    :raises HostError: it is there and cannot be understood.
    """
    text = read_text(TRANSACTION)
    if text is None:
        return None
    try:
        content = json.loads(text)
        if content.pop("format") != _FORMAT:
            raise ValueError("another version of the collection wrote it")
        for key in ("next", "previous"):
            if content[key] is not None:
                content[key] = Document.from_params(content[key])
        transaction = Transaction(**content)
    except (ValueError, TypeError, KeyError, AttributeError, SpecError) as error:
        raise HostError(
            f"{TRANSACTION} is damaged ({error}); look at the host's network, then delete {PENDING} and run "
            "the play again"
        ) from None
    return transaction if identifier in ("", transaction.id) else None


def note(**line: Any) -> None:
    """Add a line to the journal, on the disk when this returns.

    :raises HostError: the file system refused.
    """
    try:
        handle = os.open(JOURNAL, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            os.write(handle, json.dumps(line).encode() + b"\n")
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise HostError(f"cannot write {JOURNAL}: {error.strerror}") from None


def journal() -> list[dict[str, Any]]:
    """The lines of the journal. The last one may be cut short when its writer was killed, and counts for
    nothing.
    """
    lines = []
    for text in (read_text(JOURNAL) or "").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines


def free_ballast() -> None:
    try:
        os.unlink(BALLAST)
    except OSError:
        return


@contextmanager
def alive(role: str) -> Iterator[None]:
    """Hold a file of the transaction as a sign of life that ends with the process, however it ends."""
    try:
        handle = os.open(f"{PENDING}/{role}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"cannot open {PENDING}/{role}: {error.strerror}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


def is_alive(role: str) -> bool:
    try:
        handle = os.open(f"{PENDING}/{role}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def remove() -> None:
    """Take the folder away, at one stroke for everybody who looks.

    :raises HostError: the file system refused.
    """
    folder = f"{_PARENT}/.pending-done"
    _discard(folder)
    try:
        os.rename(PENDING, folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise HostError(f"cannot remove {PENDING}: {error.strerror}") from None
    _discard(folder)


def discard_unfinished() -> None:
    """What a process left that was killed while it made or removed the folder."""
    try:
        names = os.listdir(_PARENT)
    except OSError:
        return
    for name in names:
        if name.startswith(".pending-"):
            _discard(f"{_PARENT}/{name}")


def _discard(folder: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    try:
        os.rmdir(_PARENT)
    except OSError:
        return  # not empty, or gone


def outcome_of(identifier: str) -> dict[str, Any] | None:
    """What became of a transaction that was undone. Without an id: of the latest one."""
    outcomes = _outcomes()
    if not identifier:
        return outcomes[-1] if outcomes else None
    return next((outcome for outcome in outcomes if outcome.get("id") == identifier), None)


def _outcomes() -> list[dict[str, Any]]:
    try:
        found = json.loads(read_text(OUTCOME) or "[]")
    except (HostError, ValueError):
        return []
    since_s = time.time() - _OUTCOME_KEPT_S
    return [o for o in found if isinstance(o, dict) and o.get("time", 0) > since_s]


def write_outcome(outcome: Mapping[str, Any]) -> None:
    """:raises HostError: /run cannot be written."""
    outcomes = [*_outcomes(), {**outcome, "time": int(time.time())}]
    write_text(OUTCOME, json.dumps(outcomes, indent=1) + "\n", mode=0o600)
