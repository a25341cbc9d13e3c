# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""A document as one backend: devices, sysctls, chains, tables and name servers in the order in which they may
change.

What the previous document has and the new one has not is planned as absent. The order of a plan:

1. the code that applies it again at boot, and undoes it
2. name servers that go
3. rules and routes of tables that go; if no chain stays, the chains that go
4. devices that go
5. sysctls, those that get their earlier values back among them
6. devices, chains, and chains that go when others stay (which may have led to them)
7. tables: routes, then the rules that send traffic there
8. name servers, which may be in the tunnel
9. when this was the last document of the host, the code goes

So traffic is marked and filtered before it is sent into the tunnel, and no longer sent there before the rest
goes. Each part is planned against the host as the parts before it will leave it (``_foresight``): the plan is
made before the first step, and nothing else is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from . import _chain, _foresight, _routing_kernel, _store, _succession, _tun
from ._chain import ChainSpec
from ._chain_host import ChainBackend, read_all
from ._core import Change, MissingRequirement, PlainBackend, Plan, Runner, SpecError
from ._document import Document, digest
from ._installed import InstalledCode
from ._iptables import Table, Tables
from ._resolver import ResolverSpec
from ._resolver_host import ResolverBackend
from ._routing import RoutingState
from ._routing_kernel import RoutingBackend
from ._routing_spec import TableSpec
from ._succession import has_moved
from ._sysctl import SysctlSettings
from ._tun import TunSpec
from ._tun_kernel import TunBackend

#: Actions that can cut a host off, by kind of part. Not among them: files, names of tables, and a new device
#: with its settings and addresses, as nothing leads there before there are routes and rules. Nor are name
#: servers: packets go where they went, and a login for which names are looked up is slower, not refused.
_RISKY = {
    "device": {"add", "remove", "delete", "bridge"},
    "sysctls": {"set"},
    "chain": {"write"},
    "table": {"set_route", "remove_route", "add_rule", "remove_rule"},
}


@dataclass(frozen=True)
class Part:
    """:ivar where: the option that the part was made from; empty for what goes away.
    :ivar kind: ``code``, ``device``, ``sysctls``, ``chain``, ``table`` or ``resolver``.
    """

    kind: str
    where: str
    backend: Any


@dataclass(frozen=True)
class Step:
    """What the data of a document's change holds: the part's own change."""

    part: Part
    change: Change


@dataclass(frozen=True)
class HostState:
    """What ``observe`` found: by part, except for routing, which is read once for all tables."""

    routing: RoutingState
    parts: Mapping[int, Any] = field(default_factory=dict)

    def of(self, part: Part) -> Any:
        return self.parts[id(part)]


class CachingRunner:
    """Runs identical commands once while it is ``caching``: many chains ask for the same listing."""

    def __init__(self, run: Runner) -> None:
        self._run = run
        self._known: dict[tuple[str, ...], tuple[int, str, str]] | None = None

    def __call__(self, command: list[str], stdin: str) -> tuple[int, str, str]:
        if self._known is None:
            return self._run(command, stdin)
        key = (*command, stdin)
        if key not in self._known:
            self._known[key] = self._run(command, stdin)
        return self._known[key]

    @contextmanager
    def caching(self) -> Iterator[None]:
        """For reading only: nothing may change meanwhile."""
        self._known = {}
        try:
            yield
        finally:
            self._known = None


class HostNetwork(PlainBackend):
    """Leads a host from a previous document, whatever of it is there, to another.

    :raises SpecError: the process may not do this, or the kernel lacks a setting.
    """

    def __init__(
        self, document: Document, previous: Document | None, run: Runner, check_mode: bool = False
    ) -> None:
        super().__init__(check_mode)
        self.document = document
        self.before = previous or Document.empty(document.name)
        if document.leftovers is not None:
            self.before = self.before.joined(document.leftovers)
        self._run = CachingRunner(run)
        before = self.before
        others = [name for name in _store.names() if name != document.name]
        code = InstalledCode(bool(others) or not document.is_empty, self._run)
        self._code = Part("code", "", code)
        self._sysctls = Part("sysctls", "sysctls", _sysctl_backend(document))
        self._tables = [
            self._table_part(*item) for item in enumerate(_succession.with_former_places(document, before))
        ]
        self._devices = [
            Part("device", f"devices[{n}]", TunBackend(spec, check_mode))
            for n, spec in enumerate(_succession.with_resets(document, before))
        ]
        self._chains = [self._chain_part(f"chains[{n}]", spec) for n, spec in enumerate(document.chains)]
        self.lost_tables = [self._table_part(-1, spec) for spec in _succession.lost_tables(document, before)]
        self._lost_devices = [
            Part("device", "", TunBackend(spec, check_mode))
            for spec in _succession.lost_devices(document, before)
        ]
        self._lost_chains = [self._chain_part("", spec) for spec in self._chains_to_lose()]
        self._resolver = self._resolver_part()

    def _chains_to_lose(self) -> list[ChainSpec]:
        lost = _succession.lost_chains(self.document, self.before)
        if self.document.leftovers is None:
            return lost
        families = _succession.acl_families(self.document.leftovers)
        return _succession.with_acl_parts(lost, {each: read_all(self._run, each) for each in families})

    def _resolver_part(self) -> Part | None:
        """Only where the document has or had one: it is one for the whole host, maybe another document's."""
        if self.document.resolver is not None:
            spec, where = self.document.resolver, "resolver"
        elif self.before.resolver is not None:
            spec, where = ResolverSpec(self.before.resolver.device, present=False), ""
        else:
            return None
        return Part("resolver", where, ResolverBackend(spec, self._run, self.check_mode))

    def _table_part(self, position: int, spec: TableSpec) -> Part:
        where = f"tables[{position}]" if position >= 0 else ""
        return Part("table", where, RoutingBackend(spec, self.check_mode))

    def _chain_part(self, where: str, spec: ChainSpec) -> Part:
        return Part("chain", where, ChainBackend(spec, self._run, self.check_mode))

    @property
    def parts(self) -> list[Part]:
        """In the order in which they are planned and applied."""
        early, late = (self._lost_chains, []) if not self._chains else ([], self._lost_chains)
        stays = self._code.backend.present
        resolver = [self._resolver] if self._resolver else []
        asks = self.document.resolver is not None
        return [
            *([self._code] if stays else []),
            *([] if asks else resolver),
            *self.lost_tables,
            *early,
            *self._lost_devices,
            self._sysctls,
            *self._devices,
            *self._chains,
            *late,
            *self._tables,
            *(resolver if asks else []),
            *([] if stays else [self._code]),
        ]

    def observe(self) -> HostState:
        """:raises HostError: as the backends; in check mode, what is missing is a warning and counts as
        nothing there.
        """
        self.warnings = []
        found: dict[int, Any] = {}
        routing = RoutingState()
        tables = [part for part in self.parts if part.kind == "table"]
        with self._run.caching():
            try:
                routing = self._observe_routing(tables)
            except MissingRequirement as error:
                self._go_on_without(error)
            for part in self.parts:
                if part.kind != "table":
                    found[id(part)] = self._observe_part(part)
        return HostState(routing, found)

    def _observe_routing(self, tables: list[Part]) -> RoutingState:
        seen = _routing_kernel.observe([part.backend.spec for part in tables])
        for part in tables:
            part.backend.adopt(seen)
        return seen.state

    def _observe_part(self, part: Part) -> Any:
        try:
            return part.backend.observe()
        except MissingRequirement as error:
            self._go_on_without(error)
            return part.backend.blank()

    def _go_on_without(self, error: MissingRequirement) -> None:
        if not self.check_mode:
            raise error
        warning = f"{error}; check mode goes on as if nothing of this collection existed on the host yet"
        if warning not in self.warnings:
            self.warnings.append(warning)

    def blank(self) -> HostState:
        found = {id(part): part.backend.blank() for part in self.parts if part.kind != "table"}
        return HostState(RoutingState(), found)

    def plan(self, observed: HostState) -> Plan:
        """Pure, apart from ``warnings``.

        :raises SpecError: the option is that of the document, such as ``tables[0].routes[1].device``.
        """
        planning = _Planning(self, observed)
        plan: Plan = []
        chains: Plan = []
        for part in self.parts:
            with blamed_on(part):
                changes = [_wrapped(part, change) for change in planning.of(part)]
            if not (part.kind == "chain" and part.where):
                plan += changes
                continue
            chains += changes
            if part is self._chains[-1]:
                plan += _leaving_last(chains)
        self.warnings += [warning for warning in planning.warnings if warning not in self.warnings]
        return plan

    def rehearse(self, plan: Plan) -> None:
        """Try the rules of all chains that are to be written. A chain may lead to one that comes before it.

        :raises SpecError: a rule is refused; nothing has been changed.
        """
        declared: dict[tuple[str, str], list[str]] = {}
        for change in plan:
            part, original = change.data.part, change.data.change
            if part.kind != "chain" or original.action != "write" or original.after is None:
                continue
            spec = part.backend.spec
            names = declared.setdefault((spec.family, spec.table), [])
            part.backend.declared = tuple(names)
            with blamed_on(part):
                part.backend.rehearse([original])
            names.append(spec.name)

    def apply(self, change: Change) -> None:
        """Exactly one step.

        :raises SpecError, HostError: as the backends.
        """
        step: Step = change.data
        with blamed_on(step.part):
            step.part.backend.apply(step.change)

    def report(self, observed: HostState) -> dict[str, Any]:
        return {"path": _store.path_of(self.document.name)}


def risky(plan: Plan) -> Plan:
    """The steps that can cut the host off."""
    made = {
        c.data.part.backend.spec.name for c in plan if c.data.part.kind == "device" and c.action == "create"
    }
    return [change for change in plan if _is_risky(change, made)]


def _is_risky(change: Change, made: set[str]) -> bool:
    part: Part = change.data.part
    if part.kind == "device":
        if change.action == "up":
            return not change.after
        if part.backend.spec.name in made and change.action == "add":
            return False
    return change.action in _RISKY.get(part.kind, ())


@contextmanager
def blamed_on(part: Part) -> Iterator[None]:
    """Errors about an option of the part's own become errors about the document's option."""
    try:
        yield
    except SpecError as error:
        if not part.where or not error.option or error.option.startswith(part.where):
            raise
        raise SpecError(f"{part.where}.{error.option}", error.message) from error


def _leaving_last(changes: Plan) -> Plan:
    """A chain leaves a backend when no other leads to it there any more: those that lead to others first."""
    leaving = [change for change in changes if change.action == "write" and change.after is None]
    if not leaving:
        return changes
    swept = [change for change in changes if change.action == "sweep"]
    written = [change for change in changes if change.action == "write" and change.after is not None]
    return [*written, *reversed(leaving), *swept]


def _wrapped(part: Part, change: Change) -> Change:
    return replace(change, data=Step(part, change))


def _sysctl_backend(document: Document) -> SysctlSettings:
    state = "present" if document.sysctls else "absent"
    params = {"name": sysctl_name(document.name), "values": dict(document.sysctls), "state": state}
    return SysctlSettings(params, where="sysctls")


def sysctl_name(name: str) -> str:
    """The document's name where it can be that of a set of sysctls, else one that is as unique."""
    allowed = all(c.isascii() and (c.islower() or c.isdecimal() or c == "-") for c in name)
    if allowed and len(name) <= 32:
        return name
    plain = "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower())
    return f"{plain[:23]}-{digest({'name': name})[:8]}"


class _Planning:
    """The host as it will be, part by part."""

    def __init__(self, network: HostNetwork, observed: HostState) -> None:
        self._network = network
        self._observed = observed
        self._wished: dict[str, TableSpec] = {table.name: table for table in network.document.tables}
        names = {name: table.id for name, table in self._wished.items() if table.id is not None}
        self._routing = replace(observed.routing, names=names)
        self._tables: dict[str, dict[str, Tables]] = {}
        self.warnings: list[str] = []

    def of(self, part: Part) -> Plan:
        if part.kind == "device":
            return self._device_plan(part)
        if part.kind == "chain":
            return self._chain_plan(part)
        if part.kind == "table":
            return self._table_plan(part)
        changes: Plan = part.backend.plan(self._observed.of(part))
        self.warnings += part.backend.warnings
        return changes

    def _device_plan(self, part: Part) -> Plan:
        spec: TunSpec = part.backend.spec
        state = self._observed.of(part)
        bridging = replace(state.bridging, there=self._bridges(part))
        found = replace(state, elsewhere=self._elsewhere(part), bridging=bridging)
        changes = _tun.plan(spec, found)
        self._routing = _foresight.after_device(self._routing, spec, found, changes)
        return changes

    def _bridges(self, part: Part) -> frozenset[str]:
        """Those that there will be when it is the turn of a device."""
        network = self._network
        there = set(self._observed.of(part).bridging.there)
        there -= {other.backend.spec.name for other in network._lost_devices}
        for other in network._devices[: network._devices.index(part)] if part in network._devices else []:
            if other.backend.spec.mode == "bridge":
                there.add(other.backend.spec.name)
        return frozenset(there)

    def _elsewhere(self, part: Part) -> tuple[tuple[str, _tun.Interface], ...]:
        """Addresses of other devices: of this document's as they will be, of others as they are."""
        network = self._network
        ours = {other.backend.spec.name for other in (*network._devices, *network._lost_devices)}
        found = [item for item in self._observed.of(part).elsewhere if item[0] not in ours]
        for other in network._devices:
            spec: TunSpec = other.backend.spec
            if spec.name != part.backend.spec.name:
                kept = () if spec.exclusive else self._observed.of(other).addresses
                found += [(spec.name, address) for address in dict.fromkeys((*spec.addresses, *kept))]
        return tuple(found)

    def _chain_plan(self, part: Part) -> Plan:
        spec: ChainSpec = part.backend.spec
        found: _chain.ChainState = self._observed.of(part)
        tables = self._tables.setdefault(spec.family, {})
        for backend, listing in found.tables.items():
            tables.setdefault(backend, dict(listing))
        state = replace(found, tables={backend: tables[backend] for backend in found.tables})
        changes = [change for change in part.backend.plan(state) if change.action != "sweep"]
        self._tables[spec.family] = _foresight.after_chain(tables, spec, changes)
        self.warnings += part.backend.warnings
        return changes + self._sweep_after(part, found)

    def _sweep_after(self, part: Part, found: _chain.ChainState) -> Plan:
        """With the last chain of a table, the empty nft objects that were made for one of them."""
        spec: ChainSpec = part.backend.spec
        same = [
            other
            for other in self._network.parts
            if other.kind == "chain"
            and (other.backend.spec.family, other.backend.spec.table) == (spec.family, spec.table)
        ]
        if same[-1] is not part:
            return []
        table = self._tables[spec.family].get("nft", {}).get(spec.table, Table())
        swept = _chain.unused(table, found.leftovers)
        return [_chain.sweeping(spec.family, spec.table, swept)] if swept else []

    def _table_plan(self, part: Part) -> Plan:
        new = self._wished.get(part.backend.spec.name)
        if part in self._network.lost_tables and new and has_moved(part.backend.spec, new, self._routing):
            return []
        changes: Plan = part.backend.plan(self._routing)
        self.warnings += part.backend.warnings
        self._routing = _foresight.after_table(self._routing, part.backend.spec, changes)
        return changes
