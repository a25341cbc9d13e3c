# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A state that does not fit is refused whole, whatever is wrong with it; no message holds a value."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

import pytest

from culvert.endpoint import Endpoint, EndpointName, Target
from culvert.testing import World
from relay_handover import document_of, relay_of, restored


def good() -> tuple[World, dict[str, Any]]:
    world = World()
    one, two = world.pair()
    world.connect(one, two)
    group = one.device.failover
    for peer in one.device.peers():
        group.join(peer, 1)
        peer.endpoints = (Endpoint("::1", 1, scheme="tcp"), EndpointName("example.org", 1, "tls"))
        peer.target, peer.frame_messages = Target((bytes(32),), "example.org"), True
    one.device.allow(group, ip_network("::/0"))
    group.reconfigured(world.now)
    relay = relay_of(world, one.device)
    relay.names.names = {bytes(32): EndpointName("example.org", 1)}
    relay._configured_endpoints = {
        bytes(32): (EndpointName("example.org", 1),),
        bytes([1]) * 32: (Endpoint("::1", 1), Endpoint("::1", 2, scheme="tls"), EndpointName("a", 3, "tcp")),
    }
    relay.names.resolve_at = {bytes(32): 1.0}
    return world, document_of(relay, world)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, found in inner:
        yield from places(found, (*path, key))


JUNK = (None, True, -1, 2**70, 0.5, 1e300, "", "zz", "é" * 64, "0" * 64, [], [[]], {}, {"x": 1})


def test_every_value_may_be_anything() -> None:
    """Either it makes a relay, or it is ValueError; no message holds a value."""
    world, document = good()
    secret = document["private_key"]
    messages: list[str] = []
    for path in places(document):
        for junk in JUNK:
            changed = copy.deepcopy(document)
            target = changed
            for key in path[:-1]:
                target = target[key]
            if path:
                target[path[-1]] = junk
            else:
                changed = junk
            try:
                relay = restored(world, json.dumps(changed).encode())
            except ValueError as error:
                messages.append(str(error))
                continue
            moment = relay.get_timer()
            if moment is not None:
                relay.device.handle_timer(max(moment, world.now))
            assert relay.get()
            relay.close()
    assert len(messages) > 500
    # What a version is said to need is no value.
    told = [message for message in messages if not message.startswith("the state needs ")]
    assert not [message for message in told if secret in message or "zz" in message]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": 2}, "format"),
        ({"needs": ["teleportation"]}, "teleportation"),
        ({"now_s": 1e9}, "clock"),
        ({"now_s": 1.0}, "clock"),
    ],
)
def test_versions_that_do_not_fit(change: dict[str, Any], reason: str) -> None:
    world, document = good()
    with pytest.raises(ValueError, match=reason):
        restored(world, json.dumps(document | change).encode())


def test_what_a_later_version_adds_is_passed_over() -> None:
    world, document = good()
    document["colour"] = document["peers"][0]["colour"] = document["relay"]["colour"] = "blue"
    assert restored(world, json.dumps(document).encode()).get()


@pytest.mark.parametrize(
    "data", [b"", b"[", b"null", b"\xff", b"[" * 100_000, b'{"format": 1e999}', b"1" * 5000]
)
def test_no_document(data: bytes) -> None:
    world = World()
    with pytest.raises(ValueError, match="the state"):
        restored(world, data)


def test_a_session_from_the_future_is_refused() -> None:
    """It would outlive its limit."""
    world, document = good()
    for name in ("created_s",):
        document["peers"][0]["keypairs"]["current"][name] = world.now + 100
        with pytest.raises(ValueError, match="still to come"):
            restored(world, json.dumps(document).encode())
