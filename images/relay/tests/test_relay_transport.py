# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Transports: the twin in memory and the kernel's UDP, in runs, one by one, and with what refuses runs."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from culvert.batch import Chunk, Received
from culvert.calls import Calls
from culvert.context import OutgoingRun
from culvert.endpoint import Endpoint
from culvert.offloads import GRO, GSO
from culvert.transport import Transport
from culvert.transport import udp as udp_module
from culvert.transport.base import Unsent
from culvert.transport.memory import MemoryNetwork, coalesced
from culvert.transport.udp import UdpTransport
from relay_kernel import in_new_namespace, ip, needs_root, until

UDP_SEGMENT = 103
ALL = frozenset((GSO, GRO))


@pytest.fixture(params=["python", "compiled"])
def calls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is said of UDP is said of both implementations of the system calls."""
    if request.param == "compiled":
        compiled = importlib.import_module("culvert.compiled").CompiledCalls
        monkeypatch.setattr(udp_module, "PythonCalls", compiled)
    return str(request.param)


both_calls = pytest.mark.usefixtures("calls")


def run_of(endpoint: Endpoint, *datagrams: bytes, tos: int = 0) -> OutgoingRun:
    """As the engine makes them: neighbours of one length in one chunk."""
    chunks = [Chunk(data, segment_bytes or len(data)) for data, segment_bytes in coalesced(datagrams)]
    return OutgoingRun(endpoint, chunks, tos)


def datagrams_of(received: Received) -> list[bytes]:
    data, step = bytes(received.data), received.segment_bytes or max(1, len(received.data))
    return [data[start : start + step] for start in range(0, len(data), step)]


def receive(transport: Transport, count: int) -> list[Received]:
    """At least ``count`` datagrams, in runs or not, copied out of the transport's memory."""
    received: list[Received] = []

    def enough() -> bool:
        for fileno in transport.filenos():
            arrived = transport.receive(fileno, 100)
            received.extend(one._replace(data=bytes(one.data)) for one in arrived)
        return sum(len(datagrams_of(one)) for one in received) >= count

    until(enough)
    return received


def all_of(received: Sequence[Received]) -> list[bytes]:
    return [datagram for one in received for datagram in datagrams_of(one)]


# --- Twins --------------------------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "memory runs", "udp4", "udp6", "udp4 gso", "udp4 gro", "udp4 none"])
def transports(
    request: pytest.FixtureRequest, calls: str
) -> Iterator[tuple[Transport, Endpoint, Transport, Endpoint]]:
    kind, _, offloads = request.param.partition(" ")
    one: Transport
    two: Transport
    if kind == "memory":
        network, host = MemoryNetwork(runs=offloads == "runs"), "198.51.100.1"
        one, two = network.open(host, 0), network.open(host, 0)
    else:
        host = "::1" if kind == "udp6" else "127.0.0.1"
        one, two = UdpTransport(0, 0), UdpTransport(0, 0)
        for transport in (one, two):
            if offloads:
                transport.set_offloads(ALL - {offloads})
                assert transport.offloads == {offloads} & ALL
    yield one, Endpoint(host, one.port), two, Endpoint(host, two.port)
    one.close()
    two.close()


def test_transports_carry_runs_in_order(
    transports: tuple[Transport, Endpoint, Transport, Endpoint],
) -> None:
    one, one_at, two, two_at = transports
    datagrams = [bytes([number]) * (number * 50 + 1) for number in range(20)]
    even = [bytes([number]) * 1452 for number in range(200)] + [b"short"]
    assert one.send([run_of(two_at, *datagrams, tos=0x88), run_of(two_at, b"ce", tos=3)]) == []
    received = receive(two, 21)
    assert all_of(received) == [*datagrams, b"ce"]
    assert {endpoint for _, endpoint, _, _ in received} == {one_at}
    assert [ecn for _, _, ecn, _ in received if ecn] == [3]
    assert len({id(endpoint) for _, endpoint, _, _ in received}) == 1
    one.send([run_of(two_at, *even, tos=1), run_of(two_at, *even)])
    received = receive(two, 402)
    assert all_of(received) == [*even, *even]
    assert {one.ecn for one in received} == {0, 1}
    # And back, to where it came from.
    two.send([run_of(received[0].endpoint, b"back", tos=1)])
    (back,) = receive(one, 1)
    assert (back.data, back.endpoint, back.ecn, back.segment_bytes) == (b"back", two_at, 1, 0)


def test_runs_arrive_as_runs_where_they_can(
    transports: tuple[Transport, Endpoint, Transport, Endpoint], request: pytest.FixtureRequest
) -> None:
    one, _, two, two_at = transports
    one.send([run_of(two_at, *[bytes(1452)] * 40, bytes(7))])
    received = receive(two, 41)
    # On the loopback device a run stays one only if it was sent as one.
    whole = "memory runs" in request.node.name or (isinstance(two, UdpTransport) and two.offloads == ALL)
    assert len(received) == (1 if whole else 41)
    assert {one.segment_bytes for one in received} == {1452 if whole else 0}


@given(st.lists(st.integers(0, 3).map(lambda size: bytes(size * 600)), max_size=300))
def test_coalesced_loses_nothing(datagrams: list[bytes]) -> None:
    runs = list(coalesced(datagrams))
    filled = [datagram for datagram in datagrams if datagram]
    made = [piece for data, step in runs for piece in datagrams_of(Received(data, HERE, 0, step))]
    assert made == filled
    assert all(len(data) <= 65507 and (not step or len(data) <= 64 * step) for data, step in runs)


HERE = Endpoint("198.51.100.1", 1)


def test_the_weather_breaks_runs_up() -> None:
    def weather(data: bytes) -> list[bytes]:
        return [] if data[0] == 3 else [data, data] if data[0] == 5 else [data]

    network = MemoryNetwork(weather, runs=True)
    one, two = network.open("198.51.100.1", 0), network.open("198.51.100.2", 7)
    one.send([run_of(Endpoint("198.51.100.2", 7), *(bytes([number]) * 10 for number in range(8)))])
    (received,) = receive(two, 8)
    assert [datagram[0] for datagram in datagrams_of(received)] == [0, 1, 2, 4, 5, 5, 6, 7]
    two.set_offloads(frozenset((GRO,)))
    one.send([run_of(Endpoint("198.51.100.2", 7), bytes(10), bytes(10))])
    assert len(receive(two, 2)) == 2
    one.close()
    two.close()


def test_memory_takes_back_what_it_lent() -> None:
    network = MemoryNetwork()
    one, two = network.open("198.51.100.1", 0), network.open("198.51.100.2", 7)
    one.send([run_of(Endpoint("198.51.100.2", 7), b"first")])
    (received,) = two.receive(two.filenos()[0], 1)
    assert received.data == b"first"
    assert two.receive(two.filenos()[0], 1) == []
    assert received.data == b"\xff" * 5
    one.close()
    two.close()


# --- UDP ----------------------------------------------------------------------------------------------------


@both_calls
def test_a_port_in_use_is_an_error(transports: tuple[Transport, Endpoint, Transport, Endpoint]) -> None:
    one = transports[0]
    if isinstance(one, UdpTransport):
        with pytest.raises(OSError, match="in use"):
            UdpTransport(one.port, 0)


@both_calls
def test_udp_answers_from_the_address_that_was_asked() -> None:
    server = UdpTransport(0, 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.bind(("127.0.0.1", 0))
        client.sendto(b"hello", ("127.0.0.77", server.port))
        (received,) = receive(server, 1)
        server.send([run_of(received.endpoint, b"reply")])
        assert client.recvfrom(100) == (b"reply", ("127.0.0.77", server.port))
        # An address that is not ours (any more) is given up, not insisted on.
        gone = Endpoint(
            "127.0.0.1", client.getsockname()[1], 0, struct.pack("=i4s4s", 0, b"\xcb\0\x71\x01", bytes(4))
        )
        assert server.send([run_of(gone, b"again")]) == []
        assert client.recvfrom(100)[0] == b"again"
    server.close()


def pktinfo(address: str) -> bytes:
    return struct.pack("=i4s4s", 0, socket.inet_aton(address), bytes(4))


@both_calls
def test_an_unreachable_target_does_not_take_our_address_from_others() -> None:
    """Anybody can send with source port 0, to which no answer can go."""
    server = UdpTransport(0, 0)
    server.send([run_of(Endpoint("127.0.0.1", 0, 0, pktinfo("127.0.0.77")), b"cookie")])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.bind(("127.0.0.1", 0))
        honest = Endpoint("127.0.0.1", client.getsockname()[1], 0, pktinfo("127.0.0.77"))
        server.send([run_of(honest, b"reply")])
        assert client.recvfrom(100) == (b"reply", ("127.0.0.77", server.port))
    server.close()


@both_calls
def test_an_address_that_comes_back_is_used_again() -> None:
    server = UdpTransport(0, 0)
    server._source_is_dead(pktinfo("127.0.0.77"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.bind(("127.0.0.1", 0))
        client.sendto(b"hello", ("127.0.0.77", server.port))
        (received,) = receive(server, 1)
        server.send([run_of(received.endpoint, b"reply")])
        assert client.recvfrom(100) == (b"reply", ("127.0.0.77", server.port))
    server.close()


@both_calls
@pytest.mark.parametrize("mark", [0, 1, 2**31, 2**32 - 1])
def test_any_mark_of_32_bits_is_set_or_not_allowed(mark: int) -> None:
    transport = UdpTransport(0, 0)
    with contextlib.suppress(PermissionError):
        transport.set_mark(mark)
    transport.close()


@both_calls
def test_udp_survives_what_cannot_be_sent() -> None:
    transport = UdpTransport(0, 0)
    far = Endpoint("255.255.255.255", 1)
    near = Endpoint("127.0.0.1", 9)
    unsent = transport.send([run_of(far, b"x"), run_of(near, bytes(70_000))])
    assert Unsent(near, errno.EMSGSIZE) in unsent
    assert {endpoint for endpoint, _ in unsent} <= {far, near}
    transport.close()


# --- What runs meet on their way ----------------------------------------------------------------------------


@pytest.fixture
def pair(calls: str) -> Iterator[tuple[UdpTransport, UdpTransport]]:
    one, two = UdpTransport(0, 0), UdpTransport(0, 0)
    yield one, two
    one.close()
    two.close()


@both_calls
def test_a_turn_has_an_end(pair: tuple[UdpTransport, UdpTransport], calls: str) -> None:
    one, two = pair
    target = Endpoint("127.0.0.1", two.port)
    one.send([run_of(target, *[bytes(1452)] * 45) for _ in range(20)])
    fileno = next(number for number in two.filenos() if two._sockets[number].family == socket.AF_INET)
    counts = [len(two.receive(fileno, 64)) for _ in range(4)]
    # Runs of 64 KiB: eight to the 512 KiB of a turn, and one to the room behind that; or sixteen places.
    assert counts == ([9, 9, 2, 0] if calls == "python" else [16, 4, 0, 0])
    one.send([run_of(target, *(bytes(1 + number % 7) for number in range(100)))])
    assert sum(len(datagrams_of(got)) for got in two.receive(fileno, 64)) >= 64


@both_calls
@needs_root
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_run_too_long_for_the_path_goes_in_fragments(host: str) -> None:
    """The kernel fragments a single datagram that is too long, but refuses a run of them."""

    def body() -> None:
        ip("link", "set", "lo", "up", "mtu", "1300")
        one, two = UdpTransport(0, 0), UdpTransport(0, 0)
        target = Endpoint(host, two.port)
        sock = one._by_family[target.family]
        with pytest.raises(OSError, match=r"too long|Invalid argument"):
            sock.sendmsg(
                [bytes(5000)], [(socket.SOL_UDP, UDP_SEGMENT, struct.pack("=H", 1452))], 0, target.sockaddr
            )
        long = [bytes([number]) * 1452 for number in range(40)]
        assert one.send([run_of(target, *long)]) == []
        assert all_of(receive(two, 40)) == long
        # That was the path's fault, and of these datagrams.
        assert one.offloads == ALL
        one.send([run_of(target, *[bytes(1000)] * 40)])
        assert len(receive(two, 40)) == 1
        one.close()
        two.close()

    in_new_namespace(body)


@both_calls
@needs_root
def test_the_kernel_cuts_runs_longer_than_a_device_takes() -> None:
    """65,536 bytes with all headers are too many (gso_max_size): longer runs arrive, but one by one."""

    def body() -> None:
        ip("link", "set", "lo", "up")
        one, two = UdpTransport(0, 0), UdpTransport(0, 0)
        for host, longest in (("127.0.0.1", 65493), ("::1", 65473)):
            for size, count in ((longest, 1), (longest + 1, 46)):
                one.send([OutgoingRun(Endpoint(host, two.port), [Chunk(bytes(size), 1452)], 0)])
                assert len(receive(two, 46)) == count
        one.close()
        two.close()

    in_new_namespace(body)


@both_calls
@needs_root
def test_where_there_is_no_route_runs_say_so() -> None:
    def body() -> None:
        ip("link", "set", "lo", "up")
        transport = UdpTransport(0, 0)
        for host in ("198.51.100.1", "2001:db8::1"):
            target = Endpoint(host, 7)
            unsent = transport.send([run_of(target, bytes(9), bytes(9)), run_of(target, b"x")])
            assert unsent == [Unsent(target, errno.ENETUNREACH)] * 2
        assert transport.offloads == ALL
        transport.close()

    in_new_namespace(body)


@both_calls
def test_a_run_from_an_address_that_is_not_ours_goes_from_another(
    pair: tuple[UdpTransport, UdpTransport],
) -> None:
    one, two = pair
    target = Endpoint("127.0.0.1", two.port, 0, pktinfo("203.0.113.1"))
    assert one.send([run_of(target, *[bytes(100)] * 10)]) == []
    assert len(all_of(receive(two, 10))) == 10
    assert one.offloads == ALL
    # And the next run, whole.
    one.send([run_of(target, *[bytes(100)] * 10)])
    assert len(receive(two, 10)) == 1


class Refusing(socket.socket):
    """A socket of a kernel that can do less."""

    unknown: ClassVar[frozenset[int]] = frozenset()
    "Options of UDP that there are not."

    def getsockopt(self, level: int, option: int, *rest: Any) -> Any:
        self._check(level, option)
        return super().getsockopt(level, option, *rest)

    def setsockopt(self, level: int, option: int, *rest: Any) -> None:
        self._check(level, option)
        super().setsockopt(level, option, *rest)

    def _check(self, level: int, option: int) -> None:
        if level == socket.SOL_UDP and option in self.unknown:
            raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Transports opened from now on have such sockets."""
    monkeypatch.setattr(udp_module.socket, "socket", Refusing)
    return monkeypatch


class RefusingCalls:
    """System calls above a device that takes no runs."""

    def __init__(self, real: Calls, code: int) -> None:
        self._real = real
        self.code = code

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def send(self, sock: Any, data: Any, ancillary: Any, address: Any, segment_bytes: int) -> int:
        if self.code and segment_bytes:
            return self.code
        return self._real.send(sock, data, ancillary, address, segment_bytes)


@pytest.mark.parametrize(("code", "left"), [(errno.EIO, {GRO}), (errno.EINVAL, ALL), (errno.EMSGSIZE, ALL)])
def test_runs_that_are_refused_go_one_by_one(
    pair: tuple[UdpTransport, UdpTransport], caplog: pytest.LogCaptureFixture, code: int, left: frozenset[str]
) -> None:
    one, two = pair
    assert one.offloads == ALL
    refusing = one._calls = RefusingCalls(one._calls, code)
    sent = [bytes([number]) * 100 for number in range(50)]
    for _ in range(3):
        assert one.send([run_of(Endpoint("127.0.0.1", two.port), *sent)]) == []
        assert all_of(receive(two, 50)) == sent
    assert one.offloads == left
    assert len(caplog.records) == (code == errno.EIO)
    # Whoever switches it on again gets it, if the kernel can by now.
    refusing.code = 0
    one.set_offloads(frozenset())
    assert one.offloads == ALL
    one.send([run_of(Endpoint("127.0.0.1", two.port), *sent)])
    assert len(receive(two, 50)) == 1


@both_calls
@pytest.mark.parametrize(("unknown", "left"), [({103}, {GRO}), ({104}, {GSO}), ({103, 104}, set())])
def test_kernels_that_know_no_runs(refusing: pytest.MonkeyPatch, unknown: set[int], left: set[str]) -> None:
    refusing.setattr(Refusing, "unknown", frozenset(unknown))
    one, two = UdpTransport(0, 0), UdpTransport(0, 0)
    assert one.offloads == left
    sent = [bytes([number]) * 100 for number in range(50)]
    one.send([run_of(Endpoint("127.0.0.1", two.port), *sent)])
    assert all_of(receive(two, 50)) == sent
    one.close()
    two.close()
