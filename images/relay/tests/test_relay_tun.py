# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""TUN devices: the twin in memory and the kernel's, with superpackets, without, and with what they refuse.

The kernel's device is looked at in a namespace of its own:

    socket 10.86.77.1:a ──> cvtun0 ──> frame to 10.86.77.2 ─┐ addresses exchanged, which no checksum notices
    socket 10.86.77.1:b <── cvtun0 <── frame from .2 <──────┘
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import importlib
import os
import re
import select
import socket
import struct
import subprocess
import threading
from collections.abc import Callable
from typing import Any

import pytest

from culvert import tun as tun_module
from culvert.batch import Buffer
from culvert.calls import Calls
from culvert.errors import CulvertError
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
from culvert.testing import udp_packet
from culvert.tun import DeviceGone, LinuxTun, MemoryTun, Tun, TunOptions, check_name
from relay_kernel import in_new_namespace, ip, needs_root, until

ALL = frozenset((TSO, USO))
NONE: frozenset[str] = frozenset()
IFREQ = struct.Struct("16sH22x")
INT = struct.Struct("=i")
TUNSETIFF, TUNGETIFF, TUNSETOFFLOAD = 0x400454CA, 0x800454D2, 0x400454D0
TUNGETVNETHDRSZ, TUNSETVNETHDRSZ = 0x800454D7, 0x400454D8
IFF_TUN_NO_PI, IFF_MULTI_QUEUE, IFF_VNET_HDR = 0x1001, 0x0100, 0x4000
MADE = ["", "vnet_hdr", "multi_queue", "vnet_hdr multi_queue"]


@pytest.fixture(autouse=True, params=["python", "compiled"])
def calls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Everything here is said of both implementations of the system calls."""
    if request.param == "compiled":
        compiled = importlib.import_module("culvert.compiled").CompiledCalls
        monkeypatch.setattr(tun_module, "PythonCalls", compiled)
    return str(request.param)


def v4_packets(tun: Tun) -> list[bytes]:
    """What the host sends, without its router solicitations and the like; all of it plain."""
    frames = [bytes(frame) for frame in tun.read(10)]
    return [packet for frame in frames for packet in cut(frame) if packet[0] >> 4 == 4]


def exchange(tun: Tun, send: Callable[[bytes], object], received: Callable[[], bytes]) -> None:
    """One body for both twins: what the host sends is read, what is written the host gets."""
    assert v4_packets(tun) == []
    send(b"outwards")
    packets: list[bytes] = []

    def some() -> bool:
        packets.extend(v4_packets(tun))
        return bool(packets)

    until(some)
    assert [packet[28:] for packet in packets] == [b"outwards"]
    tun.write([b"", b"junk", PLAIN + b"junk", PLAIN + udp_packet("10.86.77.2", "10.86.77.1", b"inwards")])
    assert received() == b"inwards"


def udp_superpacket(payload: bytes, segment_bytes: int) -> bytes:
    """A frame from 10.86.77.2:1000 to 10.86.77.1:2000, its checksum left to be finished."""
    packet = bytearray(udp_packet("10.86.77.2", "10.86.77.1", payload))
    pseudo = packet[12:20] + struct.pack(">HH", 17, 8 + len(payload))
    total = sum(struct.unpack(">6H", pseudo)) % 0xFFFF
    packet[26:28] = total.to_bytes(2)
    return VNET_HEADER.pack(NEEDS_CSUM, GSO_UDP_L4, 28, segment_bytes, 20, 6) + bytes(packet)


# --- In memory ----------------------------------------------------------------------------------------------


def test_memory_tun_is_a_tun() -> None:
    tun = MemoryTun()
    exchange(
        tun,
        lambda payload: tun.inject(udp_packet("10.86.77.1", "10.86.77.2", payload)),
        lambda: tun.written[-1][28:],
    )
    tun.delete()
    with pytest.raises(DeviceGone):
        tun.read(1)
    tun.close()


def test_memory_tun_shows_superpackets_whole_and_cut() -> None:
    tun = MemoryTun()
    frame = udp_superpacket(bytes(1000) + bytes(range(200)), 500)
    tun.write([frame])
    assert tun.written_frames == [frame]
    assert [len(packet) for packet in tun.written] == [528, 528, 228]
    assert tun.written[-1].endswith(bytes(range(200)))
    tun.close()


def test_memory_tun_takes_back_what_it_lent() -> None:
    tun = MemoryTun()
    tun.inject(b"first", b"second")
    first, second = tun.read(10)
    assert (bytes(first), bytes(second)) == (PLAIN + b"first", PLAIN + b"second")
    assert tun.read(10) == []
    assert bytes(first) == b"\xff" * len(first)
    tun.close()


def test_memory_tun_reads_no_more_than_a_turn() -> None:
    tun = MemoryTun()
    tun.inject(*[bytes(60_000)] * 10)
    assert [len(tun.read(128)) for _ in range(3)] == [5, 5, 0]
    tun.inject(*[b"x"] * 200)
    assert [len(tun.read(128)) for _ in range(2)] == [128, 72]
    tun.close()


@pytest.mark.parametrize(
    ("off", "coalesce"),
    [(NONE, COALESCE_TCP | COALESCE_UDP), ({TSO}, COALESCE_UDP), ({USO}, COALESCE_TCP), (ALL, 0)],
)
def test_memory_tun_has_offloads(off: frozenset[str], coalesce: int) -> None:
    tun = MemoryTun()
    tun.set_offloads(frozenset(off))
    assert tun.coalesce == coalesce
    assert tun.offloads == ALL - off
    tun.close()


# --- The kernel's -------------------------------------------------------------------------------------------


def make_device(made: str) -> None:
    ip("tuntap", "add", "mode", "tun", "name", "cvtun0", *made.split())
    ip("link", "set", "cvtun0", "mtu", "1300")


def bring_up() -> None:
    ip("address", "add", "10.86.77.1/24", "dev", "cvtun0")
    ip("address", "add", "fd86:77::1/64", "dev", "cvtun0", "nodad")
    ip("link", "set", "cvtun0", "up")


@needs_root
@pytest.mark.parametrize("made", [None, *MADE])
def test_linux_tun_is_a_tun(made: str | None) -> None:
    def body() -> None:
        if made is not None:
            make_device(made)
        tun = LinuxTun.open(TunOptions("cvtun0"))
        assert tun.created is (made is None)
        assert tun.mtu_bytes == (1420 if tun.created else 1300)
        ip("address", "add", "10.86.77.1/24", "dev", "cvtun0")
        assert not tun.refresh()
        tun.bring_up()
        assert tun.refresh()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.bind(("10.86.77.1", 2000))
            exchange(
                tun,
                lambda payload: sock.sendto(payload, ("10.86.77.2", 1000)),
                lambda: sock.recv(100),
            )
            tun.write([udp_superpacket(bytes(250), 100)])
            assert [len(sock.recv(1000)) for _ in range(3)] == [100, 100, 50]
        ip("link", "set", "cvtun0", "down")
        # Nothing of this is the superpacket's fault.
        tun.write([PLAIN + udp_packet("10.86.77.2", "10.86.77.1", b"lost"), udp_superpacket(bytes(250), 100)])
        assert tun.offloads == ALL
        ip("link", "set", "cvtun0", "name", "cvtun1")
        assert tun.name == "cvtun1"
        ip("link", "del", "cvtun1")
        with pytest.raises(DeviceGone):
            tun.read(1)
        with pytest.raises(DeviceGone):
            tun.write([udp_superpacket(bytes(250), 100)])
        tun.close()

    in_new_namespace(body)


@needs_root
def test_a_tun_that_cannot_be_had() -> None:
    def body() -> None:
        first = LinuxTun.open(TunOptions("cvtun0"))
        with pytest.raises(CulvertError, match="interface cvtun0: another process is attached"):
            LinuxTun.open(TunOptions("cvtun0"))
        first.close()
        with pytest.raises(CulvertError, match="interface lo: exists and is not a TUN"):
            LinuxTun.open(TunOptions("lo"))

    in_new_namespace(body)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "sixteen-bytes-xx", "a/b", "a b", "a\0b", "a:b", "tun%d", "éééééééé"]
)
def test_names_the_kernel_does_not_take(name: str) -> None:
    with pytest.raises(CulvertError, match="interface name"):
        check_name(name)


# --- What the kernel does with a device that is there already -----------------------------------------------


def attach(flags: int) -> int | None:
    """A descriptor, or None where the kernel does not let us have the device like that."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, TUNSETIFF, IFREQ.pack(b"cvtun0", IFF_TUN_NO_PI | flags))
    except OSError as error:
        os.close(fd)
        return None if error.errno == errno.EINVAL else -1
    return fd


def flags_of(fd: int) -> int:
    return int(IFREQ.unpack(fcntl.ioctl(fd, TUNGETIFF, bytes(IFREQ.size)))[1])


def features() -> dict[str, str]:
    shown = subprocess.run(["ethtool", "-k", "cvtun0"], capture_output=True, text=True, check=True).stdout
    return dict(re.findall(r"^\t?([a-z0-9-]+): (on|off)", shown, re.MULTILINE))


@needs_root
@pytest.mark.parametrize("made", MADE)
def test_the_kernel_takes_the_virtio_header_from_who_attaches(made: str) -> None:
    def body() -> None:
        make_device(made)
        for queues in (0, IFF_MULTI_QUEUE):
            for header in (0, IFF_VNET_HDR):
                fd = attach(queues | header)
                # Several queues, or one: as it was made. With a header, or without: as one likes.
                assert (fd is not None) == (bool(queues) == ("multi_queue" in made))
                if fd is not None:
                    assert flags_of(fd) & IFF_VNET_HDR == header
                    os.close(fd)

    in_new_namespace(body)


@needs_root
def test_the_kernel_leaves_us_with_the_header_of_who_was_first() -> None:
    """Two programs on one multi-queue device are nobody's wish, but must not take frames for packets."""

    def body() -> None:
        make_device("multi_queue")
        first = attach(IFF_MULTI_QUEUE)
        assert first is not None
        tun = LinuxTun.open(TunOptions("cvtun0"))
        assert tun.offloads == NONE
        bring_up()
        os.close(first)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.bind(("10.86.77.1", 2000))
            tun.write([udp_superpacket(bytes(250), 100)])
            assert [len(sock.recv(1000)) for _ in range(3)] == [100, 100, 50]
            sock.sendto(b"outwards", ("10.86.77.2", 1000))
            until(lambda: any(packet[28:] == b"outwards" for packet in v4_packets(tun)))
        tun.close()

    in_new_namespace(body)


@needs_root
def test_what_others_left_on_a_device_is_set_right_and_ours_taken_back() -> None:
    def body() -> None:
        make_device("")
        fd = attach(IFF_VNET_HDR)
        assert fd is not None
        fcntl.ioctl(fd, TUNSETVNETHDRSZ, INT.pack(12))
        os.close(fd)
        # The kernel keeps the size of the header, though nobody is attached.
        fd = attach(IFF_VNET_HDR)
        assert fd is not None
        assert INT.unpack(fcntl.ioctl(fd, TUNGETVNETHDRSZ, bytes(4))) == (12,)
        os.close(fd)
        tun = LinuxTun.open(TunOptions("cvtun0"))
        assert INT.unpack(fcntl.ioctl(tun.fileno(), TUNGETVNETHDRSZ, bytes(4))) == (10,)
        assert features()["tcp-segmentation-offload"] == "on"
        assert features()["tx-checksumming"] == "on"
        tun.set_offloads(frozenset((TSO,)))
        assert features()["tcp-segmentation-offload"] == "off"
        tun.set_offloads(NONE)
        tun.close()
        # The next program may be one that cannot cut.
        for name in ("tcp-segmentation-offload", "tx-udp-segmentation", "tx-checksumming"):
            assert features()[name] == "off"

    in_new_namespace(body)


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
