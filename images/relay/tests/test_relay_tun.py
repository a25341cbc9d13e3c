# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""TUN devices: the twin in memory, the kernel's, and what becomes of one that was there before us."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import select
import socket
import subprocess
from collections.abc import Callable
from ipaddress import ip_address

import pytest

from culvert.errors import CulvertError
from culvert.frame import (
    COALESCE_TCP,
    COALESCE_UDP,
    PLAIN,
)
from culvert.linkwatch import LinkWatch
from culvert.offloads import TSO, USO
from culvert.testing import udp_packet
from culvert.tun import LinuxTun, MemoryTun
from culvert.tun_device import DeviceGone, Tun, TunOptions, check_name
from relay_kernel import in_new_namespace, ip, needs_root, until
from relay_tun import (
    ALL,
    IFF_MULTI_QUEUE,
    IFF_TUN_NO_PI,
    IFF_VNET_HDR,
    IFREQ,
    INT,
    MADE,
    NONE,
    TUNGETIFF,
    TUNGETVNETHDRSZ,
    TUNSETIFF,
    TUNSETVNETHDRSZ,
    bring_up,
    calls,
    make_device,
    udp_superpacket,
    v4_packets,
)

__all__ = ["calls"]


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
def test_a_tun_knows_its_own_addresses() -> None:
    def body() -> None:
        tun = LinuxTun.open(TunOptions("cvtun0"))
        assert tun.addresses() == ()
        for address in ("10.86.77.1/24", "10.86.77.9/24", "fe80::7/64", "fd86::7/64"):
            ip("address", "add", address, "dev", "cvtun0")
        tun.bring_up()
        watch = LinkWatch()
        # The first IPv4 one, from which the host itself would send; of IPv6 no link-local one.
        assert tun.addresses() == (ip_address("10.86.77.1").packed, ip_address("fd86::7").packed)
        ip("address", "del", "10.86.77.1/24", "dev", "cvtun0")
        assert select.select([watch], [], [], 5)[0], "whoever watches is told of it"
        assert tun.addresses()[-1] == ip_address("fd86::7").packed
        watch.close()
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
