# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Finds what the paths from this host to a tunnel's peers take: by the kernel's routes, and by echoes to the
peers' endpoints.
"""

from __future__ import annotations

import ipaddress
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ._core import HostError
from ._facts import resolve
from ._host import kernel_has_ipv6
from ._netlink import FAMILIES, netlink_error, rtnetlink, step
from ._options import Options
from ._path_echo import search_path
from ._path_mtu import (
    ASSUMED,
    OVERHEAD_BYTES,
    PATH_DEFAULT_BYTES,
    PATH_MIN_BYTES,
    ROUTE,
    Path,
    Search,
    judge,
    tunnel_mtu,
)
from ._uapi import interface_name

# include/uapi/linux/rtnetlink.h
_RTN_UNICAST = 1
_TABLE_MAIN = 254
# An IP packet's length has 16 bits.
_PATH_MAX_BYTES = 65535


@dataclass(frozen=True)
class PathSpec:
    """:ivar inbound: whether peers call this host from places that it does not know."""

    endpoints: tuple[str, ...] = ()
    inbound: bool = False
    fwmark: int = 0
    tunnel_ipv6: bool = True
    device: str = "culvert0"
    probe: bool = True

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> PathSpec:
        """:raises SpecError: an option is malformed."""
        options = Options(params)
        endpoints = tuple(dict.fromkeys(options.texts("endpoints")))
        spec = cls(
            endpoints=endpoints,
            inbound=options.flag("inbound", not endpoints),
            fwmark=options.integer("fwmark", 0, 2**32 - 1, 0) or 0,
            tunnel_ipv6=options.flag("tunnel_ipv6", True),
            device=interface_name(options, "device", "culvert0"),
            probe=options.flag("probe", True),
        )
        options.done()
        return spec


@dataclass(frozen=True)
class _Route:
    device: str
    mtu: int


def measure(spec: PathSpec) -> dict[str, Any]:
    """What the module ``path_mtu`` returns.

    :raises HostError: the host's routes cannot be read. A path that cannot be measured is a warning.
    """
    warnings: list[str] = []
    present = device_mtu(spec.device)
    targets = _targets(spec, warnings)
    results: dict[tuple[str, str], Path] = {}

    def look(endpoint: str, address: str, route: _Route) -> None:
        results[endpoint, address] = _measured(spec, endpoint, address, route, present, warnings)

    threads = [threading.Thread(target=look, args=target, daemon=True) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    paths = [
        results[endpoint, address] for endpoint, address, _route in targets if (endpoint, address) in results
    ]
    if spec.inbound or not paths:
        paths += _ways_out(spec, warnings)
    found = tunnel_mtu(paths, spec.tunnel_ipv6)
    if found["mss4"]:
        warnings.append(
            f"a path takes packets of {found['path_mtu']} bytes, too small for the least MTU that a tunnel "
            f"with {'IPv6' if spec.tunnel_ipv6 else 'IPv4'} may have ({found['mtu']}): TCP is held to what "
            "fits, anything else that is larger is sent in fragments"
        )
    return {**_result(spec, paths), "warnings": sorted(warnings)}


def blank(spec: PathSpec, why: str) -> dict[str, Any]:
    """The result in check mode on a host that has not been prepared yet: as it is, or as on Ethernet."""
    path = Path(4, (device_mtu(spec.device) or 1420) + 80, ASSUMED)
    return {**_result(spec, [path]), "warnings": [why]}


def _result(spec: PathSpec, paths: Sequence[Path]) -> dict[str, Any]:
    found = tunnel_mtu(paths, spec.tunnel_ipv6)
    return {**found, "interface": spec.device, "paths": [path.report() for path in paths]}


def device_mtu(name: str) -> int | None:
    """``None`` for a device that does not exist."""
    try:
        with open(f"/sys/class/net/{name}/mtu", encoding="ascii") as mtu:
            return int(mtu.read())
    except (OSError, ValueError):
        return None


def _targets(spec: PathSpec, warnings: list[str]) -> list[tuple[str, str, _Route]]:
    """Endpoint, address and route; of a name one address of each family, for the relay may use either."""
    found = []
    names = resolve(endpoint for endpoint in spec.endpoints if _version(endpoint) is None)
    for endpoint in spec.endpoints:
        addresses = (endpoint,) if _version(endpoint) else names.get(endpoint, ())
        if not addresses:
            warnings.append(f"{endpoint} could not be resolved: the path to it is not taken into account")
        refusals, routed = [], 0
        for version in (4, 6):
            address = next((address for address in addresses if _version(address) == version), None)
            if address is None:
                continue
            try:
                route = _route_to(address, spec.fwmark)
            except HostError as error:
                refusals.append(str(error))
                continue
            routed += 1
            if route is not None:
                found.append((endpoint, address, route))
        if not routed:
            warnings.extend(refusals)
    return found


def _version(text: str) -> int | None:
    try:
        return ipaddress.ip_address(text).version
    except ValueError:
        return None


def _route_to(address: str, fwmark: int) -> _Route | None:
    """With the MTU that the kernel knows of, learned ones included; ``None`` to an address of this host.

    :raises HostError: there is no route.
    """
    version = ipaddress.ip_address(address).version
    wish: dict[str, Any] = {"dst": address, "family": FAMILIES[version]}
    if fwmark:
        wish["mark"] = fwmark
    with rtnetlink() as ipr:
        try:
            answer = ipr.route("get", **wish)[0]
            if answer["type"] != _RTN_UNICAST:
                return None
            link = ipr.get_links(answer.get_attr("RTA_OIF"))[0]
        except (netlink_error(), OSError) as error:
            reason = os.strerror(getattr(error, "code", None) or getattr(error, "errno", 0) or 0)
            raise HostError(
                f"this host has no route to {address} ({reason}): the path to it is not taken into account"
            ) from None
    return _Route(link.get_attr("IFLA_IFNAME"), _mtu_of(answer) or link.get_attr("IFLA_MTU"))


def _mtu_of(route: Any) -> int:
    metrics = route.get_attr("RTA_METRICS")
    return int((metrics.get_attr("RTAX_MTU") if metrics else 0) or 0)


def _measured(
    spec: PathSpec, endpoint: str, address: str, route: _Route, present: int | None, warnings: list[str]
) -> Path:
    version = ipaddress.ip_address(address).version
    mtu = min(route.mtu, _PATH_MAX_BYTES)
    if route.device == spec.device:
        warnings.append(
            f"the route to {address} leads into {spec.device} itself: is fwmark the relay's mark?"
        )
    search = Search(
        mtu, min(PATH_MIN_BYTES[version], mtu), present + OVERHEAD_BYTES[version] if present else 0
    )
    if spec.probe:
        try:
            search_path(address, spec.fwmark, search)
        except HostError as error:
            warnings.append(f"{address}: {error}")
    path_mtu, how = judge(search, version, mtu, present)
    if search.swallowed:
        warnings.append(
            f"on the path to {address} packets of more than {path_mtu} bytes vanish, and no ICMP message "
            "that says so arrives here: some firewall on the way drops it"
        )
    return Path(version, path_mtu, how, endpoint, address, route.device)


def _ways_out(spec: PathSpec, warnings: list[str]) -> list[Path]:
    """The default routes, as paths to peers of whom nothing is known."""
    paths = []
    with rtnetlink() as ipr, step("read the host's default routes"):
        links = {link["index"]: link for link in ipr.get_links()}
        for version in (4, 6) if kernel_has_ipv6() else (4,):
            for route in ipr.get_routes(family=FAMILIES[version], table=_TABLE_MAIN):
                if route["dst_len"] or route["type"] != _RTN_UNICAST:
                    continue
                for link in (links[index] for index in _devices(route) if index in links):
                    name = link.get_attr("IFLA_IFNAME")
                    if name != spec.device:
                        mtu = _mtu_of(route) or link.get_attr("IFLA_MTU")
                        paths.append(Path(version, min(mtu, _PATH_MAX_BYTES), ROUTE, device=name))
    if paths:
        return list(dict.fromkeys(paths))
    warnings.append(f"this host has no default route: {PATH_DEFAULT_BYTES} bytes are assumed to pass outside")
    return [Path(4, PATH_DEFAULT_BYTES, ASSUMED)]


def _devices(route: Any) -> Sequence[int]:
    if route.get_attr("RTA_OIF"):
        return [route.get_attr("RTA_OIF")]
    return [hop["oif"] for hop in route.get_attr("RTA_MULTIPATH") or []]
