# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""The processes of a transaction: the worker that applies it, and the guard that undoes it unless confirmed.

Neither may end with the session that began it. systemd starts them outside of the session where it runs the
host. Elsewhere they are started in a session of their own and with nothing open that Ansible waits for.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from typing import Any

from ._core import HostError, Runner
from ._installed import command
from ._pending import CODE, GUARD, WORKER, Transaction, is_alive, journal, note
from ._starters import init_system

ROLLBACK_UNIT = "culvert-rollback"
APPLY_UNIT = "culvert-apply"
_START_S = 20.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass
class Worker:
    """:ivar process: ``None`` when systemd started it."""

    process: subprocess.Popen[bytes] | None = None

    @property
    def ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    @property
    def complaint(self) -> str:
        """What it left when it ended before it began."""
        if self.process is None:
            return f"see journalctl -u {APPLY_UNIT}"
        return f"exit status {self.process.poll()}; run it by hand to see why"


def search_path() -> str:
    """PATH with the folders of the administrator's programs, which a session over SSH may lack."""
    folders = os.environ.get("PATH", "").split(":")
    return ":".join([f for f in folders if f] + [f for f in _PATH.split(":") if f not in folders])


def run_command(words: list[str], stdin: str) -> tuple[int, str, str]:
    """A :data:`~._core.Runner` by subprocess, for those who have no AnsibleModule."""
    environment = {**os.environ, "LANG": "C", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            words, input=stdin, env=environment, capture_output=True, text=True, check=False, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, "", str(error)
    return done.returncode, done.stdout, done.stderr


def arm(transaction: Transaction, run: Runner) -> None:
    """Have the transaction undone at its deadline, whatever becomes of this process and its session.

    :raises HostError: that cannot be had.
    """
    if init_system() == "systemd":
        _forget_units(run)
        _systemd_run(
            run,
            ROLLBACK_UNIT,
            [f"--on-active={transaction.confirm_timeout_s}", "--timer-property=AccuracySec=100ms"],
            command(CODE, "rollback", transaction.id),
        )
        return
    guard = detached(command(CODE, "wait", transaction.id))
    give_up_s = time.monotonic() + _START_S
    # Not before it has loaded all it needs: then it can act even when the disk no longer can.
    while not any("guard" in line for line in journal()):
        if guard.poll() is not None or time.monotonic() > give_up_s:
            raise HostError(f"the process that would undo the change did not start ({guard.poll()})")
        time.sleep(0.02)


def disarm(transaction: Transaction, run: Runner) -> None:
    """Take the guard away, unless this is it."""
    if not transaction.guarded:
        return
    if init_system() == "systemd":
        # The timer alone: its service may be the process that runs this.
        run(["systemctl", "stop", f"{ROLLBACK_UNIT}.timer"], "")
        return
    process = _noted("guard")
    if process != os.getpid() and _is_ours(process, transaction) and is_alive(GUARD):
        with contextlib.suppress(OSError):
            os.kill(process, signal.SIGTERM)


def is_guarded(transaction: Transaction, run: Runner) -> bool:
    """Whether the guard is there that undoes the transaction at its deadline."""
    if not transaction.guarded:
        return False
    if init_system() == "systemd":
        return run(["systemctl", "is-active", "--quiet", f"{ROLLBACK_UNIT}.timer"], "")[0] == 0
    return is_alive(GUARD)


def start_worker(transaction: Transaction, run: Runner) -> Worker:
    """:raises HostError: it could not be started."""
    words = command(CODE, "apply", transaction.id, str(os.getpid()))
    if init_system() == "systemd":
        _systemd_run(run, APPLY_UNIT, ["--no-block"], words)
        return Worker()
    return Worker(detached(words))


def end_worker(transaction: Transaction) -> None:
    """Kill a worker that hangs in a step, so that what it did can be undone."""
    process = _noted("worker")
    if process != os.getpid() and is_alive(WORKER) and _is_ours(process, transaction):
        with contextlib.suppress(OSError):
            os.kill(process, signal.SIGKILL)


def announce(role: str) -> None:
    """Tell whoever started this process that it is ready."""
    note(**{role: os.getpid()})


def _noted(role: str) -> int:
    return next((int(line[role]) for line in reversed(journal()) if role in line), 0)


def _is_ours(process: int, transaction: Transaction) -> bool:
    """A number may belong to another process meanwhile."""
    try:
        with open(f"/proc/{process}/cmdline", "rb") as words:
            return transaction.id.encode() in words.read().split(b"\0")
    except OSError:
        return False


def _systemd_run(run: Runner, unit: str, options: list[str], words: list[str]) -> None:
    # --collect: a service that failed would keep its name from the next one.
    start = ["systemd-run", "--quiet", "--collect", f"--unit={unit}", f"--setenv=PATH={search_path()}"]
    code, _out, err = run([*start, *options, *words], "")
    if code:
        raise HostError(f"systemd did not take {unit} ({err.strip()})")


def _forget_units(run: Runner) -> None:
    """What an earlier transaction left, of which nothing is pending."""
    units = [f"{ROLLBACK_UNIT}.timer", f"{ROLLBACK_UNIT}.service", f"{APPLY_UNIT}.service"]
    run(["systemctl", "stop", units[0]], "")
    run(["systemctl", "reset-failed", *units], "")


def detached(words: list[str]) -> subprocess.Popen[bytes]:
    """Start a process that outlives this one. :raises HostError: it cannot be started."""
    options: dict[str, Any] = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
        "close_fds": True,
        "start_new_session": True,
        "cwd": "/",
        "env": {"PATH": search_path(), "LANG": "C", "LC_ALL": "C"},
    }
    try:
        return subprocess.Popen(words, **options)
    except OSError as error:
        raise HostError(f"cannot start {' '.join(words)}: {error.strerror}") from None
