# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Private to the collection: may change at any time.
"""What may leave a host beside the tunnel: checked, and turned into the matches of firewall rules.

Pure functions on the controller: the filter plugins are one-line shells over them.
"""

from __future__ import annotations

import ipaddress
import re
import typing as t

_KEYS = ("to", "protocol", "port", "device")
# Names that iptables knows on every host, and those that have ports.
_PROTOCOLS = ("tcp", "udp", "sctp", "icmp", "igmp", "gre", "esp", "ah")
_WITH_PORTS = ("tcp", "udp", "sctp")
_DEVICE = re.compile(r"[^\s/:+!\"'\\]{1,15}|[^\s/:+!\"'\\]{1,14}\+")
# Where containers and virtual machines are, by family: nothing there is on the internet.
_PRIVATE = {
    "ipv4": ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"),
    "ipv6": ("fc00::/7", "fe80::/10"),
}


def exception_problems(items: t.Any, option: str) -> list[str]:
    """Return what is wrong with a list of exceptions, a sentence each that starts with the item's path."""
    if not isinstance(items, list):
        return [f"{option} is not a list"]
    return [
        f"{option}[{position}]{wrong}"
        for position, item in enumerate(items)
        for wrong in [_problem(item)]
        if wrong
    ]


def _problem(item: t.Any) -> str:
    if isinstance(item, str):
        return _problem_of_prefix(item, "")
    if not isinstance(item, dict):
        return f" is neither a prefix nor a mapping of {', '.join(_KEYS)}"
    unknown = [str(key) for key in item if key not in _KEYS]
    if unknown:
        return f" has {unknown[0]}, which is none of {', '.join(_KEYS)}"
    if not item.get("to"):
        return " says no prefix: give `to`, such as 192.168.1.0/24, or 0.0.0.0/0 and ::/0 for any"
    return (
        _problem_of_prefix(item["to"], ".to")
        or _problem_of_protocol(item)
        or _problem_of_device(item.get("device"))
    )


def _problem_of_prefix(value: t.Any, where: str) -> str:
    try:
        ipaddress.ip_network(str(value))
    except ValueError as exc:
        return f"{where}: {exc}"
    return ""


def _problem_of_protocol(item: t.Mapping[str, t.Any]) -> str:
    protocol, port = item.get("protocol"), item.get("port")
    if protocol is not None and str(protocol) not in _PROTOCOLS and not _is_number(protocol, 1, 255):
        return f".protocol: {protocol!r} is none of {', '.join(_PROTOCOLS)}, and no number from 1 to 255"
    if port is None:
        return ""
    if protocol not in _WITH_PORTS:
        return f".port: {port} needs a protocol that has ports: {', '.join(_WITH_PORTS)}"
    return "" if _is_number(port, 1, 65535) else f".port: {port!r} is not a number from 1 to 65535"


def _is_number(value: t.Any, low: int, high: int) -> bool:
    text = str(value)
    return not isinstance(value, bool) and text.isdecimal() and text.isascii() and low <= int(text) <= high


def _problem_of_device(device: t.Any) -> str:
    if device is None or (isinstance(device, str) and _DEVICE.fullmatch(device)):
        return ""
    return f".device: {device!r} is neither a device's name nor a pattern such as eth+"


def device_problems(patterns: t.Any, option: str) -> list[str]:
    """Return what is wrong with a list of devices' names and patterns."""
    if not isinstance(patterns, list):
        return [f"{option} is not a list"]
    return [
        f"{option}[{position}]{wrong.removeprefix('.device')}"
        for position, pattern in enumerate(patterns)
        for wrong in [_problem_of_device(pattern) or ("" if pattern else ": is empty")]
        if wrong
    ]


def exception_matches(items: t.Sequence[t.Any], family: str, ports: t.Container[int] = ()) -> list[str]:
    """Return the match of an iptables rule for each exception of one address family.

    :param ports: only the exceptions for one of these ports; all of them by default.
    :raises ValueError: an item is malformed.
    """
    matches = []
    for item in items:
        given = {"to": item} if isinstance(item, str) else item
        network = ipaddress.ip_network(str(given["to"]))
        if f"ipv{network.version}" != family or (ports and int(given.get("port") or 0) not in ports):
            continue
        matches.append(" ".join(_words(given, network)))
    return list(dict.fromkeys(matches))


def _words(given: t.Mapping[str, t.Any], network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> list[str]:
    words = [f"-d {network}"]
    if given.get("device"):
        words.append(f"-o {given['device']}")
    protocol = given.get("protocol")
    if protocol is not None:
        name = "ipv6-icmp" if protocol == "icmp" and network.version == 6 else str(protocol)
        words.append(f"-p {name}")
    if given.get("port") is not None:
        words.append(f"-m {protocol} --dport {int(given['port'])}")
    return words


def container_matches(devices: t.Sequence[str], family: str) -> list[str]:
    """Return the matches for what goes to private addresses on containers' bridges.

    The comment is what the check of a document against the host's default route knows them by.
    """
    return [
        f"-d {network} -o {device} -m comment --comment containers"
        for device in dict.fromkeys(devices)
        for network in _PRIVATE[family]
    ]
