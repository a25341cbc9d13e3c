# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""``culvert capture`` on a relay that runs: the control socket, files and pipes, signals, slow readers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from culvert import capture_command, cli
from culvert.capture import MAX_CAPTURES, MAX_PENDING_BYTES
from culvert.config import parse_config
from culvert.control import listen, socket_path
from culvert.device import Device
from culvert.keys import Identity, encode_base64
from culvert.loop import Loop
from culvert.relay import Relay
from culvert.run import boot_clock
from culvert.show import query, render
from culvert.testing import udp_packet
from culvert.transport.memory import MemoryNetwork
from culvert.tun import MemoryTun
from relay_kernel import until
from relay_pcap import pieces, records

SRC = str(Path(__file__).parents[1] / "src")
REQUEST = b"capture=1\n%s\n"


class Running:
    """A relay in a thread of its own, with one peer that hands everything back."""

    def __init__(self, network: MemoryNetwork, number: int, other: int, directory: str) -> None:
        self.tun = MemoryTun()
        self.loop = Loop(boot_clock, listen(f"cv{number}", directory))
        host = f"198.51.100.{number}"
        self.relay = Relay(
            Device(time.time_ns),
            self.tun,
            lambda port, mark: network.open(host, port),
            boot_clock,
            self.loop.transport_changed,
        )
        public = encode_base64(Identity(bytes([other]) * 32).public)
        self.relay.load(
            parse_config(
                f"[Interface]\nPrivateKey = {encode_base64(bytes([number]) * 32)}\nListenPort = 51820\n"
                f"[Peer]\nPublicKey = {public}\nAllowedIPs = 10.86.0.{other}\n"
                f"Endpoint = 198.51.100.{other}:51820\n",
                "test",
            )
        )
        self.loop.attach(self.relay, watch_links=False)
        self.thread = threading.Thread(target=self.loop.run, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        # A connection that was closed just now may end the loop between the two halves of stop().
        with contextlib.suppress(OSError):
            self.loop.stop()
        self.thread.join(10)
        assert not self.thread.is_alive()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Running, Running]]:
    network = MemoryNetwork()
    one, two = Running(network, 1, 2, str(tmp_path)), Running(network, 2, 1, str(tmp_path))
    yield one, two
    for running in (one, two):
        running.stop()
        running.relay.close()


def packet(number: int, size: int = 100, *, back: bool = False) -> bytes:
    source, target = ("10.86.0.2", "10.86.0.1") if back else ("10.86.0.1", "10.86.0.2")
    return udp_packet(source, target, number.to_bytes(4) + bytes(size))


def carry(pair: tuple[Running, Running], *packets: bytes) -> None:
    """From the first to the second, and wait for it."""
    one, two = pair
    goal = len(two.tun.written) + len(packets)
    one.tun.inject(*packets)
    until(lambda: len(two.tun.written) == goal)


def connect(directory: Path, lines: bytes = b"") -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(10)
    sock.connect(socket_path("cv1", str(directory)))
    sock.sendall(REQUEST % lines)
    return sock


def captures(directory: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = query("cv1", str(directory))["captures"]
    return found


def read_to_the_end(sock: socket.socket) -> bytes:
    received = bytearray()
    while data := sock.recv(1 << 20):
        received += data
    return bytes(received)


# --- The control socket -------------------------------------------------------------------------------------


def test_both_directions_over_the_control_socket(pair: tuple[Running, Running], tmp_path: Path) -> None:
    one, two = pair
    carry(pair, packet(0))
    with connect(tmp_path, b"packets=5\n") as sock:
        until(lambda: len(captures(tmp_path)) == 1)
        carry(pair, packet(1), packet(2))
        carry((two, one), packet(3, back=True))
        carry(pair, packet(4), packet(5), packet(6))
        file, ended = pieces(read_to_the_end(sock))
    expected = [packet(1), packet(2), packet(3, back=True), packet(4), packet(5)]
    assert [record.data for record in records(file)] == expected
    assert (ended["ended"], ended["packets"], ended["lost"]) == ("packets", "5", "0")
    assert int(ended["bytes"]) == len(file)
    assert captures(tmp_path) == []


def test_a_reader_that_says_it_wants_no_more(pair: tuple[Running, Running], tmp_path: Path) -> None:
    with connect(tmp_path) as sock:
        until(lambda: len(captures(tmp_path)) == 1)
        carry(pair, packet(1))
        until(lambda: captures(tmp_path)[0]["packets"] == 1)
        sock.shutdown(socket.SHUT_WR)
        file, ended = pieces(read_to_the_end(sock))
    assert len(records(file)) == 1
    assert ended["ended"] == "reader"


def test_a_reader_that_is_gone_ends_the_capture(pair: tuple[Running, Running], tmp_path: Path) -> None:
    sock = connect(tmp_path)
    until(lambda: len(captures(tmp_path)) == 1)
    sock.close()
    until(lambda: captures(tmp_path) == [])
    carry(pair, packet(1))
    assert captures(tmp_path) == []


def test_who_speaks_during_a_capture_is_hung_up_on(pair: tuple[Running, Running], tmp_path: Path) -> None:
    for word in (b"get=1\n\n", b"x"):
        with connect(tmp_path) as sock:
            until(lambda: len(captures(tmp_path)) == 1)
            sock.sendall(word)
            file, ended = pieces(read_to_the_end(sock))
        assert ended == {}
        assert records(file) == []
        until(lambda: captures(tmp_path) == [])
    # And who says more than the request in one breath.
    with connect(tmp_path, b"\nget=1\n") as sock:
        assert sock.recv(1000) == b""


def test_refusals_leave_the_connection_as_it_was(pair: tuple[Running, Running], tmp_path: Path) -> None:
    with connect(tmp_path, b"filter=hots 10.0.0.1\n") as sock:
        assert sock.recv(1000) == b"errno=-22\n\n"
        sock.sendall(REQUEST % b"packets=x\n")
        assert sock.recv(1000) == b"errno=-22\n\n"
        sock.sendall(REQUEST % b"caf\xc3\xa9=x\n")
        assert sock.recv(1000) == b"errno=-22\n\n"
        sock.sendall(b"culvert=1\n\n")
        assert b"errno=0" in sock.recv(1000)


def test_so_many_at_once_and_their_end_makes_room(pair: tuple[Running, Running], tmp_path: Path) -> None:
    socks = [connect(tmp_path) for _ in range(MAX_CAPTURES)]
    until(lambda: len(captures(tmp_path)) == MAX_CAPTURES)
    with connect(tmp_path) as sock:
        assert sock.recv(1000) == b"errno=-16\n\n"
    # Many who ask for other things do not push a capture off the socket.
    others = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(40)]
    for other in others:
        other.connect(socket_path("cv1", str(tmp_path)))
    assert len(captures(tmp_path)) == MAX_CAPTURES
    for sock in [*socks, *others]:
        sock.close()
    until(lambda: captures(tmp_path) == [])


@pytest.mark.parametrize("limits", [b"packets=0\nbytes=0\n", b"packets=0\nbytes=0\nfilter=proto udp\n"])
def test_a_slow_reader_loses_its_packets_and_nobody_elses(
    pair: tuple[Running, Running], tmp_path: Path, limits: bytes
) -> None:
    one, two = pair
    size, count = 1300, 3 * MAX_PENDING_BYTES // 1300
    with connect(tmp_path, limits) as slow, connect(tmp_path, b"filter=port 9\n") as idle:
        until(lambda: len(captures(tmp_path)) == 2)
        carry(pair, packet(0))
        sent = [packet(number, size) for number in range(count)]
        for start in range(0, count, 1000):
            carry(pair, *sent[start : start + 1000])
        assert two.tun.written == [packet(0), *sent], "traffic was lost"
        slow.shutdown(socket.SHUT_WR)
        file, ended = pieces(read_to_the_end(slow))
        caught = records(file)
        assert int(ended["lost"]) > 0
        assert int(ended["lost"]) + len(caught) == count + 1
        assert [record.data for record in caught] == [packet(0), *sent][: len(caught)], "not the first ones"
        assert len(file) < 3 * MAX_PENDING_BYTES
        idle.shutdown(socket.SHUT_WR)
        assert pieces(read_to_the_end(idle))[1]["packets"] == "0"
    assert one.thread.is_alive()


def test_a_reader_that_never_reads_does_not_keep_its_place(
    pair: tuple[Running, Running], tmp_path: Path
) -> None:
    """Its time is over though what it was sent is not taken."""
    carry(pair, packet(0))
    with connect(tmp_path, b"seconds=1\n"):
        until(lambda: len(captures(tmp_path)) == 1)
        carry(pair, *(packet(number, 1300) for number in range(1000)))
        until(lambda: captures(tmp_path) == [])


# --- The command --------------------------------------------------------------------------------------------


def command(
    directory: Path, *words: str, stdout: int = subprocess.PIPE, stdin: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "culvert", "capture", "cv1", "--socket-directory", str(directory), *words]
    environment = os.environ | {"PYTHONPATH": SRC}
    return subprocess.Popen(argv, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, env=environment)


def test_into_a_file_that_is_ours_alone(pair: tuple[Running, Running], tmp_path: Path) -> None:
    path = tmp_path / "out.pcap"
    process = command(tmp_path, "--write", str(path), "--filter", "proto udp", "--packets", "2")
    until(lambda: len(captures(tmp_path)) == 1)
    assert captures(tmp_path)[0]["filter"] == "proto udp"
    carry(pair, packet(1), packet(2), packet(3))
    _, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (0, b"culvert: 2 packets, 320 bytes (the limit of packets)\n")
    assert [record.data for record in records(path.read_bytes())] == [packet(1), packet(2)]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_exists_is_not_written_over(
    pair: tuple[Running, Running], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, target = tmp_path / "out.pcap", tmp_path / "precious"
    target.write_text("precious")
    path.symlink_to(target)
    words = ["capture", "cv1", "--socket-directory", str(tmp_path), "--seconds", "1", "--write", str(path)]
    assert cli.main(words) == 1
    assert "exists already" in capsys.readouterr().err
    assert cli.main([*words, "--force"]) == 0
    assert target.read_text() == "precious"
    assert not path.is_symlink()
    assert records(path.read_bytes()) == []
    assert "(the limit of seconds)" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_a_whole_file(
    pair: tuple[Running, Running], tmp_path: Path, number: signal.Signals
) -> None:
    process = command(tmp_path)
    until(lambda: len(captures(tmp_path)) == 1)
    carry(pair, packet(1))
    # The relay has it before the command has, which may not be ready for signals by then.
    assert process.stdout is not None
    out = b""
    while len(out) < 24 + 16 + len(packet(1)):
        out += os.read(process.stdout.fileno(), 1 << 16)
    process.send_signal(number)
    rest, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (0, b"culvert: 1 packets, 172 bytes\n")
    assert [record.data for record in records(out + rest)] == [packet(1)]
    until(lambda: captures(tmp_path) == [])


def test_a_pipe_gets_packets_as_they_come(pair: tuple[Running, Running], tmp_path: Path) -> None:
    process = command(tmp_path)
    until(lambda: len(captures(tmp_path)) == 1)
    assert process.stdout is not None
    received = b""
    for number in range(3):
        carry(pair, packet(number))
        while len(received) < 24 + (number + 1) * (16 + len(packet(0))):
            received += os.read(process.stdout.fileno(), 1 << 16)
    assert [record.data for record in records(received)] == [packet(number) for number in range(3)]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)


def test_a_reader_that_leaves_ends_it_though_no_packet_comes(
    pair: tuple[Running, Running], tmp_path: Path
) -> None:
    process = command(tmp_path, "--seconds", "0")
    until(lambda: len(captures(tmp_path)) == 1)
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (0, b"")
    until(lambda: captures(tmp_path) == [])


def test_an_input_that_closes_later_is_somebody_who_left(
    pair: tuple[Running, Running], tmp_path: Path
) -> None:
    """As those in a container see it when ``docker exec -i`` was ended."""
    process = command(tmp_path, "--seconds", "0", stdin=subprocess.PIPE)
    assert process.stdin is not None
    until(lambda: len(captures(tmp_path)) == 1)
    process.stdin.write(b"not for us")
    process.stdin.flush()
    carry(pair, packet(1))
    until(lambda: captures(tmp_path)[0]["packets"] == 1)
    time.sleep(capture_command._INPUT_S)
    process.stdin.close()
    process.stdin = None
    out, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (0, b"culvert: 1 packets, 172 bytes\n")
    assert len(records(out)) == 1
    until(lambda: captures(tmp_path) == [])


def test_an_input_that_was_never_open_is_nobody_who_left(
    pair: tuple[Running, Running], tmp_path: Path
) -> None:
    """``ssh -n``, ``docker exec -i … </dev/null``."""
    process = command(tmp_path, "--packets", "1", "--seconds", "0", stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.close()
    process.stdin = None
    until(lambda: len(captures(tmp_path)) == 1)
    time.sleep(capture_command._INPUT_S)
    carry(pair, packet(1))
    out, _ = process.communicate(timeout=10)
    assert [record.data for record in records(out)] == [packet(1)]


def test_the_relay_goes_in_the_middle(pair: tuple[Running, Running], tmp_path: Path) -> None:
    process = command(tmp_path)
    until(lambda: len(captures(tmp_path)) == 1)
    pair[0].stop()
    out, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (1, b"culvert: the relay went away; what was written is whole\n")
    assert records(out) == []


def test_a_terminal_is_refused(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    process = command(tmp_path, stdout=theirs)
    _, err = process.communicate(timeout=10)
    os.close(ours)
    os.close(theirs)
    assert process.returncode == 1
    assert b"standard output is a terminal" in err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--filter", "tcp"], "'tcp' is none of host, net, port, proto, peer, in, out: write 'proto tcp'"),
        (["--packets", "-1"], "is not a number from 0 to"),
        (["--seconds", "1000001"], "is not a number from 0 to 1000000"),
        (["--snaplen", "65536"], "is not a number from 0 to 65535"),
    ],
)
def test_what_was_asked_wrongly(
    words: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["capture", "cv1", "--socket-directory", str(tmp_path), *words])
    assert caught.value.code == 2
    assert complaint in capsys.readouterr().err


def test_there_is_no_relay_and_then_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out.pcap"
    words = ["capture", "cv9", "--socket-directory", str(tmp_path), "--write", str(path)]
    assert cli.main(words) == 1
    assert "is the relay running?" in capsys.readouterr().err
    assert not path.exists()


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (b"", "it knows nothing of captures"),
        (b"errno=-16\n\n", f"{MAX_CAPTURES} captures run already"),
        (b"errno=-2\n\n", "a peer that the device does not have"),
        (b"errno=-22\n\n", "of another version"),
        (b"errno=-1\n\n", "Operation not permitted"),
        (b"errno=0\n\n\xff\xff\xff\xff", "does not speak our language"),
        (b"errno=0\n\n\0\0", "what was written is whole"),
    ],
)
def test_what_a_relay_may_answer(
    answer: bytes, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = listen("cv3", str(tmp_path))
    server.setblocking(True)

    def serve() -> None:
        sock, _ = server.accept()
        with sock:
            sock.recv(1000)
            sock.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    path = tmp_path / "out.pcap"
    assert cli.main(["capture", "cv3", "--socket-directory", str(tmp_path), "--write", str(path)]) == 1
    thread.join()
    server.close()
    assert complaint in capsys.readouterr().err


def test_show_tells_of_captures(
    pair: tuple[Running, Running], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with connect(tmp_path, b"filter=host 10.86.0.2 and  not in\n"), connect(tmp_path):
        until(lambda: len(captures(tmp_path)) == 2)
        text = render(query("cv1", str(tmp_path)))
        assert "  capture: running, 0 packets, 24 B in 0 s, filter host 10.86.0.2 and not in\n" in text
        assert "filter (none)\n" in text
        assert cli.main(["show", "cv1", "--json", "--socket-directory", str(tmp_path)]) == 0
        (shown,) = json.loads(capsys.readouterr().out)
        assert [entry["filter"] for entry in shown["captures"]] == ["host 10.86.0.2 and not in", None]
