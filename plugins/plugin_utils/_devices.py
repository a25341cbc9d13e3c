# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Private to the collection: may change at any time.
"""Devices that Ansible does not manage, as the variable ``external_peers`` lists them: checked, and brought
into one form. Pure functions on the controller.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
import typing as t
from dataclasses import dataclass, field

from ansible_collections.culvert.vpn.plugins.module_utils._device_keys import decoded, key_id
from ansible_collections.culvert.vpn.plugins.module_utils._relay_limits import limits_of
from ansible_collections.culvert.vpn.plugins.plugin_utils._exceptions import exception_problems
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet import (
    LIMITS,
    address_in,
    key_problem,
    network_problem,
)
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet_hosts import SERVERS, Host
from ansible_collections.culvert.vpn.plugins.plugin_utils._registry import plain

VARIABLE = "external_peers"
#: The name of a file, from which programs make that of a tunnel: a device's on Linux has no more bytes.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}", re.ASCII)
_KEYS: dict[str, t.Any] = {
    "name": str,
    "public_key": str,
    "preshared_key": str,
    "address": str,
    "address6": str,
    "servers": list,
    "acl": list,
    "networks": list,
    "keepalive": int,
    "prefixes": (list, str),
    "dns": list,
    "mtu": int,
    **dict.fromkeys(LIMITS, (str, int, float)),
}
_WORDS = {str: "text", list: "a list", int: "a number", (list, str): "a list, full or split"}
_FULL = ("0.0.0.0/0", "::/0")

Mapping = t.Mapping[str, t.Any]


@dataclass(frozen=True)
class Device:
    """One of them.

    :ivar public_key: base64; empty where the key is made here.
    :ivar address, address6: that it is to have, with prefix length; empty for any.
    :ivar acl: what it may begin; ``None`` for anything.
    :ivar networks: prefixes behind it.
    :ivar device: what servers are told of it beside that, as the registry has it: of a pre-shared key the id.
    :ivar prefixes, dns, mtu: of its own configuration: what goes into the tunnel, name servers, bytes;
        ``None`` for what is the default.
    :ivar preshared_key: ``None`` for none.
    """

    name: str
    public_key: str = ""
    address: str = ""
    address6: str = ""
    acl: tuple[Mapping, ...] | None = None
    networks: tuple[str, ...] = ()
    device: Mapping = field(default_factory=dict)
    prefixes: tuple[str, ...] | str | None = None
    dns: tuple[str, ...] | None = None
    mtu: int | None = None
    preshared_key: bytes | None = field(default=None, repr=False)


def plain_devices(value: t.Any) -> t.Any:
    """The variable without what Ansible attaches to it. A date that has no quotes in YAML becomes text."""
    if isinstance(value, (datetime.datetime, datetime.date)):
        return value.isoformat()
    if isinstance(value, t.Mapping):
        return {str(plain(key)): plain_devices(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_devices(item) for item in value]
    # What is vaulted is no text of Python's before ansible-core 2.19.
    return plain(str(value) if getattr(value, "__ENCRYPTED__", False) else value)


def devices_listed(variables: Mapping) -> t.Any:
    """The variable as a host has it, empty without one. With pre-shared keys: nobody is to show it."""
    return plain_devices(variables.get(VARIABLE) or [])


def device_problems(
    value: t.Any,
    hosts: t.Container[str] = (),
    servers: t.Container[str] | None = None,
    networks: t.Sequence[str] = ("", ""),
) -> list[str]:
    """Return what is wrong with the variable, a sentence each that starts with the item's name or place.

    :param hosts: names that are taken.
    :param servers: names of servers, ``None`` where they are not known.
    :param networks: the tunnel's, of IPv4 and IPv6; empty for none.
    """
    value = plain_devices(value)
    if not isinstance(value, list):
        return [f"{VARIABLE} is not a list."]
    found: list[str] = []
    owners: dict[str, str] = {}
    for position, item in enumerate(value):
        where = f"{VARIABLE}[{position}]"
        wrong = _shape_problems(item)
        if not wrong:
            where = f"{VARIABLE}: {item['name']}"
            wrong = [*_name_problems(item["name"], hosts, owners), *_value_problems(item, servers, networks)]
            owners.setdefault(item["name"], where)
        found += [f"{where}{text}." for text in wrong]
    return found


def _shape_problems(item: t.Any) -> list[str]:
    if not isinstance(item, dict):
        return [" is not a mapping"]
    found = [f" has {key!r}, which is none of {', '.join(_KEYS)}" for key in item if key not in _KEYS]
    for key, kind in _KEYS.items():
        given = item.get(key)
        if given is not None and (not isinstance(given, kind) or isinstance(given, bool)):
            found.append(f".{key} is not {_WORDS.get(kind, 'text or a number')}")
    if not found and not NAME.fullmatch(item.get("name") or ""):
        found.append(
            f".name: {item.get('name', '')!r} is not 1 to 15 letters, digits and ._-, not first one of ._-"
        )
    return found


def _name_problems(name: str, hosts: t.Container[str], owners: Mapping) -> list[str]:
    if name in owners:
        return [" is there twice"]
    return [" is the name of a host, too: give the device another"] if name in hosts else []


def _value_problems(item: Mapping, servers: t.Container[str] | None, networks: t.Sequence[str]) -> list[str]:
    found = []
    if item.get("public_key"):
        wrong = key_problem(item["public_key"])
        found += [f".public_key {wrong}"] if wrong else []
    if item.get("preshared_key") is not None:
        try:
            decoded(item["preshared_key"])
        except ValueError as error:
            found.append(f".preshared_key {error}")
    for key, network in zip(("address", "address6"), networks, strict=True):
        address = item.get(key)
        if address and network and not network_problem(network) and not _address(address, network):
            found.append(f".{key}: {address} is not an address of {network}")
    for name in item.get("servers") or []:
        if servers is not None and name not in servers:
            found.append(f".servers: {name} is no host of the group vpn_servers")
    for key in ("networks", "prefixes"):
        given = item.get(key) or []
        if isinstance(given, str):
            found += [] if given in ("full", "split") else [f".{key}: {given!r} is neither full nor split"]
            continue
        found += [f".{key}: {wrong}" for wrong in map(network_problem, given) if wrong]
    found += [f".dns: {text!r} is not an address" for text in item.get("dns") or [] if not is_address(text)]
    if item.get("acl") is not None:
        found += [wrong.removeprefix(" ") for wrong in exception_problems(item["acl"], ".acl", "acl")]
    return found + _number_problems(item)


def _number_problems(item: Mapping) -> list[str]:
    found = []
    for key, low, high in (("keepalive", 0, 65535), ("mtu", 576, 65455)):
        if item.get(key) is not None and not low <= item[key] <= high:
            found.append(f".{key}: {item[key]} is not from {low} to {high}")
    try:
        limits_of(item)
    except ValueError as error:
        found.append(f".{error.args[0]}: {error.args[1]}")
    return found


def is_address(text: t.Any) -> bool:
    try:
        ipaddress.ip_address(str(text))
    except ValueError:
        return False
    return True


def _address(text: str, network: str) -> str:
    """An address with the network's prefix length, which people may leave out; empty if it is not in it."""
    whole = text if "/" in text else f"{text}/{ipaddress.ip_network(network).prefixlen}"
    return str(ipaddress.ip_interface(whole)) if address_in(whole, network) else ""


def devices_of(value: t.Any, networks: t.Sequence[str] = ("", "")) -> list[Device]:
    """The devices of a variable in which :func:`device_problems` has found nothing."""
    return [_device(item, networks) for item in plain_devices(value)]


def _device(item: Mapping, networks: t.Sequence[str]) -> Device:
    told: dict[str, t.Any] = limits_of(item).as_dict()
    if item.get("keepalive"):
        told["keepalive"] = item["keepalive"]
    if item.get("servers"):
        told["servers"] = list(dict.fromkeys(item["servers"]))
    key = None if item.get("preshared_key") is None else decoded(item["preshared_key"])
    if key is not None:
        told["preshared_id"] = key_id(item["name"], key)
    prefixes, dns, acl = item.get("prefixes"), item.get("dns"), item.get("acl")
    return Device(
        name=item["name"],
        public_key=item.get("public_key") or "",
        address=_address(item["address"], networks[0]) if item.get("address") and networks[0] else "",
        address6=_address(item["address6"], networks[1]) if item.get("address6") and networks[1] else "",
        acl=None if acl is None else tuple(acl),
        networks=tuple(item.get("networks") or ()),
        device=told,
        prefixes=tuple(prefixes) if isinstance(prefixes, list) else prefixes,
        dns=None if dns is None else tuple(dns),
        mtu=item.get("mtu"),
        preshared_key=key,
    )


def devices_in(
    hostvars: t.Mapping[str, Mapping],
    groups: t.Mapping[str, t.Iterable[str]],
    networks: t.Sequence[str],
) -> tuple[dict[str, Host], tuple[str, ...]]:
    """Return the devices as members of the fleet, by name, and what is wrong with the list.

    It is read as the servers have it, who all have to have the same.
    """
    servers = sorted(map(str, groups.get(SERVERS, ())))
    names = {str(name) for group in groups.values() for name in group}
    try:
        lists = {name: devices_listed(hostvars[name]) for name in servers}
    except Exception as error:  # whatever a template may run into
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return {}, (f"{VARIABLE} cannot be worked out: {lines[0][:300]}",)
    other = [name for name in servers if lists[name] != lists[servers[0]]]
    if other:
        where = f"{VARIABLE} of {other[0]} is not that of {servers[0]}"
        return {}, (f"{where}: there is one list for all, in group_vars/all.",)
    value = lists[servers[0]] if servers else []
    found = device_problems(value, names, servers, networks)
    devices = [] if found else devices_of(value, networks)
    return {device.name: _host(device) for device in devices}, tuple(found)


def _host(device: Device) -> Host:
    return Host(
        device.name,
        pin=device.address,
        pin6=device.address6,
        networks=device.networks,
        acl=device.acl,
        here=True,
        public_key=device.public_key,
        external=True,
        device=device.device,
    )


def prefixes_of(wish: t.Any, inside: t.Iterable[str]) -> list[str]:
    """What goes into a device's tunnel.

    :param wish: ``full``, ``split`` (what is in the VPN), or prefixes.
    :param inside: the tunnel's networks, and those behind hosts.
    """
    if wish == "full":
        return list(_FULL)
    given = inside if wish == "split" else wish
    return list(dict.fromkeys(str(ipaddress.ip_network(prefix)) for prefix in given if prefix))
