# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Writes down in the registry that keys are replaced or revoked. Decisions: plugin_utils/_rotation.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.culvert.vpn.plugins.modules.fleet_keys import ARGUMENTS
from ansible_collections.culvert.vpn.plugins.plugin_utils import _agreements, _registry, _rotation
from ansible_collections.culvert.vpn.plugins.plugin_utils._pairs import ids_by_host
from ansible_collections.culvert.vpn.plugins.plugin_utils._registry import (
    Registry,
    RegistryError,
    plain,
)

Change = tuple[Registry, dict[str, Any]]


class ActionModule(ActionBase):
    """Action plugin of ``culvert.vpn.fleet_keys``."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        _checked, options = self.validate_argument_spec(argument_spec=ARGUMENTS)
        options = plain(options)
        states: dict[str, Callable[[Registry, dict[str, Any], Mapping[str, Any]], Change]]
        states = {"rotating": rotating, "rotated": rotated, "revoked": revoked}
        path = options["path"]
        try:
            with _registry.locked(path):
                before = _registry.read(path)
                if before is None:
                    raise RegistryError(
                        f"There is no registry {path}: culvert.vpn.site makes it (docs/registry.md)."
                    )
                after, told = states[options["state"]](before, options, task_vars or {})
                changed = after is not before
                if changed and not self._task.check_mode:
                    _registry.write(path, after)
                    _agreements.keep_only(path, ids_by_host(after.hosts))
        except RegistryError as error:
            result.update(failed=True, problems=[str(error)], msg=str(error))
            return result
        result.update({"changed": changed, "path": path, "diff": _diff(before, after), **told})
        return result


def rotating(before: Registry, _options: Mapping[str, Any], variables: Mapping[str, Any]) -> Change:
    """The next keys of the hosts in the play that are in the registry."""
    found = {}
    for name in map(str, variables["ansible_play_hosts"]):
        said = plain(variables["hostvars"][name].get("relay_next") or {})
        if isinstance(said, dict) and said.get("public_key"):
            found[name] = _rotation.Next(str(said["public_key"]), str(said.get("kem") or ""))
    barred = {key["public_key"] for key in before.revoked}
    words = [
        f"{name} says that its next key is {found[name].public_key}, which was revoked or is another host's: "
        f"that is not written down. On {name}, remove the file of its next key (NAME.next.key) and run again."
        for name in _rotation.claimed(before.hosts, found, barred)
    ]
    told = {"warnings": words} if words else {}
    return before.with_hosts(_rotation.begun(before.hosts, found, barred)), told


def rotated(before: Registry, options: Mapping[str, Any], variables: Mapping[str, Any]) -> Change:
    """All next keys as the keys, once every pair has moved."""
    moved = {}
    for name in map(str, variables["ansible_play_hosts"]):
        said = plain(variables["hostvars"][name].get("culvert_moved"))
        if isinstance(said, list):
            moved[name] = set(map(str, said))
    unmoved = _rotation.unmoved(before.hosts, moved, options["leave"])
    after = before if unmoved else before.with_hosts(_rotation.finished(before.hosts, options["leave"]))
    return after, {"rotated": not unmoved, "unmoved": unmoved}


def revoked(before: Registry, options: Mapping[str, Any], _variables: Mapping[str, Any]) -> Change:
    """The registry without some hosts, and with their keys among those that are not let in again.

    :raises RegistryError: nobody is called so.
    """
    known = {key["name"] for key in before.revoked}
    strangers = [name for name in options["hosts"] if name not in before.hosts and name not in known]
    if strangers or not options["hosts"]:
        raise RegistryError(
            f"{', '.join(strangers) or 'Nobody'}: no host or device of the registry is called so. "
            "Nothing was changed."
        )
    date = datetime.now(UTC).date().isoformat()
    barred = {key["public_key"]: key for key in before.revoked}
    for name in options["hosts"]:
        entry = before.hosts.get(name)
        for key in (entry.public_key, entry.next_public_key) if entry else ():
            if key:
                barred.setdefault(key, {"public_key": key, "name": name, "date": date})
    left = {name: entry for name, entry in before.hosts.items() if name not in options["hosts"]}
    named = [dict(key) for key in barred.values() if key["name"] in options["hosts"]]
    return before.with_hosts(left, revoked=tuple(barred.values())), {"revoked": named}


def _diff(before: Registry, after: Registry) -> dict[str, Any]:
    found: dict[str, Any] = {"before": {}, "after": {}}
    for name in sorted({*before.hosts, *after.hosts}):
        if before.hosts.get(name) != after.hosts.get(name):
            for side, registry in (("before", before), ("after", after)):
                if name in registry.hosts:
                    found[side][name] = registry.hosts[name].as_dict()
    for key in after.revoked:
        if key not in before.revoked:
            found["after"][f"revoked {key['public_key']}"] = dict(key)
    return found
