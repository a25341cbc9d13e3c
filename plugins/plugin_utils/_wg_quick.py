# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Private to the collection: may change at any time.
"""Peers of a wg-quick file, as ``external_peers`` has them. Pure functions on the controller.

What is wrong is told by the number of its line, and never by what is in it: that may be a key. A pre-shared
key comes out encrypted or not at all.
"""

from __future__ import annotations

import ipaddress
import re
import typing as t
from collections.abc import Callable
from dataclasses import dataclass, field

from ansible_collections.culvert.vpn.plugins.module_utils._device_keys import decoded
from ansible_collections.culvert.vpn.plugins.plugin_utils._devices import NAME
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet import address_in, key_problem

_TAKEN = ("publickey", "presharedkey", "allowedips", "persistentkeepalive", "endpoint")
# What programs that set up servers write around a name: "### Client phone", "### begin phone ###".
_AROUND = re.compile(r"^(?:(?:begin|client|peer|name|user|friendly_name)\b\s*[:=]?\s*)+", re.IGNORECASE)
_LONGEST = 15
_VAULTED = re.compile(r"preshared_key: !vault \|\n((?: +[^\s:]+\n)+)")
# What somebody has written there by hand.
_BARE = re.compile(r"(preshared_key['\"]?\s*:\s*)(?!!vault)\S.*")

#: Encrypts a pre-shared key in base64: text of ansible-vault.
Seal = Callable[[str], str]


@dataclass
class _Section:
    """:ivar comments: beside and above it, without ``#``.
    :ivar values: options by their names in small letters, with the number of the line.
    """

    line: int
    comments: list[str] = field(default_factory=list)
    values: dict[str, list[tuple[int, str]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Imported:
    """:ivar peers: for ``external_peers``; of a ``preshared_key`` what is encrypted.
    :ivar problems: by which nothing is to be imported, a sentence each.
    :ivar notes: of what is left out.
    """

    peers: list[dict[str, t.Any]]
    problems: list[str]
    notes: list[str]


def imported(
    text: str, networks: t.Sequence[str], taken: t.Iterable[str] = (), seal: Seal | None = None
) -> Imported:
    """Return the peers of a file.

    :param networks: the tunnel's, of IPv4 and IPv6; empty for none.
    :param taken: names that somebody has.
    :param seal: ``None`` where there is no password, and so nothing to be done with a pre-shared key.
    """
    sections, problems = _sections(text)
    notes: list[str] = []
    names, keys = set(taken), dict[str, int]()
    peers = []
    for number, section in enumerate(sections, 1):
        peer = _peer(section, networks, problems, notes)
        peer |= _preshared_key(section, seal, problems)
        key = peer.get("public_key", "")
        if key and keys.setdefault(key, section.line) != section.line:
            problems.append(f"Line {section.line}: this peer has the public key of that in line {keys[key]}.")
        name = _name(section, number, names)
        names.add(name)
        peers.append({"name": name, **peer})
    if not sections and not problems:
        problems.append("There is no [Peer] in it.")
    return Imported(peers, problems, notes)


def _sections(text: str) -> tuple[list[_Section], list[str]]:
    """The sections ``[Peer]``. That of the interface is passed over: it is another server's."""
    peers: list[_Section] = []
    problems: list[str] = []
    waiting: list[str] = []
    at = ""
    for number, raw in enumerate(text.splitlines(), 1):
        line, _hash, comment = raw.partition("#")
        line, comment = line.strip(), comment.strip("# \t")
        if line.startswith("["):
            at = line.lower()
            if at == "[peer]":
                peers.append(_Section(number, waiting))
            elif at != "[interface]":
                problems.append(f"Line {number}: this section is neither [Interface] nor [Peer].")
            waiting = []
        elif line:
            name, equals, value = (part.strip() for part in line.partition("="))
            if not equals or not name or not value:
                problems.append(f"Line {number} is not of the form NAME = VALUE.")
            elif not at:
                problems.append(f"Line {number} is before the first section.")
            elif at == "[peer]":
                if name.lower() in _TAKEN:
                    peers[-1].values.setdefault(name.lower(), []).append((number, value))
                else:
                    problems.append(f"Line {number}: {_shown(name)} is nothing that a peer has.")
        if comment and at == "[peer]" and not (peers[-1].values and not line):
            # In the section, before its first option or beside one.
            peers[-1].comments.append(comment)
        elif comment:
            # Below a peer's options, or outside of one: about what follows.
            waiting.append(comment)
        elif not line:
            waiting = []
    return peers, problems


def _shown(name: str) -> str:
    """An option's name, unless it may be something else."""
    return name if re.fullmatch(r"[A-Za-z]{1,24}", name) else "what is before the ="


def _peer(
    section: _Section, networks: t.Sequence[str], problems: list[str], notes: list[str]
) -> dict[str, t.Any]:
    made: dict[str, t.Any] = {}
    for name, lines in section.values.items():
        if len(lines) > 1 and name != "allowedips":
            problems.append(
                f"Line {lines[1][0]}: there is another one of the same name in line {lines[0][0]}."
            )
    key = section.values.get("publickey")
    if not key:
        problems.append(f"Line {section.line}: this peer has no PublicKey.")
    elif key_problem(key[0][1]):
        problems.append(f"Line {key[0][0]}: the PublicKey {key_problem(key[0][1])}.")
    else:
        made["public_key"] = key[0][1]
    _addresses(section, networks, made, problems)
    for number, value in section.values.get("persistentkeepalive", [])[:1]:
        if value.isascii() and value.isdigit() and int(value) <= 65535:
            made |= {"keepalive": int(value)} if int(value) else {}
        elif value.lower() != "off":
            problems.append(f"Line {number}: PersistentKeepalive is neither a number up to 65535 nor off.")
    for number, _value in section.values.get("endpoint", []):
        notes.append(f"Line {number}: the Endpoint is left out, as devices call servers.")
    return made


def _preshared_key(section: _Section, seal: Seal | None, problems: list[str]) -> dict[str, str]:
    for number, value in section.values.get("presharedkey", [])[:1]:
        try:
            decoded(value)
        except ValueError as error:
            problems.append(f"Line {number}: the PresharedKey {error}.")
            continue
        if seal is not None:
            return {"preshared_key": seal(value)}
        problems.append(
            f"Line {number}: this peer has a pre-shared key, which is written down encrypted only. Give the "
            "run a vault password: --ask-vault-pass, or --vault-password-file."
        )
    return {}


def _addresses(
    section: _Section, networks: t.Sequence[str], made: dict[str, t.Any], problems: list[str]
) -> None:
    """The first address of each family is the peer's own; prefixes are behind it."""
    lines = section.values.get("allowedips", [])
    if not lines:
        problems.append(f"Line {section.line}: this peer has no AllowedIPs, so no address.")
    for number, value in lines:
        for part in filter(None, map(str.strip, value.split(","))):
            try:
                network = ipaddress.ip_network(part, strict=False)
            except ValueError:
                problems.append(f"Line {number}: {part!r} is no address and no prefix.")
                continue
            six = network.version == 6
            option, inside = ("address6" if six else "address"), networks[six]
            if network.prefixlen < network.max_prefixlen or option in made:
                made.setdefault("networks", []).append(str(network))
            elif not inside or not address_in(
                f"{network.network_address}/{ipaddress.ip_network(inside).prefixlen}", inside
            ):
                variable = "relay_network6" if six else "relay_network"
                problems.append(
                    f"Line {number}: {network.network_address} is not an address of {variable} "
                    f"({inside or 'none'}). Set that to the network that these peers are in; in another one "
                    "every device needs a new configuration."
                )
            else:
                made[option] = str(network.network_address)
    if lines and "address" not in made and not any("AllowedIPs" in p or "address" in p for p in problems):
        problems.append(f"Line {section.line}: none of the AllowedIPs is one IPv4 address, the peer's own.")


def _name(section: _Section, number: int, names: t.Container[str]) -> str:
    """From a comment, else from the place in the file; one that nobody has."""
    base = f"peer{number}"
    for comment in section.comments:
        text = re.sub(r"\(.*?\)", "", _AROUND.sub("", comment.strip()))
        text = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:_LONGEST].rstrip("-._")
        if NAME.fullmatch(text) and text.lower() != "end":
            base = text
            break
    name, count = base, 2
    while name in names:
        name = f"{base[: _LONGEST - len(str(count)) - 1]}-{count}"
        count += 1
    return name


def as_yaml(peers: t.Sequence[t.Mapping[str, t.Any]]) -> str:
    """The variable, as one writes it by hand. All values are plain, quoted, or encrypted."""
    lines = ["---", "external_peers:" + ("" if peers else " []")]
    for peer in peers:
        for position, (key, value) in enumerate(peer.items()):
            if key == "preshared_key":
                shown = "".join(["!vault |", *(f"\n      {line}" for line in value.splitlines())])
            else:
                shown = f"[{', '.join(map(_scalar, value))}]" if isinstance(value, list) else _scalar(value)
            lines.append(f"  {'- ' if position == 0 else '  '}{key}: {shown}")
    return "\n".join([*lines, ""])


def vaulted_in(text: str) -> list[str]:
    """The pre-shared keys in what :func:`as_yaml` has written, as they are: encrypted."""
    return ["\n".join(block.split()) + "\n" for block in _VAULTED.findall(text)]


def without_keys(text: str) -> str:
    """A file of variables to be shown: pre-shared keys that are not encrypted are left out."""
    return _BARE.sub(r"\1(not shown)", text)


def _scalar(value: t.Any) -> str:
    if isinstance(value, int):
        return str(value)
    plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]*|\d+\.\d+\.\d+\.\d+(/\d+)?", value)
    known = value.lower() in ("null", "true", "false", "yes", "no", "on", "off", "y", "n")
    return value if plain and not known else f'"{value}"'
