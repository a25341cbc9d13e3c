# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Reads and writes the chain of a :class:`~._chain.ChainSpec` with the host's own iptables tools."""

from __future__ import annotations

from typing import Any

from . import _chain, _created
from ._core import Change, HostError, MissingRequirement, PlainBackend, Plan, Runner
from ._host import need_net_admin
from ._iptables import COMMANDS, OWN_PREFIX, Iptables, Table, Tables, legacy_possible, tools


class ChainBackend(PlainBackend):
    """One chain and its jump."""

    def __init__(self, spec: _chain.ChainSpec, run: Runner, check_mode: bool = False) -> None:
        super().__init__(check_mode)
        need_net_admin()
        self.spec = spec
        self._run = run
        self._tools: dict[str, Iptables] = {}
        # Chains of the same table that are written before this one, which may lead to them.
        self.declared: tuple[str, ...] = ()

    def blank(self) -> _chain.ChainState:
        backend = "legacy" if self.spec.backend == "legacy" else "nft"
        return _chain.ChainState(backend=backend, tables={backend: {}})

    def observe(self) -> _chain.ChainState:
        """With ``backend: auto`` the other backend is looked at too: a chain of ours that was left there when
        the host moved from one to the other would still be in force.
        """
        self._tools = tools(self._run, self.spec.family)
        if self.spec.backend == "auto":
            readable = _read_all(self._tools)
            backend = choose(self._run, self.spec.family, self.spec.table, readable)
        else:
            backend = self.spec.backend
            if backend not in self._tools:
                command = COMMANDS[self.spec.family]
                raise MissingRequirement(f"backend: {command}-{backend}-restore is missing on the host")
            readable = {backend: self._tools[backend].read()}
        return _chain.ChainState(backend=backend, tables=readable, leftovers=self._leftovers())

    def _leftovers(self) -> tuple[str, ...]:
        from ._nft_leftovers import prefix_of

        return _created.nft_objects(prefix_of(self.spec.family, self.spec.table))

    def plan(self, observed: _chain.ChainState) -> Plan:
        return _chain.plan(self.spec, observed)

    def rehearse(self, plan: Plan) -> None:
        """``iptables-restore --test``, unless that would load a legacy table that is not loaded yet."""
        for change in plan:
            if change.action != "write":
                continue
            backend, lines = change.data
            tool = self._tools.get(backend)
            if tool is None or (backend == "legacy" and self.spec.table not in tool.loaded_legacy_tables()):
                continue
            declared = [f":{name} - [0:0]" for name in self.declared]
            tool.write(self.spec.table, [*declared, *lines], self._origins(), test=True)

    def _origins(self) -> dict[str, str]:
        origins = {
            f"-A {self.spec.name} {rule}".rstrip(): f"rules[{position}]"
            for position, rule in enumerate(self.spec.rules)
        }
        if self.spec.jump:
            rule = _chain.bearer_rule(self.spec)
            for command in (f"-I {self.spec.jump.origin} 1", f"-A {self.spec.jump.origin}"):
                origins[f"{command} {rule}"] = "jump"
        return origins

    def apply(self, change: Change) -> None:
        if change.action == "sweep":
            from ._nft_leftovers import sweep

            sweep(self.spec.family, change.data)
            return
        backend, lines = change.data
        tool = self._tools[backend]
        if backend == "nft" and change.after is not None:
            from ._nft_leftovers import record_before_write

            record_before_write(
                self.spec.family, self.spec.table, self.spec.jump.origin if self.spec.jump else None
            )
        tool.write(self.spec.table, list(lines), self._origins())
        if change.after is not None:
            self._tag(tool)

    def _tag(self, tool: Iptables) -> None:
        """All is in force already. Without this second step the next run would only write the same again."""
        written = tool.read().get(self.spec.table)
        if written is None or written.chain(self.spec.name) is None:
            raise HostError(f"{self.spec.title} was written to {tool.backend} but cannot be read back")
        tool.write(self.spec.table, _chain.retag(self.spec, written), {})

    def report(self, observed: _chain.ChainState) -> dict[str, Any]:
        table = observed.table(observed.backend, self.spec.table)
        rules = table.chain(self.spec.name)
        if rules is None:
            return {"backend": observed.backend, "chain": None}
        jumps = [f"-A {origin} {rule}" for origin, _position, rule in _chain.jumps_to(self.spec, table)]
        return {
            "backend": observed.backend,
            "chain": {"name": self.spec.name, "rules": list(rules), "jumps": jumps},
        }


def backend_in_use(run: Runner, family: str, table: str = "filter") -> str:
    """Where ``backend: auto`` writes to.

    :raises HostError: there is no iptables, or none that works.
    """
    return choose(run, family, table, _read_all(tools(run, family)))


def choose(run: Runner, family: str, table: str, readable: dict[str, Tables]) -> str:
    """The backend where the host's rules live, of either address family; the default when none or both do.

    A backend that could not take the chain is no choice as long as there is another: one whose table nft has
    put rules of its own into, and legacy on a kernel that has no legacy tables, where its tools show no error
    but nothing either.
    """
    able = [backend for backend, tables in readable.items() if not tables.get(table, Table()).incompatible]
    if "legacy" in able and not legacy_possible(family):
        able.remove("legacy")
    if len(able) < 2:
        return next(iter(able or readable))
    other = _other_family(run, family)
    seen = {
        backend: [*readable[backend].values(), *read_or_nothing(other.get(backend)).values()]
        for backend in able
    }
    # Docker writes where its own iptables command does, and what filters or forwards has to be there with it.
    for sign in (_has_docker, _is_foreign, _is_ours):
        backends = [backend for backend, tables in seen.items() if any(map(sign, tables))]
        if len(backends) == 1:
            return backends[0]
        if backends:
            break
    # The tools of the default come first.
    return able[0]


def _read_all(found: dict[str, Iptables]) -> dict[str, Tables]:
    readable, errors = {}, []
    for backend, tool in found.items():
        try:
            readable[backend] = tool.read()
        except HostError as error:
            errors.append(str(error))
    if not readable:
        raise HostError("; ".join(errors))
    return readable


def read_all(run: Runner, family: str) -> list[Tables]:
    """The tables of each backend that can be read; none where there is no iptables."""
    try:
        return [read_or_nothing(tool) for tool in tools(run, family).values()]
    except MissingRequirement:
        return []


def read_or_nothing(tool: Iptables | None) -> Tables:
    try:
        return tool.read() if tool else {}
    except HostError:
        return {}


def _other_family(run: Runner, family: str) -> dict[str, Iptables]:
    """A host without IPv6 may have iptables only."""
    try:
        return tools(run, "ipv6" if family == "ipv4" else "ipv4")
    except MissingRequirement:
        return {}


def _has_docker(table: Table) -> bool:
    return any(chain == "DOCKER" or chain.startswith("DOCKER-") for chain in table.policies)


def _is_foreign(table: Table) -> bool:
    """What nft itself has made in a table of iptables' name is nobody's use of iptables."""
    return not table.incompatible and table.foreign()


def _is_ours(table: Table) -> bool:
    return any(chain.startswith(OWN_PREFIX) for chain in table.policies)
