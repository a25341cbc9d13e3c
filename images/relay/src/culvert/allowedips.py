# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Cryptokey routing (WireGuard paper section 2): which peer an inner address belongs to.

One dictionary per prefix length, tried from the longest to the shortest: the cost of a lookup depends on
how many *different lengths* there are (at most 33 and 129), not on how many peers or prefixes. Answers are
remembered, so that a flow costs one dictionary look-up a packet.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network
from typing import Generic, TypeVar

__all__ = ["AllowedIPs", "Network"]

Network = IPv4Network | IPv6Network
T = TypeVar("T")

# Answers remembered per family; forgotten all at once when there are more (addresses may be an attacker's
# choice).
_MAX_REMEMBERED = 4096


class _Family(Generic[T]):
    """The prefixes of one address family, ``bits`` wide."""

    __slots__ = ("_bits", "_lengths", "_order", "_remembered")

    def __init__(self, bits: int) -> None:
        self._bits = bits
        self._lengths: dict[int, dict[int, T]] = {}
        self._order: list[tuple[int, dict[int, T]]] = []
        self._remembered: dict[bytes, T | None] = {}

    def _changed(self) -> None:
        self._remembered.clear()
        self._order = [(self._bits - length, self._lengths[length]) for length in sorted(self._lengths)][::-1]

    def insert(self, prefix: int, length: int, owner: T) -> T | None:
        table = self._lengths.setdefault(length, {})
        key = prefix >> (self._bits - length)
        before = table.get(key)
        table[key] = owner
        self._changed()
        return before

    def remove(self, prefix: int, length: int) -> None:
        table = self._lengths[length]
        del table[prefix >> (self._bits - length)]
        if not table:
            del self._lengths[length]
        self._changed()

    def lookup(self, address: bytes) -> T | None:
        try:
            return self._remembered[address]
        except KeyError:
            pass
        number = int.from_bytes(address)
        found = None
        for shift, table in self._order:
            found = table.get(number >> shift)
            if found is not None:
                break
        if len(self._remembered) >= _MAX_REMEMBERED:
            self._remembered.clear()
        self._remembered[address] = found
        return found


class AllowedIPs(Generic[T]):
    """A map from prefixes to their owners; the owner of the longest matching prefix answers.

    A prefix has one owner: inserting it for another takes it away from the first, as WireGuard does.
    """

    __slots__ = ("_of", "_v4", "_v6")

    def __init__(self) -> None:
        self._v4: _Family[T] = _Family(32)
        self._v6: _Family[T] = _Family(128)
        self._of: dict[T, dict[Network, None]] = {}

    def _family(self, network: Network) -> _Family[T]:
        return self._v4 if network.version == 4 else self._v6

    def insert(self, network: Network, owner: T) -> None:
        before = self._family(network).insert(int(network.network_address), network.prefixlen, owner)
        if before is not None:
            del self._of[before][network]
        self._of.setdefault(owner, {})[network] = None

    def remove(self, network: Network, owner: T) -> None:
        """Take a prefix away from ``owner``; nothing happens when it is not the owner's."""
        prefixes = self._of.get(owner)
        if prefixes is not None and network in prefixes:
            self._family(network).remove(int(network.network_address), network.prefixlen)
            del prefixes[network]

    def remove_owner(self, owner: T) -> None:
        """Take away every prefix of ``owner``."""
        for network in self._of.pop(owner, {}):
            self._family(network).remove(int(network.network_address), network.prefixlen)

    def move(self, owner: T, heir: T) -> None:
        """Give every prefix of ``owner`` to ``heir``."""
        for network in self.of(owner):
            self.insert(network, heir)

    def of(self, owner: T) -> Iterator[Network]:
        """The prefixes of ``owner``, in the order they came."""
        return iter(tuple(self._of.get(owner, ())))

    def lookup(self, address: bytes) -> T | None:
        """The owner of a packed IPv4 (4 bytes) or IPv6 (16 bytes) address, or None."""
        return self._v4.lookup(address) if len(address) == 4 else self._v6.lookup(address)
