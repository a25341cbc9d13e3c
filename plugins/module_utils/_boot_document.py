# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What is applied again at boot: documents, the code that applies them, and the unit that starts it.

The code is this package itself, copied to the host as it runs there now, so that the boot applies a document
by the
same backends as the module that wrote it.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from . import _boot
from ._core import Change, HostError, Plan, Runner
from ._files import read_text, remove_file, write_text
from ._options import Options

BOOT_D = "/var/lib/culvert/boot.d"
LIBRARY = "/usr/local/lib/culvert"
PACKAGE = "culvert_host"
UNIT_NAME = "culvert-network.service"
UNIT_PATH = f"/etc/systemd/system/{UNIT_NAME}"
_NAME = re.compile(r"[0-9a-z][0-9A-Za-z_=+.-]{0,63}")

#: Before the network, so that nothing leaves past the tunnel in between; after what loads rule sets and would
#: wipe ours.
UNIT = f"""\
# Managed by culvert.vpn: changes made here are lost at the next run.
[Unit]
Description=TUN devices, routes and firewall chains of the culvert.vpn tunnel
DefaultDependencies=no
After=local-fs.target systemd-sysctl.service systemd-tmpfiles-setup-dev.service
After=netfilter-persistent.service nftables.service ufw.service
Before=network-pre.target docker.service shutdown.target
Wants=network-pre.target
Conflicts=shutdown.target

[Service]
Type=oneshot
RemainAfterExit=yes
Environment=PYTHONPATH={LIBRARY} PYTHONDONTWRITEBYTECODE=1
ExecStart=@PYTHON@ -m {PACKAGE}._boot {BOOT_D}

[Install]
WantedBy=multi-user.target
"""


def package_sources() -> dict[str, str]:
    """Return the text of each module of this package that the boot runner has loaded, by file name.

    Works from a folder and from the archive in which Ansible sends a module to a host.
    """
    own = _boot.__name__.rpartition(".")[0] + "."  # the runner's imports are what has to be copied
    sources = {}
    for name in sorted(sys.modules):
        if not name.startswith(own) or name == __name__:
            continue
        module = importlib.import_module(name)
        loader = module.__loader__
        text = loader.get_source(name) if loader is not None and hasattr(loader, "get_source") else None
        if text is not None and "from ansible." not in text:
            sources[f"{name[len(own) :]}.py"] = text
    return sources


@dataclass
class Observed:
    """Texts of the files that are or should be there, by path; whether the unit is enabled; other documents'
    names."""

    files: dict[str, str | None] = field(default_factory=dict)
    enabled: bool = False
    others: list[str] = field(default_factory=list)


class BootDocument:
    """Backend of the module ``boot_document``; see :class:`_core.Backend`."""

    def __init__(self, params: Mapping[str, Any], runner: Runner) -> None:
        options = Options(params)
        self.name = options.required("name")
        if not _NAME.fullmatch(self.name):
            raise options.refuse("name", f"{self.name!r} cannot be the name of a file")
        self.present = options.required("state", "present", ("present", "absent")) == "present"
        self.entries = options.raw("entries", [])
        options.mappings("entries")
        options.done()
        self.warnings: list[str] = []
        self._run = runner
        self.path = f"{BOOT_D}/{self.name}.json"
        self._systemd = os.path.isdir("/run/systemd/system")
        if self.present and not self._systemd:
            self.warnings.append(
                f"this host does not run systemd: {self.path} is there, but nobody applies it after a reboot "
                f"(you can: PYTHONPATH={LIBRARY} {sys.executable} -m {PACKAGE}._boot {BOOT_D})"
            )

    def _wanted_files(self) -> dict[str, str]:
        files = {f"{LIBRARY}/{PACKAGE}/{name}": text for name, text in package_sources().items()}
        if self._systemd:
            files[UNIT_PATH] = UNIT.replace("@PYTHON@", sys.executable or "/usr/bin/python3")
        files[self.path] = json.dumps(self.entries, indent=1, sort_keys=True) + "\n"
        return files

    def observe(self) -> Observed:
        paths = {*self._wanted_files(), UNIT_PATH}
        others = (
            []
            if not os.path.isdir(BOOT_D)
            else [n for n in os.listdir(BOOT_D) if f"{BOOT_D}/{n}" != self.path]
        )
        enabled = os.path.islink(f"/etc/systemd/system/multi-user.target.wants/{UNIT_NAME}")
        return Observed({path: read_text(path) for path in sorted(paths)}, enabled, sorted(others))

    def blank(self) -> Observed:
        return self.observe()

    def plan(self, observed: Observed) -> Plan:
        return self._plan_present(observed) if self.present else self._plan_absent(observed)

    def _plan_present(self, observed: Observed) -> Plan:
        plan: Plan = []
        for path, text in self._wanted_files().items():
            before = observed.files.get(path)
            if before != text:
                # Our own code is not worth a screenful of diff: that it changes is enough.
                code = path.startswith(LIBRARY)
                shown = ("other code" if before else None, "this version's code") if code else (before, text)
                plan.append(Change(path, *shown, "write", (path, text)))
        if self._systemd and (not observed.enabled or any(change.item == UNIT_PATH for change in plan)):
            plan.append(Change(f"{UNIT_NAME} enabled", observed.enabled, True, "enable"))
        return plan

    def _plan_absent(self, observed: Observed) -> Plan:
        plan: Plan = []
        if observed.files.get(self.path) is not None:
            plan.append(Change(self.path, observed.files[self.path], None, "remove", self.path))
        if observed.others:
            return plan
        if observed.enabled:
            plan.append(Change(f"{UNIT_NAME} enabled", True, False, "disable"))
        if observed.files.get(UNIT_PATH) is not None:
            plan.append(Change(UNIT_PATH, observed.files[UNIT_PATH], None, "remove_unit", UNIT_PATH))
        if os.path.isdir(LIBRARY):
            plan.append(Change(LIBRARY, "this collection's code", None, "remove_tree", LIBRARY))
        return plan

    def apply(self, change: Change) -> None:
        if change.action == "write":
            path, text = change.data
            write_text(path, text, mode=0o644)
        elif change.action == "remove":
            remove_file(change.data)
        elif change.action == "remove_tree":
            shutil.rmtree(change.data)
        elif change.action == "enable":
            self._systemctl("daemon-reload")
            self._systemctl("enable", UNIT_NAME)
        elif change.action == "disable":
            self._systemctl("disable", UNIT_NAME)
        else:
            remove_file(change.data)
            self._systemctl("daemon-reload")

    def _systemctl(self, *words: str) -> None:
        command = ["systemctl", *words]
        code, _out, err = self._run(command, "")
        if code:
            raise HostError(f"`{' '.join(command)}` failed: {err.strip()}")

    def report(self, observed: Observed) -> dict[str, Any]:
        return {"path": self.path}
