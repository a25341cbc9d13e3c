# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Reads and changes what a host asks for names: /etc/resolv.conf, systemd-resolved, resolvconf."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

from ._core import Change, HostError, PlainBackend, Plan, Runner
from ._files import read_text, remove_file, write_text
from ._resolver import (
    RESOLV_CONF,
    UPLINK_FOLDER,
    Record,
    ResolvConf,
    ResolverSpec,
    ResolverState,
    name_servers,
    normal_address,
    plan,
)

#: Not beside the records that a rollback restores as files: this one is led back by its own plan.
RECORD_PATH = "/var/lib/culvert/resolver/record.json"
_RESOLVED_CONF = "/run/systemd/resolve/resolv.conf"
_SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# What both resolvconfs write before an entry that they list.
_ENTRY = re.compile(r"^# resolv\.conf from (\S+)$", re.MULTILINE)


class ResolverBackend(PlainBackend):
    """The name servers of a host; see :class:`_core.Backend`."""

    def __init__(self, spec: ResolverSpec, run: Runner, check_mode: bool = False) -> None:
        super().__init__(check_mode)
        self.spec = spec
        self._run = run

    def observe(self) -> ResolverState:
        record = self._record()
        resolved = _resolved_state(self._run)
        device = self.spec.device if self.spec.present else record.get("resolved", {}).get("device", "")
        known = _known_device(device) and resolved == "active"
        has_resolvconf = _has_resolvconf()
        return ResolverState(
            file=read_resolv_conf(),
            record=record,
            resolved=resolved,
            link=self._link(device) if known else ((), (), False),
            resolvconf=has_resolvconf,
            entries=self._entries() if has_resolvconf else {},
            resolveds_servers=tuple(name_servers(read_text(_RESOLVED_CONF) or "")) if resolved else (),
            uplinks={path: read_text(path) or "" for path in sorted(glob.glob(f"{UPLINK_FOLDER}/*.conf"))},
        )

    def blank(self) -> ResolverState:
        return self.observe()

    def plan(self, observed: ResolverState) -> Plan:
        steps, self.warnings = plan(self.spec, observed)
        return steps

    def apply(self, change: Change) -> None:
        verbs = {
            "record": self._write_record,
            "write": self._write,
            "restore": self._restore,
            "resolved": self._set_resolved,
            "revert": self._revert_resolved,
            "entry": self._set_entry,
            "drop": self._drop_entry,
            "uplink": self._write_uplink,
        }
        verbs[change.action](change)

    def report(self, observed: ResolverState) -> dict[str, Any]:
        return {"record": RECORD_PATH}

    def _record(self) -> Record:
        text = read_text(RECORD_PATH)
        try:
            record = json.loads(text) if text else {}
            if not isinstance(record, dict) or not all("device" in kept for kept in record.values()):
                raise ValueError("not what this collection writes")
        except (ValueError, TypeError) as error:
            raise HostError(
                f"{RECORD_PATH} is damaged ({error}): remove it, and see that {RESOLV_CONF} is as you want it"
            ) from None
        return record

    def _write_record(self, change: Change) -> None:
        if change.data:
            write_text(RECORD_PATH, json.dumps(change.data, indent=1, sort_keys=True) + "\n", mode=0o600)
        else:
            remove_file(RECORD_PATH)

    def _write(self, change: Change) -> None:
        text, mounted = change.data
        write_resolv_conf(text.encode(), 0o644, 0, 0, mounted)

    def _restore(self, change: Change) -> None:
        kept, mounted = change.data
        restore_resolv_conf(kept, mounted)

    def _write_uplink(self, change: Change) -> None:
        # In place: the relay's container has this very file for its /etc/resolv.conf.
        path, text = change.data
        _write_in_place(path, text.encode())

    def _link(self, device: str) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
        servers, domains, default = (self._ask(word, device) for word in ("dns", "domain", "default-route"))
        return tuple(map(normal_address, servers)), tuple(domains), default == ["yes"]

    def _ask(self, word: str, device: str) -> list[str]:
        """What resolvectl prints after `Link 5 (culvert0):`, over several lines when it is long."""
        code, out, err = self._run(["resolvectl", "--no-pager", word, device], "")
        if code:
            raise HostError(f"systemd-resolved does not tell of {device}: {err.strip() or out.strip()}")
        return out.partition("):")[2].split()

    def _set_resolved(self, change: Change) -> None:
        device, servers, domains = change.data
        self._resolvectl("dns", device, *servers)
        self._resolvectl("domain", device, *domains)
        self._resolvectl("default-route", device, "true")

    def _revert_resolved(self, change: Change) -> None:
        if _known_device(change.data):
            self._resolvectl("revert", change.data)

    def _resolvectl(self, *words: str) -> None:
        code, out, err = self._run(["resolvectl", *words], "")
        if code:
            raise HostError(f"`resolvectl {' '.join(words)}` failed: {err.strip() or out.strip()}")

    def _entries(self) -> Mapping[str, str]:
        code, out, _err = self._run([_program("resolvconf"), "-l"], "")
        if code:
            return {}  # openresolv's answer when there is none
        parts = _ENTRY.split(out)[1:]
        texts = [re.sub(r"^\s*\n|^\s*#.*\n", "", text, flags=re.MULTILINE) for text in parts[1::2]]
        return dict(zip(parts[::2], [f"{text.strip()}\n" for text in texts]))

    def _set_entry(self, change: Change) -> None:
        name, text = change.data
        # openresolv: before all others (-m), and of no others beside (-x). Debian's ignores both.
        self._resolvconf(["-a", name, "-m", "0", "-x"], text)
        # The entry may be an old one, and only the file gone.
        self._resolvconf(["-u"], "")

    def _drop_entry(self, change: Change) -> None:
        self._resolvconf(["-d", change.data], "")

    def _resolvconf(self, words: list[str], stdin: str) -> None:
        code, out, err = self._run([_program("resolvconf"), *words], stdin)
        if code:
            raise HostError(f"`resolvconf {' '.join(words)}` failed: {err.strip() or out.strip()}")


def _program(name: str) -> str:
    return shutil.which(name, path=_SEARCH_PATH) or name


def _has_resolvconf() -> bool:
    """One that is a link to resolvectl only talks to systemd-resolved, and writes no file."""
    found = shutil.which("resolvconf", path=_SEARCH_PATH)
    return found is not None and os.path.basename(os.path.realpath(found)) != "resolvectl"


def _resolved_state(run: Runner) -> str:
    if not os.path.isdir("/run/systemd/system"):
        return ""
    words = ["systemctl", "show", "--property", "ActiveState,UnitFileState", "systemd-resolved.service"]
    code, out, _err = run(words, "")
    found = dict(line.split("=", 1) for line in out.splitlines() if "=" in line) if code == 0 else {}
    if found.get("ActiveState") in ("active", "reloading"):
        return "active"
    return "enabled" if found.get("UnitFileState", "").startswith("enabled") else ""


def _known_device(device: str) -> bool:
    return bool(device) and os.path.isdir(f"/sys/class/net/{device}")


def _content(path: str) -> str | None:
    try:
        with open(path, "rb") as stream:
            return stream.read().decode("latin-1")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}") from None


def read_resolv_conf() -> ResolvConf:
    """:raises HostError: it is there and cannot be read, or is something that nobody puts there."""
    path = RESOLV_CONF
    if os.path.islink(path):
        return ResolvConf("link", _content(path), os.readlink(path), os.path.realpath(path))
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return ResolvConf()
    content = _content(path)
    mode = status.st_mode & 0o7777
    return ResolvConf(
        "file", content, mode=mode, owner=status.st_uid, group=status.st_gid, mounted=_is_mounted(path)
    )


def _is_mounted(path: str) -> bool:
    with (
        contextlib.suppress(OSError),
        open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as found,
    ):
        return any(line.split()[4:5] == [path] for line in found)
    return False


def write_resolv_conf(content: bytes, mode: int, owner: int, group: int, mounted: bool) -> None:
    """:raises HostError: the file system refused; the old file is still there then."""
    if mounted:
        _write_in_place(RESOLV_CONF, content)
        return
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(dir=os.path.dirname(RESOLV_CONF), prefix=".culvert-")
        with open(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fchown(stream.fileno(), owner, group)
            os.fchmod(stream.fileno(), mode)
            os.fsync(stream.fileno())
        os.rename(temporary, RESOLV_CONF)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise _refused(error) from None


def restore_resolv_conf(kept: Mapping[str, Any], mounted: bool) -> None:
    """:raises HostError: the file system refused."""
    if kept["kind"] == "file" or mounted:
        content = (kept.get("content") or "").encode("latin-1")
        mode, owner, group = (kept.get(key, default) for key, default in _DEFAULTS)
        write_resolv_conf(content, mode, owner, group, mounted)
        return
    temporary = f"{RESOLV_CONF}.culvert"
    try:
        if kept["kind"] == "missing":
            os.unlink(RESOLV_CONF)
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        os.symlink(kept["target"], temporary)
        os.rename(temporary, RESOLV_CONF)
    except OSError as error:
        raise _refused(error) from None


_DEFAULTS = (("mode", 0o644), ("owner", 0), ("group", 0))


def _refused(error: OSError) -> HostError:
    hint = "; it may be immutable (lsattr)" if error.errno == 1 else ""
    return HostError(f"cannot write {RESOLV_CONF}: {error.strerror}{hint}")


def _write_in_place(path: str, content: bytes) -> None:
    try:
        with open(path, "r+b") as stream:
            stream.write(content)
            stream.truncate()
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}") from None
