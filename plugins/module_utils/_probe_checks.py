# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Judges each thing that was asked for: is it as it should be, and if not, what is there to do.

Pure: the findings are gathered by ``_probe_host``. Every check is made every time, so that a result always
has the same ones; what was not asked for, or cannot be told, is ``None`` and neither good nor bad.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Callable

from . import _probe
from ._kill_switch import Held
from ._leaks import LeakFacts, Trial
from ._nameservers import RESOLV_CONF, Resolvers
from ._probe_look import Surroundings
from ._probe_spec import ProbeSpec, Target
from ._relay_ways import Current
from ._responder import PathMtu, Transfer
from ._uapi import Relay


@dataclass(frozen=True)
class Findings:
    """What was seen. ``None`` where nobody looked.

    :ivar egress: what the service outside answered, and why it did not.
    :ivar seen_as: the same of the responder.
    :ivar resolvers_outside: resolvers of the host that are reached outside the tunnel, and by which device.
    :ivar drift: what somebody changed of the host's documents, in words.
    :ivar layer: that the relay carries.
    :ivar ways: to peers that have several, or are reached by a stream, by public key.
    :ivar trouble: why something could not be looked at, by name of the check.
    """

    device: _probe.DeviceFacts
    mtu_bytes: int = 0
    relay: Relay | None = None
    targets: Sequence[tuple[Target, _probe.TargetFacts]] = ()
    now_s: float = 0.0
    surroundings: Surroundings = field(default_factory=Surroundings)
    egress: tuple[str | None, str] | None = None
    seen_as: tuple[str | None, str] | None = None
    leaks: LeakFacts | None = None
    resolvers: Resolvers | None = None
    resolvers_outside: Sequence[tuple[str, str]] = ()
    kill_switch: Held | None = None
    dns_guard: Held | None = None
    path_mtu: PathMtu | None = None
    transfers: Mapping[str, Transfer] | None = None
    clock_offset_s: float | None = None
    drift: Sequence[str] | None = None
    explained: Sequence[Mapping[str, Any]] | None = None
    layer: int = 3
    ways: Mapping[str, Current] = field(default_factory=dict)
    trouble: Mapping[str, str] = field(default_factory=dict)

    @property
    def reached(self) -> bool:
        """Whether anything at all came back through the tunnel."""
        return any(facts.echo.round_trips_s for _target, facts in self.targets)


@dataclass(frozen=True)
class Check:
    name: str
    ok: bool | None = None
    value: Any = None
    reasons: tuple[str, ...] = ()

    @property
    def result(self) -> dict[str, Any]:
        return {"name": self.name, "ok": self.ok, "value": self.value, "reasons": list(self.reasons)}


# (ok, value, reasons)
_Judged = tuple[Any, Any, Sequence[str]]
_UNASKED: _Judged = (None, None, ())


def checks(spec: ProbeSpec, found: Findings) -> list[Check]:
    """All of them, in the order of :data:`_CHECKS`."""
    made = []
    for name, judge in _CHECKS.items():
        if name in found.trouble:
            made.append(Check(name, None, None, (found.trouble[name],)))
        else:
            ok, value, reasons = judge(spec, found)
            made.append(Check(name, ok, value, tuple(reasons)))
    return made


def _device(spec: ProbeSpec, found: Findings) -> _Judged:
    reasons = _probe.reasons_of_device(found.device, found.relay or Relay(), found.layer)
    state = "up" if found.device.up else "down" if found.device.exists else "missing"
    return not reasons, state, reasons


def _relay(spec: ProbeSpec, found: Findings) -> _Judged:
    if found.relay is None:
        name = found.device.name
        return False, None, [f"no relay answers on the control socket of {name}; look at its container"]
    return True, f"{len(found.relay.peers)} peers", ()


def _handshake(spec: ProbeSpec, found: Findings) -> _Judged:
    """With those who own the targets; at layer 2, where nobody owns an address, with those who are called."""
    if found.relay is None:
        return _UNASKED
    asked = [
        (target.name, _probe.owner_of(target.address, found.relay))
        for target, facts in found.targets
        if not facts.route.local
    ]
    if found.layer == 2:
        asked = [(str(peer.endpoint), peer) for peer in _probe.called(found.relay)]
    if not asked and not found.targets:
        return _UNASKED
    ages: list[int] = []
    reasons = []
    for name, peer in asked:
        if peer is None:
            continue
        age_s = peer.handshake_age_s(found.now_s)
        ages += [] if age_s is None else [age_s]
        if age_s is None or (spec.handshake_max_age_s and age_s > spec.handshake_max_age_s):
            since = "there was none yet" if age_s is None else f"the latest was {age_s} s ago"
            reasons.append(f"no handshake with {name} (peer {peer.public_key[:8]}...): {since}")
    oldest = max(ages) if ages else None
    return (not reasons if spec.handshake_max_age_s else None), oldest, reasons


def _round_trip(spec: ProbeSpec, found: Findings) -> _Judged:
    if not found.targets:
        return _UNASKED
    times_s = [time_s for _target, facts in found.targets for time_s in facts.echo.round_trips_s]
    reasons: list[str] = []
    for _target, facts in found.targets:
        reasons += _probe.reasons_of_target(
            facts, found.device, found.relay, found.now_s, found.layer, found.ways
        )
        if not facts.echo.round_trips_s and not reasons:
            reasons.append(f"{facts.address} does not answer")
    mean_ms = round(1000 * sum(times_s) / len(times_s), 3) if times_s else None
    return not reasons, mean_ms, list(dict.fromkeys(reasons))


def _loss(spec: ProbeSpec, found: Findings) -> _Judged:
    if not found.targets:
        return _UNASKED
    worst = max(facts.echo.loss for _target, facts in found.targets)
    if spec.loss_max is None:
        return None, round(worst, 3), ()
    reasons = [
        f"{facts.echo.loss:.0%} of the echo requests to {target.name} stay without an answer: look at the "
        "path between the hosts, and at what their uplinks and their processors can carry"
        for target, facts in found.targets
        if facts.echo.loss > spec.loss_max
    ]
    # A target may be listed by several addresses.
    return not reasons, round(worst, 3), list(dict.fromkeys(reasons))


def _egress(spec: ProbeSpec, found: Findings) -> _Judged:
    """By the service that the user names; without one, by what the responder sees."""
    if found.egress is None and found.seen_as is None:
        return _UNASKED
    own = found.egress is None
    address, problem = (found.seen_as if own else found.egress) or (None, "")
    if own and spec.responder and str(spec.responder.address) in found.device.addresses:
        # It is on this host: nothing went out.
        return _UNASKED
    if own:
        inside = address in found.device.addresses
        if address is None or inside:
            return (True if inside else None), address, ()
        reason = (
            f"the server sees this host as {address}, which is none of {found.device.name}'s addresses: "
            "something on the way puts another address on what comes out of it"
        )
        return False, address, [reason]
    if address is None:
        return False, None, [problem]
    return _judge_egress(spec, found, address)


def _judge_egress(spec: ProbeSpec, found: Findings, address: str) -> _Judged:
    expected = [str(wanted) for wanted in spec.egress_expect]
    if expected and address not in expected:
        return False, address, [f"the internet sees this host as {address}, not as {' or '.join(expected)}"]
    if spec.full_tunnel and address in found.surroundings.addresses:
        return (
            False,
            address,
            [f"the internet sees this host's own address {address}: what it sent went around the tunnel"],
        )
    return (True if expected or spec.full_tunnel else None), address, ()


def _responder(spec: ProbeSpec, found: Findings) -> _Judged:
    if found.seen_as is None or spec.responder is None:
        return _UNASKED
    address, problem = found.seen_as
    if address is None:
        why = "" if found.reached else " (nothing comes back through the tunnel at all)"
        reason = (
            f"the server's responder at {spec.responder} does not answer{why}: {problem}; look at its "
            "container culvert-responder-* on the server, and at what the server accepts from the tunnel"
        )
        return False, None, [reason]
    return True, str(spec.responder), ()


def _dns(spec: ProbeSpec, found: Findings) -> _Judged:
    if found.resolvers is None:
        return _UNASKED
    asked = [str(address) for address in found.resolvers.addresses]
    versions = {6 if ":" in address else 4 for address in found.device.addresses} or {4, 6}
    wanted = [str(address) for address in spec.dns_servers if address.version in versions]
    lookup = found.leaks.lookup if found.leaks else None
    reasons = []
    missing = [address for address in wanted if address not in asked]
    if missing:
        reasons.append(
            f"this host is to ask {', '.join(wanted)} for names, and asks {', '.join(asked) or 'nobody'}: "
            "somebody has changed it since; run the play again"
        )
    if wanted and lookup and not lookup.answered:
        why = lookup.trouble or "no answer in time"
        reasons.append(
            f"names cannot be looked up ({why}): is {wanted[0]} reached through the tunnel, does it run, and "
            "does it take questions from this host's tunnel address?"
        )
    return (not reasons if wanted else None), ", ".join(asked) or None, reasons


def _dns_leak(spec: ProbeSpec, found: Findings) -> _Judged:
    if not spec.full_tunnel or found.leaks is None:
        return _UNASKED
    ok, value, reasons = _judge_trials(found.leaks, "dns", "the question for {target} left through {devices}")
    guarded = any(held and held.state == "on" for held in (found.dns_guard, found.kill_switch))
    per_link = found.resolvers is not None and found.resolvers.per_link
    for address, device in () if guarded or per_link else found.resolvers_outside:
        ok, value = False, value or device
        reasons.append(
            f"the resolver {address} of {RESOLV_CONF} is reached through {device}, outside of the tunnel"
        )
    if ok is False:
        reasons[-1] += ": set client_dns_servers to a resolver that is reached through the tunnel"
    return ok, value, reasons


def _leak(version: int) -> Callable[[ProbeSpec, Findings], _Judged]:
    def judge(spec: ProbeSpec, found: Findings) -> _Judged:
        if not spec.full_tunnel or found.leaks is None:
            return _UNASKED
        said = (
            f"a packet to {{target}} left through {{devices}} in the clear: IPv{version} goes around the "
            "tunnel; look at the rules and the tunnel's table with `culvert explain {target}`"
        )
        return _judge_trials(found.leaks, f"ipv{version}", said)

    return judge


def _judge_trials(leaks: LeakFacts, kind: str, said: str) -> tuple[bool | None, str | None, list[str]]:
    trials = leaks.of(kind)
    leaked = [trial for trial in trials if trial.seen]
    if leaked:
        devices = sorted(set().union(*(trial.seen for trial in leaked)))
        reasons = [
            said.format(target=trial.target, devices=" and ".join(sorted(trial.seen))) for trial in leaked
        ]
        return False, ", ".join(devices), reasons
    if leaks.trouble:
        return None, None, [leaks.trouble]
    if leaks.missed:
        text = f"the host is so busy that {leaks.missed} packets could not be looked at: run it again later"
        return None, None, [text]
    return (True if trials else None), _not_seen(trials), []


def _not_seen(trials: Sequence[Trial]) -> str | None:
    refused = [trial for trial in trials if trial.refusal]
    return f"not sent: {refused[0].refusal}" if refused else "not seen" if trials else None


def _kill_switch(spec: ProbeSpec, found: Findings) -> _Judged:
    held = found.kill_switch
    if held is None:
        return _UNASKED
    if spec.kill_switch is None:
        return None, held.state, ()
    reasons = []
    if held.state == "broken":
        reasons.append(
            f"the kill switch is broken, {'; '.join(held.missing)} is missing: run the play again, and find "
            "out who changes the chains"
        )
    elif spec.kill_switch and held.state == "off":
        reasons.append("the kill switch is off although it is to be on: run the play again")
    elif not spec.kill_switch and held.state == "on":
        reasons.append("the kill switch is on although it is not to be: run the play again")
    state = held.state
    if spec.kill_switch and found.leaks:
        said = "a packet bound to {devices} left the host although the kill switch is to be on"
        ok, _devices, leaked = _judge_trials(found.leaks, "uplink", said)
        if ok is False:
            reasons += leaked
            state = "broken" if state == "on" else state
    return not reasons, state, reasons


def _path_mtu(spec: ProbeSpec, found: Findings) -> _Judged:
    path = found.path_mtu
    if path is None:
        return _UNASKED
    full = path.full_bytes
    value = f"to {path.to_bytes}, from {path.from_bytes} of {full} bytes"
    if not path.to_bytes and not path.from_bytes:
        return None, None, ["no packet of any size was answered, so nothing can be said of their size"]
    if path.is_whole:
        return True, value, ()
    ways = {
        "to the server": (path.to_bytes, full),
        "from the server": (path.from_bytes, path.full_from_bytes),
    }
    short = {way: size for way, (size, wanted) in ways.items() if size < wanted}
    full = max(ways[way][1] for way in short)
    least = min(size for size in short.values())
    passed = f"packets of {least} bytes do" if least else "smaller ones neither"
    reason = (
        f"packets of {full} bytes do not get through {' and '.join(short)}, {passed}: something on the path "
        "takes less and does not say so (a black hole). Have it send ICMP 'fragmentation needed' and 'packet "
        f"too big', or set relay_mtu to {max(least, 576) if least else 'less'} or auto"
    )
    return False, value, [reason]


def _throughput(spec: ProbeSpec, found: Findings) -> _Judged:
    if found.transfers is None:
        return _UNASKED
    reasons, rates = [], []
    for way, transfer in found.transfers.items():
        whom = f"{way} {spec.responder}"
        if transfer.mbit is None:
            reasons.append(f"nothing could be transferred {whom}: {transfer.trouble}")
            continue
        rates.append(f"{way} {transfer.mbit:g}")
        if transfer.mbit < spec.throughput_floor_mbit:
            reasons.append(
                f"a transfer {whom} reaches {transfer.mbit:g} Mbit/s, and is to reach "
                f"{spec.throughput_floor_mbit:g}: look at the load of both hosts, at the path between them, "
                "and at what `culvert show` says of batch and offloads"
            )
    return not reasons, f"{', '.join(rates)} Mbit/s" if rates else None, reasons


def _clock(spec: ProbeSpec, found: Findings) -> _Judged:
    offset_s = found.clock_offset_s
    if offset_s is None:
        return _UNASKED
    if abs(offset_s) <= spec.clock_offset_max_s:
        return True, round(offset_s, 1), ()
    way = "ahead of" if offset_s > 0 else "behind"
    reason = (
        f"this host's clock is {_duration(abs(offset_s))} {way} the controller's: handshakes carry the time, "
        "and a peer refuses one that is older than the last it took. Set the clock, and have NTP keep it"
    )
    return False, round(offset_s, 1), [reason]


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def _drift(spec: ProbeSpec, found: Findings) -> _Judged:
    if found.drift is None:
        return _UNASKED
    value = f"{len(found.drift)} changed" if found.drift else "none"
    return not found.drift, value, [f"somebody changed what the play made: {text}" for text in found.drift]


#: Causes of an explanation that are the operator's wish: nothing is wrong with the host.
_WISHED = ("acl", "isolation")


def _path(spec: ProbeSpec, found: Findings) -> _Judged:
    if found.explained is None:
        return _UNASKED
    reasons, unknown = [], False
    for answer in found.explained:
        cause = answer.get("cause")
        if cause and cause.get("name") in _WISHED:
            unknown = True
        elif answer["ok"] is False and cause:
            fix = f": {cause['fix']}" if cause.get("fix") else ""
            reasons.append(f"to {answer['destination']}: {cause['stage']}: {cause['text']}{fix}")
        unknown = unknown or answer["ok"] is None
    passed = sum(1 for answer in found.explained if answer["ok"])
    ok = False if reasons else None if unknown or not found.explained else True
    return ok, f"{passed} of {len(found.explained)} pass" if found.explained else None, reasons


_CHECKS: dict[str, Callable[[ProbeSpec, Findings], _Judged]] = {
    "device": _device,
    "relay": _relay,
    "handshake": _handshake,
    "round_trip": _round_trip,
    "loss": _loss,
    "egress": _egress,
    "responder": _responder,
    "dns": _dns,
    "dns_leak": _dns_leak,
    "ipv4_leak": _leak(4),
    "ipv6_leak": _leak(6),
    "kill_switch": _kill_switch,
    "path_mtu": _path_mtu,
    "throughput": _throughput,
    "clock": _clock,
    "drift": _drift,
    "path": _path,
}
