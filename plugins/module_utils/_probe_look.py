# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What there is to see of a tunnel on its host: devices, routes, answers to echo requests, and the address
that a service outside sees.
"""

from __future__ import annotations

import ipaddress
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from . import _probe
from ._core import HostError
from ._icmp import Echo, ping
from ._netlink import FAMILIES, IFF_UP, netlink_error, rtnetlink, step
from ._probe_spec import ProbeSpec, Target

# include/uapi/linux/rtnetlink.h
RTN_UNICAST, RTN_LOCAL = 1, 2
_MAIN = 254
_BODY_MAX_BYTES = 4096
# Of the networks set aside for documentation (RFC 5737, RFC 3849); nobody answers there.
_NOBODY = (
    "203.0.113.254",
    "198.51.100.254",
    "2001:db8:ffff:ffff::fffe",
    "3fff:fff:ffff::fffe",
)


@dataclass(frozen=True)
class Surroundings:
    """The host without the tunnel.

    :ivar addresses: of all devices but the tunnel's and lo.
    :ivar uplinks: device and IP version of every default route of the main table.
    :ivar networks: destinations that the main table has any other route to.
    """

    addresses: tuple[str, ...] = ()
    uplinks: tuple[tuple[str, int], ...] = ()
    networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = ()

    def leak_targets(self, wished: Sequence[_probe.Address]) -> list[_probe.Address]:
        """Those that are wished, else one of each IP version that this host does not know a better way to
        than by default.
        """
        if wished:
            return list(wished)
        found: dict[int, _probe.Address] = {}
        for address in map(ipaddress.ip_address, _NOBODY):
            if not any(net.version == address.version and address in net for net in self.networks):
                found.setdefault(address.version, address)
        return list(found.values())


def look_at_device(name: str) -> tuple[_probe.DeviceFacts, int]:
    """The device, and its MTU in bytes."""
    with rtnetlink() as ipr, step("read the host's devices and addresses"):
        link = next((link for link in ipr.get_links() if link.get_attr("IFLA_IFNAME") == name), None)
        if link is None:
            return _probe.DeviceFacts(name), 0
        found = [
            message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            for message in ipr.get_addr()
            if message["index"] == link["index"]
        ]
    addresses = [address for address in map(ipaddress.ip_address, found) if not address.is_link_local]
    facts = _probe.DeviceFacts(
        name=name,
        exists=True,
        up=bool(link["flags"] & IFF_UP),
        carrier=bool(link.get_attr("IFLA_CARRIER")),
        addresses=tuple(str(address) for address in sorted(addresses, key=lambda a: a.version)),
    )
    return facts, int(link.get_attr("IFLA_MTU") or 0)


def look_around(device: str) -> Surroundings:
    with rtnetlink() as ipr, step("read the host's addresses and routes"):
        names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in ipr.get_links()}
        addresses = [
            str(message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"))
            for message in ipr.get_addr()
            if names.get(message["index"]) not in (device, "lo")
        ]
        routes = [(v, route) for v in (4, 6) for route in ipr.get_routes(family=FAMILIES[v], table=_MAIN)]
    uplinks, networks = [], []
    for version, route in routes:
        if route["type"] != RTN_UNICAST or route.get_attr("RTA_TABLE") not in (None, _MAIN):
            continue
        out = names.get(route.get_attr("RTA_OIF"), "")
        destination = route.get_attr("RTA_DST")
        if destination and route["dst_len"]:
            networks.append(ipaddress.ip_network(f"{destination}/{route['dst_len']}", strict=False))
        elif out and out != device:
            uplinks.append((out, version))
    outer = tuple(address for address in addresses if not ipaddress.ip_address(address).is_link_local)
    return Surroundings(outer, tuple(dict.fromkeys(uplinks)), tuple(networks))


def source_for(device: _probe.DeviceFacts, address: _probe.Address) -> str | None:
    """The device's address of the same IP version."""
    return next((a for a in device.addresses if ipaddress.ip_address(a).version == address.version), None)


def route_to(address: _probe.Address, source: str | None) -> _probe.RouteFacts:
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


def ping_all(
    spec: ProbeSpec, targets: Sequence[Target], device: _probe.DeviceFacts
) -> dict[_probe.Address, Echo]:
    """Both IP versions at a time: where nothing answers, each takes all of its time."""

    def of_version(version: int) -> dict[str, Echo]:
        chosen = [target.address for target in targets if target.address.version == version]
        if not chosen:
            return {}
        addresses = sorted(str(address) for address in set(chosen))
        try:
            return ping(version, source_for(device, chosen[0]), addresses, spec.count, spec.timeout_s)
        except HostError as error:
            return {address: Echo(address, refusal=str(error)) for address in addresses}

    with ThreadPoolExecutor(2) as both:
        found = [echo for echoes in both.map(of_version, (4, 6)) for echo in echoes.items()]
    return {ipaddress.ip_address(address): echo for address, echo in found}


def targets_of(spec: ProbeSpec, device: _probe.DeviceFacts) -> list[tuple[Target, _probe.TargetFacts]]:
    """Routes first, as they are before anything was sent."""
    targets = [t for t in spec.targets if not t.optional or source_for(device, t.address)]
    routes = {t.address: route_to(t.address, source_for(device, t.address)) for t in targets}
    echoes = ping_all(spec, targets, device)
    return [(t, _probe.TargetFacts(t.address, routes[t.address], echoes[t.address])) for t in targets]


def outside(addresses: Iterable[_probe.Address], device: str) -> list[tuple[str, str]]:
    """Of several addresses those that are reached by another device than the tunnel's: address and device."""
    found = []
    for address in addresses:
        route = route_to(address, None)
        if route.device and not route.local and route.device not in (device, "lo"):
            found.append((str(address), route.device))
    return found


def egress_address(url: str, timeout_s: float) -> tuple[str | None, str]:
    """The address that a service outside sees, and why it is not known."""
    # Whatever proxy the environment names would be the one that is seen.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=timeout_s) as response:
            body = response.read(_BODY_MAX_BYTES).decode("ascii", "replace")
    except (OSError, ValueError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", error)
        return None, f"{url} could not be fetched: {reason}"
    line = (body.splitlines() or [""])[0].strip()
    try:
        return str(ipaddress.ip_address(line)), ""
    except ValueError:
        return None, f"{url} did not answer with an address in its first line"
