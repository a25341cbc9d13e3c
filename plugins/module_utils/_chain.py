# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""One owned chain and the tagged jump that leads to it: what is wished, what is there, and the plan between
the two.

A rule is not parsed to be compared: ``-p tcp --dport 22`` comes back from ``iptables-save`` as ``-p tcp -m
tcp --dport 22``, and every extension has its own way of printing. Instead the comment of the jump carries two
digests: one of the wish, one of chain and jump as ``iptables-save`` printed them when they had been written.
A changed wish shows in the first, a chain edited by hand in the second. A chain without a jump carries them
in a rule of its own that matches everything and does nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ._core import Change, Plan, SpecError
from ._iptables import OWN_PREFIX, Table, Tables, comment_of, target_of, words_of
from ._options import Options

# XT_EXTENSION_MAXNAMELEN is 29 with the final NUL (include/uapi/linux/netfilter/x_tables.h).
NAME_MAX_BYTES = 28
COMMENT_MAX_BYTES = 200
_PENDING = "new"
_COMMANDS = {
    "-A", "--append", "-I", "--insert", "-D", "--delete", "-R", "--replace", "-F", "--flush",
    "-X", "--delete-chain", "-N", "--new-chain", "-P", "--policy", "-E", "--rename-chain", "-Z", "--zero",
    "-L", "--list", "-S", "--list-rules", "-C", "--check", "-t", "--table",
}  # fmt: skip
# The names that Docker gives to bridges of its own (libnetwork: docker0, docker_gwbridge, br-<id>).
# 28.0 names a set of them.
_DOCKER_BRIDGE = re.compile(
    r"(^| )(-[io]|--(in|out)-interface|--match-set) "
    r"(docker0|docker_gwbridge|br-[0-9a-f]{12}|docker-ext-bridges-v[46])( |$)"
)
_TARGETS = {"-j", "--jump", "-g", "--goto"}
BUILTIN = {
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "raw": ("PREROUTING", "OUTPUT"),
}


@dataclass(frozen=True)
class Jump:
    origin: str
    position: str = "first"
    match: str = ""


@dataclass(frozen=True)
class ChainSpec:
    name: str
    present: bool = True
    table: str = "filter"
    family: str = "ipv4"
    rules: tuple[str, ...] = ()
    jump: Jump | None = None
    comment: str = "culvert"
    backend: str = "auto"

    @classmethod
    def from_params(cls, params: Mapping[str, Any], where: str = "") -> ChainSpec:
        """:param where: the option that holds ``params``, for messages; empty for a module's own options.
        :raises SpecError: an option is malformed.
        """
        options = Options(params, where)
        table = options.required("table", "filter", tuple(BUILTIN))
        spec = cls(
            name=_chain_name(options),
            present=options.required("state", "present", ("present", "absent")) == "present",
            table=table,
            family=options.required("family", "ipv4", ("ipv4", "ipv6")),
            rules=tuple(
                _rule(text, options.option(f"rules[{position}]"), set())
                for position, text in enumerate(options.texts("rules"))
            ),
            jump=_jump(options.mapping("jump")),
            comment=_comment(options),
            backend=options.required("backend", "auto", ("auto", "nft", "legacy")),
        )
        options.done()
        return spec

    @property
    def digest(self) -> str:
        """Of all that decides what is written; not of the backend it is written to."""
        wish = [self.table, self.family, self.rules, self.comment]
        jump = [self.jump.origin, self.jump.position, self.jump.match] if self.jump else None
        return _digest(json.dumps([wish, jump]))

    def tag(self, written: str = _PENDING) -> str:
        return f"{self.comment} {self.digest}-{written}"

    @property
    def title(self) -> str:
        return f"chain {self.name} in {self.table} ({self.family})"


@dataclass(frozen=True)
class ChainState:
    """What is there, by backend.

    :ivar backend: the one to write to.
    :ivar tables: backend to its tables; only those backends that may hold the chain.
    :ivar leftovers: names of nft objects that earlier runs made (``_nft_leftovers``) for this table.
    """

    backend: str = "nft"
    tables: Mapping[str, Tables] = field(default_factory=dict)
    leftovers: tuple[str, ...] = ()

    def table(self, backend: str, name: str) -> Table:
        return self.tables.get(backend, {}).get(name, Table())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _chain_name(options: Options) -> str:
    name = options.required("name")
    length = len(name.encode())
    if not name.startswith(OWN_PREFIX) or name == OWN_PREFIX:
        raise options.refuse(
            "name", f"{name!r} must begin with {OWN_PREFIX}: chains of other names are not ours"
        )
    if length > NAME_MAX_BYTES:
        raise options.refuse(
            "name", f"{name!r} is {length} bytes long; a chain's name takes up to {NAME_MAX_BYTES}"
        )
    if not all(character.isascii() and (character.isalnum() or character in "-_.") for character in name):
        raise options.refuse("name", f"{name!r} may hold letters, digits, '-', '_' and '.' only")
    return name


def _rule(text: str, option: str, also_forbidden: set[str]) -> str:
    try:
        words = words_of(text)
    except ValueError as error:
        raise SpecError(option, f"{text!r} is not one rule: {error}") from None
    if "\n" in text or not text.isprintable():
        raise SpecError(option, f"{text!r} must be one line of printable text")
    forbidden = [word for word in words if word in _COMMANDS | also_forbidden]
    if forbidden:
        raise SpecError(option, f"{text!r} holds {forbidden[0]}; give only what follows '-A CHAIN'")
    return text.strip()


def _jump(options: Options | None) -> Jump | None:
    if options is None:
        return None
    jump = Jump(
        origin=options.required("from"),
        position=options.required("position", "first", ("first", "last")),
        match=_rule(options.text("match", "") or "", options.option("match"), _TARGETS),
    )
    options.done()
    if jump.origin.startswith(OWN_PREFIX) or len(jump.origin.split()) != 1:
        raise options.refuse(
            "from", f"{jump.origin!r} is not a chain that a jump to an owned chain may start from"
        )
    return jump


def _comment(options: Options) -> str:
    comment = options.required("comment", "culvert")
    if len(comment.encode()) > COMMENT_MAX_BYTES or not comment.isprintable() or set(comment) & set("\"'\\"):
        raise options.refuse(
            "comment", f"must be printable, without quotes, and up to {COMMENT_MAX_BYTES} bytes long"
        )
    return comment


def check(spec: ChainSpec, state: ChainState) -> None:
    """:raises SpecError: this host's tables do not allow it; nothing has been changed."""
    if state.table(state.backend, spec.table).incompatible:
        raise SpecError(
            "table",
            f"{spec.table} of the {state.backend} backend holds rules made by nft that iptables cannot show; "
            "move them into a table of their own",
        )
    if not spec.present or spec.jump is None:
        return
    origin = spec.jump.origin
    if origin not in BUILTIN[spec.table] and state.table(state.backend, spec.table).chain(origin) is None:
        raise SpecError("jump.from", f"there is no chain {origin} in table {spec.table}")


def plan(spec: ChainSpec, state: ChainState) -> Plan:
    """Pure. At most one change per backend: the whole chain and its jump are one transaction.

    :raises SpecError: as :func:`check`.
    """
    check(spec, state)
    changes: Plan = []
    for backend in state.tables:
        table = state.table(backend, spec.table)
        if spec.present and backend == state.backend:
            if not up_to_date(spec, table):
                changes.append(_write(spec, table, backend))
        elif table.chain(spec.name) is not None:
            changes.append(_remove(spec, table, backend))
    swept = _sweepable(spec, state)
    return changes + ([sweeping(spec.family, spec.table, swept)] if swept else [])


def sweeping(family: str, table: str, objects: tuple[str, ...]) -> Change:
    item = f"empty nft chains and tables made for {table} ({family})"
    return Change(item, list(objects), None, "sweep", objects)


def jumps_to(spec: ChainSpec, table: Table) -> list[tuple[str, int, str]]:
    """Chain, position and text of each rule that leads to the chain. Other owned chains may do so at will."""
    return [
        (origin, position, rule)
        for origin, rules in table.rules.items()
        if not origin.startswith(OWN_PREFIX)
        for position, rule in enumerate(rules)
        if target_of(rule) == spec.name
    ]


def up_to_date(spec: ChainSpec, table: Table) -> bool:
    rules = table.chain(spec.name)
    jumps = jumps_to(spec, table)
    if rules is None or len(jumps) != (1 if spec.jump else 0):
        return False
    if spec.jump is None:
        return bool(rules) and comment_of(rules[0]) == spec.tag(written_digest(rules[1:], rules[0]))
    origin, position, text = jumps[0]
    return (
        origin == spec.jump.origin
        and comment_of(text) == spec.tag(written_digest(rules, text))
        and _in_place(spec.jump, table.rules[origin], position)
    )


def written_digest(rules: Iterable[str], bearer: str) -> str:
    """Of a chain as printed, and of the rule that bears the tag, apart from the tag itself."""
    return _digest("\n".join([bearer.replace(comment_of(bearer), ""), *rules]))


def _in_place(jump: Jump, rules: tuple[str, ...], position: int) -> bool:
    """First or last, other owned chains' jumps apart: two that both want to be first must not fight.

    Docker puts its rules before everybody's whenever it starts. They look at its own bridges only, or are
    the operator's (DOCKER-USER), so they may stay there: a jump that moved back each time would never come
    to rest.
    """
    if jump.position == "first":
        return all(target_of(rule).startswith(OWN_PREFIX) or is_dockers(rule) for rule in rules[:position])
    return all(target_of(rule).startswith(OWN_PREFIX) for rule in rules[position + 1 :])


def is_dockers(rule: str) -> bool:
    """Whether a built-in chain's rule is Docker's: to a chain of its own, or about one of its bridges."""
    return target_of(rule).startswith("DOCKER") or _DOCKER_BRIDGE.search(rule) is not None


def bearer_rule(spec: ChainSpec, written: str = _PENDING) -> str:
    """The rule that bears the tag, without its chain: the jump, or a mark inside a chain that has none."""
    tag = f'-m comment --comment "{spec.tag(written)}"'
    if spec.jump is None:
        return tag
    return " ".join(part for part in (spec.jump.match, tag, f"-j {spec.name}") if part)


def _write(spec: ChainSpec, table: Table, backend: str) -> Change:
    # With --noflush, declaring a user-defined chain empties it (iptables-restore(8)).
    lines = [f":{spec.name} - [0:0]"]
    if spec.jump is None:
        lines.append(f"-A {spec.name} {bearer_rule(spec)}")
    lines += [f"-A {spec.name} {rule}".rstrip() for rule in spec.rules]
    lines += [f"-D {origin} {rule}" for origin, _position, rule in jumps_to(spec, table)]
    if spec.jump:
        command = f"-I {spec.jump.origin} 1" if spec.jump.position == "first" else f"-A {spec.jump.origin}"
        lines.append(f"{command} {bearer_rule(spec)}")
    after = {"rules": list(spec.rules), "jumps": [_shown_jump(spec)] if spec.jump else []}
    return Change(f"{spec.title} on {backend}", _shown(spec, table), after, "write", (backend, tuple(lines)))


def retag(spec: ChainSpec, table: Table) -> list[str]:
    """The transaction after the write: puts the digest of what has been printed into the tag."""
    rules = table.chain(spec.name) or ()
    if spec.jump is None:
        written = written_digest(rules[1:], rules[0])
        return [f"-R {spec.name} 1 {bearer_rule(spec, written)}"]
    origin, position, text = jumps_to(spec, table)[0]
    tagged = text.replace(spec.tag(), spec.tag(written_digest(rules, text)))
    # Deleted by text, never replaced by number: somebody else may have inserted a rule since it was read.
    return [f"-D {origin} {text}", f"-I {origin} {position + 1} {tagged}"]


def _remove(spec: ChainSpec, table: Table, backend: str) -> Change:
    lines = [f"-D {origin} {rule}" for origin, _position, rule in jumps_to(spec, table)]
    lines += [f":{spec.name} - [0:0]", f"-X {spec.name}"]
    return Change(f"{spec.title} on {backend}", _shown(spec, table), None, "write", (backend, tuple(lines)))


def _shown(spec: ChainSpec, table: Table) -> dict[str, Any] | None:
    """Chain and jumps for the diff."""
    rules = table.chain(spec.name)
    if rules is None:
        return None
    jumps = [f"{origin} {rule}" for origin, _position, rule in jumps_to(spec, table)]
    return {"rules": list(rules), "jumps": jumps}


def _shown_jump(spec: ChainSpec) -> str:
    jump = spec.jump or Jump("")
    return f"{jump.origin} ({jump.position}) {bearer_rule(spec)}"


def _sweepable(spec: ChainSpec, state: ChainState) -> tuple[str, ...]:
    """What earlier runs made on the nft backend and nobody needs once this chain is gone: base chains that
    are empty, and the table if all of it is.

    Whether it is truly empty is for the kernel to say when it is removed; here it is enough that nothing is
    in use as far as iptables-save shows.
    """
    if spec.present and state.backend == "nft":
        return ()
    return unused(without_chain(spec, state.table("nft", spec.table)), state.leftovers)


def without_chain(spec: ChainSpec, table: Table) -> Table:
    """The table as it is when the chain and all jumps to it are gone."""
    going = {(origin, position) for origin, position, _rule in jumps_to(spec, table)}
    rules = {
        origin: tuple(rule for position, rule in enumerate(lines) if (origin, position) not in going)
        for origin, lines in table.rules.items()
        if origin != spec.name
    }
    policies = {name: policy for name, policy in table.policies.items() if name != spec.name}
    return replace(table, policies=policies, rules=rules)


def unused(table: Table, leftovers: Iterable[str]) -> tuple[str, ...]:
    """Those of the leftovers, named such as ``ip filter`` and ``ip filter INPUT``, that nobody uses."""
    # A policy other than ACCEPT is a chain of somebody's own ("-"), or one that somebody set.
    busy = {name for name, policy in table.policies.items() if policy != "ACCEPT" or table.rules.get(name)}
    base_chain = {name: (name.split()[2:] or [""])[0] for name in leftovers}
    return tuple(name for name, chain in base_chain.items() if (chain not in busy if chain else not busy))
