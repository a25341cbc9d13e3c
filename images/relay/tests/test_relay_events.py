# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Events: each one provoked and held to the documented schema; what they never hold; how many there are."""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from culvert import events, run
from culvert.batch import Received
from culvert.context import Event, EventKind
from culvert.control import answer
from culvert.cookie import MacStamper
from culvert.device import Device
from culvert.endpoint import Endpoint
from culvert.event_sinks import MAX_WAITING, StreamSink, SyslogSink
from culvert.events import EventLog
from culvert.keys import Identity, diffie_hellman, encode_base64
from culvert.messages import Initiation
from culvert.noise import InitiatorHandshake
from culvert.records import Records
from culvert.rejections import Reason
from culvert.relay import Relay
from culvert.run import RunOptions
from culvert.testing import Host, World, udp_packet
from culvert.transport.memory import MemoryNetwork
from culvert.tun import MemoryTun
from relay_fleet import Fleet

DOCS = Path(__file__).parents[3] / "docs"
SCHEMA: dict[str, Any] = json.loads((DOCS / "events.schema.json").read_text())
VALIDATOR = Draft202012Validator(SCHEMA)
BRANCHES = {branch["properties"]["event"]["const"]: branch for branch in SCHEMA["oneOf"]}
PRIVATE, PRESHARED = bytes([7] * 32), bytes([9] * 32)
STRANGER = Endpoint("203.0.113.66", 666)


class Output:
    """What was written to a pipe that stands for standard output: events, each one valid."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        real = StreamSink
        monkeypatch.setattr("culvert.events.StreamSink", lambda fd: real(self.writer))
        self.raw = ""

    def lines(self) -> list[str]:
        data = b""
        while True:
            try:
                part = os.read(self.reader, 1 << 20)
            except BlockingIOError:
                break
            data += part
        self.raw += data.decode("ascii")
        assert not data or data.endswith(b"\n")
        return data.decode("ascii").splitlines()

    def events(self) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.lines()]
        for event in found:
            VALIDATOR.validate(event)
        return found

    def of(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events() if event["event"] == name]


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> Iterator[Output]:
    made = Output(monkeypatch)
    yield made
    os.close(made.reader)
    os.close(made.writer)


class Watch:
    """The records of a host in a world, with events on."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.records = Records(host.device, "cvt0", lambda: host.world.now)
        self.records.events.configure(True, None)
        host.events.clear()

    def pump(self) -> None:
        for event in self.host.events:
            self.records.note(event, self.host.world.now)
        self.host.events.clear()

    def wait(self, seconds: float) -> None:
        """In small steps, for in a world events are fetched only afterwards."""
        for _ in range(int(seconds * 4)):
            self.host.world.advance(0.25)
            self.pump()


# --- What the engine tells ----------------------------------------------------------------------------------


def test_a_session_and_a_peer_that_moves(world: World, output: Output) -> None:
    server, device = world.pair()
    watch = Watch(server)
    watch.records.events.names = {device.public_key: "Anna's phone"}
    world.connect(device, server)
    watch.pump()
    (event,) = output.events()
    assert event == {
        "v": 1,
        "time": "2026-09-21T14:13:20.000Z",
        "event": "handshake",
        "interface": "cvt0",
        "peer": encode_base64(device.public_key),
        "peer_name": "Anna's phone",
        "endpoint": str(device.endpoint),
    }
    device.send(device.packet(server))
    world.deliver([replace(flight, sender=STRANGER) for flight in world.collect()])
    watch.pump()
    assert [event["endpoint"] for event in output.of("roamed")] == [str(STRANGER)]


def test_limits(world: World, output: Output) -> None:
    server, device = world.pair()
    world.connect(device, server)
    watch, warden = Watch(server), server.device.warden
    peer = server.peer(device)
    warden.set(peer, replace(warden.limits(peer), quota_bytes=2000), world.now)
    for _ in range(3):
        device.send(device.packet(server, bytes(1000)))
    world.settle()
    watch.pump()
    warden.set(peer, replace(warden.limits(peer), quota_bytes=5000), world.now)
    warden.set(peer, replace(warden.limits(peer), expires_at_s=1_700_000_000), world.now)
    watch.wait(1)
    exceeded, back, expired = output.events()
    assert (exceeded["event"], back["event"], expired["event"]) == ("quota_exceeded", "readmitted", "expired")
    assert (exceeded["quota_bytes"], exceeded["quota_period"]) == (2000, "month")
    assert exceeded["quota_used_bytes"] >= 2000
    assert expired["expires_at"] == "2023-11-14T22:13:20Z"


def initiation(host: Host, private: bytes, preshared: bytes = bytes(32)) -> bytes:
    """Of somebody with that key."""
    identity = Identity(private)
    shared = diffie_hellman(identity.private, host.public_key)
    handshake = InitiatorHandshake(identity, host.public_key, shared, (2**62).to_bytes(8) + bytes(4))
    return MacStamper(host.public_key).stamp(Initiation(1, *handshake.message).pack(), host.world.now)


def test_whoever_is_refused_is_told_of_with_a_count(world: World, output: Output) -> None:
    server, device = world.pair()
    world.connect(device, server)
    watch = Watch(server)
    knocking = initiation(server, PRIVATE)
    for _ in range(3):
        server.device.receive_datagrams([Received(knocking, STRANGER)], world.now)
        server.device.receive_datagrams([Received(knocking[:-32] + bytes(32), STRANGER)], world.now)
    device.device.send_frames([bytes(10) + udp_packet("10.9.9.9", server.inner, b"x")], world.now)
    world.settle()
    server.device.send_frames([bytes(10) + udp_packet(server.inner, "10.77.0.1", b"nowhere")], world.now)
    watch.pump()
    assert output.events() == [], "they are collected first"
    watch.wait(1.5)
    found = {event["reason"]: event for event in output.of("refused")}
    assert set(found) == {"unknown_peer", "mac1", "source"}, (
        "what goes nowhere by the host's own doing is no event"
    )
    assert found["unknown_peer"]["claimed_key"] == encode_base64(Identity(PRIVATE).public)
    assert {found[reason]["count"] for reason in ("unknown_peer", "mac1")} == {3}
    assert found["mac1"]["endpoint"] == "203.0.113.66:666"
    assert (found["source"]["address"], found["source"]["peer"]) == (
        "10.9.9.9",
        encode_base64(device.public_key),
    )
    server.device.receive_datagrams([Received(knocking, STRANGER)] * 5, world.now)
    watch.pump()
    watch.wait(2)
    assert output.events() == [], "not again within ten seconds"
    watch.wait(9)
    (event,) = output.of("refused")
    assert (event["reason"], event["count"]) == ("unknown_peer", 5)


@pytest.mark.parametrize(
    "reason", [Reason.EXPIRED, Reason.QUOTA, Reason.STALE_TIMESTAMP, Reason.BAD_RESPONSE]
)
def test_every_reason_that_is_told_is_in_the_schema(world: World, output: Output, reason: Reason) -> None:
    server, device = world.pair()
    watch = Watch(server)
    server.device._context.rejections.note(
        reason, b"x", world.now, endpoint=Endpoint("fe80::1", 9, 3), public_key=device.public_key
    )
    watch.wait(1.5)
    (event,) = output.of("refused")
    assert (event["reason"], event["peer"]) == (reason.value, encode_base64(device.public_key))


def test_failover(output: Output) -> None:
    fleet = Fleet(1, 2)
    fleet.talk(2.0)
    watch = Watch(fleet.client)
    first, second = (encode_base64(server.public_key) for server in fleet.servers)
    fleet.down.add(fleet.servers[0])
    fleet.talk(6.0)
    watch.pump()
    (moved,) = output.of("failover_moved")
    assert (moved["peer"], moved["previous"], moved["reason"]) == (second, first, "silent")
    assert 2.0 < moved["silent_s"] < 4.0
    fleet.down.clear()
    fleet.talk(120.0, 1.0)
    watch.pump()
    (moved,) = output.of("failover_moved")
    assert (moved["peer"], moved["previous"], moved["reason"]) == (first, second, "returned")
    fleet.down.update(fleet.servers)
    fleet.talk(10.0)
    watch.pump()
    (event,) = output.of("failover_all_silent")
    assert event["peer"] == first


def test_what_is_not_an_event_and_what_is_not_known(world: World, output: Output) -> None:
    watch = Watch(world.host())
    for kind in (EventKind.HANDSHAKE_RETRIED, EventKind.HANDSHAKE_GAVE_UP, EventKind.KEYS_ZEROED):
        watch.records.note(Event(kind, bytes(32)), world.now)
    assert output.events() == []
    for kind in (EventKind.SUCCEEDED, EventKind.TOOK_BACK):
        watch.records.note(Event(kind, bytes(32), other=bytes(32)), world.now)
    assert [event["event"] for event in output.events()] == ["peer_succeeded", "peer_took_back"]


# --- What the relay tells -----------------------------------------------------------------------------------


@pytest.fixture
def relay(world: World, output: Output, tmp_path: Path) -> Relay:
    network = MemoryNetwork()
    made = Relay(
        Device(world.wall_clock_ns, rng=world.rng),
        MemoryTun(),
        lambda port, mark: network.open("198.51.100.1", port),
        lambda: world.now,
    )
    (tmp_path / "conf").write_text(config())
    made.load(run._load(str(tmp_path / "conf")))
    return made


def config(*peers: str, events: str = "Events = on") -> str:
    return "\n".join([f"[Interface]\nPrivateKey = {encode_base64(PRIVATE)}\n{events}", *peers, ""])


def section(number: int, *lines: str) -> str:
    return "\n".join(["[Peer]", f"# host {number}", f"PublicKey = {encode_base64(key_of(number))}", *lines])


def key_of(number: int) -> bytes:
    return Identity(bytes([number] * 32)).public


def reload(relay: Relay, tmp_path: Path, text: str) -> None:
    (tmp_path / "conf").write_text(text)
    run._reload(relay, str(tmp_path / "conf"), RunOptions("cvt0"), "auto")


def test_reloads_and_what_they_change(relay: Relay, output: Output, tmp_path: Path) -> None:
    secret = f"PresharedKey = {encode_base64(PRESHARED)}"
    one, two = (
        section(1, "AllowedIPs = 10.86.0.1/32, fd86::1/128", secret),
        section(2, "Endpoint = 198.51.100.9:7"),
    )
    reload(relay, tmp_path, config(one, two))
    added, another, reloaded = output.events()
    assert (added["event"], added["peer_name"]) == ("peer_added", "host 1")
    assert (added["peer"], another["peer"]) == (encode_base64(key_of(1)), encode_base64(key_of(2)))
    assert added["allowed_ips"] == ["10.86.0.1/32", "fd86::1/128"]
    assert (reloaded["event"], reloaded["peers"]) == ("config_reloaded", 2)

    one = section(1, "AllowedIPs = 10.86.0.1/32", "ExpiresAt = 2030-01-01T00:00:00Z", "Failover = 1")
    reload(relay, tmp_path, config(one))
    removed, changed, *_ = [event for event in output.events() if event["event"].startswith("peer_")]
    assert (removed["event"], removed["peer_name"]) == ("peer_removed", "host 2")
    assert (changed["event"], changed["changed"]) == (
        "peer_changed",
        ["allowed_ips", "preshared_key", "failover", "limits"],
    )
    reload(relay, tmp_path, config(one))
    assert [event["event"] for event in output.events()] == ["config_reloaded"]
    reload(relay, tmp_path, config(one, "ListenPort = many"))
    (refused,) = output.events()
    assert (refused["event"], refused["error"]) == (
        "config_refused",
        f"{tmp_path}/conf:10: ListenPort does not belong in [Peer]",
    )
    for key in (PRIVATE, PRESHARED):
        for text in (key.hex(), encode_base64(key), encode_base64(key).rstrip("="), repr(key)):
            assert text not in output.raw


def test_requests_on_the_control_socket(relay: Relay, output: Output) -> None:
    assert (
        answer(f"set=1\npublic_key={key_of(1).hex()}\nallowed_ip=10.0.0.0/8".encode(), relay)
        == b"errno=0\n\n"
    )
    (event,) = output.events()
    assert (event["event"], event["allowed_ips"], "peer_name" in event) == (
        "peer_added",
        ["10.0.0.0/8"],
        False,
    )
    lines = ["endpoint=198.51.100.1:1", "persistent_keepalive_interval=9", "allowed_ip=10.0.0.0/8"]
    answer("\n".join(["set=1", f"public_key={key_of(1).hex()}", *lines]).encode(), relay)
    assert [event["changed"] for event in output.of("peer_changed")] == [["endpoint", "persistent_keepalive"]]
    answer(f"set=1\nreplace_peers=true\npublic_key={key_of(1).hex()}\nrate_limit_bps=9000".encode(), relay)
    (event,) = output.events()
    assert event["changed"] == ["allowed_ips", "endpoint", "persistent_keepalive", "limits"]
    answer(f"set=1\nprivate_key={PRESHARED.hex()}".encode(), relay)
    (event,) = output.events()
    assert event["event"] == "key_rotated"
    assert (event["previous"], event["public_key"]) == tuple(
        encode_base64(Identity(key).public) for key in (PRIVATE, PRESHARED)
    )
    assert PRESHARED.hex() not in output.raw
    answer(b"set=1\nlisten_port=banana", relay)
    answer(b"get=1", relay)
    answer(b"culvert=1", relay)
    assert output.events() == []


def test_what_run_tells(relay: Relay, output: Output) -> None:
    relay.records.emit("relay_started", run._started(relay))
    relay.records.emit("taken_over", {"peers": 3, "sessions": 2, "silent_ms": 1.25})
    assert [event["event"] for event in output.events()] == ["relay_started", "taken_over"]


def test_without_events_nothing_is_spent(world: World, output: Output, tmp_path: Path) -> None:
    host, other = world.pair()
    records = Records(host.device, "cvt0", lambda: world.now)
    world.connect(host, other)
    for event in host.events:
        records.note(event, world.now)
    records.note(Event(EventKind.REFUSED, b""), world.now)
    assert records.events.get_timer() is None
    assert output.lines() == []


def test_switched_on_by_a_reload_it_does_not_tell_the_past(
    relay: Relay, output: Output, tmp_path: Path
) -> None:
    reload(relay, tmp_path, config(events="Events = off"))
    output.events()
    relay.device._context.rejections.note(Reason.MAC1, b"x", 0.0)
    relay.pump()
    reload(relay, tmp_path, config())
    relay.device._context.rejections.note(Reason.MAC1, b"y", 0.0)
    relay.pump()
    relay.device.handle_timer(relay._clock() + 2)
    assert [(event["event"], event.get("count")) for event in output.events()] == [
        ("config_reloaded", None),
        ("refused", 1),
    ]


# --- The schema ---------------------------------------------------------------------------------------------


def test_the_schema_is_one_and_is_strict() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    good = {
        "v": 1,
        "time": "2026-11-23T10:04:11.204Z",
        "event": "readmitted",
        "interface": "c",
        "peer": encode_base64(key_of(1)),
    }
    VALIDATOR.validate(good)
    for bad in (
        {"event": "surprise"},
        {"secret": 1},
        {"v": 2},
        {"peer": "me"},
        {"count": 1},
        {"time": "now"},
    ):
        assert not VALIDATOR.is_valid({**good, **bad}), bad


def test_the_guide_has_the_same_events_and_fields() -> None:
    text = (DOCS / "events.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", text, re.M)
    told = {name: set(re.findall(r"`(\w+)`", fields)) for name, fields in rows if name in BRANCHES}
    for name, branch in BRANCHES.items():
        ours = set(branch["properties"]) - {"event"} | set(branch.get("required", ()))
        values = {value for part in branch["properties"].values() for value in _values(part)}
        ours |= {"peer"} if "peer" in told[name] else set()
        assert told[name] - values == ours, name
    assert set(told) == set(BRANCHES)
    reasons = set(BRANCHES["refused"]["properties"]["reason"]["enum"])
    assert reasons <= set(re.findall(r"`(\w+)`", text))


def _values(part: dict[str, Any]) -> set[str]:
    return set(part.get("enum", ())) | set(part.get("items", {}).get("enum", ()))


def test_the_schema_has_every_event_that_the_source_tells_of() -> None:
    told = {name for name, _ in events._ENGINE.values()}
    for path in Path(events.__file__).parent.glob("*.py"):
        told |= set(re.findall(r"emit\(\s*\"(\w+)\"", path.read_text()))
    told |= set(re.findall(r"_budgeted\(\"\w+\", \"(\w+)\"", Path(events.__file__).read_text()))
    assert told == set(BRANCHES)


# --- Not too many, and never waiting ------------------------------------------------------------------------


def test_a_flood_is_counted_and_not_written(world: World, output: Output) -> None:
    server, _ = world.pair()
    watch = Watch(server)
    lines = 0
    for number in range(600):
        for key in range(20):
            server.device._context.rejections.note(
                Reason.UNKNOWN_PEER, bytes([key, number % 256]), world.now, public_key=bytes([key] * 32)
            )
        watch.wait(1)
        lines += len(output.events())
    assert 60 <= lines <= 60 + 600
    flood = [Event(EventKind.HANDSHAKE_COMPLETED, bytes(32), endpoint=STRANGER)] * 100
    before, lines = world.now, 0
    for _ in range(100):
        for event in flood:
            watch.records.note(event, world.now)
        lines += len(output.events())
        world.now += 0.5
    assert lines <= 1000 + 10 * (world.now - before) + 1
    watch.records.emit("config_reloaded", {"peers": 1})
    (event,) = output.events()
    assert event["left_out"] > 0
    watch.records.emit("config_reloaded", {"peers": 1})
    assert "left_out" not in output.events()[0]


def test_a_reader_that_does_not_read_is_not_waited_for(world: World, output: Output) -> None:
    fcntl.fcntl(output.writer, fcntl.F_SETPIPE_SZ, 8192)
    log = EventLog("cvt0", world.wall_clock_ns, world.now)
    log.configure(True, None)
    for number in range(MAX_WAITING + 500):
        log.emit("config_reloaded", world.now, {"peers": number})
    assert log.get_timer() is not None
    host = world.host()
    numbers: list[int] = []
    left_out = 0
    while log.get_timer() is not None:
        for event in output.events():
            numbers.append(event["peers"])
            left_out += event.get("left_out", 0)
        world.now += 1
        log.handle_timer(host.device, world.now)
    for event in output.events():
        numbers.append(event["peers"])
        left_out += event.get("left_out", 0)
    assert numbers == sorted(numbers)
    assert numbers[-1] == MAX_WAITING + 499
    assert MAX_WAITING <= len(numbers) < MAX_WAITING + 100
    assert 0 < left_out <= MAX_WAITING + 500 - len(numbers)


def test_a_reader_that_is_gone(world: World, output: Output, caplog: pytest.LogCaptureFixture) -> None:
    log = EventLog("cvt0", world.wall_clock_ns, world.now)
    log.configure(True, None)
    os.close(output.reader)
    for _ in range(3):
        log.emit("config_reloaded", world.now, {"peers": 1})
    assert [record.message for record in caplog.records] == [
        "events cannot be written to standard output: Broken pipe"
    ]
    assert log.get_timer() is None
    output.reader = os.open(os.devnull, os.O_RDONLY)


def test_lines_longer_than_a_pipe_takes_at_once(output: Output) -> None:
    sink = StreamSink(output.writer)
    fcntl.fcntl(output.writer, fcntl.F_SETPIPE_SZ, 4096)
    long = json.dumps("x" * 10_000)
    sink.put(long, False)
    sink.put('"end"', False)
    got = b""
    while sink.waiting or len(got) < 10_000:
        got += os.read(output.reader, 1 << 16)
        sink.flush()
    with_end = got + (b"" if got.endswith(b'"end"\n') else os.read(output.reader, 1 << 16))
    assert with_end.decode().splitlines() == [long, '"end"']


# --- Syslog -------------------------------------------------------------------------------------------------


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Callable[[], socket.socket]]:
    """Starts a syslog daemon anew each time it is called; the one before is gone then."""
    made: list[socket.socket] = []

    def start() -> socket.socket:
        for old in made:
            old.close()
        (tmp_path / "log").unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        sock.bind(str(tmp_path / "log"))
        made.append(sock)
        return sock

    yield start
    for sock in made:
        sock.close()


def test_syslog_gets_the_same_lines(
    world: World, output: Output, daemon: Callable[[], socket.socket], tmp_path: Path
) -> None:
    sock = daemon()
    log = EventLog("cvt0", world.wall_clock_ns, world.now)
    log.configure(True, str(tmp_path / "log"))
    log.emit("config_reloaded", world.now, {"peers": 1})
    log.emit("config_refused", world.now, {"error": "no\nsuch ünicode"})
    first, second = sock.recv(4096).decode(), sock.recv(4096).decode()
    lines = output.lines()
    assert re.fullmatch(r"<29>[A-Z][a-z]{2} [ 1-3][0-9] [0-9:]{8} culvert\[\d+\]: (\{.*\})", first)
    assert first.endswith(lines[0])
    assert second.startswith("<28>")
    assert second.endswith(lines[1])
    log.configure(False, str(tmp_path / "log"))
    log.emit("config_reloaded", world.now, {"peers": 2})
    assert output.lines() == []
    assert sock.recv(4096)
    log.configure(False, None)
    assert not log.enabled


def test_a_syslog_daemon_that_is_restarted_or_slow(
    daemon: Callable[[], socket.socket], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = SyslogSink(str(tmp_path / "log"))
    sink.put("1", False)
    assert sink.waiting
    assert [record.message for record in caplog.records] == [
        f"events cannot be written to {tmp_path}/log: No such file or directory"
    ]
    sock = daemon()
    sink.flush()
    assert not sink.waiting
    assert sock.recv(99).endswith(b": 1")
    sock = daemon()
    sink.put("2", False)
    assert sock.recv(99).endswith(b": 2"), "connected anew"
    for number in range(MAX_WAITING + 1000):
        sink.put(str(number), False)
    received = []
    for _ in range(MAX_WAITING + 1000):
        try:
            received.append(int(sock.recv(99).rpartition(b" ")[2]))
        except BlockingIOError:
            if not sink.waiting:
                break
            sink.flush()
    assert received == sorted(received)
    assert received[-1] == MAX_WAITING + 999
    assert len(received) >= MAX_WAITING
    sink.close()


def test_a_path_that_is_no_socket_harms_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "log").write_text("a file")
    sink = SyslogSink(str(tmp_path / "log"))
    for number in range(MAX_WAITING * 2):
        sink.put(str(number), False)
    assert len(caplog.records) == 1
    too_long = SyslogSink(str(tmp_path / ("x" * 200)))
    too_long.put("1", False)
    assert len(caplog.records) == 2
