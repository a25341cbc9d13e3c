# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who has a TCP port: of hosts that are made of files, and of this one."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from plugins.module_utils import _listeners
from plugins.module_utils._listeners import is_relay, others

_HEADER = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def line(address: str, port: int, inode: int, state: str = "0A") -> str:
    rest = "00000000:00000000 00:00000000 00000000     0        0"
    return f"   0: {address}:{port:04X} 00000000:0000 {state} {rest} {inode} 1 0 100 0 0 10 0\n"


def process(root: Path, pid: int, name: str, command: list[str], *inodes: int) -> None:
    folder = root / "proc" / str(pid)
    (folder / "fd").mkdir(parents=True)
    (folder / "comm").write_text(f"{name}\n")
    (folder / "cmdline").write_text("\0".join(command) + "\0")
    for number, inode in enumerate(inodes):
        (folder / "fd" / str(number)).symlink_to(f"socket:[{inode}]")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    net = tmp_path / "proc" / "net"
    net.mkdir(parents=True)
    rows = [line("0100007F", 443, 11), line("00000000", 8443, 12), line("00000000", 22, 13)]
    (net / "tcp").write_text(_HEADER + "".join([*rows, line("00000000", 8080, 14, "01")]))
    (net / "tcp6").write_text(_HEADER + line("00000000000000000000000001000000", 9443, 15))
    process(tmp_path, 7, "nginx", ["nginx: master process"], 99, 11)
    process(tmp_path, 8, "culvert", ["/usr/bin/culvert", "run", "culvert0", "--config", "x"], 12)
    return tmp_path


def test_who_listens_on_a_port_is_named(root: Path) -> None:
    assert others([443], "culvert0", str(root)) == {
        "443": {"address": "127.0.0.1", "process": "nginx", "pid": 7}
    }
    assert others([443, 22, 9443], "culvert0", str(root)) == {
        "443": {"address": "127.0.0.1", "process": "nginx", "pid": 7},
        "22": {"address": "0.0.0.0", "process": "", "pid": 0},
        "9443": {"address": "::1", "process": "", "pid": 0},
    }


def test_our_own_relay_and_connections_do_not_count(root: Path) -> None:
    assert others([8443, 8080, 1], "culvert0", str(root)) == {}
    assert others([8443], "culvert1", str(root))["8443"]["pid"] == 8


def test_without_proc_nothing_is_known(tmp_path: Path) -> None:
    assert others([443], "culvert0", str(tmp_path)) == {}


def test_a_relay_is_known_however_it_was_started() -> None:
    assert is_relay(["culvert", "run", "vpn"], "vpn")
    assert is_relay(["/usr/bin/python3", "/opt/bin/culvert", "run", "vpn", "--user", "1:1"], "vpn")
    assert is_relay(["/venv/bin/python", "-m", "culvert", "run", "vpn"], "vpn")
    assert not is_relay(["nginx", "run", "vpn"], "vpn")
    assert not is_relay(["culvert", "run", "vpn1"], "vpn")
    assert not is_relay(["run", "vpn"], "vpn")
    assert not is_relay([], "vpn")


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_this_process_is_found_by_the_port_that_it_has(family: int, address: str) -> None:
    try:
        listener = socket.create_server((address, 0), family=family)
    except OSError:
        pytest.skip(f"this machine has no {address}")
    with listener:
        port = listener.getsockname()[1]
        found = others([port], "culvert0")[str(port)]
    assert (found["address"], found["pid"]) == (address, os.getpid())
    assert found["process"]


def test_an_address_of_the_kernel_is_read_as_it_is_written() -> None:
    assert _listeners._address("0B6433C6") == "198.51.100.11"
    assert _listeners._address("B80D0120000000000000000001000000") == "2001:db8::1"
