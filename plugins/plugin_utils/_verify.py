# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Private to the collection: may change at any time.
"""What a host's probe, its server's word about it and the inventory say together: a verdict, with one cause.

Pure functions on the controller: the filter plugins are shells over them. A host may fail several checks for
one reason, and the reason may be on the other side of the tunnel. So the cause is looked for along the
packet's way: what stops it on the host itself, what the server refused, what stops it on the server, and
where none of them knows, what the first check that failed says.
"""

from __future__ import annotations

import ipaddress
import typing as t

from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet import status_table

Mapping = t.Mapping[str, t.Any]

#: Causes of an explanation by which nothing comes back: the other side may know why.
_SILENCE = ("endpoint_silent", "other_side")
#: Causes that come from what the server refused, of which the names of the hosts can be told here.
_OF_THE_PEER = ("wrong_key", "allowed_ips", "clock")
#: Causes that are true of the whole host: what stops the packet that was followed comes before them.
_OF_THE_HOST = ("ipv6_leak", "dns_leak", "dns_blocked", "mtu_black_hole")
#: Causes that are the operator's wish, which come after whatever is wrong, and the checks that they can be
#: the cause of: those of what goes beyond the server.
_WISHED = ("acl", "isolation")
_BEYOND = ("egress", "dns", "path")
#: Rejections that are older than a probe takes were not of its packets.
_FRESH_S = 60
_KEYS_DIFFER = "run culvert.vpn.site for the whole fleet, so that both have each other's public key again"
_REJECTIONS: dict[str, tuple[str, str]] = {
    "mac1": (
        (
            "{server} gets handshakes that were made for another public key than its own: {host} has a wrong "
            "key for it"
        ),
        _KEYS_DIFFER,
    ),
    "unknown_peer": ("{server} does not know the public key that {host} comes with, {key}", _KEYS_DIFFER),
    "stale_timestamp": (
        (
            "{server} refuses the handshakes of {host} because they are older than one that it took before: "
            "the clock of {host} went back"
        ),
        (
            "set the clock of {host} and have NTP keep it; restarting the relay of {server} makes it forget "
            "the later time"
        ),
    ),
    "source": (
        (
            "{server} drops what {host} sends from {address}, which is not in the allowed IPs that it has "
            "for {host}"
        ),
        "run culvert.vpn.site for the whole fleet; a network behind {host} belongs into its client_networks",
    ),
    "no_allowed_ip": (
        "{server} has {address} of {host} in no peer's allowed IPs, so that it drops all answers",
        "run culvert.vpn.site for the whole fleet",
    ),
}
_NOTHING = "\u2013"


def verdict(found: Mapping) -> dict[str, t.Any]:
    """Judge one host.

    `found`: `host`, `role` (server, client), `probe` (the result of tunnel_probe, also an unreachable or
    failed one; none for a host of which nothing was heard), `server` (the name of a client's server),
    `answer` (that server's result of tunnel_probe), `ignore` (names of checks that may fail).
    """
    probe = found.get("probe") or {}
    ignore = found.get("ignore") or []
    checks = [{**check, "ignored": check["name"] in ignore} for check in probe.get("checks") or []]
    failed = [check for check in checks if check["ok"] is False and not check["ignored"]]
    cause = _unknown(probe) or (_cause(found, failed) if failed else None)
    gone = not probe or bool(probe.get("unreachable"))
    return {
        "host": str(found["host"]),
        "role": str(found.get("role", "")),
        "verdict": "unreachable" if gone else "FAIL" if cause else "ok",
        "says": cause_text(cause),
        "transports": [str(name) for name in probe.get("transports") or []],
        "cause": cause,
        "checks": checks,
        "explained": [_brief(answer) for answer in probe.get("explained") or []],
        "explained_by_server": [
            _brief(answer) for answer in (found.get("answer") or {}).get("explained") or []
        ],
    }


def _brief(answer: Mapping) -> dict[str, t.Any]:
    return {"destination": answer["destination"], "ok": answer["ok"], "cause": answer.get("cause")}


def _cause_of(stage: str, text: str, fix: str = "", host: str = "", name: str = "") -> dict[str, str]:
    """`host`: where it is to be mended, empty for the host itself. `name`: what programs know it by."""
    return {"stage": stage, "name": name or stage, "text": text, "fix": fix, "host": host}


def _unknown(probe: Mapping) -> dict[str, str] | None:
    """The cause where there is nothing to judge."""
    message = str(probe.get("msg") or "")
    if not probe:
        return _cause_of(
            "connection", "this run has not heard of the host", "look at what it said of it above"
        )
    if probe.get("unreachable"):
        return _cause_of("connection", f"Ansible cannot reach it: {message}", "connect to it by hand")
    if not probe.get("checks"):
        # Of a module that broke down, the line that says by what.
        trace = str(probe.get("exception") or probe.get("module_stderr") or "").strip().splitlines()
        why = message or "; ".join(probe.get("reasons") or trace[-1:]) or "no result"
        return _cause_of("probe", f"it could not be looked at: {why}")
    return None


def _cause(found: Mapping, failed: t.Sequence[Mapping]) -> dict[str, str]:
    """The one that comes first on the packet's way."""
    probe, answer = found["probe"], found.get("answer") or {}
    server = str(found.get("server") or "")
    names = [check["name"] for check in failed]
    if names[0] in ("device", "relay"):
        # Nothing else can be right then.
        return _of_check(failed[0])
    here = _stopped(probe)
    if here and here["name"] in _WISHED:
        here = None
    if here and here["name"] not in _SILENCE:
        return here
    if server:
        there = _on_the_server(found, answer, server)
        if there and there["name"] in _WISHED and not any(name in _BEYOND for name in names):
            there = None
        if there and there["name"] not in _SILENCE and (here or _silent(names)):
            return there
    return here or _of_check(_first(failed))


def _on_the_server(found: Mapping, answer: Mapping, server: str) -> dict[str, str] | None:
    """What the server does now comes before what it refused lately, unless it is the same."""
    stopped = _stopped(answer, server)
    if stopped and stopped["name"] not in (*_SILENCE, *_OF_THE_PEER, *_WISHED):
        return stopped
    return _server_down(answer, server) or _refused(found, answer, server) or stopped


def _silent(names: t.Sequence[str]) -> bool:
    """Whether something that needs an answer has failed: the reason may be the server's."""
    return any(
        name in ("handshake", "round_trip", "egress", "responder", "dns", "path_mtu") for name in names
    )


def _first(failed: t.Sequence[Mapping]) -> Mapping:
    """A clock that is off and packets that get lost have effects that come before them in the list."""
    by_name = {check["name"]: check for check in failed}
    for name in ("clock", "path_mtu"):
        if name in by_name:
            return by_name[name]
    return failed[0]


def _of_check(check: Mapping) -> dict[str, str]:
    return _cause_of(check["name"], "; ".join(check["reasons"]) or f"the check {check['name']} failed")


def _stopped(probe: Mapping, host: str = "") -> dict[str, str] | None:
    """Where a packet that the probe followed stops: of several, the one that is stopped by most."""
    stopped = [a["cause"] for a in probe.get("explained") or [] if a.get("ok") is False and a.get("cause")]
    for cause in sorted(stopped, key=_rank):
        where = f"on {host}: " if host else ""
        name = cause.get("name") or ""
        return _cause_of(cause["stage"], where + cause["text"], cause.get("fix") or "", host, name)
    return None


def _rank(cause: Mapping) -> int:
    name = cause.get("name")
    return 3 if name in _WISHED else 2 if name in _SILENCE else 1 if name in _OF_THE_HOST else 0


def _server_down(answer: Mapping, server: str) -> dict[str, str] | None:
    if answer.get("unreachable"):
        return _cause_of(
            "server", f"{server} cannot be reached by Ansible either", "look at that host", server
        )
    for check in answer.get("checks") or []:
        if check["name"] in ("device", "relay") and check["ok"] is False:
            return _cause_of("server", f"on {server}: {'; '.join(check['reasons'])}", "", server)
    return None


def _refused(found: Mapping, answer: Mapping, server: str) -> dict[str, str] | None:
    """What the server has just refused, where it was this host's."""
    for rejection in answer.get("rejections") or []:
        if rejection["age_s"] > _FRESH_S or not _is_of(rejection, found["probe"]):
            continue
        if rejection["reason"] in _REJECTIONS:
            text, fix = _REJECTIONS[rejection["reason"]]
            words = {
                "server": server,
                "host": found["host"],
                "key": rejection["public_key"],
                "address": rejection["address"],
            }
            return _cause_of(rejection["reason"], text.format(**words), fix.format(**words), server)
    return None


def _is_of(rejection: Mapping, probe: Mapping) -> bool:
    """By the key, then by the address in the tunnel, then by where it came from.

    Behind a NAT the last cannot be known: then it is this host's if it has had no handshake. A packet from
    another address than its own in the tunnel may be anything, such as one bound to the uplink's.
    """
    if rejection["reason"] == "source" and rejection["address"] not in (probe.get("device_addresses") or []):
        return False
    if rejection["public_key"]:
        return bool(rejection["public_key"] == probe.get("public_key"))
    if rejection["address"]:
        return rejection["address"] in (probe.get("device_addresses") or [])
    origin = _host_of(rejection["endpoint"])
    if origin in (probe.get("outer_addresses") or []):
        return True
    return all(target["handshake_age_s"] is None for target in probe.get("targets") or [])


def _host_of(endpoint: str) -> str:
    host = endpoint.rpartition(":")[0].strip("[]")
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host


def verdict_lines(verdicts: t.Sequence[Mapping]) -> list[str]:
    """A table for a person: a line for each host with the checks that any was asked, then the causes."""
    asked = checks_asked(verdicts)
    rows = []
    for one in verdicts:
        marks = {check["name"]: _mark(check) for check in one["checks"]}
        checks = {name: marks.get(name, _NOTHING) for name in asked}
        used = ", ".join(one.get("transports") or []) or _NOTHING
        row = {"host": one["host"], "role": one["role"], "transport": used, "verdict": one["verdict"]}
        rows.append({**row, **checks})
    # Of no interest where it is UDP everywhere.
    other = any(set(one.get("transports") or []) - {"udp"} for one in verdicts)
    columns = ["host", "role", *(["transport"] if other else []), "verdict", *asked]
    lines = status_table(rows, columns).split("\n")
    causes = [f"{one['host']}: {one['says']}" for one in verdicts if one["cause"]]
    return [*lines, *([""] if causes else []), *causes]


def checks_asked(verdicts: t.Sequence[Mapping]) -> list[str]:
    """Names of the checks that say something of at least one host, in their order."""
    known = [check for one in verdicts for check in one["checks"]]
    names = dict.fromkeys(check["name"] for check in known)
    return [name for name in names if any(c["name"] == name and c["ok"] is not None for c in known)]


def _mark(check: Mapping) -> str:
    if check["ok"] is None:
        return _NOTHING
    return "ok" if check["ok"] else "ignored" if check["ignored"] else "FAIL"


def cause_text(cause: Mapping | None) -> str:
    """The cause in one sentence, with what to do; empty without one."""
    if not cause:
        return ""
    fix = f" ({cause['fix']})" if cause["fix"] else ""
    return f"{cause['stage']}: {cause['text']}{fix}"
