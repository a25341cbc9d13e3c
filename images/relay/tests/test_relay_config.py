# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration file: what it says when it is right, and where it is wrong."""

from __future__ import annotations

import contextlib
import tempfile
import time
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from culvert.config import Config, load_config, parse_config
from culvert.endpoint import Endpoint, EndpointName, Target
from culvert.errors import ConfigError
from culvert.keys import Identity, encode_base64
from culvert.reload import difference
from culvert.testing import World
from culvert.update import apply_peers

PRIVATE = encode_base64(bytes(range(32)))
ONE = encode_base64(bytes([1] * 32))
TWO = encode_base64(bytes([2] * 32))
PSK = encode_base64(bytes([9] * 32))


def parse(text: str) -> Config:
    return parse_config(text, "/etc/culvert/test.conf")


def test_a_whole_file() -> None:
    config = parse(
        f"""
        # a comment
        [Interface]
        PrivateKey = {PRIVATE}   # another
        ListenPort = 51820
        FwMark = 0xca6c
        MTU = 1380

        [peer]
        publickey={ONE}
        PresharedKey = {PSK}
        AllowedIPs = 10.86.0.2/32, fd86::2
        AllowedIPs = 10.99.7.7/16
        Endpoint = 198.51.100.2:51820
        PersistentKeepalive = 25

        [Peer]
        PublicKey = {TWO}
        Endpoint = vpn.example.org:4500
        AllowedIPs =
        PersistentKeepalive = off
        """
    )
    assert config.private_key == bytes(range(32))
    assert (config.listen_port, config.fwmark, config.mtu_bytes) == (51820, 0xCA6C, 1380)
    one, two = config.peers
    assert one.public_key == bytes([1] * 32)
    assert one.preshared_key == bytes([9] * 32)
    assert one.allowed_ips == tuple(map(ip_network, ("10.86.0.2/32", "fd86::2/128", "10.99.0.0/16")))
    assert one.endpoints == (Endpoint("198.51.100.2", 51820),)
    assert one.keepalive_interval_s == 25
    assert two.endpoints == (EndpointName("vpn.example.org", 4500),)
    assert (two.allowed_ips, two.keepalive_interval_s, two.preshared_key) == ((), 0, bytes(32))


def test_keys_may_be_in_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "private").write_text(PRIVATE + "\n")
    (tmp_path / "psk").write_text(PSK)
    path = tmp_path / "wg.conf"
    path.write_text(
        f"[Interface]\nPrivateKeyFile = private\n[Peer]\nPublicKey = {ONE}\nPresharedKeyFile={tmp_path}/psk\n"
    )
    config = load_config(str(path))
    assert config.private_key == bytes(range(32))
    assert config.peers[0].preshared_key == bytes([9] * 32)


PEER = f"[Peer]\nPublicKey = {ONE}\n"
BAD = {
    "no-section": ("ListenPort = 1\n", 1, "before the first section"),
    "section": ("[Interfaces]\n", 1, "is not a section"),
    "second-interface": ("[Interface]\n[Interface]\n", 2, "second [Interface]"),
    "no-equals": ("[Interface]\nListenPort\n", 2, "expected 'Option = value'"),
    "unknown": ("[Interface]\n\nListenPrt = 1\n", 3, "there is no option 'ListenPrt'"),
    "misplaced": (f"[Interface]\nPublicKey = {ONE}\n", 2, "does not belong in [Interface]"),
    "misplaced-in-peer": (PEER + "MTU = 1420\n", 3, "does not belong in [Peer]"),
    "twice": ("[Interface]\nListenPort = 1\nListenPort = 2\n", 3, "set twice (first on line 2)"),
    "empty": ("[Interface]\nListenPort =\n", 2, "ListenPort has no value"),
    "port": ("[Interface]\nListenPort = 65536\n", 2, "ListenPort: '65536' is not a number from 0 to 65535"),
    "port-unicode": ("[Interface]\nListenPort = ٣\n", 2, "is not a number"),
    "fwmark": ("[Interface]\nFwMark = 0xg\n", 2, "FwMark: '0xg' is not a 32-bit number"),
    "fwmark-wide": ("[Interface]\nFwMark = 4294967296\n", 2, "FwMark: "),
    "mtu": ("[Interface]\nMTU = 100\n", 2, "MTU: '100' is not a number from 576"),
    "address": (
        "[Interface]\nAddress = 10.86.0.1/24\n",
        2,
        "Address is an option of wg-quick: addresses are set",
    ),
    "post-up": ("[Interface]\nPostUp = rm -rf /\n", 2, "the relay runs no commands"),
    "dns": ("[Interface]\nDNS = 9.9.9.9\n", 2, "wg-quick"),
    "private-key": ("[Interface]\nPrivateKey = secret\n", 2, "PrivateKey: is not base64"),
    "public-key": ("[Peer]\nPublicKey = AAAA\n", 2, "PublicKey: is not a key"),
    "no-public-key": ("[Peer]\nAllowedIPs = 10.0.0.0/8\n", 1, "has no PublicKey"),
    "prefix": (PEER + "AllowedIPs = 10.0.0.300/24\n", 3, "AllowedIPs: '10.0.0.300/24' is not an IPv4"),
    "prefix-length": (PEER + "AllowedIPs = 10.0.0.0/33\n", 3, "AllowedIPs: '10.0.0.0/33'"),
    "prefix-mask": (PEER + "AllowedIPs = 10.0.0.0/255.0.0.0\n", 3, "AllowedIPs: "),
    "prefix-scope": (PEER + "AllowedIPs = fe80::1%eth0/128\n", 3, "AllowedIPs: "),
    "endpoint": (PEER + "Endpoint = 198.51.100.1\n", 3, "Endpoint: '198.51.100.1' is not host:port"),
    "endpoint-port": (PEER + "Endpoint = a.example:0\n", 3, "no port between"),
    "endpoint-v6": (PEER + "Endpoint = 2001:db8::1:51820\n", 3, "without brackets"),
    "endpoint-dotted": (PEER + "Endpoint = 198.51.100:51820\n", 3, "neither an address nor a host name"),
    "endpoint-name": (PEER + "Endpoint = a b:51820\n", 3, "neither an address nor a host name"),
    "keepalive": (PEER + "PersistentKeepalive = often\n", 3, "PersistentKeepalive: 'often'"),
    "same-peer": (PEER + PEER, 4, "already has a [Peer] on line 1"),
    "same-prefix": (
        PEER + f"AllowedIPs = 10.0.0.0/8\n[Peer]\nPublicKey = {TWO}\nAllowedIPs = 10.1.0.0/8\n",
        6,
        "10.0.0.0/8 already belongs to the [Peer] on line 1",
    ),
    "both-keys": (f"[Interface]\nPrivateKey = {PRIVATE}\nPrivateKeyFile = x\n", 3, "cannot be read"),
    "own-peer": (
        f"[Interface]\nPrivateKey = {PRIVATE}\n[Peer]\n"
        f"PublicKey = {encode_base64(Identity(bytes(range(32))).public)}\n",
        3,
        "is the interface itself",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_named_by_line(case: str) -> None:
    text, line, message = BAD[case]
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert str(caught.value).startswith(f"/etc/culvert/test.conf:{line}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_spellings_of_one_key_exclude_each_other(tmp_path: Path) -> None:
    (tmp_path / "private").write_text(PRIVATE)
    path = tmp_path / "wg.conf"
    path.write_text(f"[Interface]\nPrivateKey = {PRIVATE}\nPrivateKeyFile = private\n")
    with pytest.raises(ConfigError, match=":3: PrivateKey and PrivateKeyFile exclude each other"):
        load_config(str(path))


@pytest.mark.parametrize(
    "text",
    [
        f"[Interface]\nPrivateKey {PRIVATE}\n",
        f"[Interface]\nPrivateKey = {PRIVATE[:-2]}\n",
        f"[Interface]\nPrivateKey = {PRIVATE}x\n",
        f"[Interface]\n{PRIVATE}\n",
        f"{PRIVATE}\n",
    ],
)
def test_a_misplaced_key_is_in_no_message(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert PRIVATE[:10] not in str(caught.value)


def test_many_lines_of_allowed_ips_take_time_in_proportion() -> None:
    lines = [f"AllowedIPs = 10.{n >> 8 & 255}.{n & 255}.{n >> 16}/32\n" for n in range(40_000)]
    start = time.process_time()
    (peer,) = parse(PEER + "".join(lines)).peers
    assert time.process_time() - start < 1.5
    assert len(peer.allowed_ips) == 40_000


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.conf: cannot be read: No such file"):
        load_config(str(tmp_path / "missing.conf"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load_config(str(tmp_path / "binary"))
    path = tmp_path / "wg.conf"
    path.write_text("[Interface]\nPrivateKeyFile = gone\n")
    with pytest.raises(ConfigError, match=r":2: PrivateKeyFile: .*gone cannot be read: No such file"):
        load_config(str(path))
    (tmp_path / "gone").write_bytes(b"\xff" * 44)
    with pytest.raises(ConfigError, match="does not hold a base64 key"):
        load_config(str(path))
    (tmp_path / "gone").write_text(PRIVATE + "\n" + PSK)
    with pytest.raises(ConfigError) as caught:
        load_config(str(path))
    assert PRIVATE[:8] not in str(caught.value)


PIN = encode_base64(bytes([7] * 32))


def test_endpoints_and_how_to_dial_them() -> None:
    (peer,) = parse(
        f"{PEER}Endpoint = udp://vpn.example.org:51820, TLS://vpn.example.org:443 , tcp://[2001:db8::9]:443\n"
        f"TLSPin = sha256//{PIN}\nTLSServerName = www.example.org\nFrameMessages = on\n"
    ).peers
    assert peer.endpoints == (
        EndpointName("vpn.example.org", 51820),
        EndpointName("vpn.example.org", 443, "tls"),
        Endpoint("2001:db8::9", 443, scheme="tcp"),
    )
    assert peer.target == Target((bytes([7] * 32),), "www.example.org")
    assert peer.frame_messages
    assert not parse(f"[Interface]\n{PEER}").peers[0].frame_messages


@pytest.mark.parametrize(
    ("lines", "line", "words"),
    [
        ("Endpoint = tls://198.51.100.1:443", 3, "TLSPin"),
        ("AllowedIPs =\nEndpoint = 198.51.100.1:1, tls://a.example:443", 4, "TLSPin"),
        ("Endpoint = ssl://198.51.100.1:443", 3, "udp://, tcp:// and tls://"),
        ("Endpoint = 198.51.100.1:1,", 3, "host:port"),
        ("Endpoint = " + ",".join(f"198.51.100.1:{n}" for n in range(1, 10)), 3, "more than 8"),
        ("TLSPin = AAAA", 3, "SHA-256"),
        ("TLSPin = " + ",".join(encode_base64(bytes([n] * 32)) for n in range(5)), 3, "more than 4"),
        ("TLSServerName = 198.51.100.1", 3, "name of a host"),
        ("TLSServerName = a b", 3, "name of a host"),
        ("FrameMessages = yes", 3, "neither on nor off"),
    ],
)
def test_what_is_wrong_with_endpoints_is_said_with_its_line(lines: str, line: int, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(f"[Peer]\nPublicKey = {ONE}\n{lines}\n")
    assert caught.value.line == line
    assert words in str(caught.value)


def test_a_successor_is_dialled_as_its_predecessor_unless_it_says_otherwise() -> None:
    text = (
        f"[Peer]\nPublicKey = {ONE}\nEndpoint = tls://a.example:443\nTLSPin = {PIN}\n"
        f"TLSServerName = www.example.org\nFrameMessages = on\n[Peer]\nPublicKey = {TWO}\nSucceeds = {ONE}\n"
    )
    one, two = parse(text).peers
    assert (two.endpoints, two.target, two.frame_messages) == (one.endpoints, one.target, True)
    _, two = parse(text + f"TLSPin = {TWO}\nFrameMessages = off\nEndpoint = 198.51.100.1:1\n").peers
    assert two.endpoints == (Endpoint("198.51.100.1", 1),)
    assert two.target == Target((bytes([2] * 32),), "www.example.org")
    assert not two.frame_messages


def test_only_what_differs_of_how_to_dial_is_touched() -> None:
    text = f"[Interface]\nPrivateKey = {PRIVATE}\n{PEER}Endpoint = tls://198.51.100.2:9\nTLSPin = {PIN}\n"
    config, device = parse(text), World().host().device
    apply_peers(device, difference(device, 0, config, {}), 0.0)
    said = {peer.public_key: peer.endpoints for peer in config.peers}
    assert difference(device, 0, config, said).peers == ()
    (change,) = difference(device, 0, parse(text + "FrameMessages = on\n"), said).peers
    assert (change.frame_messages, change.endpoints, change.tls_pins) == (True, None, None)
    apply_peers(device, difference(device, 0, parse(text.replace(PIN, TWO)), said), 0.0)
    (peer,) = device.peers()
    assert peer.target.pins == (bytes([2] * 32),)


def test_secrets_are_in_no_repr() -> None:
    config = parse(f"[Interface]\nPrivateKey = {PRIVATE}\n{PEER}PresharedKey = {PSK}\n")
    world = World()
    update = difference(world.host().device, 0, config, {})
    for shown in (repr(config), repr(update)):
        for secret in (bytes(range(32)), bytes([9] * 32)):
            assert repr(secret)[2:20] not in shown


# --- By difference
# -------------------------------------------------------------------------------------------


def test_the_same_file_again_is_no_change() -> None:
    text = f"[Interface]\nPrivateKey = {PRIVATE}\nListenPort = 5\n{PEER}"
    text += "AllowedIPs = 10.0.0.0/8\nEndpoint = 198.51.100.2:9\n"
    config = parse(text)
    device = World().host().device
    first = difference(device, 0, config, {})
    assert len(first.peers) == 1
    apply_peers(device, first, 0.0)
    peer = device.peer(bytes([1] * 32))
    assert peer is not None
    # It roamed since; the file did not change, so the file does not call it back.
    peer.endpoint = Endpoint("203.0.113.1", 7)
    again = difference(device, 5, config, {peer.public_key: (Endpoint("198.51.100.2", 9),)})
    assert again.peers == ()
    assert again.listen_port is None


def test_only_what_differs_is_touched() -> None:
    device = World().host().device
    config = parse(
        f"[Interface]\nPrivateKey = {PRIVATE}\n{PEER}AllowedIPs = 10.0.0.0/8\n[Peer]\nPublicKey = {TWO}\n"
    )
    apply_peers(device, difference(device, 0, config, {}), 0.0)
    changed = parse(f"[Interface]\nPrivateKey = {PRIVATE}\n{PEER}AllowedIPs = 10.0.0.0/9\n")
    update = difference(device, 0, changed, {})
    gone, kept = update.peers
    assert gone.public_key == bytes([2] * 32)
    assert gone.remove
    assert kept.replace_allowed_ips
    assert (kept.endpoints, kept.preshared_key, kept.keepalive_interval_s) == (None, None, None)
    apply_peers(device, update, 0.0)
    (peer,) = device.peers()
    assert list(device.allowed_ips(peer)) == [ip_network("10.0.0.0/9")]


# --- Fuzz
# ----------------------------------------------------------------------------------------------------

NAMES = "PrivateKey PublicKey PresharedKey ListenPort FwMark MTU AllowedIPs Endpoint PersistentKeepalive"
SIGNS = (" = ", "=", "\n", "#", ",", "/", ":", "[", "]", "0x", "off", "[Interface]", "[Peer]")
GOOD = (PRIVATE, ONE, TWO, "10.0.0.0/8", "fd86::/64", "198.51.100.1:51820", "[2001:db8::1]:5", "a.example:7")
pieces = st.sampled_from([*NAMES.split(), *SIGNS, *GOOD, "/dev/null"])
documents = st.lists(st.one_of(pieces, st.text(max_size=6)), max_size=40).map("".join)


def outcome(text: str) -> Config | ConfigError:
    try:
        return parse(text)
    except ConfigError as error:
        return error


@given(st.one_of(documents, st.text()))
def test_any_text_is_a_configuration_or_a_config_error(text: str) -> None:
    result = outcome(text)
    if isinstance(result, ConfigError):
        assert "\n" not in str(result)
        assert PRIVATE not in str(result)


@given(st.binary(max_size=300))
def test_any_file_is_a_configuration_or_a_config_error(data: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file, contextlib.suppress(ConfigError):
        file.write(data)
        file.flush()
        load_config(file.name)
