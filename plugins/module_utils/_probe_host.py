# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Gathers what there is to see of a tunnel on its host: the device, routes, echoes, the relay, the address
outside.
"""

from __future__ import annotations

import ipaddress
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import _probe
from ._core import HostError, MissingRequirement
from ._icmp import Echo, ping
from ._netlink import FAMILIES, IFF_UP, netlink_error, rtnetlink, step
from ._options import Options
from ._uapi import interface_name, query, socket_path_of

# include/uapi/linux/rtnetlink.h
RTN_LOCAL = 2
_COUNT_MAX = 100
_BODY_MAX_BYTES = 4096


@dataclass(frozen=True)
class Target:
    name: str
    address: _probe.Address


@dataclass(frozen=True)
class ProbeSpec:
    device: str
    socket_path: str
    targets: tuple[Target, ...] = ()
    count: int = 3
    timeout_s: float = 2.0
    egress_url: str = ""

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> ProbeSpec:
        """:raises SpecError: an option is malformed."""
        options = Options(params)
        device = interface_name(options, "device", "culvert0")
        spec = cls(
            device=device,
            socket_path=socket_path_of(options, device),
            targets=tuple(_target(item) for item in options.mappings("targets")),
            count=options.integer("count", 1, _COUNT_MAX, 3) or 3,
            timeout_s=_timeout(options),
            egress_url=_url(options),
        )
        options.done()
        return spec


def _target(options: Options) -> Target:
    text = options.required("address")
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise options.refuse("address", f"{text!r} is not an address") from None
    target = Target(options.text("name") or text, address)
    options.done()
    return target


def _timeout(options: Options) -> float:
    value = options.raw("timeout_s", 2.0)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 60:
        raise options.refuse("timeout_s", f"must be a number of seconds up to 60, not {value!r}")
    return float(value)


def _url(options: Options) -> str:
    url = options.text("egress_url", "") or ""
    if url and urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise options.refuse("egress_url", f"{url!r} is not a web address")
    return url


def probe(spec: ProbeSpec) -> dict[str, Any]:
    """What the module ``tunnel_probe`` returns.

    :raises HostError: the host cannot be looked at; a tunnel that does not work is a result, not an error.
    """
    device = _look_at_device(spec.device)
    routes = {target.address: _route_to(target.address, _source(device, target)) for target in spec.targets}
    echoes = _ping_all(spec, device)
    # After the echoes: they are what makes an idle tunnel shake hands.
    relay = query(spec.socket_path)
    now_s = time.time()
    targets: list[dict[str, Any]] = []
    for target in spec.targets:
        facts = _probe.TargetFacts(target.address, routes[target.address], echoes[target.address])
        peer = _probe.owner_of(target.address, relay) if relay else None
        times_s = facts.echo.round_trips_s
        targets.append(
            {
                "name": target.name,
                "address": str(target.address),
                "reachable": bool(times_s),
                "rtt_ms": round(1000 * sum(times_s) / len(times_s), 3) if times_s else None,
                "loss": round(facts.echo.loss, 3),
                "handshake_age_s": peer.handshake_age_s(now_s) if peer else None,
                "reasons": _probe.reasons_of_target(facts, device, relay, now_s),
            }
        )
    reasons = _probe.reasons_of_device(device, relay)
    egress, problem = _egress_address(spec) if spec.egress_url else (None, "")
    reasons += [problem] if problem else []
    return {
        "ok": not reasons and all(target["reachable"] and not target["reasons"] for target in targets),
        "reasons": reasons,
        "device_addresses": list(device.addresses),
        "targets": targets,
        "egress_address": egress,
    }


def _look_at_device(name: str) -> _probe.DeviceFacts:
    with rtnetlink() as ipr, step("read the host's devices and addresses"):
        link = next((link for link in ipr.get_links() if link.get_attr("IFLA_IFNAME") == name), None)
        if link is None:
            return _probe.DeviceFacts(name)
        found = [
            message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            for message in ipr.get_addr()
            if message["index"] == link["index"]
        ]
    addresses = [address for address in map(ipaddress.ip_address, found) if not address.is_link_local]
    return _probe.DeviceFacts(
        name=name,
        exists=True,
        up=bool(link["flags"] & IFF_UP),
        carrier=bool(link.get_attr("IFLA_CARRIER")),
        addresses=tuple(str(address) for address in sorted(addresses, key=lambda a: a.version)),
    )


def _source(device: _probe.DeviceFacts, target: Target) -> str | None:
    """The device's address of the target's family."""
    version = target.address.version
    return next((a for a in device.addresses if ipaddress.ip_address(a).version == version), None)


def _route_to(address: _probe.Address, source: str | None) -> _probe.RouteFacts:
    wish = {"dst": str(address), "family": FAMILIES[address.version]}
    if source:
        wish["src"] = source
    with rtnetlink() as ipr:
        try:
            answer = ipr.route("get", **wish)[0]
        except netlink_error() as error:
            return _probe.RouteFacts(refusal=str(error.args[1] if len(error.args) > 1 else error))
        link = ipr.get_links(answer.get_attr("RTA_OIF"))[0]
    return _probe.RouteFacts(link.get_attr("IFLA_IFNAME"), local=answer["type"] == RTN_LOCAL)


def _ping_all(spec: ProbeSpec, device: _probe.DeviceFacts) -> dict[_probe.Address, Echo]:
    echoes: dict[_probe.Address, Echo] = {}
    for version in (4, 6):
        targets = [target for target in spec.targets if target.address.version == version]
        if not targets:
            continue
        addresses = sorted({str(target.address) for target in targets})
        try:
            found = ping(version, _source(device, targets[0]), addresses, spec.count, spec.timeout_s)
        except HostError as error:
            found = {address: Echo(address, refusal=str(error)) for address in addresses}
        echoes.update({ipaddress.ip_address(address): echo for address, echo in found.items()})
    return echoes


def _egress_address(spec: ProbeSpec) -> tuple[str | None, str]:
    """The address that a service outside sees, and why it is not known."""
    # Whatever proxy the environment names would be the one that is seen.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(spec.egress_url, timeout=spec.timeout_s) as response:
            body = response.read(_BODY_MAX_BYTES).decode("ascii", "replace")
    except (OSError, ValueError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", error)
        return None, f"{spec.egress_url} could not be fetched: {reason}"
    line = (body.splitlines() or [""])[0].strip()
    try:
        return str(ipaddress.ip_address(line)), ""
    except ValueError:
        return None, f"{spec.egress_url} did not answer with an address in its first line"


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
            "reasons": [],
        }
        for target in spec.targets
    ]
    return {
        "ok": False,
        "reasons": [str(missing)],
        "device_addresses": [],
        "targets": targets,
        "egress_address": None,
    }
