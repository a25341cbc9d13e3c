# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""The iptables tools of a host: which there are, what they hold, and how to change it in one transaction.

Only ``*-save`` and ``*-restore`` are used: they read and write whole tables, the latter atomically per table
(iptables-restore(8)).
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from ._core import HostError, MissingRequirement, Runner, SpecError

OWN_PREFIX = "CULVERT-"
BACKENDS = ("nft", "legacy")
COMMANDS = {"ipv4": "iptables", "ipv6": "ip6tables"}
# How long to wait for the lock that other iptables runs hold.
_WAIT_S = 5
_SEARCH_PATH = os.pathsep.join(
    [os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"]
)


@dataclass(frozen=True)
class Table:
    """One table as ``iptables-save`` prints it.

    :ivar policies: chain name to policy; ``-`` for a user-defined chain.
    :ivar rules: chain name to its rules, each the text after ``-A CHAIN``.
    """

    policies: Mapping[str, str] = field(default_factory=dict)
    rules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    incompatible: bool = False

    def chain(self, name: str) -> tuple[str, ...] | None:
        """The rules of a chain, ``None`` when there is no such chain."""
        return self.rules.get(name, ()) if name in self.policies else None

    def foreign(self) -> bool:
        """Whether somebody else uses this table: a rule, a chain or a policy that is not ours."""
        for name, policy in self.policies.items():
            if name.startswith(OWN_PREFIX):
                continue
            if policy not in ("-", "ACCEPT") or policy == "-":
                return True
            if any(not target_of(rule).startswith(OWN_PREFIX) for rule in self.rules.get(name, ())):
                return True
        return False


Tables = dict[str, Table]
"Table name to table, of one backend and address family."


def target_of(rule: str) -> str:
    """Where a rule jumps or goes to; empty when nowhere."""
    words = words_of(rule)
    for option, value in zip(words, words[1:]):
        if option in ("-j", "-g", "--jump", "--goto"):
            return value
    return ""


def comment_of(rule: str) -> str:
    words = words_of(rule)
    for option, value in zip(words, words[1:]):
        if option == "--comment":
            return value
    return ""


def words_of(rule: str) -> list[str]:
    """:raises ValueError: unbalanced quotes."""
    # Nearly all rules are plain, and there may be thousands of them.
    plain = rule.isprintable() and not any(character in rule for character in "'\"\\")
    return rule.split() if plain else shlex.split(rule)


def parse_save(text: str) -> Tables:
    """The output of ``iptables-save`` without counters."""
    return dict(_parsed(text))


@lru_cache(maxsize=8)
def _parsed(text: str) -> Tables:
    """Once for each text: every chain of a document looks at the same ones."""
    tables: Tables = {}
    policies: dict[str, str] = {}
    rules: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith("#"):
            incompatible = re.match(r"# Table `(\S+)' is incompatible", line)
            if incompatible:
                tables[incompatible.group(1)] = Table(incompatible=True)
        elif line.startswith("*"):
            name, policies, rules = line[1:].strip(), {}, {}
        elif line.startswith(":"):
            chain, policy = line[1:].split()[:2]
            policies[chain] = policy
        elif line.startswith("-A "):
            _append, chain, rule = (line + " ").split(" ", 2)
            rules.setdefault(chain, []).append(rule.strip())
        elif line.strip() == "COMMIT":
            tables[name] = Table(policies, {chain: tuple(lines) for chain, lines in rules.items()})
    return tables


def find(command: str) -> str | None:
    """The path of a program; /sbin counts even where PATH lacks it, as it does for ordinary users' shells."""
    return shutil.which(command, path=_SEARCH_PATH)


class Iptables:
    """The tools of one address family on one backend.

    :ivar backend: ``nft`` or ``legacy``.
    :ivar family: ``ipv4`` or ``ipv6``.
    """

    def __init__(self, run: Runner, backend: str, family: str, save: str, restore: str) -> None:
        self._run = run
        self.backend = backend
        self.family = family
        self._save = save
        self._restore = restore

    def read(self) -> Tables:
        """All tables in use. Reading creates none: the legacy tool would load a table that is only named.

        :raises HostError: the kernel does not have this backend, or refuses to show it.
        """
        if self.backend == "legacy" and not self.loaded_legacy_tables():
            return {}
        code, out, err = self._run([self._save], "")
        if code:
            raise HostError(f"{self._save} failed: {_first_line(err)}")
        return parse_save(out)

    def loaded_legacy_tables(self) -> list[str]:
        """Names of the tables that the kernel has loaded for legacy, in this network namespace."""
        return legacy_tables(self.family) or []

    def write(self, table: str, lines: list[str], options: Mapping[str, str], test: bool = False) -> None:
        """Give ``lines`` to iptables-restore as one transaction; what they do not name stays.

        :param options: a line to the option it came from, for the error message.
        :param test: only parse and check, commit nothing.
        :raises SpecError: a line was refused; nothing has been changed.
        :raises HostError: the transaction as a whole was refused; nothing has been changed.
        """
        command = [self._restore, "--noflush", "--wait", str(_WAIT_S)] + (["--test"] if test else [])
        text = "\n".join([f"*{table}", *lines, "COMMIT", ""])
        code, _out, err = self._run(command, text)
        if not code:
            return
        reason = _first_line(err)
        number = re.search(r"line:? (\d+)", err)
        at = int(number.group(1)) - 2 if number else -1
        if 0 <= at < len(lines) and lines[at] in options:
            raise SpecError(options[lines[at]], f"{os.path.basename(self._restore)} refuses it: {reason}")
        raise HostError(f"{os.path.basename(self._restore)} refuses the rules for table {table}: {reason}")


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # "iptables-nft-restore v1.8.9 (nf_tables): reason", where the reason may be on the line after.
    lines = [re.sub(r"^\S+ v[\d.]+ \(\w+\):\s*", "", line) for line in lines]
    return next((line for line in lines if line), "no reason given")


def legacy_tables(family: str) -> list[str] | None:
    """Names of the tables loaded for legacy in this network namespace, ``None`` if the kernel knows none."""
    names = "ip_tables_names" if family == "ipv4" else "ip6_tables_names"
    try:
        with open(f"/proc/net/{names}", encoding="ascii") as listing:
            return listing.read().split()
    except OSError:
        return None


def legacy_possible(family: str) -> bool:
    """Whether the kernel has the legacy tables, or would load them. Looking loads nothing.

    Kernels may be built without them (since 6.17 that is what a new configuration says:
    CONFIG_NETFILTER_XTABLES_LEGACY), and a container sees no modules at all.
    """
    if legacy_tables(family) is not None:
        return True
    directory = f"/lib/modules/{os.uname().release}"
    module = "iptable_filter" if family == "ipv4" else "ip6table_filter"
    for name in ("modules.dep", "modules.builtin"):
        try:
            with open(f"{directory}/{name}", encoding="utf-8", errors="replace") as listing:
                if any(f"/{module}.ko" in line.split(":")[0] for line in listing):
                    return True
        except OSError:
            continue
    return False


def tools(run: Runner, family: str) -> dict[str, Iptables]:
    """Backend name to its tools, for those that are installed; the distribution's default is first.

    :raises MissingRequirement: there is no iptables at all.
    """
    command = COMMANDS[family]
    default = _default_backend(run, command)
    found: dict[str, Iptables] = {}
    for backend in sorted(BACKENDS, key=lambda name: name != default):
        save, restore = find(f"{command}-{backend}-save"), find(f"{command}-{backend}-restore")
        if not (save and restore) and backend == default:
            save, restore = find(f"{command}-save"), find(f"{command}-restore")
        if save and restore:
            found[backend] = Iptables(run, backend, family, save, restore)
    if not found:
        raise MissingRequirement(
            f"{command}-save and {command}-restore are missing on the host: install iptables"
        )
    return found


def _default_backend(run: Runner, command: str) -> str:
    """What the plain command is: the alternative that the distribution or the administrator chose."""
    path = find(command)
    if path is None:
        return "nft"
    _code, out, _err = run([path, "--version"], "")
    # "iptables v1.8.9 (nf_tables)", "... (legacy)"; before 1.8 there was only what is now called legacy.
    return "nft" if "nf_tables" in out else "legacy"
