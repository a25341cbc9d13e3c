# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Superpackets through the kernel's TUN device: whole, cut, switched off, and refused.

The kernel's device is looked at in a namespace of its own:

    socket 10.86.77.1:a ──> cvtun0 ──> frame to 10.86.77.2 ─┐ addresses exchanged, which no checksum notices
    socket 10.86.77.1:b <── cvtun0 <── frame from .2 <──────┘
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import select
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from culvert import tun_device as tun_module
from culvert.batch import Buffer
from culvert.calls import Calls
from culvert.frame import (
    COALESCE_TCP,
    COALESCE_UDP,
    GSO_ECN,
    GSO_NONE,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    NEEDS_CSUM,
    PLAIN,
    VNET_HEADER,
    VNET_HEADER_BYTES,
)
from culvert.offloads import TSO, USO
from culvert.segment import cut
from culvert.tun import LinuxTun
from culvert.tun_device import TunOptions
from relay_kernel import in_new_namespace, needs_root
from relay_tun import (
    ALL,
    IFF_VNET_HDR,
    IFREQ,
    MADE,
    NONE,
    TUNSETIFF,
    TUNSETOFFLOAD,
    bring_up,
    calls,
    make_device,
    udp_superpacket,
)

__all__ = ["calls"]

# --- Superpackets -------------------------------------------------------------------------------------------


def exchanged(frame: Buffer) -> bytes:
    """The frame with source and destination address exchanged."""
    changed = bytearray(frame)
    first, length = (22, 4) if frame[VNET_HEADER_BYTES] >> 4 == 4 else (18, 16)
    second, end = first + length, first + 2 * length
    changed[first:end] = changed[second:end] + changed[first:second]
    return bytes(changed)


class Reflector:
    """Writes each frame back with its addresses exchanged, in a thread."""

    def __init__(self, tun: LinuxTun, treat: Callable[[bytes], list[bytes]] = lambda frame: [frame]) -> None:
        self.headers: list[tuple[int, ...]] = []
        self.longest_bytes = 0
        self._tun = tun
        self._treat = treat
        self._ending = os.eventfd(0)
        self._thread = threading.Thread(target=self._work)

    def _work(self) -> None:
        while True:
            ready, _, _ = select.select([self._tun, self._ending], [], [])
            if self._ending in ready:
                return
            for frame in [exchanged(frame) for frame in self._tun.read(128)]:
                self.headers.append(VNET_HEADER.unpack_from(frame))
                self.longest_bytes = max(self.longest_bytes, len(frame))
                self._tun.write(self._treat(frame))

    def __enter__(self) -> Reflector:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.eventfd_write(self._ending, 1)
        self._thread.join()
        os.close(self._ending)

    def types(self) -> set[int]:
        return {header[1] & ~GSO_ECN for header in self.headers}


def tcp_through(family: int, size_bytes: int) -> None:
    """A stream to ourselves through the device, compared at the end."""
    ours, theirs = ("10.86.77.1", "10.86.77.2") if family == 4 else ("fd86:77::1", "fd86:77::2")
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    data = os.urandom(1 << 20) * (size_bytes >> 20)
    with socket.create_server((ours, 0), family=kind) as server, socket.socket(kind) as client:
        client.settimeout(20)
        client.connect((theirs, server.getsockname()[1]))
        connection, _ = server.accept()
        connection.settimeout(20)
        sender = threading.Thread(target=lambda: (client.sendall(data), client.shutdown(socket.SHUT_WR)))
        sender.start()
        digest = hashlib.sha256()
        with connection:
            while piece := connection.recv(1 << 20):
                digest.update(piece)
        sender.join()
    assert digest.digest() == hashlib.sha256(data).digest()


def udp_through() -> None:
    """Forty datagrams in one call to ourselves through the device."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as two,
    ):
        two.bind(("10.86.77.1", 2000))
        two.settimeout(5)
        one.setsockopt(socket.SOL_UDP, 103, 1000)
        data = os.urandom(40_000 - 1)
        one.sendto(data, ("10.86.77.2", 2000))
        assert b"".join(two.recv(2000) for _ in range(40)) == data


@needs_root
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("made", ["", "vnet_hdr multi_queue"])
def test_tcp_passes_in_superpackets(family: int, made: str) -> None:
    def body() -> None:
        make_device(made)
        tun = LinuxTun.open(TunOptions("cvtun0"))
        assert tun.offloads == ALL
        assert tun.coalesce == COALESCE_TCP | COALESCE_UDP
        bring_up()
        with Reflector(tun) as reflector:
            tcp_through(family, 16 << 20)
        assert (GSO_TCPV4 if family == 4 else GSO_TCPV6) in reflector.types()
        # Whole: up to 64 KiB, not what the device's MTU allows.
        assert 60_000 < reflector.longest_bytes <= 65_545
        assert any(header[0] & NEEDS_CSUM for header in reflector.headers)
        tun.close()

    in_new_namespace(body)


@needs_root
def test_udp_passes_in_superpackets() -> None:
    def body() -> None:
        tun = LinuxTun.open(TunOptions("cvtun0"))
        bring_up()
        with Reflector(tun) as reflector:
            udp_through()
        assert GSO_UDP_L4 in reflector.types()
        tun.close()

    in_new_namespace(body)


@needs_root
@pytest.mark.parametrize(
    ("off", "expected"),
    [
        ({TSO}, {GSO_NONE, GSO_UDP_L4}),
        ({USO}, {GSO_NONE, GSO_TCPV4, GSO_TCPV6}),
        (ALL, {GSO_NONE}),
    ],
)
def test_an_offload_that_is_off_is_not_used(off: frozenset[str], expected: set[int]) -> None:
    def body() -> None:
        tun = LinuxTun.open(TunOptions("cvtun0"))
        tun.set_offloads(frozenset(off))
        assert tun.offloads == ALL - off
        bring_up()
        with Reflector(tun) as reflector:
            tcp_through(4, 1 << 20)
            tcp_through(6, 1 << 20)
            udp_through()
        assert reflector.types() == expected
        if off == ALL:
            # Plain to the last bit: checksums too are the kernel's work then.
            assert set(reflector.headers) == {(0, 0, 0, 0, 0, 0)}
            assert reflector.longest_bytes <= 1420 + VNET_HEADER_BYTES
        tun.close()

    in_new_namespace(body)


@needs_root
def test_what_cut_makes_the_kernel_takes() -> None:
    """Every packet carries a finished checksum: the kernel drops those with a wrong one."""

    def body() -> None:
        tun = LinuxTun.open(TunOptions("cvtun0"))
        bring_up()
        with Reflector(tun, lambda frame: [PLAIN + packet for packet in cut(frame)]) as reflector:
            tcp_through(4, 2 << 20)
            tcp_through(6, 2 << 20)
            udp_through()
        assert reflector.longest_bytes > 1430
        tun.close()

    in_new_namespace(body)


# --- Kernels and emulations that can do less ----------------------------------------------------------------


class Refusing:
    """A module of the standard library in which one function sometimes raises instead."""

    def __init__(self, module: Any, name: str, refuses: Callable[..., int | None]) -> None:
        self._module = module
        self._name = name
        self._refuses = refuses
        self.refused = 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._module, name)
        if name != self._name:
            return real

        def double(*arguments: Any) -> Any:
            code = self._refuses(*arguments)
            if code is not None:
                self.refused += 1
                raise OSError(code, os.strerror(code))
            return real(*arguments)

        return double


class RefusingCalls:
    """System calls of a kernel that takes no superpackets of one kind."""

    def __init__(self, real: Calls, code: int, gso_type: int) -> None:
        self._real = real
        self._code = code
        self._gso_type = gso_type
        self.refused = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def write_frames(self, fd: int, frames: list[Buffer], start: int) -> tuple[int, int]:
        for place in range(start, len(frames)):
            if frames[place][1] == self._gso_type:
                self.refused += 1
                return place, self._code
            _, code = self._real.write_frames(fd, frames[: place + 1], place)
            if code:
                return place, code
        return len(frames), 0


@needs_root
@pytest.mark.parametrize("code", [errno.EIO, errno.EINVAL])
@pytest.mark.parametrize(("gso_type", "left"), [(GSO_TCPV4, {USO}), (GSO_UDP_L4, {TSO})])
def test_superpackets_that_are_refused_go_in_pieces(
    caplog: pytest.LogCaptureFixture, code: int, gso_type: int, left: set[str]
) -> None:
    def body() -> None:
        tun = LinuxTun.open(TunOptions("cvtun0"))
        bring_up()
        refusing = tun.calls = RefusingCalls(tun.calls, code, gso_type)
        with Reflector(tun):
            tcp_through(4, 1 << 20)
            udp_through()
        assert refusing.refused
        assert tun.offloads == left
        tun.close()

    in_new_namespace(body)
    (record,) = caplog.records
    assert "interface cvtun0: refuses superpackets" in record.getMessage()


@needs_root
@pytest.mark.parametrize(
    ("unknown", "left"),
    [(0x60, {TSO}), (0x66, set())],
    ids=["before Linux 6.2", "no offload at all"],
)
def test_offloads_that_the_kernel_does_not_know(
    monkeypatch: pytest.MonkeyPatch, unknown: int, left: set[str]
) -> None:
    def refuses(fd: int, request: int, argument: Any = 0) -> int | None:
        return errno.EINVAL if request == TUNSETOFFLOAD and argument & unknown else None

    def body() -> None:
        monkeypatch.setattr(tun_module, "fcntl", Refusing(fcntl, "ioctl", refuses))
        tun = LinuxTun.open(TunOptions("cvtun0"))
        assert tun.offloads == left
        bring_up()
        with Reflector(tun):
            tcp_through(4, 1 << 20)
            udp_through()
        tun.close()

    in_new_namespace(body)


@needs_root
@pytest.mark.parametrize("made", MADE)
def test_without_a_virtio_header_there_are_frames_all_the_same(
    monkeypatch: pytest.MonkeyPatch, made: str
) -> None:
    def refuses(fd: int, request: int, argument: Any = 0) -> int | None:
        refused = request == TUNSETIFF and IFREQ.unpack(argument)[1] & IFF_VNET_HDR
        return errno.EINVAL if refused else None

    def body() -> None:
        make_device(made)
        monkeypatch.setattr(tun_module, "fcntl", Refusing(fcntl, "ioctl", refuses))
        tun = LinuxTun.open(TunOptions("cvtun0"))
        assert tun.offloads == NONE
        assert tun.coalesce == 0
        bring_up()
        with Reflector(tun) as reflector:
            tcp_through(4, 1 << 20)
            tcp_through(6, 1 << 20)
            udp_through()
        assert set(reflector.headers) == {(0, 0, 0, 0, 0, 0)}
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.bind(("10.86.77.1", 2000))
            # What nobody should write to it any more, it takes in pieces.
            tun.write([udp_superpacket(bytes(250), 100)])
            assert [len(sock.recv(1000)) for _ in range(3)] == [100, 100, 50]
        tun.close()

    in_new_namespace(body)
