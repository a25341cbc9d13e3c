# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Private to the collection: may change at any time.
"""Pairs of hosts of which one side was told of the other without a pre-shared key. Pure functions.

Both sides have the key or neither has, else there is no tunnel. A pair is to agree before either side is
told of the other; but the host that is to agree may fail at it, or be out of reach, while the server is told
all the same. The registry remembers that (``Entry.keyless``), so that a later run, which may not reach the
server, decides as the server did: the pair comes up without a key. Where both are in the run, it agrees.
"""

from __future__ import annotations

import typing as t
from collections.abc import Iterator, Mapping
from dataclasses import replace

from ansible_collections.culvert.vpn.plugins.plugin_utils import _pairs
from ansible_collections.culvert.vpn.plugins.plugin_utils._agreements import Agreement
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet_hosts import Run
from ansible_collections.culvert.vpn.plugins.plugin_utils._pairs import Pair
from ansible_collections.culvert.vpn.plugins.plugin_utils._registry import Entry

Hosts = Mapping[str, Entry]
# As relay_agreement takes it: by name, with whom.
Wanted = Mapping[str, t.Sequence[Mapping[str, str]]]


def told(hosts: Hosts, run: Run, waiting: Wanted) -> dict[str, Entry]:
    """The hosts with what the servers that are here are about to be told.

    :param waiting: pairs that are to agree before that.
    """
    waits = {(name, item["public_key"]) for name, items in waiting.items() for item in items}
    found = dict(hosts)
    for pair in _current(hosts, run):
        entry, there = found[pair.name], run.hosts[pair.other]
        if pair.id(hosts):
            if pair.id(hosts) in there.preshared_ids:
                found[pair.name] = _without(entry, pair)
        elif (pair.name, pair.receiver) not in waits and not _says_so_itself(run, pair):
            found[pair.name] = replace(entry, keyless=tuple(sorted({*entry.keyless, pair.receiver})))
    return found


def derived(hosts: Hosts, run: Run) -> dict[str, Entry]:
    """The hosts when those that are here have the keys that others agreed on with them.

    A server that has left the run in the middle knows the other side without a key, as before. So the other
    one, which is yet to be told, is told of it without one, too, unless it had a key.
    """
    found = dict(hosts)
    for pair in _current(hosts, run):
        if pair.id(hosts):
            found[pair.name] = _without(found[pair.name], pair)
    servers = _pairs.servers_of(hosts)
    left = [
        pair
        for name, entry in hosts.items()
        if entry.keyless and _here(run, name)
        for pair in _pairs.pairs_of(hosts, name, servers)
        if not pair.following
        and pair.id(hosts)
        and pair.receiver in entry.keyless
        and not _here(run, pair.other)
        and not run.hosts[name].called.get(pair.receiver)
    ]
    return told(_pairs.forgotten(found, left), run, {})


def came_of(expected: Wanted, made: Mapping[str, t.Sequence[Agreement]]) -> dict[str, list[dict[str, str]]]:
    """Return the pairs that were to agree, each with ``name`` and ``other``: those that have (``agreed``) and
    those that have not (``not_agreed``).
    """
    found: dict[str, list[dict[str, str]]] = {"agreed": [], "not_agreed": []}
    for name, items in sorted(expected.items()):
        done = {(item["from"], item["to"]) for item in made.get(name, ())}
        for item in items:
            kind = "agreed" if (item["from"], item["public_key"]) in done else "not_agreed"
            found[kind].append({"name": name, "other": item["name"]})
    return found


def named(pairs: t.Iterable[Pair]) -> list[dict[str, str]]:
    """Who the pairs are, as results have it."""
    return [{"name": pair.name, "other": pair.other} for pair in pairs]


def _current(hosts: Hosts, run: Run) -> Iterator[Pair]:
    """Pairs of identities that are in use, whose other side is here and could have agreed."""
    servers = [name for name in _pairs.servers_of(hosts) if _here(run, name)]
    for name in hosts if servers else ():
        for pair in _pairs.pairs_of(hosts, name, servers):
            if not pair.following and pair.kem:
                yield pair


def _without(entry: Entry, pair: Pair) -> Entry:
    if pair.receiver not in entry.keyless:
        return entry
    return replace(entry, keyless=tuple(key for key in entry.keyless if key != pair.receiver))


def _says_so_itself(run: Run, pair: Pair) -> bool:
    """Whether the agreeing side has a tunnel without a key, so that nothing need be remembered."""
    return _here(run, pair.name) and run.hosts[pair.name].called.get(pair.receiver) == ""


def _here(run: Run, name: str) -> bool:
    return name in run.hosts and run.hosts[name].here
