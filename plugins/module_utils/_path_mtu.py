# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""How large a packet a path takes, by echoes that may not be fragmented, and what follows for a tunnel.

Pure: the echoes are sent by ``_path_echo``. That an echo of some size came back proves that the path
takes it, both ways; that none came back proves little, for echoes get lost and are filtered. So a size
counts as too large only when it stayed without an answer several times while smaller ones were answered, or
when a router said so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

# Outer IP, UDP, and WireGuard's header and tag (WireGuard paper, section 5.4.6).
OVERHEAD_BYTES = {4: 20 + 8 + 32, 6: 40 + 8 + 32}
# What IP and TCP take of a packet, options aside, as an MSS counts (RFC 6691).
TCP_HEADERS_BYTES = {4: 40, 6: 60}
# RFC 8200, section 5; RFC 791, section 3.2 ("every destination must be able to receive 576").
IPV6_MTU_MIN_BYTES = 1280
IPV4_MTU_MIN_BYTES = 576
PATH_MIN_BYTES = {4: IPV4_MTU_MIN_BYTES, 6: IPV6_MTU_MIN_BYTES}
PATH_DEFAULT_BYTES = 1500
# WireGuard fills packets up to a multiple of this many bytes, but not beyond the MTU of the sender's device
# (section 5.4.6). The sender's may be larger than ours: then the fill has to fit the path, too.
PADDING_BYTES = 16
# What WireGuard's devices have on Ethernet: who has no more fills up to no more.
USUAL_MTU_BYTES = PATH_DEFAULT_BYTES - OVERHEAD_BYTES[6]
# The relay's largest (a run of datagrams and their overhead have to fit 16 bits).
TUNNEL_MTU_MAX_BYTES = 65455
# Path MTUs that are often met: Ethernet, PPPoE, 6in4, mobile networks, tunnels in tunnels.
_PLATEAUS = (8996, 4352, 2002, 1500, 1492, 1480, 1460, 1440, 1420, 1400, 1360, 1320, 1280)
_RUNGS = 8
_ATTEMPTS_FULL = 3
_ATTEMPTS_RUNG = 2
_LOWERINGS_MAX = 8
# Who answers nothing larger than this limits the size of echoes, which says nothing about the path.
_CREDIBLE_BYTES = 1000

ECHO = "echo"
TOLD = "icmp"
ROUTE = "route"
KEPT = "kept"
ASSUMED = "assumed"


@dataclass(frozen=True)
class Path:
    """One way to a peer, or out of the host.

    :ivar endpoint: as it was given; empty for a default route.
    :ivar address: the endpoint's address; empty where there is none.
    :ivar how: where ``path_mtu`` is from: ``echo`` (an echo of that size came back), ``icmp`` (a router said
        so), ``route`` (the kernel's word alone), ``kept`` (nothing confirms more than the device has now),
        ``assumed`` (there is no route).
    """

    version: int
    path_mtu: int
    how: str
    endpoint: str = ""
    address: str = ""
    device: str = ""

    @property
    def inner_bytes(self) -> int:
        """What is left for a packet in the tunnel, whoever sends it. A path that nothing has ever confirmed
        is given the allowance for IPv6 in any case, as wg-quick does.
        """
        overhead = OVERHEAD_BYTES[self.version] if self.how in (ECHO, TOLD, KEPT) else OVERHEAD_BYTES[6]
        inner = self.path_mtu - overhead
        return inner if inner == USUAL_MTU_BYTES or self.how == KEPT else inner - inner % PADDING_BYTES

    def report(self) -> dict[str, Any]:
        return {
            "endpoint": self.endpoint,
            "address": self.address,
            "device": self.device,
            "path_mtu": self.path_mtu,
            "how": self.how,
        }


def tunnel_mtu(paths: Sequence[Path], tunnel_ipv6: bool) -> dict[str, int]:
    """MTU of a tunnel over all of the paths; the MSS that TCP in it has to be held to where that MTU, the
    least there may be, is still too large, else 0; what is ``inner``, the MTU if there were no least one.
    """
    inner = min((path.inner_bytes for path in paths), default=USUAL_MTU_BYTES)
    floor = IPV6_MTU_MIN_BYTES if tunnel_ipv6 else IPV4_MTU_MIN_BYTES
    clamped = {version: inner - headers for version, headers in TCP_HEADERS_BYTES.items()}
    return {
        "mtu": min(max(inner, floor), TUNNEL_MTU_MAX_BYTES),
        "mss4": clamped[4] if inner < floor else 0,
        "mss6": clamped[6] if inner < floor else 0,
        "inner": min(inner, TUNNEL_MTU_MAX_BYTES),
        "path_mtu": min((path.path_mtu for path in paths), default=PATH_DEFAULT_BYTES),
    }


def judge(search: Search, version: int, route_bytes: int, device_mtu: int | None) -> tuple[int, str]:
    """Path MTU and where it is from, once a search has ended.

    So that the result is the same from run to run, what nothing confirms never raises the device's MTU, and
    a peer that is silent now does not lower what was found when it was not.

    :param route_bytes: the kernel's MTU of the route.
    :param device_mtu: of the tunnel's device now; ``None`` when there is none.
    """
    if search.confirmed:
        return search.best, ECHO
    if search.told:
        return min(search.told, route_bytes), TOLD
    present = (device_mtu or 0) + OVERHEAD_BYTES[version]
    if device_mtu and PATH_MIN_BYTES[version] <= present <= route_bytes:
        return present, KEPT
    return route_bytes, ROUTE


@dataclass
class Search:
    """Which sizes to try, round by round: ``sizes()`` are sent, what comes back is told by ``answered``
    and ``too_big``, and ``end_round()`` decides what is next.

    :ivar ceiling: the largest size that may pass: the route's MTU.
    :ivar floor: the smallest worth a try.
    :ivar present: the size that the tunnel uses now, tried in any case; 0 for none.
    :ivar best: the largest size that was answered; 0 for none.
    :ivar told: the MTU that a router spoke of last; 0 for none.
    """

    ceiling: int
    floor: int
    present: int = 0
    best: int = 0
    told: int = 0
    done: bool = False
    _rungs: list[int] = field(default_factory=list)
    _too_large: int = 0
    _climbing: bool = False
    _attempt: int = 0
    _lowerings: int = 0

    def __post_init__(self) -> None:
        self._too_large = self.ceiling + 1
        self._rungs = self._first()

    @property
    def confirmed(self) -> bool:
        """Whether there is an answer to rely on."""
        return self.best >= min(_CREDIBLE_BYTES, self.ceiling)

    @property
    def silent(self) -> bool:
        return not self.best and not self.told

    @property
    def swallowed(self) -> bool:
        """Whether larger packets vanish on the path without a word from any router."""
        return self.confirmed and self.best < self.ceiling

    def sizes(self) -> list[int]:
        """What to send in this round, the largest first."""
        return [size for size in self._rungs if size > self.best]

    def answered(self, size: int) -> None:
        self.best = max(self.best, size)
        if self.best >= self.ceiling:
            self.done = True

    def too_big(self, mtu: int) -> bool:
        """A router wrote that its next link takes no more than ``mtu``; whether that is news."""
        if not max(self.best, self.floor) <= mtu < self.ceiling or self._lowerings == _LOWERINGS_MAX:
            # From who does not know, or who wants to harm: a path that has carried more, or no path at all.
            return False
        self._lowerings += 1
        self.told = self.ceiling = mtu
        self._too_large = mtu + 1
        self._attempt = 0
        self._climbing = False
        self._rungs = self._first()
        self.done = self.best == mtu
        return True

    def end_round(self) -> None:
        """The time for answers is over."""
        self._attempt += 1
        if self.done or self._attempt < (_ATTEMPTS_RUNG if self._climbing else _ATTEMPTS_FULL):
            return
        if not self.best:
            self.done = True
            return
        self._too_large = min(
            size for size in (*self._rungs, self._too_large, self.ceiling + 1) if size > self.best
        )
        self._attempt = 0
        self._rungs = self._between(first=not self._climbing)
        self._climbing = True
        self.done = not self._rungs

    def _first(self) -> list[int]:
        sizes = {self.ceiling, self.floor}
        if self.floor < self.present < self.ceiling:
            sizes.add(self.present)
        return sorted(sizes, reverse=True)

    def _between(self, first: bool) -> list[int]:
        """Sizes above what passed and below what did not."""
        low, high = self.best, self._too_large
        if first:
            # Once more what was tried before, too: a network that loses a lot must not make the MTU jump.
            rungs = {size for size in _PLATEAUS if low < size < high} | {self.present, self.ceiling}
            return sorted((size for size in rungs if low < size <= self.ceiling), reverse=True)
        count = min(_RUNGS, high - low - 1)
        return sorted({low + (high - low) * (n + 1) // (count + 1) for n in range(count)}, reverse=True)
