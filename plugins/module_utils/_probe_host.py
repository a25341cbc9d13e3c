# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Gathers what there is to see of a tunnel on its host, and has it judged.

What nobody answers has to be waited for: each wait is bounded, those that do not depend on each other are
one, and what cannot work without an answer from the tunnel is left out when none came.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import Any, Callable

from . import _drift, _kill_switch, _leaks, _nameservers, _probe, _probe_look, _responder
from ._core import HostError, MissingRequirement, Runner, SpecError
from ._path_echo import search_path
from ._path_mtu import Search
from ._probe_checks import Check, Findings, checks
from ._probe_spec import ProbeSpec, Question
from ._relay_listeners import parse_layer
from ._relay_ways import Current, parse_ways, scheme_of
from ._uapi import Peer, Relay, about, query, rejections

_PATH_ROUND_S = 1.0
_EXPLAINED_WITHIN_S = 1.0
_EXPLAINED_AT_A_TIME = 4
# How the names of causes begin by which nothing is wrong here, and nobody is there.
_SILENCE = ("endpoint_", "other_side")
_ECHO_MIN_BYTES = 576
_ASK_EACH_S = 0.2


def probe(spec: ProbeSpec, run: Runner) -> dict[str, Any]:
    """What the module ``tunnel_probe`` returns.

    :raises HostError: the host cannot be looked at; a tunnel that does not work is a result, not an error.
    """
    offset_s = None if spec.reference_time_s is None else time.time() - spec.reference_time_s
    device, mtu_bytes = _probe_look.look_at_device(spec.device)
    targets = _probe_look.targets_of(spec, device)
    # After the echoes: they are what makes an idle tunnel shake hands.
    relay, layer, ways = _ask(spec)
    values: dict[str, Any] = {
        "device": device,
        "layer": layer,
        "ways": ways,
        "mtu_bytes": mtu_bytes,
        "relay": relay,
        "targets": targets,
        "now_s": time.time(),
        "surroundings": _probe_look.look_around(spec.device),
        "clock_offset_s": offset_s,
    }
    trouble: dict[str, str] = {}
    for gathers in ((_egress, _leaking), (_through_the_responder, _changed), (_explained,)):
        found = Findings(**values, trouble=trouble)
        with ThreadPoolExecutor(len(gathers)) as pool:
            for gathered in pool.map(lambda gather: gather(spec, found, run, trouble), gathers):  # noqa: B023
                values.update(gathered)
    found = Findings(**values, trouble=trouble)
    return _result(spec, found, checks(spec, found))


def _ask(spec: ProbeSpec) -> tuple[Relay | None, int, Mapping[str, Current]]:
    """The relay, its layer, and by which ways its peers are reached.

    At layer 2 nothing that was sent makes it shake hands. What it does by itself is waited for.
    """
    ends_s = time.monotonic() + spec.count * spec.timeout_s
    while True:
        relay = query(spec.socket_path)
        if relay is None:
            return None, 3, {}
        said = about(spec.socket_path)
        layer = parse_layer(said)
        silent = [peer for peer in _probe.called(relay) if peer.handshake_age_s(time.time()) is None]
        if layer == 3 or not silent or time.monotonic() > ends_s:
            return relay, layer, parse_ways(said)
        time.sleep(_ASK_EACH_S)


def _transport(peer: Peer | None, ways: Mapping[str, Current]) -> str | None:
    """By which transport a peer is reached now."""
    if peer is None:
        return None
    way = ways.get(peer.public_key)
    endpoint = way.endpoint if way else peer.endpoint
    return scheme_of(endpoint) if endpoint else None


def _egress(spec: ProbeSpec, found: Findings, run: Runner, trouble: dict[str, str]) -> dict[str, Any]:
    gathered: dict[str, Any] = {}
    if spec.egress_url:
        gathered["egress"] = _probe_look.egress_address(spec.egress_url, spec.timeout_s)
    if spec.responder:
        gathered["seen_as"] = _responder.ask_address(spec.responder, spec.timeout_s)
    return gathered


def _leaking(spec: ProbeSpec, found: Findings, run: Runner, trouble: dict[str, str]) -> dict[str, Any]:
    gathered: dict[str, Any] = {}
    resolvers = _tried(_nameservers.configured, ("dns", "dns_leak"), trouble)
    if resolvers:
        gathered["resolvers"] = resolvers
        gathered["resolvers_outside"] = [
            (address, device)
            for address, device in _probe_look.outside(resolvers.addresses, spec.device)
            if not _leaks.stays_here(device, address, spec.container_devices)
        ]
    if spec.full_tunnel or spec.kill_switch is not None:
        held = _tried(lambda: _kill_switch.observe(run), ("kill_switch",), trouble)
        gathered["kill_switch"], gathered["dns_guard"] = held or (None, None)
    around = found.surroundings
    targets = around.leak_targets(spec.leak_targets)
    datagrams = [_leaks.trial_to(target) for target in targets] if spec.full_tunnel else []
    if spec.kill_switch:
        pairs = [(target, uplink) for target in targets for uplink in around.uplinks]
        datagrams += [
            _leaks.trial_to(target, device)
            for target, (device, version) in pairs
            if version == target.version
        ]
    dns_name = spec.dns_name if spec.full_tunnel or spec.dns_servers else ""
    if datagrams or dns_name:
        gathered["leaks"] = _leaks.look([spec.device], spec.container_devices, datagrams, dns_name)
    return gathered


def _through_the_responder(
    spec: ProbeSpec, found: Findings, run: Runner, trouble: dict[str, str]
) -> dict[str, Any]:
    gathered: dict[str, Any] = {}
    if spec.responder is None:
        path = _tried(lambda: _echoed_sizes(spec, found), ("path_mtu",), trouble)
        return {"path_mtu": path} if path else gathered
    if found.seen_as is None or found.seen_as[0] is None:
        return gathered
    if spec.path_mtu and found.mtu_bytes:
        gathered["path_mtu"] = _responder.path_mtu(spec.responder, found.mtu_bytes, _PATH_ROUND_S)
    if spec.throughput_floor_mbit:
        gathered["transfers"] = _responder.transfers(
            spec.responder, spec.throughput_floor_mbit, spec.timeout_s
        )
    return gathered


def _echoed_sizes(spec: ProbeSpec, found: Findings) -> _responder.PathMtu | None:
    """Without a responder: the largest echo to the first target that answers at all, both ways at once."""
    reached = [
        facts.address
        for _target, facts in found.targets
        if facts.echo.round_trips_s and not facts.route.local
    ]
    if not spec.path_mtu or not found.mtu_bytes or not reached:
        return None
    search = Search(found.mtu_bytes, min(_ECHO_MIN_BYTES, found.mtu_bytes))
    search_path(str(reached[0]), 0, search)
    # Who is told what the path takes can keep to it: only what vanishes without a word is a hole.
    return _responder.PathMtu(search.ceiling, search.best, search.best)


def _changed(spec: ProbeSpec, found: Findings, run: Runner, trouble: dict[str, str]) -> dict[str, Any]:
    if not spec.drift:
        return {}
    seen = _tried(lambda: _drift.look(run), ("drift",), trouble)
    return {} if seen is None else {"drift": [drift.text for drift in seen]}


def _explained(spec: ProbeSpec, found: Findings, run: Runner, trouble: dict[str, str]) -> dict[str, Any]:
    """Last: what the checks have found is a part of it."""
    if not spec.explain:
        return {}
    made = [check.result for check in checks(spec, found)]
    asks = [partial(_explain, spec, question, made) for question in spec.explain]
    with ThreadPoolExecutor(_EXPLAINED_AT_A_TIME) as pool:
        answers = list(pool.map(lambda ask: _tried(ask, ("path",), trouble), asks))
    return {"explained": [answer for answer in answers if answer is not None]}


def _explain(spec: ProbeSpec, question: Question, made: list[dict[str, Any]]) -> dict[str, Any]:
    """:raises SpecError, HostError: as :func:`._explain_host.explain`."""
    # Here and not above: half of what it needs is of no use to a probe that explains nothing.
    from ._explain_host import explain

    answer = explain(
        question.destination,
        interface=spec.device,
        socket_path=spec.socket_path,
        source=question.source or "",
        protocol=question.protocol or "",
        port=question.port or 0,
        checks=made,
        reference_time_s=spec.reference_time_s,
        timeout_s=min(spec.timeout_s, _EXPLAINED_WITHIN_S),
    )
    silent = answer["cause"] is not None and answer["cause"]["name"].startswith(_SILENCE)
    return {**answer, "ok": None} if silent and question.may_be_silent else answer


def _tried(look: Callable[[], Any], names: tuple[str, ...], trouble: dict[str, str]) -> Any:
    """What ``look`` finds; when it cannot look, the checks of these names cannot be made."""
    try:
        return look()
    except (HostError, SpecError) as error:
        trouble.update(dict.fromkeys(names, str(error)))
        return None


def _result(spec: ProbeSpec, found: Findings, made: list[Check]) -> dict[str, Any]:
    reasons = _probe.reasons_of_device(found.device, found.relay, found.layer)
    egress, problem = found.egress or (None, "")
    reasons += [problem] if problem else []
    targets = _target_results(found)
    fine = all(target["reachable"] and not target["reasons"] for target in targets)
    return {
        "ok": not reasons and fine and all(check.ok is not False for check in made),
        "reasons": reasons,
        "device_addresses": list(found.device.addresses),
        "targets": targets,
        "transports": _transports(found, targets),
        "egress_address": egress,
        "checks": [check.result for check in made],
        "explained": list(found.explained or ()),
        "public_key": found.relay.public_key if found.relay else None,
        "outer_addresses": list(found.surroundings.addresses),
        "rejections": [asdict(rejection) for rejection in rejections(spec.socket_path) or ()]
        if found.relay
        else [],
    }


def _target_results(found: Findings) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    for target, facts in found.targets:
        peer = _probe.owner_of(target.address, found.relay) if found.relay else None
        times_s = facts.echo.round_trips_s
        results.append(
            {
                "name": target.name,
                "address": str(target.address),
                "reachable": bool(times_s),
                "rtt_ms": round(1000 * sum(times_s) / len(times_s), 3) if times_s else None,
                "loss": round(facts.echo.loss, 3),
                "handshake_age_s": peer.handshake_age_s(found.now_s) if peer else None,
                "transport": _transport(peer, found.ways),
                "reasons": _probe.reasons_of_target(
                    facts, found.device, found.relay, found.now_s, found.layer, found.ways
                ),
            }
        )
    return results


def _transports(found: Findings, targets: list[dict[str, Any]]) -> list[str]:
    """Those by which the targets are reached; at layer 2, those by which the peers are."""
    used = [target["transport"] for target in targets]
    if found.layer == 2 and found.relay:
        used = [_transport(peer, found.ways) for peer in found.relay.peers]
    return sorted({transport for transport in used if transport})


def blank(spec: ProbeSpec, missing: MissingRequirement) -> dict[str, Any]:
    """The result in check mode on a host that has not been prepared yet."""
    targets: list[dict[str, Any]] = [
        {
            "name": target.name,
            "address": str(target.address),
            "reachable": False,
            "rtt_ms": None,
            "loss": 1.0,
            "handshake_age_s": None,
            "transport": None,
            "reasons": [],
        }
        for target in spec.targets
    ]
    return {
        "ok": False,
        "reasons": [str(missing)],
        "device_addresses": [],
        "targets": targets,
        "transports": [],
        "egress_address": None,
        "checks": [],
        "explained": [],
        "public_key": None,
        "outer_addresses": [],
        "rejections": [],
    }
