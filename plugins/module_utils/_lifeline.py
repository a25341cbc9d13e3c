# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""The way from this host to the controller: who it is, and what a change did to the way.

What is measured here convicts nobody: a controller may not answer echoes, and a full tunnel sends what is not
marked elsewhere on purpose. Whether the host can still be reached, only the controller knows. When it could
not, this is what tells the step that did it.
"""

from __future__ import annotations

import ipaddress
import os
from typing import NamedTuple

from ._core import HostError
from ._icmp import ping
from ._netlink import FAMILIES, rtnetlink, step

# More than any path on earth takes. Only the step after which no answer comes costs that much.
_ECHO_TIMEOUT_S = 1.0
_GENERATIONS_MAX = 32


class Connection(NamedTuple):
    """:ivar peer: address of the controller, empty when the module was not started through SSH.
    :ivar local: the address of this host that it connected to.
    """

    peer: str = ""
    local: str = ""


def controller() -> Connection:
    """Find the SSH connection that started this process.

    ``become`` drops the variable that tells it, so the ancestors' environments are looked at as well.
    """
    process = os.getpid()
    for _generation in range(_GENERATIONS_MAX):
        words = _variable(process, b"SSH_CONNECTION").split()
        if len(words) == 4:
            return Connection(peer=_address(words[0]), local=_address(words[2]))
        process = _parent(process)
        if process <= 0:
            break
    return Connection()


def _variable(process: int, name: bytes) -> str:
    try:
        with open(f"/proc/{process}/environ", "rb") as environment:
            variables = environment.read().split(b"\0")
    except OSError:
        return ""
    found = (v[len(name) + 1 :] for v in variables if v.startswith(name + b"="))
    return next(found, b"").decode("ascii", "replace")


def _parent(process: int) -> int:
    try:
        with open(f"/proc/{process}/stat", encoding="ascii", errors="replace") as stat:
            # The command's name may hold blanks and brackets.
            return int(stat.read().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def _address(text: str) -> str:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return ""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


class Lifeline:
    """Compares the way to the controller with what it was when this object was made.

    :param mark: of packets that the documents keep out of the tunnel; 0 for none.
    :param local: the address of this host that the controller connected to; answers leave from it, and which
        way they take, and what a reverse path filter thinks of it, depends on it.
    """

    def __init__(self, peer: str, mark: int = 0, local: str = "") -> None:
        self._peer = peer
        self._local = local
        self._marks = sorted({0, mark})
        self._paths = self._look() if peer else {}
        self._answered = bool(peer) and self._answers()

    def check(self) -> str:
        """Say in words what is different now, empty when nothing is or nothing can be known."""
        if not self._peer:
            return ""
        found = []
        paths = self._look()
        # A full tunnel takes what is not marked; answers to the controller may be marked.
        if all(paths[mark] != self._paths[mark] for mark in self._marks):
            found.append(f"packets to {self._peer} {paths[0]}, before: {self._paths[0]}")
        if self._answered and not self._answers():
            self._answered = False
            found.append(f"{self._peer} no longer answers echo requests from here")
        return "; ".join(found)

    def _look(self) -> dict[int, str]:
        return {mark: path_to(self._peer, mark, self._local) for mark in self._marks}

    def _answers(self) -> bool:
        # A kill switch holds back what is not marked; answers to the controller may be marked.
        return any(self._echoes(mark) for mark in self._marks)

    def _echoes(self, mark: int) -> bool:
        try:
            version = ipaddress.ip_address(self._peer).version
            echoes = ping(version, self._local or None, [self._peer], 1, _ECHO_TIMEOUT_S, mark)
            return bool(echoes[self._peer].round_trips_s)
        except (HostError, ValueError, OSError):
            return False


def path_to(address: str, mark: int = 0, source: str = "") -> str:
    """The kernel's answer to where a packet to ``address`` leaves, in words."""
    wish = {"dst": address, "family": FAMILIES[ipaddress.ip_address(address).version]}
    if mark:
        wish["mark"] = mark
    if source:
        wish["src"] = source
    try:
        with rtnetlink() as ipr, step(f"look up the route to {address}"):
            answer = ipr.route("get", **wish)[0]
            links = {link["index"]: link.get_attr("IFLA_IFNAME") for link in ipr.get_links()}
    except HostError as error:
        return f"have no route ({error})"
    gateway = answer.get_attr("RTA_GATEWAY")
    device = links.get(answer.get_attr("RTA_OIF"), "?")
    return f"leave through {device}" + (f" via {gateway}" if gateway else "")
