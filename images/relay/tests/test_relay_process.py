# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The relay around the engine: the loop, the control socket, the command, the process."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from culvert import cli, privileges
from culvert.batch import Batch
from culvert.choose import choose_batch
from culvert.config import parse_config
from culvert.control import listen, socket_path
from culvert.device import Device
from culvert.errors import CulvertError
from culvert.frame import GSO_UDP_L4, NEEDS_CSUM, VNET_HEADER
from culvert.keys import Identity, encode_base64
from culvert.loop import Loop
from culvert.offloads import OFFLOADS
from culvert.privileges import parse_user
from culvert.relay import Relay
from culvert.run import boot_clock
from culvert.segment import cut
from culvert.show import query
from culvert.testing import udp_packet
from culvert.transport.memory import MemoryNetwork
from culvert.tun import MemoryTun
from relay_kernel import Command, needs_root, until

OTHER = f"[Peer]\nPublicKey = {encode_base64(bytes([3] * 32))}"


# --- The loop
# ------------------------------------------------------------------------------------------------


class Process:
    """A relay in a thread of its own, on memory twins, with a control socket."""

    def __init__(self, network: MemoryNetwork, number: int, directory: str, batch: Batch) -> None:
        self.name = f"cv{number}"
        self.host = f"198.51.100.{number}"
        self.address = f"10.86.0.{number}"
        self.private_key = bytes([number]) * 32
        self.tun = MemoryTun()
        self.directory = directory
        self.loop = Loop(boot_clock, listen(self.name, directory))
        self.relay = Relay(
            Device(time.time_ns, batch=batch),
            self.tun,
            lambda port, mark: network.open(self.host, port),
            boot_clock,
            self.loop.transport_changed,
        )
        self.thread = threading.Thread(target=self.loop.run)

    @property
    def public(self) -> str:
        return encode_base64(Identity(self.private_key).public)

    def configure(self, *peers: Process, port: int = 51820, extra: str = "") -> None:
        text = f"[Interface]\nPrivateKey = {encode_base64(self.private_key)}\nListenPort = {port}\n"
        for peer in peers:
            text += f"[Peer]\nPublicKey = {peer.public}\nAllowedIPs = {peer.address}\n"
            text += f"Endpoint = {peer.host}:51820\n{extra}"
        self.relay.load(parse_config(text, "test"))

    def start(self) -> None:
        self.loop.attach(self.relay, watch_links=False)
        self.thread.start()

    def stop(self) -> None:
        if self.thread.is_alive():
            self.loop.stop()
        self.thread.join(10)
        assert not self.thread.is_alive()
        self.relay.close()


@pytest.fixture(params=["python datagrams", "python runs", "auto runs"])
def processes(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Process, Process]]:
    batch, _, kind = request.param.partition(" ")
    network = MemoryNetwork(runs=kind == "runs")
    one, two = (Process(network, number, str(tmp_path), choose_batch(batch)[0]) for number in (1, 2))
    one.configure(two)
    two.configure(one)
    one.start()
    two.start()
    yield one, two
    one.stop()
    two.stop()


def test_two_loops_carry_packets(processes: tuple[Process, Process]) -> None:
    one, two = processes
    packets = [udp_packet(one.address, two.address, number.to_bytes(4)) for number in range(100)]
    one.tun.inject(*packets)
    until(lambda: len(two.tun.written) == 100)
    assert two.tun.written == packets
    two.tun.inject(*(udp_packet(two.address, one.address, bytes(1000)) for _ in range(1000)))
    until(lambda: len(one.tun.written) == 1000)


@pytest.mark.parametrize("off", [frozenset[str](), frozenset(OFFLOADS)], ids=["offloads", "none"])
def test_two_loops_carry_superpackets(processes: tuple[Process, Process], off: frozenset[str]) -> None:
    one, two = processes
    two.relay.set_offloads(off)
    packet = bytearray(udp_packet(one.address, two.address, os.urandom(40_000)))
    # What the kernel leaves to us: the sum of the pseudo-header alone.
    words = struct.unpack(">4H", packet[12:20])
    packet[26:28] = ((sum(words) + 17 + 40_008) % 0xFFFF).to_bytes(2)
    frame = VNET_HEADER.pack(NEEDS_CSUM, GSO_UDP_L4, 28, 1000, 20, 6) + bytes(packet)
    # A session first: while there is none, few packets are kept.
    one.tun.inject(udp_packet(one.address, two.address, b"first"))
    until(lambda: bool(two.tun.written))
    two.tun.written.clear()
    two.tun.written_frames.clear()
    one.tun.inject_frames(*[frame] * 10)
    until(lambda: len(two.tun.written) == 400)
    assert two.tun.written == cut(frame) * 10
    whole = len(two.tun.written_frames) < 400
    assert whole != bool(off)


def test_the_control_socket_answers_meanwhile(processes: tuple[Process, Process]) -> None:
    one, two = processes
    one.tun.inject(udp_packet(one.address, two.address, b"x"))
    until(lambda: bool(two.tun.written))
    device = query(two.name, two.directory)
    (peer,) = device["peers"]
    assert device["public_key"] == two.public
    assert device["listen_port"] == 51820
    assert peer["public_key"] == one.public
    assert peer["endpoint"] == f"{one.host}:51820"
    assert abs(peer["latest_handshake_s"] - time.time()) < 60
    # An initiation, and a data message with 29 bytes padded to 32.
    assert peer["rx_bytes"] == 148 + 64
    text = json.dumps(device)
    assert encode_base64(two.private_key) not in text
    assert two.private_key.hex() not in text


def test_many_connections_do_not_pile_up(processes: tuple[Process, Process]) -> None:
    one, _ = processes
    connections = []
    for _ in range(60):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(socket_path(one.name, one.directory))
        connections.append(sock)
    assert query(one.name, one.directory)["name"] == one.name
    until(lambda: len(one.loop._clients) <= 32)
    for sock in connections:
        sock.close()
    until(lambda: not one.loop._clients)


def test_the_loop_ends_with_its_device(processes: tuple[Process, Process]) -> None:
    one, _ = processes
    one.tun.delete()
    one.thread.join(10)
    assert not one.thread.is_alive()


def test_a_loop_with_nothing_to_do_sleeps(processes: tuple[Process, Process]) -> None:
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.1


# --- The command
# ---------------------------------------------------------------------------------------------


def run_cli(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = cli.main(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_genkey_pubkey_genpsk(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    status, private, _ = run_cli(capsys, "genkey")
    assert (status, len(private)) == (0, 45)
    monkeypatch.setattr(sys, "stdin", io.StringIO(private))
    status, public, _ = run_cli(capsys, "pubkey")
    assert (status, len(public)) == (0, 45)
    assert run_cli(capsys, "genpsk")[1] != run_cli(capsys, "genpsk")[1]
    monkeypatch.setattr(sys, "stdin", io.StringIO("hunter2"))
    status, out, err = run_cli(capsys, "pubkey")
    assert (status, out) == (1, "")
    assert err.startswith("culvert: standard input is not")
    assert "hunter2" not in err


def test_check(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "wg.conf"
    path.write_text("[Interface]\nListenPort = 70000\n")
    status, _, err = run_cli(capsys, "check", str(path))
    assert (status, err) == (2, f"culvert: {path}:2: ListenPort: '70000' is not a number from 0 to 65535\n")
    path.write_text("[Interface]\nListenPort = 7\n")
    assert run_cli(capsys, "check", str(path))[0] == 2
    path.write_text(f"[Interface]\nPrivateKey = {encode_base64(bytes(32))}\n")
    assert run_cli(capsys, "check", str(path))[0] == 0


def test_show_and_health(capsys: pytest.CaptureFixture[str], processes: tuple[Process, Process]) -> None:
    one, two = processes
    where = ("--socket-directory", one.directory)
    # Left behind by a process that is gone: not shown.
    listen("stale", one.directory).close()
    status, out, _ = run_cli(capsys, "show", "--json", *where)
    assert status == 0
    assert [device["name"] for device in json.loads(out)] == ["cv1", "cv2"]
    status, out, _ = run_cli(capsys, "show", "cv1", *where)
    assert f"peer: {two.public}" in out
    assert encode_base64(one.private_key) not in out
    assert run_cli(capsys, "health", "cv1", *where)[0] == 0
    status, _, err = run_cli(capsys, "health", "cv3", *where)
    assert status == 1
    assert "is the relay running?" in err


@pytest.mark.parametrize("text", ["", "x:y", "nosuchuser-at-all", "1:x", "-1"])
def test_users_that_are_none(text: str) -> None:
    with pytest.raises(CulvertError, match="--user"):
        parse_user(text)


def test_no_core_dumps_after_the_change_of_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of user sets the flag anew, from fs.suid_dumpable."""
    done: list[tuple[Any, ...]] = []
    monkeypatch.setattr(privileges, "_prctl", lambda option, value: done.append((option, value)))
    monkeypatch.setattr(privileges, "_set_capabilities", lambda mask: done.append(("capabilities",)))
    for name in ("setgroups", "setresgid", "setresuid"):
        monkeypatch.setattr(privileges.os, name, lambda *ids, name=name: done.append((name,)))
    monkeypatch.setattr(privileges.os, "getresuid", lambda: (7, 7, 7))
    monkeypatch.setattr(privileges.os, "getresgid", lambda: (7, 7, 7))
    privileges.drop_to(7, 7)
    assert (4, 0) in done[done.index(("setresuid",)) :]


def test_users() -> None:
    assert parse_user("51820") == (51820, 51820)
    assert parse_user("51820:7") == (51820, 7)
    assert parse_user("root") == (0, 0)


# --- The real thing
# ------------------------------------------------------------------------------------------


@needs_root
def test_run_drops_everything_but_net_admin(configured: Path) -> None:
    os.chown(configured / "key", 51820, 51820)
    (configured / "key").chmod(0o400)
    command = Command(configured, "--config", str(configured / "wg.conf"), "--user", "51820")
    command.wait_for("ready: UDP port 51820")
    fields = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{command.process.pid}/status").read_text().splitlines()
        if ":\t" in line
    )
    assert fields["Uid"].split() == ["51820"] * 4
    assert fields["Gid"].split() == ["51820"] * 4
    assert fields["Groups"].split() == []
    for kind in ("CapEff", "CapPrm"):
        assert int(fields[kind], 16) == 1 << 12
    for kind in ("CapInh", "CapAmb"):
        assert int(fields[kind], 16) == 0
    assert fields["NoNewPrivs"] == "1"
    limits = Path(f"/proc/{command.process.pid}/limits").read_text()
    assert any(line.split()[4:6] == ["0", "0"] for line in limits.splitlines() if line.startswith("Max core"))
    assert query("cvtun0", str(configured / "run"))["listen_port"] == 51820
    assert command.stop() == 0
    assert encode_base64(bytes(range(32))) not in command.log.read_text()


@needs_root
@pytest.mark.parametrize(("port", "kept"), [(443, True), (1023, True), (1024, False), (51820, False)])
def test_low_ports_are_kept_where_one_is_needed(configured: Path, port: int, kept: bool) -> None:
    """And only there: CAP_NET_BIND_SERVICE is number 10."""
    os.chown(configured / "key", 51820, 51820)
    path = configured / "wg.conf"
    path.write_text(path.read_text().replace("51820", str(port)))
    command = Command(configured, "--config", str(path), "--user", "51820")
    command.wait_for(f"ready: UDP port {port}")
    status = Path(f"/proc/{command.process.pid}/status").read_text()
    for kind in ("CapEff", "CapPrm"):
        (mask,) = re.findall(rf"{kind}:\t(\w+)", status)
        assert int(mask, 16) == 1 << 12 | kept << 10
    assert command.stop() == 0


@needs_root
def test_a_low_port_that_comes_by_reload_is_refused_in_words(configured: Path) -> None:
    os.chown(configured / "key", 51820, 51820)
    path = configured / "wg.conf"
    command = Command(configured, "--config", str(path), "--user", "51820")
    command.wait_for("ready")
    path.write_text(path.read_text() + "ListenTCP = 443\n")
    command.process.send_signal(signal.SIGHUP)
    command.wait_for(
        "reload refused, nothing changed: ListenTCP = 443: Permission denied: "
        "it takes NET_BIND_SERVICE, and a restart"
    )
    assert command.stop() == 0


@needs_root
def test_reload_is_whole_or_nothing(configured: Path) -> None:
    path = configured / "wg.conf"
    command = Command(configured, "--config", str(path))
    command.wait_for("ready")
    good = path.read_text()
    path.write_text(good + f"{OTHER}\n")
    command.process.send_signal(signal.SIGHUP)
    command.wait_for("configuration reloaded: 1 peers")
    path.write_text(good.replace("51820", "51821") + "[Peer]\nAllowedIPs = x\n")
    command.process.send_signal(signal.SIGHUP)
    command.wait_for(f"reload refused, nothing changed: {path}:6: AllowedIPs: 'x'")
    device = query("cvtun0", str(configured / "run"))
    assert device["listen_port"] == 51820
    assert len(device["peers"]) == 1
    assert command.stop(signal.SIGINT) == 0
    assert not (configured / "run" / "cvtun0.sock").exists()


@needs_root
def test_a_bad_file_ends_the_start_with_one_line(configured: Path) -> None:
    (configured / "wg.conf").write_text("[Interface]\nListenPort = x\n")
    command = Command(configured, "--config", str(configured / "wg.conf"))
    assert command.process.wait(10) == 2
    assert command.log.read_text().splitlines() == [
        f"culvert: {configured}/wg.conf:2: ListenPort: 'x' is not a number from 0 to 65535"
    ]
    assert not (configured / "run" / "cvtun0.sock").exists()


@needs_root
def test_in_the_background_it_is_ready_when_the_parent_ends(configured: Path) -> None:
    command = Command(configured, "--background")
    assert command.process.wait(10) == 0
    path = socket_path("cvtun0", str(configured / "run"))
    assert query("cvtun0", str(configured / "run"))["peers"] == []
    children = [
        int(entry)
        for entry in os.listdir("/proc")
        if entry.isdigit() and str(configured / "run").encode() in _command_line(entry)
    ]
    (child,) = children
    os.kill(child, signal.SIGTERM)
    until(lambda: not os.path.exists(path))


def _command_line(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
