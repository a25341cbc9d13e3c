# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The userspace API: text, errno answers, and what requests do to a relay."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from culvert.control import ControlClient, answer, listen, socket_path
from culvert.device import Device
from culvert.endpoint import NO_TARGET, Endpoint, Target
from culvert.errors import CulvertError, RequestError
from culvert.keys import Identity, encode_base64
from culvert.relay import Relay
from culvert.testing import World
from culvert.transport.memory import MemoryNetwork
from culvert.tun import MemoryTun
from culvert.uapi import parse_set

PRIVATE = bytes(range(32)).hex()
ONE, TWO = bytes([1] * 32).hex(), bytes([2] * 32).hex()
PSK = bytes([9] * 32).hex()


@pytest.fixture
def network() -> MemoryNetwork:
    return MemoryNetwork()


@pytest.fixture
def relay(network: MemoryNetwork) -> Relay:
    world = World()
    return Relay(
        Device(world.wall_clock_ns, rng=world.rng),
        MemoryTun(),
        lambda port, mark: network.open("198.51.100.1", port),
        lambda: world.now,
    )


def ask(relay: Relay, *lines: str) -> str:
    reply = answer("\n".join(lines).encode(), relay)
    assert reply is not None
    return reply.decode()


def code(relay: Relay, *lines: str) -> int:
    reply = ask(relay, "set=1", *lines)
    assert reply.startswith("errno=")
    assert reply.endswith("\n\n")
    return int(reply[6:])


def test_an_empty_device_has_nothing_to_say(relay: Relay) -> None:
    assert ask(relay, "get=1") == "errno=0\n\n"


def test_everything_set_is_got(relay: Relay) -> None:
    request = [
        f"private_key={PRIVATE}", "listen_port=51820", "fwmark=51820",
        f"public_key={ONE}", f"preshared_key={PSK}", "endpoint=198.51.100.9:7",
        "persistent_keepalive_interval=25",
        "replace_allowed_ips=true", "allowed_ip=10.86.0.2/32", "allowed_ip=fd86::/64", "protocol_version=1",
        f"public_key={TWO}", "endpoint=[2001:db8::9]:8",
    ]  # fmt: skip
    assert code(relay, *request) == 0
    identity = Identity(bytes.fromhex(PRIVATE))
    sent = relay.device.peer(bytes.fromhex(ONE))
    assert sent is not None
    assert ask(relay, "get=1").split("\n") == [
        f"private_key={identity.private_bytes().hex()}", "listen_port=51820", "fwmark=51820",
        f"public_key={ONE}", f"preshared_key={PSK}", "protocol_version=1", "endpoint=198.51.100.9:7",
        "last_handshake_time_sec=0", "last_handshake_time_nsec=0", "tx_bytes=148", "rx_bytes=0",
        "persistent_keepalive_interval=25", "allowed_ip=10.86.0.2/32", "allowed_ip=fd86::/64",
        f"public_key={TWO}", f"preshared_key={'0' * 64}", "protocol_version=1", "endpoint=[2001:db8::9]:8",
        "last_handshake_time_sec=0", "last_handshake_time_nsec=0", "tx_bytes=0", "rx_bytes=0",
        "persistent_keepalive_interval=0",
        "errno=0", "", "",
    ]  # fmt: skip


def test_update_only_remove_and_replace(relay: Relay) -> None:
    assert code(relay, f"public_key={ONE}", "update_only=true", "allowed_ip=10.0.0.0/8") == 0
    assert list(relay.device.peers()) == []
    code(relay, f"public_key={ONE}", "allowed_ip=10.0.0.0/8", "allowed_ip=10.1.0.0/16", f"public_key={TWO}")
    code(relay, f"public_key={ONE}", "allowed_ip=-10.0.0.0/8", "allowed_ip=-172.16.0.0/12")
    peer = relay.device.peer(bytes.fromhex(ONE))
    assert peer is not None
    assert [str(network) for network in relay.device.allowed_ips(peer)] == ["10.1.0.0/16"]
    code(relay, f"public_key={ONE}", "replace_allowed_ips=true", "allowed_ip=10.2.0.0/16")
    assert [str(network) for network in relay.device.allowed_ips(peer)] == ["10.2.0.0/16"]
    code(relay, f"public_key={TWO}", "remove=true", f"public_key={'33' * 32}", "remove=true")
    assert list(relay.device.peers()) == [peer]
    code(relay, "replace_peers=true", f"public_key={TWO}")
    assert [other.public_key.hex() for other in relay.device.peers()] == [TWO]


def test_allowed_ips_are_done_in_the_order_of_the_lines(relay: Relay) -> None:
    code(
        relay,
        f"public_key={ONE}",
        "allowed_ip=10.0.0.0/8",
        "allowed_ip=10.1.0.0/16",
        "allowed_ip=-10.0.0.0/8",
    )
    peer = relay.device.peer(bytes.fromhex(ONE))
    assert peer is not None
    assert [str(network) for network in relay.device.allowed_ips(peer)] == ["10.1.0.0/16"]
    code(relay, f"public_key={ONE}", "allowed_ip=-10.1.0.0/16", "allowed_ip=10.1.0.0/16")
    assert [str(network) for network in relay.device.allowed_ips(peer)] == ["10.1.0.0/16"]
    code(
        relay,
        f"public_key={ONE}",
        "allowed_ip=10.3.0.0/16",
        "replace_allowed_ips=true",
        "allowed_ip=10.2.0.0/16",
    )
    assert [str(network) for network in relay.device.allowed_ips(peer)] == ["10.2.0.0/16"]


def test_many_allowed_ips_take_time_in_proportion() -> None:
    """Forty thousand prefixes: a second at most, where a time that grows as the square takes far longer."""
    lines = [
        f"allowed_ip=10.{number >> 8 & 255}.{number & 255}.{number >> 16}/32" for number in range(40_000)
    ]
    start = time.process_time()
    (peer,) = parse_set([f"public_key={ONE}", *lines]).peers
    assert time.process_time() - start < 1.5
    assert len(peer.allowed_ips) == 40_000


def test_more_peers_than_fit_are_refused_whole(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("device", "update"):
        monkeypatch.setattr(f"culvert.{module}.MAX_PEERS", 2)
    assert code(relay, f"public_key={ONE}") == 0
    many = [f"public_key={number:064x}" for number in range(1, 3)]
    assert code(relay, f"private_key={PRIVATE}", *many) == -errno.ENOMEM
    assert relay.device.identity is None
    assert len(list(relay.device.peers())) == 1
    assert code(relay, "replace_peers=true", *many) == 0
    assert code(relay, many[0], "remove=true", f"public_key={ONE}") == 0


def test_our_own_key_as_a_peer_is_passed_over(relay: Relay) -> None:
    own = Identity(bytes.fromhex(PRIVATE)).public.hex()
    assert code(relay, f"private_key={PRIVATE}", f"public_key={own}", "allowed_ip=10.0.0.0/8") == 0
    assert list(relay.device.peers()) == []


def test_zero_keys_take_away(relay: Relay) -> None:
    code(relay, f"private_key={PRIVATE}", f"public_key={ONE}", f"preshared_key={PSK}")
    code(relay, f"private_key={'0' * 64}", f"public_key={ONE}", f"preshared_key={'0' * 64}")
    assert relay.device.identity is None
    assert "private_key" not in ask(relay, "get=1")
    assert f"preshared_key={'0' * 64}" in ask(relay, "get=1")


BAD = {
    "no-equals": (["listen_port"], errno.EPROTO),
    "unknown-key": (["nonsense=1"], errno.EINVAL),
    "peer-key-first": (["allowed_ip=10.0.0.0/8"], errno.EINVAL),
    "device-key-late": ([f"public_key={ONE}", "listen_port=1"], errno.EINVAL),
    "port": (["listen_port=65536"], errno.EINVAL),
    "port-signed": (["listen_port=+1"], errno.EINVAL),
    "fwmark": (["fwmark=4294967296"], errno.EINVAL),
    "fwmark-empty": (["fwmark="], errno.EINVAL),
    "private-key": (["private_key=00"], errno.EINVAL),
    "public-key": (["public_key=zz"], errno.EINVAL),
    "endpoint": ([f"public_key={ONE}", "endpoint=host:1"], errno.EINVAL),
    "keepalive": ([f"public_key={ONE}", "persistent_keepalive_interval=65536"], errno.EINVAL),
    "allowed-ip": ([f"public_key={ONE}", "allowed_ip=10.0.0.0/33"], errno.EINVAL),
    "allowed-ip-bare": ([f"public_key={ONE}", "allowed_ip=10.0.0.1"], errno.EINVAL),
    "remove": ([f"public_key={ONE}", "remove=yes"], errno.EINVAL),
    "replace-peers": (["replace_peers=false"], errno.EINVAL),
    "version": ([f"public_key={ONE}", "protocol_version=2"], errno.EINVAL),
    "scheme": ([f"public_key={ONE}", "endpoint=http://198.51.100.1:1"], errno.EINVAL),
    "endpoints": ([f"public_key={ONE}", "endpoints=198.51.100.1:1,,198.51.100.1:2"], errno.EINVAL),
    "nine-endpoints": (
        [f"public_key={ONE}", "endpoints=" + ",".join(f"198.51.100.1:{n}" for n in range(1, 10))],
        errno.EINVAL,
    ),
    "pin": ([f"public_key={ONE}", "tls_pin=AAAA"], errno.EINVAL),
    "server-name": ([f"public_key={ONE}", "tls_server_name=198.51.100.1"], errno.EINVAL),
    "frame-messages": ([f"public_key={ONE}", "frame_messages=1"], errno.EINVAL),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_are_refused_whole(relay: Relay, case: str) -> None:
    lines, expected = BAD[case]
    before = ask(relay, "get=1")
    assert code(relay, f"private_key={PRIVATE}", *lines) == -expected
    assert ask(relay, "get=1") == before


def test_a_port_in_use_is_eaddrinuse_and_changes_nothing(relay: Relay, network: MemoryNetwork) -> None:
    network.open("198.51.100.1", 7)
    assert code(relay, "listen_port=6") == 0
    request = [f"private_key={PRIVATE}", "fwmark=5", "listen_port=7", f"public_key={ONE}"]
    assert code(relay, *request) == -errno.EADDRINUSE
    assert relay.listen_port == 6
    assert relay.fwmark == 0
    assert relay.device.identity is None


PIN, OTHER_PIN = (encode_base64(bytes([number] * 32)) for number in (7, 8))


def test_endpoints_of_all_kinds(relay: Relay) -> None:
    request = [
        f"public_key={ONE}", f"tls_pin={PIN},{OTHER_PIN}", "tls_server_name=vpn.example.org",
        "frame_messages=on",
        "endpoints=tls://198.51.100.9:443,udp://vpn.example.org:51820,tcp://[2001:db8::9]:443",
    ]  # fmt: skip
    assert code(relay, *request) == 0
    peer = relay.device.peer(bytes.fromhex(ONE))
    assert peer is not None
    assert list(map(str, peer.endpoints)) == [
        "tls://198.51.100.9:443", "vpn.example.org:51820", "tcp://[2001:db8::9]:443",
    ]  # fmt: skip
    assert peer.target == Target((bytes([7] * 32), bytes([8] * 32)), "vpn.example.org")
    assert peer.frame_messages
    # WireGuard's own command reads no schemes.
    assert "endpoint=198.51.100.9:443\n" in ask(relay, "get=1")
    assert code(relay, f"public_key={ONE}", "endpoint=198.51.100.9:51820", "frame_messages=off") == 0
    assert (peer.endpoints, peer.frame_messages) == ((), False)
    assert str(peer.endpoint) == "198.51.100.9:51820"
    assert code(relay, f"public_key={ONE}", "tls_pin=", "tls_server_name=", "endpoints=") == 0
    assert (peer.target, str(peer.endpoint)) == (NO_TARGET, "198.51.100.9:51820")


def test_a_pin_stays_as_long_as_it_is_needed(relay: Relay) -> None:
    tls = [f"public_key={ONE}", "endpoint=tls://198.51.100.9:443"]
    assert code(relay, *tls) == -errno.EINVAL
    assert (
        code(relay, f"public_key={ONE}", "endpoints=198.51.100.9:1,tls://198.51.100.9:443") == -errno.EINVAL
    )
    assert list(relay.device.peers()) == []
    assert code(relay, *tls, f"tls_pin={PIN}") == 0
    assert code(relay, f"public_key={ONE}", "tls_pin=") == -errno.EINVAL
    assert code(relay, "replace_peers=true", *tls) == -errno.EINVAL
    assert code(relay, f"public_key={ONE}", "tls_pin=", "endpoints=") == 0


def test_values_are_in_no_refusal() -> None:
    with pytest.raises(RequestError) as caught:
        parse_set([f"private_key={PRIVATE}0"])
    assert PRIVATE not in str(caught.value)


def test_a_removed_peer_and_a_kept_one(relay: Relay) -> None:
    code(relay, f"public_key={ONE}", f"public_key={TWO}", "endpoint=198.51.100.9:7")
    kept = relay.device.peer(bytes.fromhex(TWO))
    code(relay, f"public_key={ONE}", "remove=true")
    assert relay.device.peer(bytes.fromhex(TWO)) is kept
    assert kept is not None
    assert kept.endpoint == Endpoint("198.51.100.9", 7)


# --- The socket
# ----------------------------------------------------------------------------------------------


def connected(relay: Relay) -> tuple[socket.socket, ControlClient]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    theirs.setblocking(False)
    ours.settimeout(5)
    return ours, ControlClient(theirs, relay)


def test_requests_in_pieces_and_several_at_once(relay: Relay) -> None:
    ours, client = connected(relay)
    request = f"set=1\nprivate_key={PRIVATE}\n\nget=1\n\nset=1\nbad\n\n".encode()
    for place in range(len(request)):
        ours.sendall(request[place : place + 1])
        assert client.on_readable()
    reply = ours.recv(65536).decode()
    assert reply.startswith("errno=0\n\nprivate_key=")
    assert reply.endswith(f"\nerrno=0\n\nerrno=-{errno.EPROTO}\n\n")


def test_half_a_request_is_not_done(relay: Relay) -> None:
    ours, client = connected(relay)
    ours.sendall(f"set=1\nprivate_key={PRIVATE}\n".encode())
    assert client.on_readable()
    ours.close()
    assert not client.on_readable()
    assert relay.device.identity is None


def test_something_else_is_hung_up_on(relay: Relay) -> None:
    ours, client = connected(relay)
    ours.sendall(b"GET / HTTP/1.1\n\n")
    assert not client.on_readable()


def test_a_request_without_end_is_hung_up_on(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("culvert.control._MAX_REQUEST_BYTES", 1000)
    ours, client = connected(relay)
    ours.sendall(b"set=1\n" + b"x=1\n" * 300)
    assert not client.on_readable()


def test_a_slow_reader_gets_it_all(relay: Relay) -> None:
    lines = [
        line for number in range(2000) for line in (f"public_key={number:064x}", "allowed_ip=10.0.0.0/8")
    ]
    assert code(relay, *lines) == 0
    ours, client = connected(relay)
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    ours.sendall(b"get=1\n\n")
    # As `printf ... | nc -U` does: nothing more will be asked, and the answer is still wanted.
    ours.shutdown(socket.SHUT_WR)
    assert client.on_readable()
    assert client.on_readable()
    assert client.wants_to_write
    assert not client.wants_to_read
    received = bytearray()
    while not received.endswith(b"\n\n"):
        received += ours.recv(65536)
        alive = client.on_writable()
    assert not alive
    assert received.count(b"public_key=") == 2000


def test_answers_that_nobody_reads_are_not_made(relay: Relay) -> None:
    assert code(relay, *[f"public_key={number:064x}" for number in range(1000)]) == 0
    size = len(ask(relay, "get=1"))
    ours, client = connected(relay)
    ours.setblocking(False)
    asked = answered = 0
    with contextlib.suppress(BlockingIOError):
        while asked < 1000 and client.wants_to_read:
            ours.sendall(b"get=1\n\n" * 50)
            asked += 50
            assert client.on_readable()
    assert len(client._unsent) <= size
    assert client.wants_to_write
    # Once they are read, all that was asked is answered, in turn.
    while answered < asked:
        with contextlib.suppress(BlockingIOError):
            answered += ours.recv(1 << 20).count(b"errno=0")
        assert client.on_writable()


def test_the_socket_is_its_owners_alone(tmp_path: Path) -> None:
    directory = str(tmp_path / "wireguard")
    sock = listen("wg9", directory)
    path = socket_path("wg9", directory)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    with pytest.raises(CulvertError, match="already serves"):
        listen("wg9", directory)
    sock.close()
    # The process died without tidying up; the next one does.
    listen("wg9", directory).close()
    os.unlink(path)
    Path(path).write_text("not a socket")
    with pytest.raises(CulvertError, match="is not a socket"):
        listen("wg9", directory)
    assert Path(path).read_text() == "not a socket"


# --- Fuzz
# ----------------------------------------------------------------------------------------------------

NAMES = (
    "private_key listen_port fwmark replace_peers public_key remove update_only preshared_key endpoint "
    "persistent_keepalive_interval replace_allowed_ips allowed_ip protocol_version"
)
GOOD = [
    "true",
    "1",
    "0",
    "",
    PRIVATE,
    ONE,
    TWO,
    "10.0.0.0/8",
    "-10.0.0.0/8",
    "[fe80::1%1]:3",
    "1.2.3.4:5",
    "1.2.3.4:0000010000000",
]
keys = st.sampled_from(NAMES.split())
values = st.one_of(st.sampled_from(GOOD), st.text(max_size=20))
request_lines = st.lists(st.one_of(st.tuples(keys, values).map("=".join), st.text(max_size=20)), max_size=12)


def refusal(lines: list[str]) -> int:
    try:
        parse_set(lines)
    except RequestError as error:
        return error.code
    return 0


@given(request_lines)
def test_any_request_is_an_update_or_a_request_error(lines: list[str]) -> None:
    assert refusal(lines) in (0, errno.EINVAL, errno.EPROTO)


@given(st.lists(request_lines, max_size=4), st.binary(max_size=100))
def test_any_bytes_leave_the_relay_alive(requests: list[list[str]], junk: bytes) -> None:
    network, world = MemoryNetwork(), World()
    relay = Relay(
        Device(world.wall_clock_ns, rng=world.rng),
        MemoryTun(),
        lambda port, mark: network.open("198.51.100.1", port),
        lambda: world.now,
    )
    for lines in requests:
        answer("\n".join(["set=1", *lines]).encode("utf-8", "surrogatepass"), relay)
    answer(junk, relay)
    assert ask(relay, "get=1").endswith("errno=0\n\n")
    relay.close()
