# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of handovers share: hosts of a world that go on in another process, as it were."""

from __future__ import annotations

import json
from typing import Any

from culvert.batch import Batch
from culvert.device import Device
from culvert.endpoint import Endpoint
from culvert.handover_state import read_state, restore_state, write_state
from culvert.pure import PureBatch
from culvert.relay import Relay
from culvert.testing import Flight, Host, World
from culvert.transport.memory import MemoryNetwork
from culvert.tun import MemoryTun

__all__ = ["DATA", "INITIATION", "Recorder", "document_of", "hand_over", "nonces", "relay_of", "restored"]

INITIATION, DATA = 1, 4


def relay_of(world: World, device: Device) -> Relay:
    network = MemoryNetwork()
    return Relay(
        device, MemoryTun(), lambda port, mark: network.open("198.51.100.1", port), lambda: world.now
    )


def document_of(relay: Relay, world: World) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(write_state(relay, "test", world.now))
    return found


def restored(world: World, state: bytes, batch: Batch | None = None) -> Relay:
    """A new relay with that state. :raises ValueError: it cannot be."""
    relay = relay_of(world, Device(world.wall_clock_ns, rng=world.rng, batch=batch or PureBatch()))
    try:
        restore_state(relay, read_state(state, world.now), world.now)
    except ValueError:
        relay.close()
        raise
    return relay


def hand_over(world: World, host: Host, batch: Batch | None = None) -> Relay:
    """Let ``host`` go on with another engine; the one before is closed."""
    relay = restored(world, write_state(relay_of(world, host.device), "test", world.now), batch)
    assert relay.device.datagrams_to_send() == [], "restoring sends nothing"
    assert relay.device.frames_to_write() == []
    host.device.close()
    host.device = relay.device
    return relay


def nonces(flights: list[Flight]) -> list[bytes]:
    """Receiver and counter of every data message."""
    return [flight.data[4:16] for flight in flights if flight.kind == DATA]


class Recorder:
    """A transport that keeps what is sent."""

    port = 1

    def __init__(self, sent: list[Any]) -> None:
        self._sent = sent

    def send(self, runs: Any) -> list[Any]:
        self._sent += runs
        return []

    def get_timer(self) -> float | None:
        return None

    def handle_timer(self, now: float) -> None: ...

    def trust(self, endpoint: Endpoint, before: Endpoint | None) -> None: ...

    def set_targets(self, targets: Any) -> None: ...

    def lost(self) -> list[Any]:
        return []
