# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What seals packets and which offloads are used: asked for, refused, in effect, and shown."""

from __future__ import annotations

import json
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from culvert import cli
from culvert.batch import Batch
from culvert.choose import choose_batch
from culvert.config import Config, parse_config
from culvert.control import answer, socket_path
from culvert.device import Device
from culvert.errors import ConfigError, CulvertError
from culvert.frame import COALESCE_TCP, COALESCE_UDP
from culvert.offloads import OFFLOADS, format_offloads, parse_offloads
from culvert.pure import PureBatch
from culvert.relay import Relay
from culvert.run import RunOptions
from culvert.show import query, render
from culvert.testing import World
from culvert.transport.memory import MemoryNetwork
from culvert.tun import MemoryTun
from relay_kernel import Command, needs_root, until

ALL = frozenset(OFFLOADS)


# --- Names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", set()),
        ("none", set()),
        ("NONE", set()),
        ("tso", {"tso"}),
        ("GRO, gso,uso ,tso", {"tso", "uso", "gso", "gro"}),
        ("tso, tso,", {"tso"}),
    ],
)
def test_lists_of_offloads(text: str, names: set[str]) -> None:
    assert parse_offloads(text) == names
    assert parse_offloads(format_offloads(names)) == names


@pytest.mark.parametrize("text", ["lro", "tso gso", "none, tso", "tso; gso"])
def test_lists_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="is not one of tso, uso, gso, gro, or 'none' alone"):
        parse_offloads(text)


def test_offloads_are_always_named_in_one_order() -> None:
    assert format_offloads({"gro", "tso"}) == "tso, gro"
    assert format_offloads(set()) == "none"


# --- Configuration file and command line --------------------------------------------------------------------


def parse(*lines: str) -> Config:
    return parse_config("\n".join(["[Interface]", *lines]), "/etc/culvert/test.conf")


def test_a_file_says_what_to_use_or_nothing() -> None:
    config = parse("Batch = Python", "disableoffloads = USO, gro")
    assert (config.batch, config.disable_offloads) == ("python", {"uso", "gro"})
    assert parse("DisableOffloads =").disable_offloads == frozenset()
    assert parse("DisableOffloads = none").disable_offloads == frozenset()
    assert (parse().batch, parse().disable_offloads) == (None, None)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Batch = fast", "test.conf:2: Batch: 'fast' is not one of auto, compiled, python"),
        ("Batch =", "test.conf:2: Batch has no value"),
        ("DisableOffloads = lro", "test.conf:2: DisableOffloads: 'lro' is not one of tso, uso, gso, gro"),
        ("[Peer]\nBatch = auto", r"test.conf:3: Batch does not belong in \[Peer\]"),
    ],
)
def test_a_file_that_says_nonsense(line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(line)


def test_the_command_line_goes_before_the_file() -> None:
    config = parse("Batch = python", "DisableOffloads = tso")
    plain = RunOptions("cvtun0")
    assert (plain.batch_with(config), plain.disabled_with(config)) == ("python", {"tso"})
    assert (plain.batch_with(None), plain.disabled_with(None)) == ("auto", frozenset())
    assert (plain.batch_with(parse()), plain.disabled_with(parse())) == ("auto", frozenset())
    told = RunOptions("cvtun0", batch="auto", disable_offloads=frozenset())
    assert (told.batch_with(config), told.disabled_with(config)) == ("auto", frozenset())


def test_the_command_line_is_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[RunOptions] = []
    monkeypatch.setattr(cli, "run", lambda options: ran.append(options) or 0)
    assert cli.main(["run", "x", "--batch", "python", "--disable-offloads", "tso,GSO"]) == 0
    assert (ran[0].batch, ran[0].disable_offloads) == ("python", {"tso", "gso"})
    assert cli.main(["run", "x", "--disable-offloads", "none"]) == 0
    assert (ran[1].batch, ran[1].disable_offloads) == (None, frozenset())
    assert cli.main(["run", "x"]) == 0
    assert ran[2].disable_offloads is None
    for wrong in (["--batch", "fast"], ["--disable-offloads", "lro"]):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["run", "x", *wrong])
    assert "'lro' is not one of tso, uso, gso, gro" in capsys.readouterr().err


# --- Which implementation -----------------------------------------------------------------------------------


@pytest.fixture
def no_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine for which there is no wheel and that has no compiler."""
    monkeypatch.delitem(sys.modules, "culvert.compiled", raising=False)
    monkeypatch.setitem(sys.modules, "culvert._native", None)


@pytest.mark.usefixtures("no_extension")
def test_without_the_extension_auto_is_python_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    assert isinstance(choose_batch("auto")[0], PureBatch)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    for words in ("sealed and opened in Python", "the extension module cannot be loaded", "Install culvert"):
        assert words in record.getMessage()


@pytest.mark.usefixtures("no_extension")
def test_without_the_extension_compiled_is_refused() -> None:
    with pytest.raises(CulvertError, match=r"batch compiled: the extension module cannot be loaded \("):
        choose_batch("compiled")


@pytest.mark.usefixtures("no_extension")
def test_python_is_python_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    assert choose_batch("python")[0].name == "python"
    assert caplog.records == []


def test_with_the_extension_auto_is_compiled(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("culvert._native", exc_type=ImportError)
    made: list[Batch] = [choose_batch("auto")[0], choose_batch("compiled")[0]]
    assert [batch.name for batch in made] == ["compiled"] * 2
    assert caplog.records == []


# --- In a relay ---------------------------------------------------------------------------------------------


@pytest.fixture
def relay() -> Iterator[Relay]:
    world, network = World(), MemoryNetwork()
    relay = Relay(
        Device(world.wall_clock_ns, rng=world.rng, batch=PureBatch()),
        MemoryTun(),
        lambda port, mark: network.open("198.51.100.1", port),
        lambda: world.now,
    )
    yield relay
    relay.close()


def test_offloads_are_those_of_both_sides(relay: Relay) -> None:
    assert relay.offloads == {"tso", "uso"}
    assert relay.device.coalesce == COALESCE_TCP | COALESCE_UDP
    relay.ensure_transport()
    assert relay.offloads == ALL
    relay.set_offloads(frozenset(("tso", "gro")))
    assert relay.offloads == {"uso", "gso"}
    assert relay.device.coalesce == COALESCE_UDP
    # A port that is opened later knows it too.
    relay.rebind(0)
    assert relay.offloads == {"uso", "gso"}
    relay.set_offloads(frozenset())
    assert relay.offloads == ALL


def test_the_engine_hears_what_the_device_no_longer_takes(relay: Relay) -> None:
    relay.device._context.incoming.append(bytes(10) + b"E" + bytes(19))
    relay.tun.coalesce = COALESCE_TCP
    relay.pump()
    assert relay.device.coalesce == COALESCE_TCP


def test_the_control_socket_tells(relay: Relay) -> None:
    def told() -> list[str]:
        reply = answer(b"culvert=1", relay) or b""
        assert reply.endswith(b"\nerrno=0\n\n")
        return reply.decode().split("\n")[:2]

    assert told() == ["batch=python", "offloads=tso, uso"]
    relay.ensure_transport()
    assert told() == ["batch=python", "offloads=tso, uso, gso, gro"]
    relay.set_offloads(ALL)
    assert told() == ["batch=python", "offloads=none"]
    assert answer(b"culvert=1\nbatch=python", relay) == b"errno=-22\n\n"
    assert answer(b"culvert=2", relay) is None


# --- Shown --------------------------------------------------------------------------------------------------


STATE = b"private_key=" + bytes(range(32)).hex().encode() + b"\nlisten_port=7\nerrno=0\n\n"


def serving(directory: Path, conversation: Callable[[socket.socket], object]) -> threading.Thread:
    """Somebody's control socket, for one connection."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(socket_path("wg0", str(directory)))
    listener.listen()

    def work() -> None:
        with listener, listener.accept()[0] as connection:
            assert connection.recv(100) == b"get=1\n\n"
            connection.sendall(STATE)
            conversation(connection)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_show_tells(tmp_path: Path) -> None:
    def ours(connection: socket.socket) -> None:
        assert connection.recv(100) == b"culvert=1\n\n"
        connection.sendall(b"batch=compiled\noffloads=tso, gro\nlater=x\nerrno=0\n\n")

    thread = serving(tmp_path, ours)
    device = query("wg0", str(tmp_path))
    thread.join(5)
    assert (device["batch"], device["offloads"]) == ("compiled", ["tso", "gro"])
    assert "  listening port: 7\n  batch: compiled\n  offloads: tso, gro" in render(device)
    assert "  offloads: none" in render({**device, "offloads": []})


@pytest.mark.parametrize(
    "conversation",
    [
        lambda connection: connection.close(),
        lambda connection: connection.recv(100),
        lambda connection: (connection.recv(3), connection.close()),
        lambda connection: (connection.recv(100), connection.sendall(b"errno=-71\n\n")),
        lambda connection: (connection.recv(100), connection.sendall(b"errno=0\n\n")),
        lambda connection: (connection.recv(100), connection.sendall(b"batch=x\n")),
    ],
    ids=["hangs up", "hangs up later", "resets", "refuses", "says nothing", "breaks off"],
)
def test_another_programs_device_is_shown_without(
    tmp_path: Path, conversation: Callable[[socket.socket], object]
) -> None:
    thread = serving(tmp_path, conversation)
    device = query("wg0", str(tmp_path))
    thread.join(5)
    assert device["listen_port"] == 7
    assert (device["batch"], device["offloads"]) == (None, None)
    assert "batch" not in render(device)
    assert "offloads" not in render(device)


# --- The real thing -----------------------------------------------------------------------------------------


def shown(configured: Path) -> tuple[str, list[str]]:
    device = query("cvtun0", str(configured / "run"))
    return device["batch"], device["offloads"]


@needs_root
def test_offloads_change_while_it_runs_and_the_batch_does_not(configured: Path) -> None:
    path = configured / "wg.conf"
    good = path.read_text()
    path.write_text(good + "Batch = python\n")
    command = Command(configured, "--config", str(path))
    command.wait_for("ready: UDP port 51820, 0 peers, batch python, offloads tso, uso, gso, gro")
    assert shown(configured) == ("python", list(OFFLOADS))
    path.write_text(good + "Batch = python\nDisableOffloads = uso, gso\n")
    command.process.send_signal(signal.SIGHUP)
    until(lambda: shown(configured) == ("python", ["tso", "gro"]))
    path.write_text(good + "Batch = compiled\n")
    command.process.send_signal(signal.SIGHUP)
    command.wait_for("WARNING: Batch = compiled needs a restart: python until then")
    until(lambda: shown(configured) == ("python", list(OFFLOADS)))
    assert command.stop() == 0


@needs_root
def test_the_command_line_stays_through_a_reload(
    configured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = configured / "wg.conf"
    arguments = ["--config", str(path), "--batch", "python", "--disable-offloads", "tso,uso,gso,gro"]
    command = Command(configured, *arguments)
    command.wait_for("batch python, offloads none")
    path.write_text(path.read_text() + "Batch = auto\nDisableOffloads = none\n")
    command.process.send_signal(signal.SIGHUP)
    command.wait_for("configuration reloaded")
    assert shown(configured) == ("python", [])
    assert cli.main(["show", "--json", "--socket-directory", str(configured / "run")]) == 0
    (device,) = json.loads(capsys.readouterr().out)
    assert (device["batch"], device["offloads"]) == ("python", [])
    assert "WARNING" not in command.log.read_text()
    assert command.stop() == 0
