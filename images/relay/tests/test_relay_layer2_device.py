# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Layer 2 around the switch: the file, the control socket, captures, a TAP of the kernel, another process."""

from __future__ import annotations

import errno
import socket
import subprocess
from pathlib import Path

import pytest

from culvert.about import read_about
from culvert.capture import CaptureRequest
from culvert.capture_filter import parse_filter
from culvert.config import Config, parse_config
from culvert.control import answer
from culvert.device import Device
from culvert.errors import ConfigError, CulvertError
from culvert.handover_state import read_state, restore_state, write_state
from culvert.keys import encode_base64
from culvert.layer2 import Layer2Settings
from culvert.relay import Relay
from culvert.show import render
from culvert.tap import LinuxTap, MemoryTap
from culvert.testing import World
from culvert.transport.memory import MemoryNetwork
from culvert.tun import LinuxTun
from culvert.tun_device import DeviceGone, Opening, TunOptions
from relay_ethernet import BROADCAST, frame
from relay_kernel import Command, in_new_namespace, ip, needs_root

KEY, PEER = (encode_base64(bytes([number]) * 32) for number in (1, 2))


def parse(*interface: str, peer: tuple[str, ...] = ()) -> Config:
    lines = ["[Interface]", f"PrivateKey = {KEY}", *interface, "[Peer]", f"PublicKey = {PEER}", *peer]
    return parse_config("\n".join(lines), "/etc/culvert/test.conf")


def make(layer: int = 2, world: World | None = None) -> tuple[Relay, MemoryTap]:
    found, network, tap = world or World(), MemoryNetwork(), MemoryTap()
    device = Device(found.wall_clock_ns, rng=found.rng, layer=layer)
    open_ = network.open
    return Relay(device, tap, lambda port, mark: open_("198.51.100.1", port), lambda: found.now), tap


# --- The file -----------------------------------------------------------------------------------------------


def test_options_and_their_defaults() -> None:
    plain = parse()
    assert (plain.layer, plain.layer2, plain.peers[0].frame_messages) == (3, Layer2Settings(), False)
    config = parse("Layer = 2")
    assert (config.layer, config.layer2) == (2, Layer2Settings(False, 1000, 1024, 300))
    assert config.peers[0].frame_messages, "they are implied"
    lines = ("Layer = 2", "ClientIsolation = on", "StormLimit = 0", "MacLimit = 7", "MacAgeing = 60")
    assert parse(*lines).layer2 == Layer2Settings(True, 0, 7, 60)
    assert parse("Layer = 2", peer=("AllowedIPs =", "FrameMessages = on")).layer == 2


@pytest.mark.parametrize(
    ("interface", "peer", "message"),
    [
        (("Layer = 4",), (), ":3: Layer: '4' is neither 3 "),
        (("ClientIsolation = on",), (), ":3: ClientIsolation says nothing without Layer = 2"),
        (("Layer = 3", "StormLimit = 5"), (), ":4: StormLimit says nothing without Layer = 2"),
        (("MacLimit = 5",), (), ":3: MacLimit says nothing"),
        (("MacAgeing = 50",), (), ":3: MacAgeing says nothing"),
        (("Layer = 2", "MacLimit = 0"), (), ":4: MacLimit: '0' is not a number from 1 to 65536"),
        (("Layer = 2", "MacAgeing = 9"), (), ":4: MacAgeing: '9' is not a number from 10 to 86400"),
        (("Layer = 2", "StormLimit = -1"), (), ":4: StormLimit: '-1' is not a number"),
        (("Layer = 2", "FailoverTimeout = 2"), (), ":4: FailoverTimeout: servers share no prefixes"),
        (("Layer = 2", "FailoverAllowedIPs = ::/0"), (), ":4: FailoverAllowedIPs: servers share no"),
        (("Layer = 2",), ("AllowedIPs = 10.0.0.0/8",), ":6: AllowedIPs: with Layer = 2 frames go by"),
        (("Layer = 2",), ("Failover = 1",), ":6: Failover: servers share no prefixes"),
        (("Layer = 2",), ("FrameMessages = off",), ":6: FrameMessages: Layer = 2 needs them"),
    ],
)
def test_what_makes_no_sense_is_refused(
    interface: tuple[str, ...], peer: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(*interface, peer=peer)
    assert message in str(caught.value)


def test_the_layer_is_for_good_and_the_rest_is_not() -> None:
    relay, _ = make()
    relay.load(parse("Layer = 2"))
    with pytest.raises(CulvertError, match="Layer = 3 needs a restart: the device is of layer 2"):
        relay.load(parse("ListenPort = 1000"))
    assert relay.listen_port != 1000, "nothing was changed"
    relay.load(parse("Layer = 2", "ClientIsolation = on", "StormLimit = 5"))
    assert relay.device.layer2 is not None
    assert relay.device.layer2.settings == Layer2Settings(True, 5)
    relay.close()
    relay, _ = make(3)
    with pytest.raises(CulvertError, match="Layer = 2 needs a restart: the device is of layer 3"):
        relay.load(parse("Layer = 2"))
    relay.close()


# --- The control socket -------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["allowed_ip=10.0.0.0/8", "failover=1", "frame_messages=off"])
def test_what_a_peer_of_layer_2_cannot_have(line: str) -> None:
    relay, _ = make()
    relay.load(parse("Layer = 2"))
    before = relay.get()
    request = f"set=1\npublic_key={bytes([2]).hex() * 32}\n{line}".encode()
    assert (answer(request, relay) or b"").startswith(f"errno={-errno.EINVAL}\n".encode())
    assert relay.get() == before
    relay.close()


def test_what_is_shown() -> None:
    relay, tap = make()
    relay.load(parse("Layer = 2", "ClientIsolation = on"))
    tap.inject(frame(1, BROADCAST), frame(2, BROADCAST), b"short")
    relay.on_tun_readable()
    told = read_about(relay.about() + "errno=0\n\n")
    assert told["layer"] == 2
    assert told["layer2"] == {
        "client_isolation": True,
        "storm_limit": 1000,
        "mac_limit": 1024,
        "mac_ageing_s": 300,
        "addresses": 2,
        "host_addresses": 2,
        "unlearnt": 0,
        "dropped": {"malformed": 1, "oversized": 0, "storm": 0, "moved": 0},
    }
    assert told["ports"] == {PEER: {"mac_addresses": 0, "dropped_frames": 0}}
    peer = dict.fromkeys(("endpoint", "limits", "succeeds"), None) | {"public_key": PEER, "allowed_ips": []}
    peer |= dict.fromkeys(("latest_handshake_s", "rx_bytes", "tx_bytes", "persistent_keepalive_s"), 0)
    peer |= {"mac_addresses": 5, "dropped_frames": 7}
    device = {"name": "cvt0", "public_key": KEY, "listen_port": 0, "fwmark": 0, "peers": [peer], **told}
    text = render(device)
    assert "  layer: 2, client isolation on, storm limit 1000 frames/s\n" in text
    assert "  mac addresses: 2, 2 on this side (at most 1024 behind a peer, for 300 s)\n" in text
    assert "  dropped frames: 1 malformed\n" in text
    assert "  mac addresses: 5, 7 frames dropped\n" in text
    assert "allowed ips" not in text
    relay.close()


def test_a_device_of_layer_3_says_nothing_of_it() -> None:
    relay, _ = make(3)
    relay.load(parse())
    told = read_about(relay.about() + "errno=0\n\n")
    assert (told["layer"], told["layer2"], told["ports"]) == (3, None, None)
    assert "layer" not in relay.about()
    relay.close()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", [0, 1, 2, 3]),
        ("host 10.87.0.1", [0, 1]),
        ("not host 10.87.0.1", [2, 3]),
        ("proto udp", [0, 1]),
        ("out", [0, 1, 2, 3]),
        ("in", []),
        (f"peer {PEER}", []),
    ],
)
def test_captures_hold_whole_frames(text: str, wanted: list[int]) -> None:
    relay, tap = make()
    relay.load(parse("Layer = 2"))
    capture = relay.capture(CaptureRequest(parse_filter(text)), lambda: None, "a test")
    arp = BROADCAST + b"\x02\0\0\0\0\x09\x08\x06" + bytes(46)
    frames = [frame(1, 2), frame(1, 2, b"tagged", vlan=7), arp, b"odd"]
    tap.inject(*frames)
    relay.on_tun_readable()
    data = capture.take()
    assert int.from_bytes(data[20:24], "little") == 1, "LINKTYPE_ETHERNET"
    at, found = 24, []
    while at < len(data):
        size = int.from_bytes(data[at + 8 : at + 12], "little")
        found.append(data[at + 16 : at + 16 + size])
        at += 16 + size
    assert found == [frames[number] for number in wanted]
    relay.close()


# --- From one process to another ----------------------------------------------------------------------------


def test_a_whole_relay_is_handed_on() -> None:
    world = World()
    relay, tap = make(2, world)
    relay.load(parse("Layer = 2", "ClientIsolation = on"))
    tap.inject(frame(1, BROADCAST))
    relay.on_tun_readable()
    state = write_state(relay, "test", world.now)
    after, _ = make(2, world)
    restore_state(after, read_state(state, world.now), world.now)
    assert after.device.layer2 is not None
    assert after.device.layer2.settings.client_isolation, "before its file is read"
    assert write_state(after, "test", world.now) == state
    for layer, document in ((3, state), (2, write_state(make(3, world)[0], "test", world.now))):
        other, _ = make(layer, world)
        with pytest.raises(ValueError, match="the state is of another layer"):
            restore_state(other, read_state(document, world.now), world.now)


# --- TAP devices --------------------------------------------------------------------------------------------


def test_a_tap_in_memory() -> None:
    tap = MemoryTap()
    assert (tap.mtu_bytes, tap.coalesce, tap.offloads) == (1500, 0, frozenset())
    tap.write([bytes(10) + b"frame"])
    assert tap.written == [b"frame"]
    tap.set_offloads(frozenset())
    assert tap.coalesce == 0
    tap.delete()
    with pytest.raises(DeviceGone):
        tap.write([])
    tap.close()


@needs_root
@pytest.mark.parametrize("made", ["", "multi_queue", "vnet_hdr", None], ids=str)
def test_a_tap_of_the_kernel(made: str | None) -> None:
    def body() -> None:
        if made is not None:
            ip("tuntap", "add", "mode", "tap", "name", "cvtap0", *made.split())
            ip("link", "set", "cvtap0", "mtu", "1400")
        tap = LinuxTap.open(TunOptions("cvtap0", 1500))
        assert (tap.created, tap.mtu_bytes) == (made is None, 1500 if made is None else 1400)
        assert (tap.offloads, tap.coalesce) == (frozenset(), 0)
        ip("link", "set", "cvtap0", "up")
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5)) as sock:
            sock.settimeout(5)
            sock.bind(("cvtap0", 0x88B5))
            mac = sock.getsockname()[4]
            ours = mac + b"\x02\0\0\0\0\x01\x88\xb5" + b"in".ljust(100, b".")
            tap.write([bytes(10) + b"short", bytes(10) + ours])
            assert sock.recv(2000) == ours, "one that is refused does not hold the next one up"
            theirs = BROADCAST + mac + b"\x88\xb5" + b"out".ljust(100, b".")
            sock.send(theirs)
            found: list[bytes] = []
            for _ in range(100):
                found += [bytes(one) for one in tap.read(10)]
                if bytes(10) + theirs in found:
                    break
            assert bytes(10) + theirs in found
        tap.close()

    in_new_namespace(body)


@needs_root
def test_a_device_is_what_it_was_made() -> None:
    def body() -> None:
        for kind, layer, other in (("tun", 3, LinuxTap), ("tap", 2, LinuxTun)):
            ip("tuntap", "add", "mode", kind, "name", f"cv{kind}0")
            opening = Opening(f"cv{kind}0")
            assert (opening.layer, opening.created) == (layer, False)
            opening.close()
            with pytest.raises(
                CulvertError, match=f"is a {kind.upper()} device, and Layer = {5 - layer} needs a"
            ):
                other.open(TunOptions(f"cv{kind}0"))

    in_new_namespace(body)


@needs_root
def test_a_relay_makes_the_device_that_its_file_wants(configured: Path) -> None:
    """And it does so after it has given up root."""
    with (configured / "wg.conf").open("a") as file:
        file.write("Layer = 2\n")
    command = Command(configured, "--config", str(configured / "wg.conf"), "--user", "65534")
    command.wait_for("ready: UDP port 51820")
    enter = ["nsenter", "--target", str(command.process.pid), "--net"]
    show = [*enter, "ip", "-d", "link", "show", "cvtun0"]
    shown = subprocess.run(show, capture_output=True, text=True, check=True, timeout=10).stdout
    assert "tun type tap" in shown
    assert "mtu 1380 " in shown
    assert command.stop() == 0
