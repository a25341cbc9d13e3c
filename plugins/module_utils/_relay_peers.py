# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""From the peers a relay has to those it should have: the difference, in the file and in the running relay.

Everything here is pure; the host's side is in ``_relay_peers_host``. What is the same is not mentioned, so
nothing happens to the sessions of peers that stay as they are.

The relay comes before the file. An endpoint that differs between the two may just have roamed, so it is sent
when the file is to get another one, and once the file has it, nothing tells that it was not sent. A run that
ends between the two steps leaves a file that is consistent, if older, and the next run does the same again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Union

from . import _x25519
from ._core import Change, Plan, SpecError
from ._relay_failover import group_lines
from ._relay_file import PRIMARY, FileConfig, FilePeer, item_of, parse, prefix_of, render
from ._relay_listeners import LAYER_ETHERNET
from ._relay_peers_spec import PeersSpec
from ._relay_succession import promoted
from ._relay_ways import listed, literal_address
from ._uapi import Peer, Relay

FILE_MODE = 0o640
#: So many peers may always go.
FEW_PEERS = 2
_NAMES_SHOWN = 5

#: A key and a value of a request to the control socket.
Line = tuple[str, Union[str, _x25519.SecretKey]]


@dataclass(frozen=True)
class Observed:
    """What a host has.

    :ivar text: of the file; ``None`` when there is none.
    :ivar mode, owner, group: of the file, or those a new one would get.
    :ivar relay: ``None`` when none is running.
    :ivar key: the private key in the key file; ``None`` without one, which only check mode gets to see.
    :ivar public_key: base64, belongs to it.
    :ivar identity: public key of the running relay, or else of the file's, where that can be told.
    :ivar preshared: the pre-shared keys by their path.
    :ivar addresses: for endpoints that may have to be sent: ``address:port``, ``None`` for a name that cannot
        be resolved.
    :ivar alternate: the private key of the alternate identity; ``None`` without one.
    :ivar known_alternate: public key of the alternate identity that the running relay has, or else the file.
    """

    text: str | None = None
    mode: int = 0
    owner: int = 0
    group: int = 0
    relay: Relay | None = None
    key: _x25519.SecretKey | None = None
    public_key: str | None = None
    identity: str | None = None
    preshared: Mapping[str, _x25519.SecretKey] = field(default_factory=dict)
    addresses: Mapping[str, str | None] = field(default_factory=dict)
    alternate: _x25519.SecretKey | None = None
    known_alternate: str | None = None

    @property
    def promotes(self) -> bool:
        """Whether the relay's identity is to be what is its alternate one now."""
        return self.public_key is not None and self.public_key == self.known_alternate != self.identity

    @property
    def config(self) -> FileConfig:
        return parse(self.text or "")


@dataclass
class _Difference:
    """What differs, in words and as a request."""

    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)

    def note(self, item: str, before: Any, after: Any) -> None:
        if before is not None:
            self.before[item] = before
        if after is not None:
            self.after[item] = after

    def change(self, item: str, action: str, data: Any) -> Change:
        return Change(item, self.before or None, self.after or None, action, data)


def laid_open(spec: PeersSpec, observed: Observed) -> list[str]:
    """The peers, by name where they have one, that had a pre-shared key and are to have none any more."""
    had = {peer.public_key for peer in observed.config.peers if peer.preshared_key_file}
    return [
        peer.name or peer.public_key
        for peer in spec.config.peers
        if peer.public_key in had and not peer.preshared_key_file
    ]


# --- Plan ---------------------------------------------------------------------------------------------------


def endpoint_to_send(wanted: FilePeer, in_file: FilePeer | None, in_relay: Peer | None) -> bool:
    """Whether a running relay has to be told the one endpoint of a plain peer.

    A peer that roams has another endpoint than the configured one, and keeps it. A name that the relay could
    not resolve yet is left to it: it tries again by itself, and would stop when it got an address.
    """
    if not wanted.plain or not wanted.endpoint:
        return False
    if in_relay is None or in_relay.endpoints or in_file is None or in_file.endpoint != wanted.endpoint:
        return True
    return in_relay.endpoint is None and literal_address(wanted.endpoint) is not None


def endpoints_to_send(spec: PeersSpec, config: FileConfig, relay: Relay) -> list[FilePeer]:
    """The peers whose one plain endpoint the relay has to be told. Lists it is told as they are."""
    in_file, in_relay = _by_key(config.peers), _by_key(relay.peers)
    return [
        peer
        for peer in spec.config.peers
        if endpoint_to_send(peer, in_file.get(peer.public_key), in_relay.get(peer.public_key))
    ]


def plan(spec: PeersSpec, observed: Observed) -> Plan:
    """Pure. :raises SpecError: the wish would harm the host and is not allowed to."""
    _guard_descent(spec, observed)
    _guard_own_key(spec, observed)
    _guard_identity(spec, observed)
    _guard_removal(spec, observed)
    steps: Plan = []
    if observed.relay is not None:
        difference = _relay_difference(spec, observed, observed.relay)
        if difference.lines:
            steps.append(difference.change(f"relay {spec.name}", "set", difference.lines))
    file = _file_difference(spec, observed)
    if file.before or file.after:
        steps.append(file.change(f"file {spec.config_path}", "write", render(spec.config)))
    return steps


def _by_key(peers: Any) -> dict[str, Any]:
    return {peer.public_key: peer for peer in peers if peer.public_key}


def _guard_descent(spec: PeersSpec, observed: Observed) -> None:
    """The host may have peers that this run's registry does not know of yet; they would be dropped."""
    descent, found = spec.descent, observed.config.registry_id
    if descent.knows(found):
        return
    raise SpecError(
        "registry",
        f"the peers of {spec.name} come from a registry ({found}) that the one of this run "
        f"({descent.id or 'without an id'}) does not descend from: this one is not up to date, or of another "
        "checkout, or another run came in between. Update it and run again. If the host is to be taken over "
        "all the same, set registry.adopt (of culvert.vpn.site: site_registry_adopt). Nothing was changed",
    )


def _guard_own_key(spec: PeersSpec, observed: Observed) -> None:
    for position, peer in enumerate(spec.config.peers):
        if peer.public_key and peer.public_key == observed.public_key:
            raise SpecError(f"peers[{position}].public_key", "is the relay's own")


def _guard_identity(spec: PeersSpec, observed: Observed) -> None:
    if spec.allow_identity_change or observed.identity in (None, observed.public_key) or observed.promotes:
        return
    path = spec.config.private_key_file
    now = f"holds the key of {observed.public_key}" if observed.public_key else "does not exist"
    raise SpecError(
        "allow_identity_change",
        f"the relay {spec.name} is known to its peers as {observed.identity}, and {path} {now}: they would "
        "not find it any more. Put the key back, or, if the change is meant and the peers learn the new key, "
        "set this to true (of the role: relay_allow_identity_change). Nothing was changed",
    )


def _guard_removal(spec: PeersSpec, observed: Observed) -> None:
    """Most of the peers gone is seldom what somebody wants: an inventory that was not read, a wrong group."""
    names = {peer.public_key: peer.name for peer in observed.config.peers}
    if observed.relay is not None:
        names.update({peer.public_key: names.get(peer.public_key, "") for peer in observed.relay.peers})
    wanted = _by_key(spec.config.peers)
    followed = {peer.succeeds for peer in observed.config.peers if peer.public_key in wanted}
    gone = [name or key for key, name in names.items() if key not in wanted and key not in followed]
    if spec.allow_removal or len(gone) <= FEW_PEERS or 2 * len(gone) <= len(names):
        return
    some = ", ".join(gone[:_NAMES_SHOWN]) + (", …" if len(gone) > _NAMES_SHOWN else "")
    raise SpecError(
        "allow_removal",
        f"{len(gone)} of the {len(names)} peers of {spec.name} would be removed ({some}). If that is meant, "
        "set this to true (of the role: relay_allow_peer_removal). Nothing was changed",
    )


# --- The file -----------------------------------------------------------------------------------------------


def _file_difference(spec: PeersSpec, observed: Observed) -> _Difference:
    found, wanted = observed.config.shown(), spec.config.shown()
    difference = _Difference()
    for item in dict.fromkeys([*found, *wanted]):
        if found.get(item) != wanted.get(item):
            difference.note(item, found.get(item), wanted.get(item))
    # Whoever wrote the same: who it was is no difference.
    as_written = render(replace(spec.config, registry_id=observed.config.registry_id))
    if observed.text is not None and observed.text != as_written and not difference.before:
        # Comments, the order, or what is not understood: hand-made, in any case.
        difference.note("layout", "edited by hand", "as culvert.vpn writes it")
    owner = observed.owner if spec.owner is None else spec.owner
    group = observed.group if spec.group is None else spec.group
    protection = _protection(observed.mode, observed.owner, observed.group)
    wished = _protection(FILE_MODE, owner, group)
    if observed.text is None or protection != wished:
        difference.note("protection", None if observed.text is None else protection, wished)
    return difference


def _protection(mode: int, owner: int, group: int) -> dict[str, Any]:
    return {"mode": f"{mode:04o}", "owner": owner, "group": group}


# --- The relay ----------------------------------------------------------------------------------------------


def _relay_difference(spec: PeersSpec, observed: Observed, relay: Relay) -> _Difference:
    difference = _Difference()
    _interface_difference(difference, spec, observed, relay)
    in_file, wanted = _by_key(observed.config.peers), _by_key(spec.config.peers)
    for gone in [peer for peer in relay.peers if peer.public_key not in wanted]:
        name = in_file[gone.public_key].name if gone.public_key in in_file else ""
        difference.note(item_of(gone.public_key), _shown(gone, name), None)
        difference.lines += [_public_key(gone.public_key), ("remove", "true")]
    running = _by_key(promoted(relay.peers) if observed.promotes else relay.peers)
    for peer in spec.config.peers:
        current = running.get(peer.public_key)
        target = _target(observed, peer, current, in_file.get(peer.public_key))
        if relay.layer == LAYER_ETHERNET:
            # All of its messages are frame messages, whatever it is told.
            framed = current is not None and current.ways.frame_messages
            target = replace(target, ways=replace(target.ways, frame_messages=framed))
        lines = _peer_lines(current, target)
        if lines:
            before = None if current is None else _shown(current, peer.name)
            after = _shown(target, peer.name)
            if (
                current is not None
                and current.preshared_key
                and target.preshared_key != current.preshared_key
            ):
                after["PresharedKey"] = "another" if target.preshared_key else "no"
            difference.note(item_of(peer.public_key, peer.name), before, after)
            difference.lines += lines
    return difference


def _interface_difference(difference: _Difference, spec: PeersSpec, observed: Observed, relay: Relay) -> None:
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    if observed.key is not None and observed.public_key != relay.public_key:
        before["public key"], after["public key"] = relay.public_key, observed.public_key
        difference.lines.append(("private_key", observed.key))
    alternate = observed.alternate.public_key() if observed.alternate else None
    if alternate != (None if observed.promotes else relay.alternate_key):
        before["alternate public key"], after["alternate public key"] = relay.alternate_key, alternate
        difference.lines.append(("alternate_private_key", observed.alternate or _x25519.NO_KEY))
    port, fwmark = spec.config.listen_port, spec.config.fwmark
    if port not in (0, relay.listen_port):
        before["ListenPort"], after["ListenPort"] = relay.listen_port, port
        difference.lines.append(("listen_port", str(port)))
    if fwmark != relay.fwmark:
        before["FwMark"], after["FwMark"] = relay.fwmark, fwmark
        difference.lines.append(("fwmark", str(fwmark)))
    group, running = spec.config.failover, relay.failover.group if relay.failover else None
    lines = group_lines(running, group)
    if lines:
        before.update(running.options() if running else [])
        after.update(group.options() if group else [])
        difference.lines += lines
    if before or after:
        difference.note("interface", before, after)


def _target(observed: Observed, wanted: FilePeer, current: Peer | None, in_file: FilePeer | None) -> Peer:
    """The peer as the relay should have it. What is not for us to decide is as it is now."""
    endpoint = current.endpoint if current is not None else None
    if endpoint_to_send(wanted, in_file, current):
        endpoint = observed.addresses.get(wanted.endpoint) or endpoint
    preshared_key = observed.preshared.get(wanted.preshared_key_file)
    if wanted.preshared_key_file and preshared_key is None:
        # Check mode, before the file is there.
        preshared_key = current.preshared_key if current is not None else None
    return replace(
        current or Peer(wanted.public_key),
        endpoint=endpoint,
        allowed_ips=wanted.allowed_ips,
        persistent_keepalive_s=wanted.keepalive_s,
        preshared_key=preshared_key,
        failover=wanted.failover,
        local_key=wanted.local_key,
        succeeds=wanted.succeeds,
        limits=wanted.limits,
        endpoints=() if wanted.plain else listed(wanted.endpoint),
        ways=wanted.ways,
    )


def _peer_lines(current: Peer | None, target: Peer) -> list[Line]:
    """The request's lines for one peer; empty when there is nothing to do."""
    base = current or Peer(target.public_key)
    lines: list[Line] = []
    if target.local_key != base.local_key:
        lines.append(("local_key", target.local_key))
    if target.succeeds != base.succeeds:
        lines.append(("succeeds", (_x25519.from_base64(target.succeeds.encode()) or bytes(32)).hex()))
    if target.preshared_key != base.preshared_key:
        lines.append(("preshared_key", target.preshared_key or _x25519.NO_KEY))
    lines += _endpoint_lines(base, target)
    if target.persistent_keepalive_s != base.persistent_keepalive_s:
        lines.append(("persistent_keepalive_interval", str(target.persistent_keepalive_s)))
    if target.failover != base.failover:
        lines.append(("failover", "none" if target.failover is None else str(target.failover)))
    lines += target.limits.lines(base.limits)
    if set(target.allowed_ips) != {prefix_of(prefix) for prefix in base.allowed_ips}:
        # Whole, for one peer: the API takes a prefix from whoever had it, all within one request.
        lines.append(("replace_allowed_ips", "true"))
        lines += [("allowed_ip", prefix) for prefix in target.allowed_ips]
    if current is None:
        return [_public_key(target.public_key), *lines]
    return [_public_key(target.public_key), ("update_only", "true"), *lines] if lines else []


def _endpoint_lines(base: Peer, target: Peer) -> list[Line]:
    """Pins come before endpoints that need them, and go after those that did."""
    ways: list[Line] = list(target.ways.lines(base.ways))
    if target.endpoints != base.endpoints:
        if target.endpoints or not target.endpoint:
            told: Line = ("endpoints", ",".join(target.endpoints))
        else:
            told = ("endpoint", target.endpoint)
        return [*ways, told] if target.endpoints else [told, *ways]
    if not target.endpoints and target.endpoint and target.endpoint != base.endpoint:
        return [("endpoint", target.endpoint), *ways]
    return ways


def _public_key(public_key: str) -> Line:
    """The line that begins a peer. A key that check mode does not know yet is empty; nothing is sent then."""
    return "public_key", (_x25519.from_base64(public_key.encode()) or b"").hex()


def _shown(peer: Peer, name: str) -> dict[str, Any]:
    """For the diff."""
    return {
        **({"name": name} if name else {}),
        "AllowedIPs": ", ".join(sorted(peer.allowed_ips)),
        "Endpoint": ", ".join(peer.endpoints) or peer.endpoint or "",
        "PersistentKeepalive": peer.persistent_keepalive_s,
        "PresharedKey": "yes" if peer.preshared_key else "no",
        **({} if peer.failover is None else {"Failover": peer.failover}),
        **({} if peer.local_key == PRIMARY else {"LocalKey": peer.local_key}),
        **({"Succeeds": peer.succeeds} if peer.succeeds else {}),
        **dict(peer.limits.options()),
        **{name: value for name, value in peer.ways.options() if value},
    }
