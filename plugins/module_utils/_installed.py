# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What has to be on a host so that its documents outlive a reboot and a broken change: this package's own
code, and whatever starts it at boot. With it comes the command ``culvert`` for the person on the host.

The code is this package itself as it runs now, copied, so that boot and rollback apply a document by the same
backends as the module that wrote it. It is started in Python's isolated mode: neither the environment nor the
folder it is started in has a say in what is loaded.
"""

from __future__ import annotations

import glob
import importlib.util
import os
import re
import shutil
import sys
from dataclasses import dataclass, field
from typing import Any

from ._core import Change, HostError, PlainBackend, Plan, Runner
from ._files import read_text, remove_file, write_text
from ._starters import HEADER, SCRIPT_PATH, SERVICE, UNITS, init_system, starters

LIBRARY = "/usr/local/lib/culvert"
#: For people, by ``_command``; nothing of ours calls it.
COMMAND = "/usr/local/bin/culvert"
PACKAGE = "culvert_host"
STARTER = "run.py"
#: While it is there a change is not decided yet, and the code may still be needed to undo it.
PENDING = "/var/lib/culvert/pending"
# The package as seen from itself: in an archive of Ansible's, in a checkout, or on a host.
_OWN = __name__.rpartition(".")[0]
_IMPORT = re.compile(r"^\s*from \.(?:(\w+) import| import (\w+(?:, \w+)*))", re.MULTILINE)
_ENTRY = "_guard"


def command(folder: str, *words: str) -> list[str]:
    """How the code below ``folder`` is started."""
    return [sys.executable or "/usr/bin/python3", "-IB", f"{folder}/{STARTER}", *words]


def _command_line(verb: str) -> str:
    return " ".join(command(LIBRARY, verb))


def _command_text() -> str:
    return f'#!/bin/sh\n{HEADER}exec {_command_line("culvert")} "$@"\n'


def package_files() -> dict[str, str]:
    """The text of each file of the code, by its path below the folder it is installed in.

    These are what the entry point imports, directly or not. Works from a folder and from the archive in which
    Ansible sends a module to a host.
    """
    files = {STARTER: _starter()}
    waiting = [_ENTRY]
    while waiting:
        name = waiting.pop()
        path = f"{PACKAGE}/{name}.py"
        if path not in files:
            files[path] = text = _source(name)
            for module, names in _IMPORT.findall(text):
                waiting += [module] if module else names.split(", ")
    return dict(sorted(files.items()))


def _for_packers() -> None:
    """Never called. The entry point is named here once, so that whoever packs a module's code finds it: only
    a copy of it ever runs, and loading it would cost each run a tenth of a second.
    """
    from ._guard import main

    main([])


def _source(name: str) -> str:
    found = importlib.util.find_spec(f"{_OWN}.{name}")
    loader: Any = found.loader if found else None
    text = loader.get_source(found.name) if found and hasattr(loader, "get_source") else None
    if not text:
        raise HostError(f"cannot read the source of {name} beside {__name__}")
    return str(text)


def _starter() -> str:
    """Isolated mode does not look where the module found its library when that is a user's own folder."""
    # Its library takes longer to load than most modules that know this file take for all that they do.
    from ._netlink import pyroute2_folder

    library = pyroute2_folder()
    lines = [
        '"""Starts the part of culvert.vpn that lives on this host."""',
        "import os",
        "import sys",
        "",
        "sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))",
        *([f"sys.path.append({library!r})"] if library else []),
        f"from {PACKAGE}.{_ENTRY} import main",
        "",
        "raise SystemExit(main(sys.argv[1:]))",
    ]
    return HEADER + "\n".join(lines) + "\n"


@dataclass
class Observed:
    """Texts of the files that are or should be there, by path; whether the boot starts all of it, or some.

    :ivar command: the text of what has the command's name; ``None`` if nothing has.
    """

    files: dict[str, str | None] = field(default_factory=dict)
    enabled: bool = False
    partly: bool = False
    command: str | None = None


class InstalledCode(PlainBackend):
    """The code and its start at boot; see :class:`_core.Backend`.

    Taking it away is planned like anything else, but put off as long as a transaction is pending, whose way
    back may lead through a reboot: :func:`_transaction.confirm` does it then.
    """

    def __init__(self, present: bool, run: Runner) -> None:
        super().__init__()
        self.present = present
        self._run = run
        self._starter = starters(_command_line).get(init_system())
        if present and self._starter is None:
            self.warnings.append(
                "this host runs no init system that this collection knows (systemd, sysv-rc, OpenRC): after "
                "a reboot its documents are applied only when you have this run before the network: "
                + _command_line("boot")
            )

    def _wanted_files(self) -> dict[str, str]:
        if not self.present:
            # Nor can the code be read any more when it is what has just been removed that runs.
            return {}
        files = {f"{LIBRARY}/{name}": text for name, text in package_files().items()}
        if self._starter is not None:
            files.update(self._starter.files)
        return files

    def observe(self) -> Observed:
        paths = {*self._wanted_files(), *_existing_code()}
        paths |= set(self._starter.files) if self._starter is not None else set()
        links = [bool(glob.glob(link)) for link in self._starter.links] if self._starter is not None else []
        files = {path: read_text(path) for path in sorted(paths)}
        return Observed(files, bool(links) and all(links), any(links), _text_at(COMMAND))

    def blank(self) -> Observed:
        return self.observe()

    def plan(self, observed: Observed) -> Plan:
        return self._plan_present(observed) if self.present else self._plan_absent(observed)

    def _plan_present(self, observed: Observed) -> Plan:
        wanted = self._wanted_files()
        starter = self._starter
        plan: Plan = []
        # Our own code is not worth a screenful of diff: that it changes is enough.
        code = {path: text for path, text in wanted.items() if path.startswith(f"{LIBRARY}/")}
        found = {p: t for p, t in observed.files.items() if p.startswith(f"{LIBRARY}/") and t is not None}
        if found != code:
            before = "another version of the collection's code" if found else None
            plan.append(Change(LIBRARY, before, "this version of the collection's code", "code", code))
        if starter is not None:
            outdated = {p: t for p, t in starter.files.items() if observed.files.get(p) != t}
            for path, text in outdated.items():
                plan.append(Change(path, observed.files.get(path), text, "start_file", (path, text)))
            if not observed.enabled or outdated:
                plan.append(Change(f"{SERVICE} at boot", observed.enabled, True, "enable"))
        return plan + self._plan_command(observed)

    def _plan_command(self, observed: Observed) -> Plan:
        text = _command_text()
        if observed.command == text:
            return []
        if observed.command is not None and not _is_ours(observed.command):
            instead = " ".join(command(LIBRARY, "culvert"))
            self.warnings.append(
                f"{COMMAND} is not of this collection and is left alone; call {instead} instead"
            )
            return []
        folder = os.path.dirname(COMMAND)
        if os.path.isdir(folder) and not os.access(folder, os.W_OK):
            return []  # a file system that is read-only by design: it is a convenience
        return [Change(COMMAND, observed.command, text, "command", text)]

    def _plan_absent(self, observed: Observed) -> Plan:
        starter = self._starter
        plan: Plan = []
        if starter is not None:
            if observed.partly:
                plan.append(Change(f"{SERVICE} at boot", True, False, "disable"))
            there = [path for path in starter.files if observed.files.get(path) is not None]
            plan += [Change(path, observed.files[path], None, "remove_start_file", path) for path in there]
        if observed.command is not None and _is_ours(observed.command):
            plan.append(Change(COMMAND, observed.command, None, "remove_command"))
        if os.path.isdir(LIBRARY):
            plan.append(Change(LIBRARY, "the collection's code", None, "remove_code"))
        return plan

    def apply(self, change: Change) -> None:
        verbs = {
            "code": self._write_code,
            "start_file": self._write_start_file,
            "enable": self._enable,
            "disable": self._disable,
            "remove_start_file": self._remove_start_file,
            "remove_code": self._remove_code,
            "command": self._write_command,
            "remove_command": self._remove_command,
        }
        if not is_put_off(change):
            verbs[change.action](change)

    def _write_code(self, change: Change) -> None:
        install(LIBRARY, change.data)
        for path in _existing_code() - set(change.data):
            remove_file(path)

    def _write_start_file(self, change: Change) -> None:
        if self._starter is not None:
            path, text = change.data
            write_text(path, text, mode=self._starter.mode)

    def _enable(self, change: Change) -> None:
        self._commands(self._starter.enable if self._starter else ())

    def _disable(self, change: Change) -> None:
        if self._starter is not None:
            for words in self._starter.stop:
                self._run(words, "")  # what does not run need not be stopped
            self._commands(self._starter.disable)

    def _remove_start_file(self, change: Change) -> None:
        if self._starter is not None:
            remove_file(change.data)
            if not any(map(os.path.exists, self._starter.files)):
                self._commands(self._starter.forget)

    def _remove_code(self, change: Change) -> None:
        try:
            shutil.rmtree(LIBRARY)
        except OSError as error:
            raise HostError(f"cannot remove {LIBRARY}: {error.strerror}") from None

    def _write_command(self, change: Change) -> None:
        write_text(COMMAND, change.data, mode=0o755)

    def _remove_command(self, change: Change) -> None:
        remove_file(COMMAND)

    def _commands(self, commands: tuple[list[str], ...]) -> None:
        for words in commands:
            code, _out, err = self._run(words, "")
            if code:
                raise HostError(f"`{' '.join(words)}` failed: {err.strip()}")

    def report(self, observed: Observed) -> dict[str, Any]:
        return {"library": LIBRARY}


def is_put_off(change: Change) -> bool:
    """Whether a change takes away the code while a transaction may need it still."""
    items = {LIBRARY, SCRIPT_PATH, f"{SERVICE} at boot"}
    ours = change.item in items or change.item.startswith(f"{UNITS}/")
    return ours and not change.after and os.path.isdir(PENDING)


def _text_at(path: str) -> str | None:
    """What is there, empty for what cannot be read as a text: a link or a program of somebody else."""
    if os.path.islink(path):
        return ""
    try:
        return read_text(path)
    except HostError:
        return ""


def _is_ours(text: str) -> bool:
    return HEADER in text


def _existing_code() -> set[str]:
    return {*glob.glob(f"{LIBRARY}/*.py"), *glob.glob(f"{LIBRARY}/{PACKAGE}/*.py")}


def install(folder: str, files: dict[str, str]) -> None:
    """Write the code; ``files`` by full path. The start comes last, so that it never finds half of it.

    :raises HostError: the file system refused.
    """
    for path in sorted(files, key=lambda path: (path == f"{folder}/{STARTER}", path)):
        write_text(path, files[path], mode=0o644)
