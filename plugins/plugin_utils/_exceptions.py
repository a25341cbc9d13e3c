# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Private to the collection: may change at any time.
"""What may leave a host beside the tunnel, and what a client may begin in it: checked, and turned into the
matches of firewall rules.

Pure functions on the controller: the filter plugins are one-line shells over them.
"""

from __future__ import annotations

import ipaddress
import re
import typing as t

_KEYS = {
    "traffic": ("to", "protocol", "port", "device"),
    "acl": ("to", "protocol", "port"),
}
# Names that iptables knows on every host, and those that have ports.
_PROTOCOLS = ("tcp", "udp", "sctp", "icmp", "igmp", "gre", "esp", "ah")
_WITH_PORTS = ("tcp", "udp", "sctp")
_DEVICE = re.compile(r"[^\s/:+!\"'\\]{1,15}|[^\s/:+!\"'\\]{1,14}\+")
# Where containers and virtual machines are, by family: nothing there is on the internet.
_PRIVATE = {
    "ipv4": ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"),
    "ipv6": ("fc00::/7", "fe80::/10"),
}


def exception_problems(items: t.Any, option: str, of: str = "traffic") -> list[str]:
    """Return what is wrong with a list, a sentence each that starts with the item's path.

    :param of: what the items are: `traffic` (exceptions from the kill switch), `acl` (what a client may
        begin) or `devices` (names and patterns).
    :raises ValueError: there is no such thing as `of`.
    """
    if of not in (*_KEYS, "devices"):
        raise ValueError(f"{of!r} is none of {', '.join(_KEYS)}, devices")
    if not isinstance(items, list):
        return [f"{option} is not a list"]
    return [
        f"{option}[{position}]{wrong}"
        for position, item in enumerate(items)
        for wrong in [_problem_of_pattern(item) if of == "devices" else _problem(item, of)]
        if wrong
    ]


def _problem(item: t.Any, of: str) -> str:
    keys = _KEYS[of]
    if of == "traffic" and isinstance(item, str):
        return _problem_of_prefix(item, "")
    if not isinstance(item, dict):
        what = "neither a prefix nor a" if of == "traffic" else "no"
        return f" is {what} mapping of {', '.join(keys)}"
    unknown = [str(key) for key in item if key not in keys]
    if unknown:
        return f" has {unknown[0]}, which is none of {', '.join(keys)}"
    if not item.get("to"):
        return " says no prefix: give `to`, such as 192.168.1.0/24, or 0.0.0.0/0 and ::/0 for any"
    return (
        _problem_of_prefix(item["to"], ".to")
        or _problem_of_protocol(item, of)
        or _problem_of_device(item.get("device"))
    )


def _problem_of_prefix(value: t.Any, where: str) -> str:
    try:
        ipaddress.ip_network(str(value))
    except ValueError as exc:
        return f"{where}: {exc}"
    return ""


def _problem_of_protocol(item: t.Mapping[str, t.Any], of: str) -> str:
    protocol, port = item.get("protocol"), item.get("port")
    if protocol is not None and str(protocol) not in _PROTOCOLS and not _is_number(protocol, 1, 255):
        return f".protocol: {protocol!r} is none of {', '.join(_PROTOCOLS)}, and no number from 1 to 255"
    if port is None:
        return ""
    if protocol not in _WITH_PORTS:
        return f".port: {port} needs a protocol that has ports: {', '.join(_WITH_PORTS)}"
    if _is_number(port, 1, 65535) or (of == "acl" and _is_range(port)):
        return ""
    also = ", and no range such as 8000:8099" if of == "acl" else ""
    return f".port: {port!r} is not a number from 1 to 65535{also}"


def _is_range(value: t.Any) -> bool:
    low, colon, high = str(value).partition(":")
    return bool(colon) and _is_number(high, 1, 65535) and _is_number(low, 1, int(high))


def _is_number(value: t.Any, low: int, high: int) -> bool:
    text = str(value)
    return not isinstance(value, bool) and text.isdecimal() and text.isascii() and low <= int(text) <= high


def _problem_of_device(device: t.Any) -> str:
    if device is None or (isinstance(device, str) and _DEVICE.fullmatch(device)):
        return ""
    return f".device: {device!r} is neither a device's name nor a pattern such as eth+"


def _problem_of_pattern(pattern: t.Any) -> str:
    return _problem_of_device(pattern).removeprefix(".device") or ("" if pattern else ": is empty")


def exception_matches(
    items: t.Sequence[t.Any], family: str, ports: t.Container[int] = (), of: str = "traffic"
) -> list[str]:
    """Return the match of an iptables rule for each item of one address family.

    :param ports: only the exceptions for one of these ports; all of them by default.
    :param of: as for :func:`exception_problems`. Of `devices`, the matches are those for what goes to private
        addresses on them; the comment is what the check of a document against the host's default route knows
        them by.
    :raises ValueError: an item is malformed.
    """
    if of == "devices":
        words = [
            f"-d {n} -o {device} -m comment --comment containers"
            for device in items
            for n in _PRIVATE[family]
        ]
        return list(dict.fromkeys(words))
    matches = []
    for item in items:
        given = {"to": item} if isinstance(item, str) else item
        network = ipaddress.ip_network(str(given["to"]))
        if f"ipv{network.version}" == family and (not ports or _is_for(given.get("port"), ports)):
            matches.append(" ".join(_words(given, network)))
    return list(dict.fromkeys(matches))


def _is_for(port: t.Any, ports: t.Container[int]) -> bool:
    return _is_number(port, 1, 65535) and int(port) in ports


def _words(given: t.Mapping[str, t.Any], network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> list[str]:
    words = [f"-d {network}"]
    if given.get("device"):
        words.append(f"-o {given['device']}")
    protocol = given.get("protocol")
    if protocol is not None:
        name = "ipv6-icmp" if protocol == "icmp" and network.version == 6 else str(protocol)
        words.append(f"-p {name}")
    if given.get("port") is not None:
        # As numbers: iptables takes one that begins with a zero for octal.
        port = ":".join(str(int(number)) for number in str(given["port"]).split(":"))
        words.append(f"-m {protocol} --dport {port}")
    return words
