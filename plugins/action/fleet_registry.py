# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Keeps the registry of the fleet, on the controller. The decisions are in plugin_utils/_fleet_*.py."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ansible import constants
from ansible.plugins.action import ActionBase
from ansible_collections.culvert.vpn.plugins.modules.fleet_registry import ARGUMENTS
from ansible_collections.culvert.vpn.plugins.plugin_utils import _agreements, _keyless, _pairs, _registry
from ansible_collections.culvert.vpn.plugins.plugin_utils._devices import devices_in
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet_check import problems
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet_hosts import CLIENTS, SERVERS, Run, host_of
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet_join import Joined, join, strangers
from ansible_collections.culvert.vpn.plugins.plugin_utils._pairs import to_derive
from ansible_collections.culvert.vpn.plugins.plugin_utils._registry import (
    Entry,
    Registry,
    RegistryError,
    plain,
)

_NAMES_SHOWN = 5


class Refused(Exception):
    """The fleet cannot be as it is wished. ``args`` are sentences that say why."""


class ActionModule(ActionBase):
    """Action plugin of ``culvert.vpn.fleet_registry``."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        _checked, options = self.validate_argument_spec(argument_spec=ARGUMENTS)
        options = plain(options)
        states = {
            "check": self._check,
            "joined": self._joined,
            "devices": self._joined,
            "agreed": self._agreed,
            "derived": self._derived,
            "forgotten": self._forgotten,
        }
        try:
            result.update(states[options["state"]](options, task_vars or {}))
        except Refused as refusal:
            sentences = list(refusal.args)
            result.update(
                failed=True, problems=sentences, msg=" ".join([*sentences, _UNCHANGED[options["state"]]])
            )
        except RegistryError as error:
            result.update(failed=True, problems=[str(error)], msg=str(error))
        return result

    def _check(self, options: dict[str, Any], variables: Mapping[str, Any]) -> dict[str, Any]:
        run = run_of(options, variables)
        registry = _registry.read(options["path"])
        found = problems(registry, run)
        if not found and options["read_only"]:
            found = strangers(registry, run)
        elif not found:
            found = _cannot_write(options["path"], registry, run)
        if found:
            raise Refused(*found)
        return {"changed": False, "path": options["path"], "servers_absent": _absent(registry, run)}

    def _joined(self, options: dict[str, Any], variables: Mapping[str, Any]) -> dict[str, Any]:
        run = run_of(options, variables)
        path = options["path"]
        if options["read_only"]:
            return _as_it_is(path, run)
        load = _loader(path)
        with _registry.locked(path) as locks:
            before = _registry.read(path)
            done, lost = joined(before, run, load)
            if done.problems:
                raise Refused(*done.problems)
            changed = done.registry is not before and bool(done.registry.lineage)
            if changed and not self._task.check_mode:
                _registry.write(path, done.registry)
                _agreements.keep_only(path, _pairs.ids_by_host(done.registry.hosts))
            elif self._task.check_mode:
                path = _rehearsed(done.registry)
        return {
            **_result(before, done.registry, changed, locks),
            "path": path,
            "ansible_facts": {"culvert_registry": path},
            "added": done.added,
            "removed": done.removed,
            "renamed": [{"from": old, "to": new} for old, new in done.renamed],
            "servers_absent": _absent(done.registry, run),
            **_keys_wanted(done.registry.hosts, run, load),
            "lost": lost,
        }

    def _agreed(self, options: dict[str, Any], variables: Mapping[str, Any]) -> dict[str, Any]:
        """Write down what hosts have agreed in this run, and say who has to be told."""
        run = run_of(options, variables)
        path = options["path"]
        expected = options["expected"]
        made = {name: _told(variables["hostvars"][name]) for name in expected if name in run.hosts}
        load = _loader(path)
        if options["read_only"] or self._task.check_mode:
            registry = _registry.read(path) or Registry()
            derive = to_derive(registry.hosts, run, load)
            return {"path": path, "changed": bool(expected), "derive": derive, "agreed": [], "not_agreed": []}
        with _registry.locked(path) as locks:
            before = _registry.read(path) or Registry()
            after = before.with_hosts(_pairs.with_agreements(before.hosts, expected, made))
            wanted = _pairs.ids_by_host(after.hosts)
            if after is not before:
                for name, agreements in made.items():
                    known = {**load(name), **{item["id"]: item for item in agreements}}
                    kept = {id: item for id, item in known.items() if id in wanted.get(name, ())}
                    _agreements.write(path, name, kept)
                # What it refers to is there by now.
                _registry.write(path, after)
        derive = to_derive(after.hosts, run, _loader(path))
        return {
            **_result(before, after, after is not before, locks),
            "path": path,
            "derive": derive,
            **_keyless.came_of(expected, made),
        }

    def _derived(self, options: dict[str, Any], variables: Mapping[str, Any]) -> dict[str, Any]:
        """Write down who is told of others without a key now, and have both sides of a pair decide alike."""
        run = run_of(options, variables)
        path = options["path"]
        if options["read_only"] or self._task.check_mode:
            return {"path": path, "changed": False}
        with _registry.locked(path) as locks:
            before = _registry.read(path) or Registry()
            after = before.with_hosts(_keyless.derived(before.hosts, run))
            if after is not before:
                _registry.write(path, after)
                _agreements.keep_only(path, _pairs.ids_by_host(after.hosts))
        return {**_result(before, after, after is not before, locks), "path": path}

    def _forgotten(self, options: dict[str, Any], _variables: Mapping[str, Any]) -> dict[str, Any]:
        path = options["path"]
        result = {"path": path, "removed": [], "changed": False}
        if not os.path.exists(path):
            return result
        with _registry.locked(path) as locks:
            before = _registry.read(path)
            if before is None:
                return result
            names = set(options["hosts"])
            left = {name: entry for name, entry in before.hosts.items() if name not in names}
            if all(entry.external for entry in left.values()):
                left = {}  # devices alone talk to nobody
            after = before.with_hosts(_pairs.settled(left))
            changed = after is not before or not left
            if changed and not self._task.check_mode:
                if left:
                    _registry.write(path, after)
                else:
                    _registry.remove(path)
                _agreements.keep_only(path, _pairs.ids_by_host(left))
        return {
            **result,
            **_result(before, after, changed, locks),
            "removed": sorted(names & set(before.hosts)),
        }


_UNCHANGED = {
    "check": "Nothing was changed on any host.",
    "joined": "The registry was not changed.",
    "devices": "The registry was not changed.",
    "agreed": "The registry was not changed.",
    "derived": "The registry was not changed.",
    "forgotten": "The registry was not changed.",
}


def run_of(options: Mapping[str, Any], variables: Mapping[str, Any]) -> Run:
    """What the run knows: the inventory's fleet, and what those of its hosts that are in the play say.

    :raises Refused: an option is missing.
    """
    if not options["network"]:
        raise Refused("network is required with this state.")
    groups = {group: set(map(str, variables["groups"].get(group, ()))) for group in (SERVERS, CLIENTS)}
    hosts_count = options["state"] != "devices"
    here = set(map(str, variables["ansible_play_hosts"])) if hosts_count else set()
    names = groups[SERVERS] | groups[CLIENTS]
    hostvars = variables["hostvars"]
    networks = options["network"], options["network6"] or ""
    devices, wrong = devices_in(hostvars, variables["groups"], networks)
    return Run(
        hosts={
            name: host_of(
                name,
                hostvars[name],
                [group for group, members in groups.items() if name in members],
                name in here,
            )
            for name in sorted(names)
        }
        | devices,
        external=wrong,
        network=options["network"],
        network6=options["network6"] or "",
        full=hosts_count and names <= set(map(str, variables["ansible_play_hosts_all"])),
        max_removals=options["max_removals"],
        adopt=options["adopt"],
    )


def joined(registry: Registry | None, run: Run, load: _pairs.Load) -> tuple[Joined, list[dict[str, str]]]:
    """What the registry should be, as :func:`join` says it, and the pairs that lost their key: they have none
    in it.
    """
    done = join(registry, run)
    lost = _pairs.lost(done.registry.hosts, run, load)
    hosts = _pairs.forgotten(done.registry.hosts, lost)
    hosts = _keyless.told(hosts, run, _pairs.to_agree(hosts, run))
    if hosts != done.registry.hosts:
        before = registry or Registry()
        ancestors = [id for id in done.registry.lineage[:-1] if id not in before.lineage]
        done = replace(done, registry=before.with_hosts(hosts, ancestors))
    return done, _keyless.named(lost)


def _loader(path: str) -> _pairs.Load:
    return lambda name: _agreements.read(path, name)


def _keys_wanted(hosts: Mapping[str, Entry], run: Run, load: _pairs.Load) -> dict[str, Any]:
    """What is to be done for pre-shared keys before hosts are configured."""
    agree = _pairs.to_agree(hosts, run)
    others = {item["name"] for items in agree.values() for item in items}
    derive = {*to_derive(hosts, run, load), *(name for name in others if run.hosts[name].here)}
    return {
        "agree": agree,
        "kems": _pairs.kems_for(hosts, agree),
        "derive": sorted(derive),
        "stale": _pairs.stale(hosts, {name: host.preshared_ids for name, host in run.hosts.items()}),
        "without_key": _pairs.without_key(hosts, run),
    }


def _told(variables: Mapping[str, Any]) -> list[dict[str, str]]:
    """The agreements that a host says it has made. What makes no sense is not said."""
    said = plain(variables.get("culvert_agreed") or {})
    listed = said.get("agreements") if isinstance(said, dict) else None
    found = [_agreements.agreement_of(item) for item in (listed if isinstance(listed, list) else [])]
    return [item for item in found if item is not None]


def _absent(registry: Registry | None, run: Run) -> list[str]:
    hosts: Mapping[str, Entry] = registry.hosts if registry else {}
    return sorted(
        name
        for name, entry in hosts.items()
        if entry.server and not (name in run.hosts and run.hosts[name].here)
    )


def _cannot_write(path: str, registry: Registry | None, run: Run) -> list[str]:
    """A registry that cannot be written is no harm as long as nothing has to be written."""
    folder = os.path.dirname(os.path.realpath(path))
    if not os.path.isdir(folder):
        return [f"site_registry is {path}, and there is no folder {folder}."]
    if os.access(folder, os.W_OK) or join(registry, run).registry is registry:
        return []
    wrong = (
        f"The registry {path} has to be written, and its folder is not writable for who runs this: set "
        "site_registry to a path that is kept between runs (docs/registry.md)."
    )
    return [wrong]


def _as_it_is(path: str, run: Run) -> dict[str, Any]:
    """The registry is somebody else's to write. What differs is told, and left to a run that may write it."""
    registry = _registry.read(path) or Registry()
    found = strangers(registry, run)
    if found:
        raise Refused(*found)
    wished = join(registry, run).registry.hosts
    other = sorted(name for name, entry in registry.hosts.items() if wished.get(name) != entry)
    result = _result(registry, registry, False, True)
    if other:
        names = ", ".join(other[:_NAMES_SHOWN]) + (", …" if len(other) > _NAMES_SHOWN else "")
        warning = (
            f"The registry {path} says something else of {names} than the inventory and the hosts do. It is "
            "only read here; a run that may write it brings it up to date."
        )
        result["warnings"] = [warning]
    return {
        **result,
        "path": path,
        "ansible_facts": {"culvert_registry": path},
        **{name: [] for name in ("added", "removed", "renamed")},
        "servers_absent": _absent(registry, run),
        **_keys_wanted(registry.hosts, run, _loader(path)),
        # Nobody could write it down.
        "agree": {},
        "kems": {},
        "stale": {},
        "lost": [],
    }


def _rehearsed(registry: Registry) -> str:
    """Write what would be written below Ansible's temporary folder, which goes when the run ends."""
    folder = os.path.join(constants.DEFAULT_LOCAL_TMP, "culvert")
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, "registry.txt")
    _registry.write(path, registry)
    return path


def _result(before: Registry | None, after: Registry, changed: bool, locks: bool) -> dict[str, Any]:
    result: dict[str, Any] = {"changed": changed, "diff": {"before": {}, "after": {}}}
    old: Mapping[str, Entry] = before.hosts if before else {}
    for name in sorted({*old, *after.hosts}):
        if old.get(name) != after.hosts.get(name):
            for side, entries in (("before", old), ("after", after.hosts)):
                if name in entries:
                    result["diff"][side][name] = entries[name].as_dict()
    if not locks:
        result["warnings"] = [
            "The file system of the registry knows no locks: two runs at once could lose each other's hosts."
        ]
    return result
