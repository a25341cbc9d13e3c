# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keys that are replaced step by step, called off and begun again, on a hostile network. By hypothesis.

Invariants: no plaintext is accepted twice, or that nobody sent; no nonce is used twice; whoever carries is
there, and every prefix has one owner; what a successor has is told of. In the end, whatever happened, the
rotation is carried through and packets pass.
"""

from __future__ import annotations

import os
import struct

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from culvert.errors import RequestError
from culvert.testing import Flight, Host, World
from relay_rotation import NOBODY, Rotation, Side, request
from test_relay_state_machine import WatchedBatch


class Rotations(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        used: set[tuple[int, int]] = set()
        self.world = World(seed=5, batch=lambda: WatchedBatch(used))
        self.rotation = Rotation(self.world)
        self.sides = [self.rotation.client, self.rotation.server]
        self.flights: list[Flight] = []
        self.past: list[Flight] = []
        self.sent: dict[bytes, Host] = {}
        self.accepted: set[bytes] = set()
        self.number = 0

    def collect(self) -> None:
        new = self.world.collect()
        self.flights += new
        self.past += new
        del self.past[:-200]
        for side in self.sides:
            for packet in side.host.received:
                if packet[9] == 1:
                    # Our own ICMP error: nobody to send it to.
                    continue
                assert self.sent.get(packet) not in (None, side.host), "nobody sent that"
                assert packet not in self.accepted, "a packet was accepted twice"
                self.accepted.add(packet)
            side.host.received.clear()

    def has(self, side: Side, public_key: bytes) -> bool:
        return side.host.device.peer(public_key) is not None

    def other(self, side: Side) -> Side:
        return self.sides[1 - self.sides.index(side)]

    # --- The operator ---------------------------------------------------------------------------------------

    @rule(which=st.integers(0, 1))
    def begin(self, which: int) -> None:
        side = self.sides[which]
        if self.has(side, self.other(side).old_key):
            self.rotation.begin(side)
        self.collect()

    @rule(which=st.integers(0, 1))
    def call_off(self, which: int) -> None:
        side = self.sides[which]
        new = self.other(side).next.public
        if side.host.device.alternate is not None and self.has(side, new):
            request(side.host, f"alternate_private_key={NOBODY}", f"public_key={new.hex()}", "remove=true")
            assert side.host.device.alternate is None
            assert side.found(self.other(side).old_key).kin is None
        self.collect()

    @rule(which=st.integers(0, 1))
    def too_early(self, which: int) -> None:
        """A promotion that would leave the predecessor behind is refused."""
        side = self.sides[which]
        if side.host.device.alternate is not None:
            before = list(side.host.device.peers())
            try:
                request(side.host, f"private_key={side.next.private_bytes().hex()}")
            except RequestError:
                assert side.host.device.alternate is not None
                assert list(side.host.device.peers()) == before
            else:
                raise AssertionError("done")

    @rule(which=st.integers(0, 1))
    def unlink(self, which: int) -> None:
        side = self.sides[which]
        new = self.other(side).next.public
        if self.has(side, new):
            request(side.host, f"public_key={new.hex()}", f"succeeds={NOBODY}")
        self.collect()

    # --- The network ----------------------------------------------------------------------------------------

    @rule(which=st.integers(0, 1), size=st.integers(0, 100))
    def send(self, which: int, size: int) -> None:
        side = self.sides[which]
        self.number += 1
        packet = side.host.packet(self.other(side).host, struct.pack(">I", self.number) + bytes(size))
        self.sent[packet] = side.host
        side.host.send(packet)
        self.collect()

    @precondition(lambda self: self.flights)
    @rule(data=st.data(), copies=st.integers(0, 2))
    def deliver(self, data: st.DataObject, copies: int) -> None:
        flight = self.flights.pop(data.draw(st.integers(0, len(self.flights) - 1)))
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
        self.world.deliver([data.draw(st.sampled_from(self.past))])
        self.collect()

    @rule(seconds=st.sampled_from([0.01, 0.5, 5.1, 11, 60, 121, 181, 600]))
    def wait(self, seconds: float) -> None:
        end = self.world.now + seconds
        while True:
            moments = [side.host.device.get_timer() for side in self.sides]
            due = min((moment for moment in moments if moment is not None), default=end)
            if due >= end:
                break
            self.world.now = max(due, self.world.now)
            for side in self.sides:
                side.host.device.handle_timer(self.world.now)
            self.collect()
        self.world.now = end

    # --- What holds -----------------------------------------------------------------------------------------

    @invariant()
    def whoever_carries_is_there(self) -> None:
        for side in self.sides:
            device = side.host.device
            peers = set(device.peers())
            heirs = [successor for successor, _, _ in device.succession.states()]
            for peer in peers:
                assert peer.active in peers
                assert peer.active is peer or peer.active in heirs
                if peer.kin is not None:
                    assert not peer.kin.is_nothing
                    assert {peer.kin.predecessor, peer.kin.successor} - {None} <= peers
                    assert peer.identity in (device.identity, device.alternate)
            shown = [network for peer in peers for network in device.reached_through(peer)]
            assert len(shown) == len(set(shown)) == 2, "every prefix goes to one of them"

    @invariant()
    def tables_are_bounded(self) -> None:
        for side in self.sides:
            context = side.host.device._context
            assert len(context.keypairs) <= 6
            assert len(context.handshakes) <= 2
            assert all(keypair.owner.alive for keypair in context.keypairs.values())

    def teardown(self) -> None:
        """On a network that behaves again, the rotation is carried through."""
        self.flights.clear()
        for side in reversed(self.sides):
            self.rotation.begin(side)
        self.world.advance(100)
        for side in self.sides:
            side.host.received.clear()
            side.host.send(side.host.packet(self.other(side).host, b"wake up"))
        self.world.advance(100)
        assert self.rotation.moved()
        for side in self.sides:
            self.rotation.finish(side)
            side.host.received.clear()
        for side in self.sides:
            final = side.host.packet(self.other(side).host, b"final")
            side.host.send(final)
            self.world.advance(20)
            assert final in self.other(side).host.received
            assert len(list(side.host.device.peers())) == 1


Rotations.TestCase.settings = settings(
    max_examples=int(os.environ.get("CULVERT_FUZZ_EXAMPLES", "100")), stateful_step_count=40
)
TestRotations = Rotations.TestCase
