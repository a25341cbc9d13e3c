# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""A document: all network state that one role gives a host, as it is wished, kept and applied again.

Devices, sysctls, chains and tables, each in the options of its own module, the name servers to ask, and what
the checks have to know of the tunnel. Two documents are the same when their parameters are, written in the
one way of :attr:`params`: what is left out and what is given as the default do not differ.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Callable

from ._chain import ChainSpec
from ._core import SpecError
from ._options import Options
from ._resolver import ResolverSpec
from ._routing_spec import RULE_WINDOW, TableSpec
from ._tun import TunSpec

_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z_=+.-]{0,63}")
_MARK_MAX = 0xFFFFFFFF
# An address or a name by which the tunnel's peers are reached, without port.
_ENDPOINT = re.compile(r"[0-9A-Za-z_.:%-]{1,253}")

#: What need not be written down, by list of a document and by list or mapping within its items.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "devices": {
        "mode": "tun",
        "vnet_hdr": False,
        "multi_queue": False,
        "bridge_isolated": False,
        "stp": False,
        "addresses": [],
        "addresses_exclusive": True,
        "up": True,
    },
    "chains": {"table": "filter", "family": "ipv4", "rules": [], "comment": "culvert", "backend": "auto"},
    "jump": {"position": "first"},
    "tables": {"rule_priority": 31820, "routes": [], "rules": []},
    "routes": {"type": "unicast"},
    "rules": {"family": "both", "invert": False},
}


@dataclass(frozen=True)
class Document:
    """What a host is to have under one name.

    :ivar resolver: ``None`` when the host asks whom it asked before.
    :ivar fwmark: mark of the relay's own packets, 0 for none.
    :ivar endpoints: addresses or names of the tunnel's peers, outside of it.
    :ivar leftovers: what to remove besides what the document before this one has: only the names in it count.
    :ivar params: all of it as options, ready to be written as JSON; defaults are left out.
    """

    name: str
    devices: tuple[TunSpec, ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    chains: tuple[ChainSpec, ...] = ()
    tables: tuple[TableSpec, ...] = ()
    resolver: ResolverSpec | None = None
    fwmark: int = 0
    endpoints: tuple[str, ...] = ()
    leftovers: Document | None = None
    params: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @classmethod
    def from_params(cls, params: Mapping[str, Any], present: bool = True) -> Document:
        """:param present: ``False`` for a list of leftovers, of which only the names count.
        :raises SpecError: an option is malformed; its path is such as ``tables[0].routes[1].device``.
        """
        options = Options(params)
        name = _name(options)
        made: dict[str, list[Any]] = {}
        kept: dict[str, list[dict[str, Any]]] = {}
        for kind, make in _KINDS.items():
            kept[kind], made[kind] = _items(options, kind, make, present)
        document = cls(
            name=name,
            devices=tuple(made["devices"]),
            sysctls=_sysctls(options),
            chains=tuple(made["chains"]),
            tables=tuple(made["tables"]),
            resolver=_resolver(options, present),
            fwmark=_fwmark(options),
            endpoints=_endpoints(options),
            leftovers=_leftovers(options, name),
        )
        options.done()
        if present:
            _check_unique(document)
        whole = {
            "name": name,
            **kept,
            "sysctls": dict(document.sysctls),
            "resolver": document.resolver.params if document.resolver else {},
            "fwmark": document.fwmark,
            "endpoints": list(document.endpoints),
            "leftovers": dict(document.leftovers.params) if document.leftovers else {},
        }
        return replace(document, params={key: value for key, value in whole.items() if value})

    @classmethod
    def empty(cls, name: str) -> Document:
        """The document of a host that has nothing of it."""
        return cls.from_params({"name": name})

    def joined(self, other: Document) -> Document:
        """What both have, as a list of leftovers; of the same thing, what this one says."""
        params = dict(self.params)
        for kind, key in _KEYS.items():
            there = [key(spec) for spec in getattr(self, kind)]
            added = [
                item
                for item, spec in zip(other.params.get(kind, []), getattr(other, kind))
                if key(spec) not in there
            ]
            params[kind] = [*params.get(kind, []), *added]
        if other.resolver is not None and self.resolver is None:
            params["resolver"] = other.resolver.params
        return Document.from_params(params, present=False)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to have on the host."""
        return not (self.devices or self.sysctls or self.chains or self.tables or self.resolver)

    @property
    def sha256(self) -> str:
        """Of the parameters in their canonical form: sorted, without blanks."""
        return digest(self.params)


def digest(params: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(params, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


_KINDS: dict[str, Callable[[Mapping[str, Any], str], Any]] = {
    "devices": TunSpec.from_params,
    "chains": ChainSpec.from_params,
    "tables": TableSpec.from_params,
}


#: What an item of a list is told by: no other document may have one that is the same in this.
_KEYS: dict[str, Callable[[Any], Any]] = {
    "devices": lambda device: device.name,
    "chains": lambda chain: (chain.family, chain.table, chain.name),
    "tables": lambda table: table.name,
}


def _name(options: Options) -> str:
    name = options.required("name")
    if not _NAME.fullmatch(name):
        raise options.refuse("name", f"{name!r} cannot be the name of a file")
    return name


def _leftovers(options: Options, name: str) -> Document | None:
    params = options.raw("leftovers", {})
    if not isinstance(params, Mapping):
        raise options.refuse("leftovers", "must be a mapping")
    return Document.from_params({**params, "name": name}, present=False) if params else None


def _items(
    options: Options, kind: str, make: Callable[[Mapping[str, Any], str], Any], present: bool
) -> tuple[list[dict[str, Any]], list[Any]]:
    """The items of one list as they are kept, and what they mean."""
    kept, made = [], []
    items = options.raw(kind, [])
    if not isinstance(items, list):
        raise options.refuse(kind, "must be a list of mappings")
    for position, item in enumerate(items):
        where = options.option(f"{kind}[{position}]")
        if not isinstance(item, Mapping):
            raise SpecError(where, f"must be a mapping of options, not {type(item).__name__}")
        if "state" in item:
            raise SpecError(
                f"{where}.state", "is not an option that exists here: what is not listed goes away"
            )
        written = _without_defaults(kind, item)
        spec = make(written if present else {**written, "state": "absent"}, where)
        if isinstance(spec, TunSpec):
            # By number: the boot and the way back must not depend on a name that somebody may take away.
            numbers = {"owner": spec.owner, "group": spec.group}
            written.update({key: str(number) for key, number in numbers.items() if number is not None})
        kept.append(written)
        made.append(spec)
    return kept, made


def _without_defaults(kind: str, item: Mapping[str, Any]) -> dict[str, Any]:
    defaults = _DEFAULTS.get(kind, {})
    written: dict[str, Any] = {}
    for key, value in item.items():
        if value is None or value == "" or (key in defaults and defaults[key] == value):
            continue
        if kind == "tables" and key in ("routes", "rules") and isinstance(value, list):
            value = [_without_defaults(key, v) if isinstance(v, Mapping) else v for v in value]
        elif key == "jump" and isinstance(value, Mapping):
            value = _without_defaults(key, value)
        written[key] = value
    return written


def _sysctls(options: Options) -> dict[str, str]:
    values = options.raw("sysctls", {})
    if not isinstance(values, Mapping):
        raise options.refuse("sysctls", "must be a mapping of settings to values")
    for key, value in values.items():
        if isinstance(value, (bool, list, dict)) or value is None:
            raise options.refuse(f"sysctls.{key}", f"must be a number or text, not {value!r}")
    # Sorted, as they come back from a file: the same document is the same plan.
    return dict(sorted((str(key), " ".join(str(value).split())) for key, value in values.items()))


def _resolver(options: Options, present: bool) -> ResolverSpec | None:
    params = options.raw("resolver", {})
    if not isinstance(params, Mapping):
        raise options.refuse("resolver", "must be a mapping of options")
    return ResolverSpec.from_params(params, options.option("resolver"), present) if params else None


def _fwmark(options: Options) -> int:
    given = options.raw("fwmark", 0)
    if given == "":
        return 0
    try:
        mark = int(str(given), 0)
    except ValueError:
        mark = -1
    if isinstance(given, bool) or not 0 <= mark <= _MARK_MAX:
        raise options.refuse("fwmark", f"{given!r} is not a mark such as 51820 or 0xca6c")
    return mark


def _endpoints(options: Options) -> tuple[str, ...]:
    texts = options.texts("endpoints")
    for position, text in enumerate(texts):
        if not _ENDPOINT.fullmatch(text):
            raise options.refuse(
                f"endpoints[{position}]", f"{text!r} is neither an address nor a name, without a port"
            )
    return tuple(dict.fromkeys(_normal_endpoint(text) for text in texts))


def _normal_endpoint(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return text.lower()


def _check_unique(document: Document) -> None:
    """:raises SpecError: two items are about the same object of the kernel."""
    for kind, key in _KEYS.items():
        _unique(kind, "name", [key(spec) for spec in getattr(document, kind)])
    _unique("tables", "id", [table.id for table in document.tables])
    for position, table in enumerate(document.tables):
        for earlier, other in enumerate(document.tables[:position]):
            if abs(table.rule_priority - other.rule_priority) < RULE_WINDOW:
                raise SpecError(
                    f"tables[{position}].rule_priority",
                    f"{table.rule_priority} is less than {RULE_WINDOW} away from that of tables[{earlier}]",
                )


def refuse_what_is_anothers(document: Document, others: Iterable[Document]) -> None:
    """:raises SpecError: another document of this host has the same device, chain or table, or has name
    servers as this one does.
    """
    for other in others:
        if document.resolver is not None and other.resolver is not None:
            raise SpecError(
                "resolver",
                f"whom this host asks for names is up to the document {other.name} already; give one of the "
                "two tunnels no name servers",
            )
        for kind, key in _KEYS.items():
            taken = {key(spec) for spec in getattr(other, kind)}
            for position, spec in enumerate(getattr(document, kind)):
                if key(spec) in taken:
                    raise SpecError(
                        f"{kind}[{position}].name",
                        f"{spec.name} belongs to the document {other.name} of this host; give it another "
                        "name, or remove that document first",
                    )


def _unique(kind: str, option: str, keys: list[Any]) -> None:
    for position, key in enumerate(keys):
        if key is not None and key in keys[:position]:
            raise SpecError(
                f"{kind}[{position}].{option}",
                f"is the same as that of {kind}[{keys.index(key)}]",
            )
