# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Private to the collection: may change at any time.
"""How the keys of a fleet are replaced without a tunnel that drops, and how far that is. Pure functions.

All state is in the registry and on the hosts, so a run that was killed anywhere is run again:

* A host makes its next key pair, and its entry gets ``next_public_key`` (a server's ``next_kem`` as well).
* A pair of hosts of which both have a next key, and of these a pre-shared key if there is to be one, has two
  tunnels: the one it had, and its successor between the next keys. Whoever of the two is configured has both.
* When each pair of the fleet uses its successor, all next keys become the keys, in one write.
* From then on nobody is told of an old key. A host whose next key file holds the key that the registry has
  for it puts that in the place of the old one when it is configured.

A pair moves only when both of its ends have a next key, so no host has two peers with one public key.
"""

from __future__ import annotations

import typing as t
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet import key_problem
from ansible_collections.culvert.vpn.plugins.plugin_utils._pairs import preshared_id
from ansible_collections.culvert.vpn.plugins.plugin_utils._registry import Entry

Hosts = Mapping[str, Entry]
Peer = dict[str, t.Any]
#: How a peer is reached by streams; its successor is where it is.
_WAYS = ("endpoints", "tls_pin", "tls_server_name", "frame_messages")


@dataclass(frozen=True)
class Next:
    """What a host says of its next identity.

    :ivar public_key: base64.
    :ivar kem: ML-KEM-768 public key of a server that agrees on pre-shared keys, empty for none.
    """

    public_key: str
    kem: str = ""


def moves(one: Entry, other: Entry) -> bool:
    """Whether a pair has a successor by now: both ends know all that belongs to it."""
    if one.external or other.external or not (one.next_public_key and other.next_public_key):
        return False
    secret = one.next_kem or other.next_kem
    return not secret or bool(preshared_id(one, other, following=True))


def with_successors(
    hosts: Hosts, host: str, peers: t.Iterable[Mapping[str, t.Any]], psk_dir: str = ""
) -> list[Peer]:
    """Return `relay_peers` of a host, each with its successor behind it where the pair moves.

    :param peers: as they are without a rotation, with the names of the registry.
    :param psk_dir: folder of the host's pre-shared keys, in which each is called by its id.
    """
    mine, found = hosts.get(host), list[Peer]()
    for peer in peers:
        found.append(dict(peer))
        theirs = hosts.get(str(peer.get("name")))
        if mine is None or theirs is None or not moves(mine, theirs):
            continue
        same = ("name", "endpoint", *_WAYS, "persistent_keepalive")
        successor = {option: peer[option] for option in same if peer.get(option)}
        successor |= {
            "public_key": theirs.next_public_key,
            "local_key": "alternate",
            "succeeds": peer["public_key"],
        }
        id = preshared_id(mine, theirs, following=True)
        found.append({**successor, **({"preshared_key_file": f"{psk_dir}/{id}"} if id and psk_dir else {})})
    return found


def successors(hosts: Hosts, host: str) -> list[dict[str, str]]:
    """Return the successors that a host has to have: each one's `name` and `public_key`."""
    mine = hosts.get(host)
    return [
        {"name": name, "public_key": entry.next_public_key}
        for name, entry in sorted(hosts.items())
        if mine is not None and name != host and (mine.server or entry.server) and moves(mine, entry)
    ]


def claimed(hosts: Hosts, found: Mapping[str, Next], revoked: Collection[str] = ()) -> list[str]:
    """Return who says that he has a next key that cannot be his alone: one that was revoked, or another
    host's. Whoever lies so must neither come back by it nor stop the others.

    :param revoked: keys that are never let in again.
    """
    known = [
        (key, name)
        for name, entry in hosts.items()
        for key in (entry.public_key, *([] if name in found else [entry.next_public_key]))
    ]
    owners: dict[str, set[str]] = {}
    for key, name in [*known, *((following.public_key, name) for name, following in found.items())]:
        owners.setdefault(key, set()).add(name)
    return sorted(
        name
        for name, following in found.items()
        if following.public_key in revoked or owners[following.public_key] != {name}
    )


def begun(hosts: Hosts, found: Mapping[str, Next], revoked: Collection[str] = ()) -> dict[str, Entry]:
    """Return the hosts with the next identities that these say they have, but for those that are
    :func:`claimed`.

    Whoever says another one than before has lost that: what was agreed for it counts no more.
    """
    after = dict(hosts)
    liars = claimed(hosts, found, revoked)
    for name, following in found.items():
        entry = hosts.get(name)
        if entry is None or entry.external or key_problem(following.public_key) is not None:
            continue
        if name in liars:
            continue
        if following.public_key == entry.public_key:
            continue  # this one is to be promoted, and has no next one yet
        kem = following.kem if entry.server else ""
        same = (entry.next_public_key, entry.next_kem) == (following.public_key, kem)
        after[name] = replace(
            entry,
            next_public_key=following.public_key,
            next_kem=kem,
            next_preshared=entry.next_preshared if same else {},
        )
    return after


def unmoved(
    hosts: Hosts, moved: Mapping[str, Collection[str]], leave: Collection[str] = ()
) -> dict[str, str]:
    """Return who does not use his next key everywhere yet: by name, why. Empty when all have moved.

    :param moved: by name of a server that answered, the next keys of peers whose successor carries there.
    :param leave: who is not waited for.
    """
    members = {
        name: entry
        for name, entry in hosts.items()
        if not entry.external and entry.public_key and name not in leave
    }
    behind = {
        name: "has no next key yet: it was not in a run that could reach it"
        for name, entry in members.items()
        if not entry.next_public_key
    }
    servers = [name for name, entry in members.items() if entry.server]
    for server in servers:
        if server not in moved:
            behind.setdefault(server, "could not be asked")
            continue
        for name, entry in members.items():
            if name == server or name in behind or server in behind:
                continue
            if not moves(members[server], entry):
                behind[name] = f"has not agreed on a pre-shared key with {server} yet"
            elif entry.next_public_key not in moved[server]:
                behind[name] = f"has no tunnel with {server} by its next key yet"
    return dict(sorted(behind.items()))


def finished(hosts: Hosts, leave: Collection[str] = ()) -> dict[str, Entry]:
    """Return the hosts with their next keys as their keys, without those that are left behind."""
    after = dict(hosts)
    for name, entry in hosts.items():
        if entry.next_public_key and name not in leave:
            after[name] = replace(
                entry,
                public_key=entry.next_public_key,
                kem=entry.next_kem or entry.kem,
                preshared=entry.next_preshared,
                keyless=(),
                next_public_key="",
                next_kem="",
                next_preshared={},
            )
    return after
