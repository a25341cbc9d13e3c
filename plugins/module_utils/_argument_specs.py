# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""The options of a device, a chain and a table, for their own modules and for the lists of host_network,
and those of its name servers.
"""

from __future__ import annotations

from typing import Any

DEVICE: dict[str, Any] = {
    "name": {"type": "str", "required": True},
    "mode": {"type": "str", "choices": ["tun", "tap", "bridge"], "default": "tun"},
    "owner": {"type": "str"},
    "group": {"type": "str"},
    "vnet_hdr": {"type": "bool", "default": False},
    "multi_queue": {"type": "bool", "default": False},
    "mtu": {"type": "int"},
    "addresses": {"type": "list", "elements": "str", "default": []},
    "addresses_exclusive": {"type": "bool", "default": True},
    "up": {"type": "bool", "default": True},
    "bridge": {"type": "str"},
    "bridge_isolated": {"type": "bool", "default": False},
    "stp": {"type": "bool", "default": False},
}

_JUMP: dict[str, Any] = {
    "from": {"type": "str", "required": True},
    "position": {"type": "str", "choices": ["first", "last"], "default": "first"},
    "match": {"type": "str", "default": ""},
}

CHAIN: dict[str, Any] = {
    "name": {"type": "str", "required": True},
    "table": {"type": "str", "choices": ["filter", "nat", "mangle", "raw"], "default": "filter"},
    "family": {"type": "str", "choices": ["ipv4", "ipv6"], "default": "ipv4"},
    "rules": {"type": "list", "elements": "str", "default": []},
    "jump": {"type": "dict", "options": _JUMP},
    "comment": {"type": "str", "default": "culvert"},
    "backend": {"type": "str", "choices": ["auto", "nft", "legacy"], "default": "auto"},
}

_ROUTE: dict[str, Any] = {
    "destination": {"type": "str", "required": True},
    "type": {
        "type": "str",
        "choices": ["unicast", "unreachable", "blackhole", "prohibit"],
        "default": "unicast",
    },
    "gateway": {"type": "str"},
    "device": {"type": "str"},
    "source": {"type": "str"},
    "metric": {"type": "int"},
    "mtu": {"type": "int"},
}

_RULE: dict[str, Any] = {
    "priority": {"type": "int"},
    "family": {"type": "str", "choices": ["ipv4", "ipv6", "both"], "default": "both"},
    "from": {"type": "str"},
    "to": {"type": "str"},
    "fwmark": {"type": "raw"},
    "iif": {"type": "str"},
    "oif": {"type": "str"},
    "suppress_prefixlength": {"type": "int"},
    "table": {"type": "raw"},
    "invert": {"type": "bool", "default": False},
}

TABLE: dict[str, Any] = {
    "name": {"type": "str", "required": True},
    "id": {"type": "int"},
    "rule_priority": {"type": "int", "default": 31820},
    "routes": {"type": "list", "elements": "dict", "default": [], "options": _ROUTE},
    "rules": {"type": "list", "elements": "dict", "default": [], "options": _RULE},
}

RESOLVER: dict[str, Any] = {
    "device": {"type": "str", "required": True},
    "servers": {"type": "list", "elements": "str", "default": []},
    "search": {"type": "list", "elements": "str", "default": []},
}

STATE: dict[str, Any] = {"type": "str", "choices": ["present", "absent"], "default": "present"}
