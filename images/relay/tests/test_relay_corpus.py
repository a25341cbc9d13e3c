# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fuzz targets, one for each parser, and a short run of them: the seeds in corpus/ and changes of those.

The long run is ``make fuzz`` (fuzz.py beside this file). A target takes any bytes at all; it raises only when
the relay did something that it must not do.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

import relay_fuzz_batch
import relay_fuzz_streams
from culvert import agree, certificate, config, ip
from culvert.about import read_about
from culvert.batch import Buffer, Received
from culvert.capture_filter import EVERYTHING, parse_filter
from culvert.constants import MAC_BYTES
from culvert.control import ControlClient
from culvert.cookie import MacStamper
from culvert.device import Device
from culvert.echo import Echo
from culvert.endpoint import Endpoint
from culvert.errors import ConfigError, CulvertError
from culvert.ethernet import inner_packet, read_heading
from culvert.frame import PLAIN
from culvert.frame_messages import plaintext_of
from culvert.handover_state import read_state, restore_state, write_state
from culvert.keys import Identity
from culvert.layer2 import Layer2, Layer2Settings
from culvert.messages import INITIATION_BYTES, RESPONSE_BYTES, TYPE_FRAME
from culvert.relay import Relay
from culvert.reload import difference
from culvert.responder import MAX_BODY_BYTES, BadRequest, parse_request, udp_reply
from culvert.testing import Host, World
from culvert.transport.memory import MemoryNetwork
from culvert.tun import MemoryTun
from culvert.usage import UsageBook
from culvert.website import MAX_REQUESTS, Visit

CORPUS = Path(__file__).parent / "corpus"
THIEF = Endpoint("203.0.113.66", 666)
MAX_PIECES = 64
CHANGES_OF_EACH_SEED = 60


def pieces(data: bytes) -> list[bytes]:
    """The input as a list: each piece is its length in two bytes (modulo 1500), and what follows."""
    found = []
    while len(data) > 2 and len(found) < MAX_PIECES:
        end = 2 + int.from_bytes(data[:2]) % 1500
        found.append(data[2:end])
        data = data[end:]
    return found


def joined() -> tuple[World, Host, Host]:
    world = World()
    one, two = world.pair()
    one.send(one.packet(two))
    world.settle()
    two.received.clear()
    return world, one, two


# --- The targets
# ---------------------------------------------------------------------------------------------


def datagrams(data: bytes) -> None:
    """A stranger's datagrams to an engine with a session: raw, or a real message of that session with a part
    written over, with its own first MAC or one that fits one of the two identities. All real ones have been
    delivered, so whatever is made of them, none may have an effect.
    """
    world, one, two = joined()
    real = [flight.data for flight in world.seen if flight.target == two.endpoint]
    second = Identity(bytes(range(32)))
    two.device.set_identities(two.device.identity, second)
    received = []
    for piece in pieces(data):
        choice = piece[0] if piece else 0
        if choice < 128:
            received.append(piece)
            continue
        message = bytearray(real[choice % len(real)])
        place, part = (piece[1] if len(piece) > 1 else 0), piece[2:]
        message[place : place + len(part)] = part
        if choice >= 192 and len(message) in (INITIATION_BYTES, RESPONSE_BYTES):
            # Whoever knows the public key can make the first MAC right.
            public = second.public if choice >= 224 else two.public_key
            message = bytearray(MacStamper(public).stamp(bytes(message[: -2 * MAC_BYTES]), world.now))
        received.append(bytes(message))
    two.device.receive_datagrams([Received(message, THIEF, 3) for message in received], world.now)
    assert world.collect() == [], "a stranger was answered"
    assert two.received == [], "a stranger's packet was taken"
    assert two.peer(one).endpoint == one.endpoint, "a stranger moved a peer"
    context = two.device._context
    assert (len(context.keypairs), len(context.handshakes)) == (1, 0)
    packet = one.packet(two, b"still here")
    one.send(packet)
    world.settle()
    assert two.received == [packet]


def from_peer(data: bytes) -> None:
    """Anything that a peer seals: what reaches the host is a packet, whole, and the peer's to send."""
    world, one, two = joined()
    packets = pieces(data)
    flights = [one.sealed(two, packet) for packet in packets]
    two.device.receive_datagrams([Received(flight.data, one.endpoint, 3) for flight in flights], world.now)
    world.collect()
    assert len(two.received) <= len(packets)
    for packet in two.received:
        assert ip.payload_length(packet) == len(packet)
        assert ip.source(packet) in (one.inner.packed, one.inner6.packed)


def from_host(data: bytes) -> None:
    """Anything that is read from the TUN device: it goes to its peer as it is, or to nobody."""
    world, one, two = joined()
    one.received.clear()
    packets = pieces(data)
    one.send(*packets)
    flights = world.collect()
    assert len(flights) + len(one.received) <= len(packets)
    for error in one.received:
        assert ip.payload_length(error) == len(error) <= 1280
    assert {flight.target for flight in flights} <= {two.endpoint}
    for packet in packets:
        if ip.payload_length(packet):
            ip.mark_congestion(packet)


def ethernet(data: bytes) -> None:
    """Anything that a peer of layer 2 seals, and that is read from the TAP device: what reaches either side
    is what was sent, once; nothing comes back to the peer, and the table of addresses stays small.
    """
    world = World(layer=2)
    hub, bad, other = world.host(), world.host(), world.host()
    for peer in (bad, other):
        world.introduce(hub, peer)
        peer.peer(hub).initiate(world.now)
        world.settle()
    switch = hub.device.layer2
    assert switch is not None
    switch.configure(Layer2Settings(mac_limit=8, storm_limit_per_s=20), world.now)
    frames = pieces(data)
    for number, frame in enumerate(frames):
        world.now += (number % 7) / 2
        if number % 3:
            text = plaintext_of(PLAIN + frame) or frame
            world.deliver([bad.sealed(hub, text, TYPE_FRAME)])
        else:
            hub.send(frame)
    world.settle()
    sent = Counter(frames)
    for host in (hub, bad, other):
        assert not Counter(host.received) - sent
    assert not set(bad.received) - set(frames[::3]), "a frame came back"
    state = switch.state(world.now)
    assert all(port.addresses <= 8 for port in state.ports if port.public_key)
    again = Layer2(hub.device._context, hub.device._peers)
    again.restore(switch.export(), world.now)
    assert again.export() == switch.export()
    for frame in frames:
        heading = read_heading(frame)
        assert heading is None or heading.source[0] & 1 == 0
        inner_packet(frame)
        switch.owner(frame, False)


def relay() -> Relay:
    world, network = World(), MemoryNetwork()
    return Relay(
        Device(world.wall_clock_ns, rng=world.rng),
        MemoryTun(),
        lambda port, mark: network.open("198.51.100.1", port),
        lambda: world.now,
    )


def check_endpoints(device: Device) -> None:
    """What the socket module raises for, and not as an OSError."""
    for peer in device.peers():
        if peer.endpoint is not None:
            assert 0 < peer.endpoint.port < 2**16
            assert 0 <= peer.endpoint.scope_id < 2**32


def _no_file(path: str, mode: str) -> io.BytesIO:
    """Key files are named by the input, and an input must not open files of this machine."""
    if "key" not in path:
        raise FileNotFoundError(2, "No such file or directory")
    return io.BytesIO(b"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n" + path.encode("utf-8", "replace"))


def parsed(text: str) -> config.Config | ConfigError:
    try:
        return config.parse_config(text, "/etc/culvert/fuzz.conf")
    except ConfigError as error:
        return error


def configuration(data: bytes) -> None:
    """A configuration file: refused with one line that says where, or loaded, and then it is no change."""
    text = data.decode("utf-8", "replace")
    with (
        mock.patch.object(config, "open", _no_file, create=True),
        mock.patch.object(certificate, "open", _no_file, create=True),
    ):
        wanted = parsed(text)
    if isinstance(wanted, ConfigError):
        assert "\n" not in str(wanted)
        return
    # An input must not write to files of this machine either, nor to its syslog.
    wanted = replace(wanted, usage_file=None, events=False, events_syslog=None)
    running = relay()
    try:
        running.load(wanted)
        check_endpoints(running.device)
        said = {peer.public_key: peer.endpoints for peer in wanted.peers}
        again = difference(running.device, running.listen_port, wanted, said)
        assert again.peers == ()
        assert not again.replace_failover_allowed_ips
        assert read_about(running.about() + "errno=0\n\n")["batch"]
    finally:
        running.close()


def requests(data: bytes) -> None:
    """What a client writes to the control socket: it is answered or hung up on."""
    running = relay()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        for sock in (ours, theirs):
            sock.setblocking(False)
        client = ControlClient(theirs, running)
        with contextlib.suppress(BlockingIOError):
            ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)
        answers = bytearray()
        for _ in range(10_000):
            alive = client.on_readable() if client.wants_to_read else client.on_writable()
            with contextlib.suppress(BlockingIOError):
                answers += ours.recv(1 << 20)
            if not alive:
                break
        else:
            raise AssertionError("the client is never done with")
        assert not answers or (b"errno=" in answers and answers.endswith(b"\n\n"))
    check_endpoints(running.device)
    assert running.get() == running.get()
    shown = read_about(running.about() + "errno=0\n\n")["failover"]
    if shown is not None:
        ranks = {member["public_key"]: member["priority"] for member in shown["members"]}
        assert (shown["active"] is None) == (not any(ranks.values()))
        assert shown["active"] is None or ranks[shown["active"]]
    moment = running.get_timer()
    if moment is not None:
        running.device.handle_timer(moment)
        running.pump()
    running.close()


def capture_filter(data: bytes) -> None:
    """A filter and packets to look at, after a zero byte: refused with one line, or it says yes or no."""
    text, _, packets = data.partition(b"\0")
    complaint, made = "", EVERYTHING
    try:
        made = parse_filter(text.decode("utf-8", "replace"))
    except ValueError as error:
        complaint = str(error)
    assert "\n" not in complaint
    assert parse_filter(made.text).text == made.text
    for number, packet in enumerate(pieces(packets)):
        assert made.matches(packet, number % 2 == 0, lambda address: address.ljust(32)) in (True, False)


def echo_replies(data: bytes) -> None:
    """What a server sends while an echo request is under way: all of it goes on but the reply."""
    for source, target in ((bytes([10, 0, 0, 9]), bytes([10, 0, 0, 1])), (bytes(16), b"\1" * 16)):
        replies: list[bool] = []
        echo = Echo(source, target, 7, 1, lambda found=replies: found.append(True))
        frames: list[Buffer] = [PLAIN + piece for piece in pieces(data)]
        kept = echo.without_reply(frames)
        assert bool(replies) == (len(kept) < len(frames))
        for frame in frames:
            if frame not in kept:
                packet = bytes(frame[len(PLAIN) :])
                assert len(packet) == len(echo.request)
                assert ip.source(packet) == target


def responder_requests(data: bytes) -> None:
    """What a caller sends to ``culvert respond``, as a head and as a datagram: refused, or within bounds."""
    with contextlib.suppress(BadRequest):
        request = parse_request(data)
        for length in (request.send_bytes, request.receive_bytes):
            assert length is None or 0 <= length <= MAX_BODY_BYTES
    reply = udp_reply(data)
    if reply is not None:
        assert len(reply) == int.from_bytes(data[16:18])
        assert udp_reply(reply) is None, "two responders would answer each other for ever"


def website(data: bytes) -> None:
    """What a visitor of the TLS port says: the answers are the same in whichever pieces it comes."""
    once = Visit(lambda: 0.0)
    whole = once.receive(data)
    assert len(whole) <= 1000 * MAX_REQUESTS
    visit, answers = Visit(lambda: 0.0), b""
    for start in range(0, len(data), 7):
        answers += visit.receive(data[start : start + 7])
        if visit.done:
            break
    assert (answers, visit.done) == (whole, once.done)


def certificates(data: bytes) -> None:
    """What a server shows as its certificate: it has the pin or not, and that is all that comes of it."""
    assert not certificate.is_pinned(data, (bytes(32),))
    assert not certificate.is_pinned(data, ())


def agreements(data: bytes) -> None:
    """Whatever is taken is written in one way, and its id is of what it says."""
    with contextlib.suppress(CulvertError):
        for made in agree.parse_request(data).derive:
            again = json.dumps({"v": 1, "derive": [made.as_dict()]}).encode()
            assert agree.parse_request(again).derive == (made,)


def usage_file(data: bytes) -> None:
    """What the file of used quotas holds: what makes sense is taken, written, and read again as it is."""
    book, again = UsageBook(), UsageBook()
    book.read(data.decode("utf-8", "replace"))
    again.read(book.format())
    assert again.format() == book.format()
    kept = len(book)
    book.forget_before(int.from_bytes(data[:6]))
    assert len(book) <= kept


def handover(data: bytes) -> None:
    """A state that another process says it has: refused, or a relay that works and can be handed on."""
    running = relay()
    now = World().now
    try:
        restore_state(running, read_state(data, now), now)
    except ValueError:
        running.close()
        return
    assert running.get() == running.get()
    assert read_about(running.about() + "errno=0\n\n")["batch"]
    state = write_state(running, "fuzz", now)
    again = relay()
    restore_state(again, read_state(state, now), now)
    # Of a prefix that two have, one keeps it; so what was read may be less than what was written.
    assert write_state(again, "fuzz", now) == state
    moment = running.get_timer()
    if moment is not None:
        running.device.handle_timer(max(moment, now))
        running.pump()
    for one in (running, again):
        one.close()


TARGETS: dict[str, Callable[[bytes], None]] = {
    "datagrams": datagrams,
    "from_peer": from_peer,
    "from_host": from_host,
    "ethernet": ethernet,
    "configuration": configuration,
    "requests": requests,
    "capture_filter": capture_filter,
    "echo_replies": echo_replies,
    "usage_file": usage_file,
    "responder_requests": responder_requests,
    "seal": lambda data: relay_fuzz_batch.seal(pieces(data)),
    "website": website,
    "certificates": certificates,
    "agreements": agreements,
    "handover": handover,
    "open": lambda data: relay_fuzz_batch.open_(pieces(data)),
    "streams": relay_fuzz_streams.streams,
    "frames": lambda data: relay_fuzz_batch.frames(pieces(data)),
}


# --- The short run
# -------------------------------------------------------------------------------------------


def seeds(target: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]


INTERESTING = (
    b"\0",
    b"\x7f",
    b"\x80",
    b"\xff",
    b"\xff" * 2,
    b"\xff" * 8,
    b"\n",
    b"\n\n",
    b"=",
    b"0" * 8,
    b"%1",
)


def changes(target: str, rng: random.Random) -> Iterator[bytes]:
    """Without end: seeds that were cut, doubled, joined, and written over."""
    corpus = seeds(target)
    while True:
        data = bytearray(rng.choice(corpus))
        for _ in range(rng.randint(1, 6)):
            start = rng.randint(0, len(data))
            end = min(len(data), start + rng.choice((0, 1, 1, 2, 4, 16, 64)))
            other = rng.choice(corpus)
            place = rng.randint(0, len(other))
            data[start:end] = rng.choice(
                (
                    b"",
                    bytes(data[start:end]) * 2,
                    other[place : place + rng.randint(0, 64)],
                    rng.choice(INTERESTING),
                    rng.randbytes(max(1, end - start)),
                )
            )
        yield bytes(data[:8192])


@pytest.mark.parametrize("target", TARGETS)
def test_seeds_and_changes_of_them(target: str) -> None:
    corpus = seeds(target)
    assert corpus
    rng = random.Random(target)
    for data in corpus:
        TARGETS[target](data)
    for data, _ in zip(changes(target, rng), range(CHANGES_OF_EACH_SEED * len(corpus)), strict=False):
        TARGETS[target](data)


def test_every_directory_of_the_corpus_has_its_target() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
