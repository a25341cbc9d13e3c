# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The transport of streams, over this machine's TCP."""

from __future__ import annotations

import contextlib
import errno
import random
import resource
import socket
from collections.abc import Iterator

import pytest

from culvert.endpoint import Endpoint
from culvert.offloads import GRO, GSO
from culvert.transport.base import Target, Unsent
from culvert.transport.composite import CompositeTransport
from culvert.transport.dialling import Backoff
from culvert.transport.limits import descriptors
from culvert.transport.listening import ListenError
from culvert.transport.memory import MemoryNetwork
from culvert.transport.strangers import STRANGER_S
from relay_streams import HERE, INITIATION, Ends, joined, message, run_of


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends()
    yield ends
    ends.close()


def knock(there: Endpoint, data: bytes = b"") -> socket.socket:
    """A connection of somebody else's."""
    sock = socket.create_connection((there.host, there.port), timeout=5)
    sock.sendall(data)
    return sock


def hung_up(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


FIRST = len(INITIATION).to_bytes(2) + INITIATION


def test_messages_both_ways_over_one_connection(ends: Ends) -> None:
    server, far, client, near = next(joined(ends))
    sent = [message(65535, 0x66), message(40), message(1452), message(65000)]
    client.send([run_of(near, *sent)])
    found = ends.receive(server, client, count=4)
    assert [data for data, _ in found] == sent
    assert all(endpoint is far for _, endpoint in found), "an endpoint is a connection's own object"
    server.send([run_of(far, *sent)])
    assert [data for data, _ in ends.receive(client, server, count=4)] == sent
    assert server.stats == (1, 0, 0, 0)
    assert far.scheme == "tcp"
    assert server.filenos() == server.filenos(), "the loop's selector never has to change"


def test_more_than_the_kernel_takes_waits_and_arrives_in_order(ends: Ends) -> None:
    server, _, client, near = next(joined(ends))
    sent = [message(60000 + number, 0x66) for number in range(200)]
    place = 0
    found: list[bytes] = []

    def go_on() -> bool:
        nonlocal place
        connection = client._by_endpoint[near]
        while place < len(sent) and connection.waiting_bytes < 500_000:
            client.send([run_of(near, sent[place])])
            place += 1
        ends.turn(client)
        found.extend(data for data, _ in ends.turn(server))
        return len(found) == len(sent)

    ends.until(go_on)
    assert found == sent
    assert client.stats.dropped_messages == 0


def test_a_far_end_that_does_not_read_costs_a_bounded_queue(ends: Ends) -> None:
    _, _, client, near = next(joined(ends))
    for _ in range(400):
        client.send([run_of(near, message(60000, 0x66))])
    waiting = client._by_endpoint[near].waiting_bytes
    assert waiting <= 1 << 20
    assert client.stats.dropped_messages > 100


def test_who_is_no_target_is_not_dialled(ends: Ends) -> None:
    _, there = ends.server()
    client = ends.client()
    assert client.send([run_of(there, INITIATION)]) == [Unsent(there, errno.ENOTCONN)]
    client.set_targets({there: Target()})
    assert client.send([run_of(there, INITIATION)]) == []
    client.set_targets({})
    assert client.stats.connections == 0
    assert client.lost() == [], "it was not lost: nobody wants it any more"


def test_a_lost_connection_is_dialled_again_later_and_later(ends: Ends) -> None:
    with socket.socket() as nobody:
        nobody.bind((HERE, 0))
        there = Endpoint(HERE, nobody.getsockname()[1], scheme="tcp")
        client = ends.client(there)
        waits = []
        for _ in range(9):
            client.send([run_of(there, INITIATION)])
            found = client.lost()
            ends.until(lambda found=found: found.extend(client.lost()) or found, client)
            [lost] = found
            assert lost.endpoint == there
            waits.append(lost.retry_s - ends.now)
            if waits[-1]:
                assert client.send([run_of(there, INITIATION)]) == []
                assert client.stats.connections == 0, "it is too early"
            ends.now = lost.retry_s
    assert waits[0] == 0
    for number, wait in enumerate(waits[1:]):
        middle = min(0.5 * 2**number, 30)
        assert middle * 0.5 <= wait <= middle * 1.5
    assert len({round(wait / 0.5 % 1, 6) for wait in waits}) > 3, "no jitter"


def test_what_is_authentic_makes_the_next_dial_quick_again() -> None:
    backoff = Backoff(random.Random(1))
    for _ in range(20):
        backoff.failed(0.0)
    assert backoff.failed(0.0) >= 15
    assert not backoff.may_dial(1.0)
    backoff.reset()
    assert backoff.may_dial(0.0)
    assert backoff.failed(5.0) == 5.0


def test_a_peer_that_hangs_up_is_lost_and_its_next_connection_another_endpoint(ends: Ends) -> None:
    server, far, client, near = next(joined(ends))
    server.hang_up(far)
    ends.until(lambda: client.stats.connections == 0, client)
    [lost] = client.lost()
    assert lost == (near, ends.now), "at once, for it was trusted"
    assert server.send([run_of(far, message(92))]) == [Unsent(far, errno.ENOTCONN)]
    client.send([run_of(near, INITIATION)])
    data, again = ends.receive(server, client)[0]
    assert data == INITIATION
    assert again is not far
    server.send([run_of(again, message(92))])
    _, nearer = ends.receive(client, server)[0]
    assert nearer == near
    assert nearer is not near, "whoever hears of it has to see that it is another"


def test_a_dial_that_nobody_answers_ends(ends: Ends) -> None:
    """The listener's queue is full, so that a SYN goes unanswered."""
    with socket.socket() as full:
        full.bind((HERE, 0))
        full.listen(0)
        there = Endpoint(HERE, full.getsockname()[1], scheme="tcp")
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex((HERE, there.port))
        client = ends.client(there)
        client.send([run_of(there, INITIATION)])
        ends.turn(client)
        assert client.stats.connections == 1
        ends.pass_time(11)
        assert client.stats.connections == 0
        assert [lost.endpoint for lost in client.lost()] == [there]
        for filler in fillers:
            filler.close()


def test_a_stranger_has_ten_seconds_and_is_told_nothing(ends: Ends) -> None:
    server, there = ends.server()
    silent, late = knock(there), knock(there, FIRST)
    ends.receive(server)
    assert server.stats.strangers == 2
    ends.pass_time(STRANGER_S - 0.1)
    ends.turn(server)
    assert server.stats.strangers == 2
    ends.pass_time(0.2)
    assert server.stats == (0, 0, 0, 2)
    for sock in (silent, late):
        ends.until(lambda sock=sock: hung_up(sock))
        sock.close()


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"\xff\xff", b"\x00\x01\x01", bytes(6)])
def test_who_speaks_otherwise_is_hung_up_on_at_once(ends: Ends, data: bytes) -> None:
    server, there = ends.server()
    with knock(there, data) as sock:
        ends.until(lambda: hung_up(sock), server)
    assert server.stats == (0, 0, 0, 1)


def test_strangers_are_bounded_and_the_oldest_goes(ends: Ends) -> None:
    server, there = ends.server()
    socks = []
    for number in range(70):
        socks.append(knock(there, FIRST[:50]))
        ends.until(lambda number=number: server.stats.strangers + server.stats.refused == number + 1, server)
    assert server.stats.strangers == 64, "of one source"
    assert [hung_up(sock) for sock in socks[:7]] == [True] * 6 + [False]
    for sock in socks:
        sock.close()


def test_where_there_are_no_more_connections_the_oldest_stranger_goes(ends: Ends) -> None:
    server = ends.open(most=3)
    server.listen({"tcp": 0})
    there = Endpoint(HERE, server.ports["tcp"], scheme="tcp")
    socks = [knock(there, FIRST)]
    _, far = ends.receive(server)[0]
    server.trust(far)
    for _ in range(4):
        socks.append(knock(there, FIRST))
        ends.receive(server)
    assert server.stats == (3, 2, 0, 2)
    assert not hung_up(socks[0]), "a peer is not hung up on for a stranger"
    for sock in socks:
        sock.close()


def test_half_messages_of_many_strangers_are_not_kept(ends: Ends) -> None:
    server, there = ends.server()
    half = (16000).to_bytes(2) + message(16000)[:15000]
    socks = [knock(there, half) for _ in range(60)]
    strangers = server.reception.strangers
    ends.until(lambda: strangers._held_bytes > 800_000 or server.stats.refused, server)
    for _ in range(200):
        ends.turn(server)
    assert strangers._held_bytes <= 1 << 20
    assert strangers._held_bytes == sum(one.held_bytes for one in strangers._all)
    for sock in socks:
        sock.close()


def test_strangers_take_turns_and_rest(ends: Ends) -> None:
    """Whatever they send, they get so many turns a second; a peer is not kept waiting by that."""
    server, far, client, near = next(joined(ends))
    there = Endpoint(HERE, server.ports["tcp"], scheme="tcp")
    socks = [knock(there) for _ in range(20)]
    ends.until(lambda: server.stats.strangers == 20, server)
    for sock in socks:
        sock.sendall(FIRST * 200)
    heard = 0
    for _ in range(300):
        found = ends.turn(server)
        assert len(found) <= 8 * 4, "one turn is short"
        heard += len(found)
    assert server.reception.rests_until_s is not None
    assert heard < 20 * 200
    client.send([run_of(near, message(77))])
    assert ends.receive(server, client)[0][1] is far
    ends.pass_time(0.2)
    assert server.reception.rests_until_s is None
    assert ends.receive(server, client)
    for sock in socks:
        sock.close()


def test_a_connection_that_a_peer_has_replaced_is_closed_a_moment_later(ends: Ends) -> None:
    server, far, client, near = next(joined(ends))
    there = Endpoint(HERE, server.ports["tcp"], scheme="tcp")
    with knock(there, FIRST) as sock:
        _, newer = ends.receive(server, client)[0]
        server.trust(newer, far)
        assert server.stats.connections == 2
        client.send([run_of(near, message(60))])
        assert ends.receive(server, client)[0][1] is far, "what was on its way is still taken"
        ends.pass_time(4)
        assert server.stats == (1, 0, 0, 0)
        ends.until(lambda: client.stats.connections == 0, client)
        assert not hung_up(sock)


def test_a_peer_that_comes_back_to_its_older_connection_keeps_it(ends: Ends) -> None:
    server, far, client, _ = next(joined(ends))
    there = Endpoint(HERE, server.ports["tcp"], scheme="tcp")
    with knock(there, FIRST) as sock:
        _, newer = ends.receive(server, client)[0]
        server.trust(newer, far)
        server.trust(far, newer)
        ends.pass_time(4)
        ends.until(lambda: hung_up(sock), server)
        assert server.stats.connections == 1
        assert client.stats.connections == 1


def test_a_thousand_idle_connections_cost_little(ends: Ends) -> None:
    descriptors()
    server = ends.open(most=None)
    server.listen({"tcp": 0})
    there = Endpoint(HERE, server.ports["tcp"], scheme="tcp")
    socks = []
    for _ in range(1000):
        socks.append(knock(there, FIRST))
        ends.now += 0.001
        server.handle_timer(ends.now)
        _, far = ends.receive(server)[0]
        server.trust(far)
    assert server.stats == (1000, 0, 0, 0)
    assert all(one.held_bytes == 0 for one in server._by_endpoint.values())
    assert ends.turn(server) == []
    socks[500].sendall(FIRST)
    assert len(ends.receive(server)) == 1
    for sock in socks:
        sock.close()


def test_a_busy_connection_leaves_the_others_their_turn(ends: Ends) -> None:
    server, there = ends.server()
    socks = []
    for _ in range(12):
        socks.append(knock(there, FIRST))
        _, far = ends.receive(server)[0]
        server.trust(far)
    noise = (60000).to_bytes(2) + message(60000)
    for sock in socks[:9]:
        sock.setblocking(False)
    quiet = socks[9:]
    for sock in quiet:
        sock.sendall((40).to_bytes(2) + message(40))
    heard = turns = 0
    while heard < len(quiet):
        for sock in socks[:9]:
            with contextlib.suppress(BlockingIOError):
                sock.send(noise * 10)
        heard += sum(len(data) == 40 for data, _ in ends.turn(server))
        turns += 1
        assert turns < 20
    for sock in socks:
        sock.close()


def test_listeners_change_all_or_none(ends: Ends) -> None:
    server, there = ends.server()
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ListenError) as error:
            server.listen({"tcp": port})
        assert (error.value.scheme, error.value.port, error.value.errno) == ("tcp", port, errno.EADDRINUSE)
    assert server.ports == {"tcp": there.port}
    server.listen({"tcp": there.port})
    knock(there).close()
    server.listen({})
    with pytest.raises(ConnectionRefusedError):
        knock(there)


def test_it_listens_on_both_families(ends: Ends) -> None:
    server, there = ends.server()
    with socket.create_connection(("::1", there.port)) as sock:
        sock.sendall(FIRST)
        _, far = ends.receive(server)[0]
        assert far.host == "::1"


def test_sockets_have_what_makes_half_open_connections_end(ends: Ends) -> None:
    server, far, client, near = next(joined(ends))
    for sock in (server._by_endpoint[far].sock, client._by_endpoint[near].sock):
        option = sock.getsockopt
        assert option(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert option(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert option(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 10_000
        assert option(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 60


def test_another_process_goes_on_listening(ends: Ends) -> None:
    server, there = ends.server()
    successor = ends.open()
    handed = [listener._replace(sock=listener.sock.dup()) for listener in server.listeners]
    successor.adopt(handed)
    server.close()
    ends._all.remove(server)
    with knock(there, FIRST):
        assert ends.receive(successor)[0][0] == INITIATION
    assert successor.ports == {"tcp": there.port}
    successor.listen(successor.ports)
    assert [one.sock.fileno() for one in successor.listeners] == [one.sock.fileno() for one in handed]


def test_as_many_descriptors_as_there_may_be() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, hard), hard))
        most = descriptors()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= min(hard, 1 << 17)
        assert most == min(hard, 1 << 17) - 128
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_descriptors_the_doors_are_shut_for_a_while(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, there = ends.server()

    class NoRoom:
        def __init__(self, sock: socket.socket) -> None:
            self.sock = sock

        def fileno(self) -> int:
            return self.sock.fileno()

        def accept(self) -> None:
            raise OSError(errno.EMFILE, "too many")

    listeners = server.reception._by_fd
    real = dict(listeners)
    for fd, listener in real.items():
        listeners[fd] = listener._replace(sock=NoRoom(listener.sock))  # type: ignore[union-attr,arg-type]
    with knock(there, FIRST):
        ends.until(lambda: server.get_timer() is not None, server)
        assert server.get_timer() == ends.now + 1
        listeners.update(real)
        assert ends.turn(server) == [], "nobody is let in"
        ends.pass_time(1.1)
        assert ends.receive(server)[0][0] == INITIATION


def test_datagrams_and_streams_are_one_transport(ends: Ends) -> None:
    server, far, client, near = next(joined(ends))
    network = MemoryNetwork()
    udp = network.open("192.0.2.1", 1000)
    other = network.open("192.0.2.2", 2000)
    both = CompositeTransport(udp, client)
    both.set_offloads(frozenset((GSO,)))
    assert both.offloads == {GRO}
    assert both.filenos() == (*udp.filenos(), *client.filenos())
    assert both.send([run_of(near, message(50)), run_of(Endpoint("192.0.2.2", 2000), message(51))]) == []
    assert len(ends.receive(server, client)[0][0]) == 50
    assert [len(one.data) for one in other.receive(other.filenos()[0], 8)] == [51]
    other.send([run_of(Endpoint("192.0.2.1", 1000), message(52))])
    assert [len(one.data) for one in both.receive(udp.filenos()[0], 8)] == [52]
    server.send([run_of(far, message(53))])
    ends.until(lambda: [len(one.data) for one in both.receive(client.filenos()[0], 8)] == [53], server)
    udp.close()
    other.close()
