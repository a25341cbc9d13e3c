# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two engines and a hostile network, driven by hypothesis.

Invariants: no plaintext is accepted twice; what is accepted is what was sent, whole; nothing is sealed or
opened on a session past its limits; no counter is used twice with a key; only authentic packets move an
endpoint.
"""

from __future__ import annotations

import os
import struct
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from culvert.batch import Buffer, Chunk
from culvert.endpoint import Endpoint
from culvert.frame import PLAIN
from culvert.pure import PureBatch
from culvert.testing import Flight, Host, World

THIEF = Endpoint("203.0.113.66", 666)


class WatchedBatch(PureBatch):
    """Remembers every nonce that was used with every key."""

    def __init__(self, used: set[tuple[int, int]]) -> None:
        self._used = used
        self._keys: list[Any] = []

    def key(self, raw: bytes) -> Any:
        key = super().key(raw)
        # Kept for good, so that no two keys can have one id().
        self._keys.append(key)
        return key

    def seal(self, key: Any, receiver: int, counter: int, frames: Any, mtu_bytes: int) -> list[Chunk]:
        chunks = super().seal(key, receiver, counter, frames, mtu_bytes)
        for number in range(counter, counter + sum(-(-len(data) // size) for data, size in chunks)):
            assert (id(key), number) not in self._used, "a nonce was used twice"
            self._used.add((id(key), number))
        return chunks


class HostileNetwork(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        used: set[tuple[int, int]] = set()
        self.world = World(seed=3, batch=lambda: WatchedBatch(used))
        self.one, self.two = self.world.pair()
        self.flights: list[Flight] = []
        self.past: list[Flight] = []
        self.sent: dict[bytes, Host] = {}
        self.accepted: set[bytes] = set()
        self.number = 0
        self.honest = {self.one.endpoint, self.two.endpoint}

    def collect(self) -> None:
        new = self.world.collect()
        self.flights += new
        self.past += new
        del self.past[:-200]
        for host in (self.one, self.two):
            for packet in host.received:
                assert packet in self.sent, "a packet arrived that nobody sent, or not whole"
                assert self.sent[packet] is not host, "a packet came back to its sender"
                assert packet not in self.accepted, "a packet was accepted twice"
                self.accepted.add(packet)
            host.received.clear()

    @rule(back=st.booleans(), size=st.integers(0, 1300), count=st.integers(1, 5))
    def send(self, back: bool, size: int, count: int) -> None:
        host, other = (self.two, self.one) if back else (self.one, self.two)
        frames: list[Buffer] = []
        for _ in range(count):
            self.number += 1
            packet = host.packet(other, struct.pack(">I", self.number) + bytes(size))
            self.sent[packet] = host
            frames.append(PLAIN + packet)
        host.device.send_frames(frames, self.world.now)
        self.collect()

    @precondition(lambda self: self.flights)
    @rule(data=st.data(), copies=st.integers(0, 3))
    def deliver(self, data: st.DataObject, copies: int) -> None:
        """One datagram: lost, delivered or doubled, in any order."""
        place = data.draw(st.integers(0, len(self.flights) - 1))
        flight = self.flights.pop(place)
        self.world.deliver([flight] * copies)
        self.collect()

    @rule()
    def deliver_all(self) -> None:
        for _ in range(10):
            flights, self.flights = self.flights, []
            self.world.deliver(flights)
            self.collect()

    @precondition(lambda self: self.past)
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        """From its sender's address: a relayed datagram that was never accepted before is roaming, by
        design.
        """
        self.world.deliver([data.draw(st.sampled_from(self.past))])
        self.collect()

    @precondition(lambda self: self.past)
    @rule(data=st.data(), bit=st.integers(0, 7))
    def corrupt(self, data: st.DataObject, bit: int) -> None:
        flight = data.draw(st.sampled_from(self.past))
        end = len(flight.data) - (0 if flight.kind == 4 else 16)
        damaged = bytearray(flight.data)
        damaged[data.draw(st.integers(0, end - 1))] ^= 1 << bit
        self.world.deliver([Flight(THIEF, flight.target, bytes(damaged))])
        self.collect()

    @rule(junk=st.binary(max_size=200), kind=st.integers(0, 5))
    def inject(self, junk: bytes, kind: int) -> None:
        self.world.deliver([Flight(THIEF, self.one.endpoint, bytes([kind, 0, 0, 0]) + junk)])
        self.collect()

    @rule(seconds=st.sampled_from([0.01, 0.5, 5.1, 11, 60, 121, 181, 600]))
    def wait(self, seconds: float) -> None:
        end = self.world.now + seconds
        while True:
            moments = [host.device.get_timer() for host in (self.one, self.two)]
            due = min((moment for moment in moments if moment is not None), default=end)
            if due >= end:
                break
            self.world.now = max(due, self.world.now)
            for host in (self.one, self.two):
                host.device.handle_timer(self.world.now)
            self.collect()
        self.world.now = end

    @invariant()
    def thief_is_nobody(self) -> None:
        for host, other in ((self.one, self.two), (self.two, self.one)):
            assert host.peer(other).endpoint in self.honest

    @invariant()
    def tables_are_bounded(self) -> None:
        for host in (self.one, self.two):
            assert len(host.device._context.keypairs) <= 3
            assert len(host.device._context.handshakes) <= 1
            for keypair in host.device._context.keypairs.values():
                assert keypair.alive
                # Section 6.3: 540 s after the last session, when it was itself not yet dead.
                assert self.world.now - keypair.created_s < 180 + 3 * 180 + 1

    def teardown(self) -> None:
        """Whatever happened, on a network that behaves again the two find each other."""
        self.flights.clear()
        self.world.advance(30)
        self.one.received.clear()
        self.two.received.clear()
        final = self.one.packet(self.two, b"final")
        self.one.send(final)
        self.world.advance(20)
        assert final in self.two.received


HostileNetwork.TestCase.settings = settings(
    max_examples=int(os.environ.get("CULVERT_FUZZ_EXAMPLES", "200")), stateful_step_count=40
)
TestHostileNetwork = HostileNetwork.TestCase
