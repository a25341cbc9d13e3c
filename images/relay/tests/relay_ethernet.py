# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ethernet frames, and hosts that are switches, for the tests of layer 2."""

from __future__ import annotations

from culvert.testing import Host, World, udp_packet

__all__ = ["BROADCAST", "address", "frame", "meshed", "star"]

BROADCAST = b"\xff" * 6


def address(number: int) -> bytes:
    """Of a station."""
    return bytes((2, 0, 0, 0, number >> 8, number & 255))


def frame(source: int | bytes, target: int | bytes, payload: bytes = b"", vlan: int = 0) -> bytes:
    """A UDP packet between two stations, in a frame; ``target`` may be any address, too."""
    ends = [end if isinstance(end, bytes) else address(end) for end in (target, source)]
    tag = b"\x81\x00" + vlan.to_bytes(2) if vlan else b""
    return b"".join(ends) + tag + b"\x08\x00" + udp_packet("10.87.0.1", "10.87.0.2", payload)


def star(spokes: int) -> tuple[World, Host, list[Host]]:
    """A hub, and peers of it that know nobody else; all have sessions."""
    world = World(layer=2)
    hub = world.host()
    others = [world.host() for _ in range(spokes)]
    for other in others:
        world.introduce(hub, other)
    shake(world)
    return world, hub, others


def meshed(hosts: int) -> tuple[World, list[Host]]:
    """Hosts that are all each other's peers."""
    world = World(layer=2)
    found = [world.host() for _ in range(hosts)]
    for number, one in enumerate(found):
        for two in found[:number]:
            world.introduce(one, two)
    shake(world)
    return world, found


def shake(world: World) -> None:
    """Give everybody a session with all its peers."""
    for host in world.hosts:
        for peer in host.device.peers():
            if peer.keypairs.current is None:
                peer.initiate(world.now)
                world.settle()
    world.seen.clear()
