# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Private to the collection: may change at any time.
"""The hosts of a fleet as the inventory has them, and those in the run as they describe themselves.

The inventory's variables are there for every host. Facts are believed only of hosts that are still in the
play: of others they may come from a cache, and be of any age.
"""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass, field, replace

from ansible_collections.culvert.vpn.plugins.plugin_utils._agreements import kem_hash
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet import key_problem
from ansible_collections.culvert.vpn.plugins.plugin_utils._registry import LAYER_IP, Data, plain
from ansible_collections.culvert.vpn.plugins.plugin_utils._ways import (
    LAYERS,
    pins_of,
    server_name_of,
    transports_of,
)

SERVERS = "vpn_servers"
CLIENTS = "vpn_clients"
# A route's, of IPv4 (RFC 791), and what is longer than any packet.
_MTU_MIN, _MTU_MAX = 68, 65535
_ID = re.compile(r"[0-9A-Za-z-]{1,64}", re.ASCII)


@dataclass(frozen=True)
class Host:
    """One host of the groups vpn_servers and vpn_clients, or a device that Ansible does not manage.

    :ivar server, client: in which of the groups it is.
    :ivar external: whether it is a device, of which the inventory says all that there is to know.
    :ivar device: of one, what servers are told of it besides.
    :ivar pin, pin6: the addresses that the inventory wants for it, with prefix length; empty for any.
    :ivar network, network6: of the tunnel, where the inventory has them; empty otherwise.
    :ivar networks: prefixes behind it.
    :ivar drain: whether clients are to leave this server.
    :ivar acl: what a client may reach; ``None`` for anything.
    :ivar servers: the servers that a client uses, if the inventory says so.
    :ivar here: whether it is still in the play. The rest is empty where it is not.
    :ivar public_key: base64, empty as long as there is none.
    :ivar endpoint: ``host:port`` of a server.
    :ivar addresses: that its tunnel has now, with prefix length.
    :ivar ipv6: whether it has IPv6.
    :ivar mtu: what fits into its path, ``None`` if that was not measured in this run.
    :ivar registry_id: of the state of the registry that its peers come from.
    :ivar running: whether a relay runs there.
    :ivar preshared_keys: whether it is to have pre-shared keys with those who want them, too.
    :ivar kem: its ML-KEM-768 public key, if it has one.
    :ivar next_public_key: of its next identity, if it has made one for a rotation.
    :ivar preshared_ids: ids of the pre-shared keys that it has.
    :ivar called: of the peers that it calls now, by public key, the id of the pre-shared key; empty without.
    :ivar transports: of a server, the ports by what it offers beside plain UDP; ``None`` if it did not say.
    :ivar tls_pin, tls_server_name: of a server that offers TLS, as far as it has said them.
    :ivar layer: 3 for IP packets, 2 for Ethernet frames, by the inventory.
    :ivar problems: what of the above could not be read, a sentence each.
    """

    name: str
    server: bool = False
    client: bool = False
    pin: str = ""
    pin6: str = ""
    network: str = ""
    network6: str = ""
    networks: tuple[str, ...] = ()
    drain: bool = False
    acl: tuple[Data, ...] | None = None
    servers: tuple[str, ...] = ()
    here: bool = False
    public_key: str = ""
    endpoint: str = ""
    addresses: tuple[str, ...] = ()
    ipv6: bool = True
    mtu: int | None = None
    registry_id: str = ""
    running: bool = False
    problems: tuple[str, ...] = ()
    external: bool = False
    device: Data = field(default_factory=dict)
    preshared_keys: bool = True
    kem: str = ""
    next_public_key: str = ""
    preshared_ids: frozenset[str] = frozenset()
    called: t.Mapping[str, str] = field(default_factory=dict)
    transports: t.Mapping[str, int] | None = None
    tls_pin: tuple[str, ...] = ()
    tls_server_name: str = ""
    layer: int = LAYER_IP


@dataclass(frozen=True)
class Run:
    """What a run knows.

    :ivar hosts: the whole fleet as the inventory has it, whether in the run or not.
    :ivar network, network6: of the tunnel; the latter empty for none.
    :ivar external: what is wrong with the list of devices, a sentence each.
    :ivar full: whether the run is for all of them, by the command line: some may still not be reached.
    """

    hosts: t.Mapping[str, Host]
    network: str
    network6: str = ""
    full: bool = True
    max_removals: int = 3
    adopt: bool = False
    external: tuple[str, ...] = ()


class _Variables:
    """Variables of one host, without what Ansible attaches to them. What cannot be read is a problem."""

    def __init__(self, name: str, variables: t.Mapping[str, t.Any]) -> None:
        self._name = name
        self._variables = variables
        self.problems: list[str] = []

    def read(self, variable: str, kind: t.Any, default: t.Any = None) -> t.Any:
        """Return a variable's value, `default` if there is none, or none that is of the `kind`."""
        try:
            if variable not in self._variables:
                return default
            value = plain(self._variables[variable])
        except Exception as error:  # whatever a template may run into
            self.problems.append(f"{self._name}: {variable} cannot be worked out: {_first_line(error)}")
            return default
        if value is None:
            return default
        if not isinstance(value, kind):
            self.problems.append(f"{self._name}: {variable} is no {_WORDS[kind]}.")
            return default
        return value

    def flag(self, variable: str, default: bool = False) -> bool:
        """Return a switch, which may come as text: from the command line, or from an inventory in INI."""
        value = self.read(variable, (bool, str, int), default)
        text = str(value).strip().lower()
        if text not in _TRUE | _FALSE:
            self.problems.append(f"{self._name}: {variable} is {value!r}, neither true nor false.")
        return text in _TRUE

    def texts(self, variable: str) -> tuple[str, ...]:
        return tuple(str(item) for item in self.read(variable, list, []))

    def layer(self) -> int:
        """Return what the tunnel carries, which may come as text as well."""
        value = self.read("relay_layer", (int, str), LAYER_IP)
        if str(value).strip() not in LAYERS:
            self.problems.append(f"{self._name}: relay_layer is {value!r}, neither 3 nor 2.")
        return LAYERS.get(str(value).strip(), LAYER_IP)

    def fact(self, name: str) -> dict[str, t.Any]:
        """Return a fact that is a mapping, whether or not facts are variables, too."""
        found = self.read(name, dict)
        if found is None:
            found = self.read("ansible_facts", dict, {}).get(name)
        return found if isinstance(found, dict) else {}


_TRUE = {"true", "yes", "on", "1", "y", "t"}
_FALSE = {"false", "no", "off", "0", "n", "f", ""}
_WORDS = {str: "text", list: "list", dict: "mapping", (bool, str, int): "switch", (int, str): "number"}


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"\s+", " ", lines[0])[:300]


def host_of(name: str, variables: t.Mapping[str, t.Any], groups: t.Container[str], here: bool) -> Host:
    """Return what is known of a host.

    :param groups: those of vpn_servers and vpn_clients that it is in.
    """
    source = _Variables(name, variables)
    server, client = SERVERS in groups, CLIENTS in groups
    acl = source.read("client_acl", list) if client else None
    host = Host(
        name=name,
        server=server,
        client=client,
        pin=source.read("relay_address", str, ""),
        pin6=source.read("relay_address6", str, ""),
        network=source.read("relay_network", str, ""),
        network6=source.read("relay_network6", str, ""),
        networks=(source.texts("client_networks") if client else ())
        + (source.texts("server_site_networks") if server else ()),
        drain=server and source.flag("server_drain"),
        acl=None if acl is None else tuple(acl),
        servers=source.texts("client_servers") if client else (),
        preshared_keys=source.flag("relay_preshared_keys", default=True),
        layer=source.layer(),
        **(_described(source) if here else {}),
    )
    return replace(host, problems=tuple(source.problems))


def _described(source: _Variables) -> dict[str, t.Any]:
    """What a host that is here says of itself. What makes no sense counts as not said: a host that lies, or
    is broken, must not end the run of all others.
    """
    identity, found, path = (source.fact(name) for name in ("relay_identity", "culvert_host", "relay_path"))
    key, relay = (_mapping(found.get(name)) for name in ("key", "relay"))
    agreement = _mapping(found.get("agreement"))
    keys = [identity.get("public_key"), key.get("public_key")]
    addresses = found.get("addresses") or identity.get("addresses")
    return {
        "here": True,
        "public_key": next((each for each in keys if key_problem(each) is None), ""),
        "endpoint": str(identity.get("endpoint") or ""),
        "addresses": tuple(map(str, addresses)) if isinstance(addresses, list) else (),
        "ipv6": bool(identity.get("ipv6", found.get("ipv6", True))),
        "mtu": _mtu(path.get("inner")),
        "registry_id": _id(identity.get("registry_id") or found.get("registry_id")),
        "running": bool(relay.get("running", identity.get("running"))),
        "kem": next((each for each in (identity.get("kem"), agreement.get("kem")) if kem_hash(each)), ""),
        "next_public_key": _key(agreement.get("next_public_key")),
        "preshared_ids": frozenset(str(agreement.get("ids", "")).split()),
        "transports": transports_of(identity["transports"]) if "transports" in identity else None,
        "tls_pin": pins_of(identity.get("tls_pin")),
        "tls_server_name": server_name_of(identity.get("tls_server_name")),
        "called": {str(key): str(id) for key, id in _mapping(agreement.get("called")).items()},
    }


def _mapping(value: t.Any) -> t.Mapping[str, t.Any]:
    return value if isinstance(value, dict) else {}


def _key(value: t.Any) -> str:
    return str(value) if key_problem(value) is None else ""


def _mtu(value: t.Any) -> int | None:
    """Bytes that a kernel takes as a route's MTU."""
    text = str(value)
    known = text.isascii() and text.isdigit() and len(text) <= len(str(_MTU_MAX))
    return int(text) if known and _MTU_MIN <= int(text) <= _MTU_MAX else None


def _id(value: t.Any) -> str:
    return value if isinstance(value, str) and _ID.fullmatch(value) else ""
