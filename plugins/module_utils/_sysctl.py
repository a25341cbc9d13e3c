# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Kernel settings that are ours while we need them, and have their earlier values back afterwards.

A named set of sysctls lives in a file of its own under /etc/sysctl.d, which the host applies at boot, and the
values
from before us in a record under /var/lib/culvert. Some settings drag others along: ``net.ipv4.ip_forward``
sets
``forwarding`` and ``accept_redirects`` of every interface (kernel, Documentation/networking/ip-sysctl.rst).
Those are
recorded as well, so that giving one back gives all of them back.
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ._core import Change, HostError, Plan, SpecError
from ._files import read_text, remove_file, write_text
from ._options import Options

PROC_SYS = "/proc/sys"
SYSCTL_D = "/etc/sysctl.d"
STATE_DIR = "/var/lib/culvert"

#: Settings that change when the key is written, as patterns below /proc/sys.
DRAGGED = {
    "net.ipv4.ip_forward": ("net/ipv4/conf/*/forwarding", "net/ipv4/conf/*/accept_redirects"),
    "net.ipv6.conf.all.forwarding": ("net/ipv6/conf/*/forwarding",),
}
_HEADER = "# Managed by culvert.vpn: changes made here are lost at the next run.\n"
_OF_A_DEVICE = re.compile(r"net/ipv[46]/(conf|neigh)/[^/]+/")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


#: For each of our settings, the values from before us of all paths below /proc/sys that setting it changes,
#: itself first.
Record = dict[str, dict[str, str]]


@dataclass
class Observed:
    """What a host has: live values by path below /proc/sys, the record of values before us, and our file's
    text."""

    live: dict[str, str | None] = field(default_factory=dict)
    record: Record = field(default_factory=dict)
    file_text: str | None = None
    others: Record = field(default_factory=dict)
    "What other sets have recorded: a setting may be held by several."


def _path_of(key: str) -> str:
    """Translate a setting's dotted name; one with a slash is taken as sysctl(8) does, so that `eth0.5` can be
    named."""
    return key if "/" in key else key.replace(".", "/")


class SysctlSettings:
    """Backend of the module ``sysctl_settings``; see :class:`_core.Backend`."""

    def __init__(self, params: Mapping[str, Any], root: str = "", where: str = "values") -> None:
        """:param where: the option that holds the values, for messages."""
        options = Options(params)
        self.name = options.required("name")
        if not _NAME.fullmatch(self.name):
            raise options.refuse("name", f"{self.name!r} is not made of small letters, digits and '-'")
        self.present = options.required("state", "present", ("present", "absent")) == "present"
        values = options.raw("values", {})
        if not isinstance(values, dict):
            raise options.refuse("values", "must be a mapping of settings to values")
        options.done()
        self.values = {str(key): str(value) for key, value in values.items()} if self.present else {}
        self.warnings: list[str] = []
        self._proc = root + PROC_SYS
        self._file = f"{root}{SYSCTL_D}/90-culvert-{self.name}.conf"
        self._record = f"{root}{STATE_DIR}/sysctl-{self.name}.json"
        for key in self.values:
            if ".." in key or not (self._is_there(key) or self._was_there(key)):
                raise SpecError(f"{where}.{key}", "is not a setting that this host's kernel has")
            if not self._is_there(key):
                self.warnings.append(f"{key} cannot be set now: its device is not there")

    def _live_path(self, path: str) -> str:
        return os.path.join(self._proc, path)

    def _is_there(self, key: str) -> bool:
        return os.path.isfile(self._live_path(_path_of(key)))

    def _was_there(self, key: str) -> bool:
        """Whether it is a device's setting that we have made before. At boot the device may come after us: it
        gets the setting from our file then (udev has systemd-sysctl read it), and nothing else waits for it.
        """
        if not _OF_A_DEVICE.match(_path_of(key)):
            return False
        try:
            return key in json.loads(read_text(self._record) or "{}")
        except ValueError:
            return False

    def _live(self, path: str) -> str | None:
        text = read_text(self._live_path(path))
        return None if text is None else " ".join(text.split())

    def _touched(self, key: str) -> list[str]:
        """All paths that change when `key` is written, its own first."""
        hits = [hit for pattern in DRAGGED.get(key, ()) for hit in glob.glob(self._live_path(pattern))]
        return [_path_of(key), *sorted(os.path.relpath(hit, self._proc) for hit in hits)]

    def observe(self) -> Observed:
        text = read_text(self._record)
        try:
            record = dict(json.loads(text)) if text else {}
        except ValueError as error:
            raise HostError(
                f"{self._record} is damaged ({error}): remove it if the old values do not matter"
            ) from error
        paths = {path for key in self.values for path in self._touched(key)}
        paths.update(path for values in record.values() for path in values)
        live = {path: self._live(path) for path in sorted(paths)}
        return Observed(live, record, read_text(self._file), self._other_records())

    def _other_records(self) -> Record:
        others: Record = {}
        for path in glob.glob(os.path.join(os.path.dirname(self._record), "sysctl-*.json")):
            if path != self._record:
                try:
                    others.update(json.loads(read_text(path) or "{}"))
                except ValueError:
                    continue  # damaged: whoever it belongs to will hear of it
        return others

    def blank(self) -> Observed:
        return self.observe()

    def plan(self, observed: Observed) -> Plan:
        kept = {key: values for key, values in observed.record.items() if key in self.values}
        fresh = {key: self._snapshot(observed, key) for key in self.values if key not in kept}
        dropped = {key: values for key, values in observed.record.items() if key not in self.values}
        plan: Plan = []
        if fresh:  # first of all: a run that is interrupted must not lose what was there before us
            plan.append(self._write_record({**observed.record, **fresh}))
        for key, value in self.values.items():
            live = observed.live.get(_path_of(key))
            if live not in (None, value):
                plan.append(Change(key, live, value, "set", (_path_of(key), value)))
        for key, values in dropped.items():
            if key not in observed.others:  # the last one to hold it gives it back
                plan += self._give_back(observed, values)
        text = (
            _HEADER + "".join(f"{key} = {value}\n" for key, value in self.values.items())
            if self.values
            else None
        )
        if observed.file_text != text:
            action, data = ("write", (self._file, text)) if text else ("remove", self._file)
            plan.append(Change(self._file, observed.file_text, text, action, data))
        if dropped:
            left = {**kept, **fresh}
            plan.append(
                self._write_record(left) if left else Change("record", None, None, "remove", self._record)
            )
        return plan

    def _snapshot(self, observed: Observed, key: str) -> dict[str, str]:
        if key in observed.others:
            return observed.others[key]  # from before all of us
        values = {path: observed.live.get(path) for path in self._touched(key)}
        return {path: value for path, value in values.items() if value is not None}

    def _write_record(self, record: Record) -> Change:
        return Change("record", None, None, "write", (self._record, json.dumps(record, indent=1) + "\n"))

    def _give_back(self, observed: Observed, values: Mapping[str, str]) -> Plan:
        """Restore one setting and then what it drags along, except what other settings of ours hold."""
        ours = {_path_of(key) for key in [*self.values, *observed.others]}
        plan: Plan = []
        for path, value in values.items():
            live = observed.live.get(path)
            if live is not None and path not in ours:
                before, after = (live, value) if live != value else (None, None)
                plan.append(Change(path.replace("/", "."), before, after, "set", (path, value)))
        return plan

    def apply(self, change: Change) -> None:
        if change.action == "set":
            path, value = change.data
            try:
                with open(self._live_path(path), "w", encoding="ascii") as stream:
                    stream.write(value + "\n")
            except FileNotFoundError:
                return  # an interface that went away took its settings along
            except OSError as error:
                raise HostError(f"cannot set {change.item} to {value}: {error.strerror}") from error
        elif change.action == "write":
            path, text = change.data
            write_text(path, text, mode=0o644)
        else:
            remove_file(change.data)

    def report(self, observed: Observed) -> dict[str, Any]:
        return {"settings": {path.replace("/", "."): value for path, value in observed.live.items()}}
