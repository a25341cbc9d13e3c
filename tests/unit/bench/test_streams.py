# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``make bench-streams`` makes of what it has measured, and the plain listener's framing."""

from __future__ import annotations

import os
import socket
import threading
import time

import pytest

from bench import long_path, packet_listener, streams
from bench.report import NOTHING, TIMES, Results


def measured(results: Results, name: str, gbit_s: float, cpu: tuple[float, float] | None = None) -> None:
    for key in ("tcp1-up", "tcp1-down"):
        values = {f"{key}.gbit_s": gbit_s}
        if cpu:
            values |= {f"{key}.client_cpu_s_gb": cpu[0], f"{key}.server_cpu_s_gb": cpu[1]}
        results.add(name, {**values, "machine.busy_share": 0.02})


@pytest.fixture
def results() -> Results:
    made = Results({name: kind.title for name, kind in streams.CONTENDERS.items()})
    measured(made, "udp", 2.5, (1.5, 1.6))
    for gbit_s in (5.0, 6.0, 5.5):
        measured(made, "tcp", gbit_s, (0.9, 1.0))
    measured(made, "tls", 3.0, (1.6, 1.7))
    measured(made, "openvpn-tcp", 0.5, (9.0, 9.0))
    measured(made, "listener", 0.2)
    return made


def test_ratios_are_of_medians(results: Results) -> None:
    found = streams.ratios(results, "openvpn-tcp")
    assert found["tcp"] == {"up": 11.0, "down": 11.0}
    assert "openvpn-tcp" not in found
    assert "tcp-plain" not in found
    assert streams.ratios(results, "tcp-plain") == {}


def test_cpu_is_of_both_ends(results: Results) -> None:
    assert streams.cpu_s_gb(results, "tcp", "tcp1-up") == pytest.approx(1.9)
    assert streams.cpu_s_gb(results, "listener", "tcp1-up") is None


def test_what_was_wanted_and_is_not_so_is_said(results: Results) -> None:
    lines = streams.verdicts(results)
    met = [line for line in lines if "NOT" not in line]
    assert len(lines) == 12
    tcp = "culvert over TCP, up: "
    assert any(line.startswith(f"{tcp}11.0{TIMES} OpenVPN") and "wanted: reached" in line for line in met)
    assert f"{tcp}1.90 CPU-s/GB at both ends, below UDP's 3.10" in met
    tls = [line for line in lines if line.startswith("culvert over TLS, up")]
    assert ["NOT reached" in line or "NOT below" in line for line in tls] == [True, False, True]


def test_report(results: Results) -> None:
    text = streams.report(results, streams.parse(["--rounds", "3"]))
    assert "| culvert over TCP | 5.50 ± 9% | 5.50 ± 9% | 0.90 / 1.00 | 0.90 / 1.00 |" in text
    assert f"| plain TCP listener, not encrypted | 0.20 | 0.20 | {NOTHING} / {NOTHING} |" in text
    ratios = "| culvert over TCP | 2.20x / 2.20x | 11.0x / 11.0x | 27.5x / 27.5x |"
    assert ratios.replace("x", TIMES) in text
    assert "2% (at most 2%)" in text
    lossy = streams.report(results, streams.parse(["--loss", "1"]))
    assert "1 % of the packets lost each way" in lossy
    # What is wanted is wanted on a good line.
    assert "wanted" not in lossy


def test_report_of_a_bad_line(results: Results) -> None:
    trips = {f"tcp4-{way}.{unit}": 21.5 for way in ("up", "down") for unit in ("rtt_ms", "rtt_95_ms")}
    results.add("tcp", {"tcp4-up.gbit_s": 0.0123, "tcp4-down.gbit_s": 0.5, **trips})
    text = streams.report(results, streams.parse(["--loss", "1", "--delay", "10", "--congestion", "reno"]))
    assert "| culvert over TCP | 5,500 | 5,500 | 12.3 | 500 | 21.5 / 21.5 | 21.5 / 21.5 |" in text
    assert "10 ms on the way" in text
    assert "Congestion control of all TCP: reno." in text


@pytest.mark.parametrize(
    "words", [["--loss", "21"], ["--loss", "-1"], ["--rounds", "0"], ["--seconds", "31"]]
)
def test_bounds(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        streams.parse(words)
    assert "out of bounds" in capsys.readouterr().err


def test_the_plain_listener_keeps_packets_apart() -> None:
    """A TUN device reads and writes whole packets, as a socket for datagrams does."""
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    near, far = socket.socketpair()
    running = threading.Thread(target=packet_listener.carry, args=(device.fileno(), near))
    running.start()
    packets = [os.urandom(length) for length in (1, 1420, 65000)]
    stream = b"".join(packet_listener.LENGTH.pack(len(packet)) + packet for packet in packets)
    for packet in packets:
        kernel.send(packet)
    with far.makefile("rb") as file:
        assert file.read(len(stream)) == stream
    far.sendall(stream)
    assert [kernel.recv(65536) for _packet in packets] == packets
    far.close()
    running.join(10)
    assert not running.is_alive()


def test_a_long_path_keeps_frames_and_their_order() -> None:
    """What comes to one end leaves by the other, whole, in order and not at once."""
    sides = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _side in range(2)]
    (near, left), (far, right) = sides
    for end in (left, right):
        end.setblocking(False)
    running = threading.Thread(target=long_path.carry, args=(left, right, 0.05))
    running.start()
    frames = [os.urandom(1514) for _number in range(20)]
    began_s = time.monotonic()
    for frame in frames:
        near.send(frame)
    assert far.recv(4096) == frames[0]
    assert time.monotonic() - began_s >= 0.05
    assert [far.recv(4096) for _frame in frames[1:]] == frames[1:]
    far.send(b"back")
    assert near.recv(4096) == b"back"
    near.close()
    running.join(10)
    assert not running.is_alive()
