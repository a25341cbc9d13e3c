# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Streams, lists of endpoints and layer 2: the relay's file, the request, and what a relay says."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.module_utils import (
    _relay_info,
    _relay_peers_host,
    _uapi,
    _x25519,
)
from ansible_collections.culvert.vpn.plugins.module_utils._core import Change, HostError, SpecError
from ansible_collections.culvert.vpn.plugins.module_utils._relay_file import parse, render
from ansible_collections.culvert.vpn.plugins.module_utils._relay_listeners import (
    Ethernet,
    Layer,
    Listeners,
    parse_layer,
    parse_listeners,
)
from ansible_collections.culvert.vpn.plugins.module_utils._relay_peers import Observed, plan
from ansible_collections.culvert.vpn.plugins.module_utils._relay_peers_spec import PeersSpec
from ansible_collections.culvert.vpn.plugins.module_utils._relay_ways import (
    Current,
    Ways,
    listed,
    normal,
    parse_ways,
)
from ansible_collections.culvert.vpn.plugins.module_utils._uapi import Peer, Refused, Relay, with_ways
from hypothesis import given
from hypothesis import strategies as st

SECRET = _x25519.SecretKey(b"\x40" * 32)
A, B = (base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2))
HEX = "01" * 32
PIN, OTHER_PIN = (base64.b64encode(bytes([number]) * 32).decode() for number in (7, 8))
UDP, TLS = "gate.example.net:51820", "tls://gate.example.net:443"
FILES = {"tls_certificate_file": "/etc/culvert/a.crt", "tls_private_key_file": "/etc/culvert/a.key"}


def spec_of(*peers: dict[str, Any], **params: Any) -> PeersSpec:
    return PeersSpec.from_params({"peers": list(peers), **params})


def gate(*endpoints: str, **more: Any) -> dict[str, Any]:
    return {"public_key": A, "endpoints": list(endpoints), **more}


def by_tls(**more: Any) -> dict[str, Any]:
    return gate(f"udp://{UDP}", TLS, tls_pin=[PIN], **more)


def request(wanted: PeersSpec, written: PeersSpec, *peers: Peer, **relay: Any) -> list[str]:
    """What a relay with these peers, and the file of another wish, is told."""
    state = Relay(SECRET.public_key(), 51820, 51820, peers, **relay)
    found = Observed(
        text=render(written.config),
        mode=0o640,
        relay=state,
        key=SECRET,
        public_key=SECRET.public_key(),
        identity=SECRET.public_key(),
        addresses={UDP: "198.51.100.1:51820"},
    )
    steps: list[Change] = plan(wanted, found)
    return [f"{key}={value}" for step in steps if step.action == "set" for key, value in step.data]


def told(*lines: str) -> Peer:
    """The peer as a relay has it that says these lines of it."""
    (peer,) = with_ways(Relay(peers=(Peer(A),)), parse_ways("\n".join(lines))).peers
    return peer


ABOUT = (
    f"way={HEX} {TLS} fallback {UDP},{TLS} {UDP} 42",
    f"frame_messages={HEX} on",
    f"tls_pin={HEX} {PIN}",
    f"tls_server_name={HEX} www.example.net",
)
FULL = by_tls(tls_server_name="www.example.net", frame_messages=True)


def test_what_is_written_into_the_file_and_read_from_it() -> None:
    config = spec_of(FULL, listen_tcp=8443, listen_tls=443, tls_alpn="h2", **FILES).config
    text = render(config)
    assert (
        "ListenPort = 51820\nListenTCP = 8443\nListenTLS = 443\nTLSCertificateFile = /etc/culvert/a.crt\n"
        in text
    )
    assert "TLSPrivateKeyFile = /etc/culvert/a.key\nTLSAlpn = h2\n" in text
    assert text.endswith(
        f"Endpoint = {UDP}, {TLS}\nTLSPin = {PIN}\nTLSServerName = www.example.net\nFrameMessages = on\n"
    )
    assert parse(text) == config


def test_a_layer_2_relay_is_written_with_its_limits() -> None:
    given = {"client_isolation": True, "storm_limit": 0, "mac_limit": 7, "mac_ageing": 60}
    config = spec_of(gate(), layer=2, **given).config
    text = render(config)
    assert "Layer = 2\nClientIsolation = on\nStormLimit = 0\nMacLimit = 7\nMacAgeing = 60\n" in text
    assert parse(text) == config
    assert parse(render(spec_of(layer=2).config)).layer == Layer(2, Ethernet())


def test_a_plain_fleet_has_the_file_that_it_had() -> None:
    plain = spec_of({"public_key": A, "endpoint": UDP}).config
    assert render(plain) == render(spec_of(gate(f"udp://{UDP}")).config)
    assert set(dict(plain.options())) == {"PrivateKeyFile", "ListenPort", "FwMark"}


def test_a_list_is_sent_once_and_names_are_left_to_the_relay() -> None:
    new = [f"endpoints={UDP},{TLS}", f"tls_pin={PIN}", "tls_server_name=www.example.net", "frame_messages=on"]
    wanted = spec_of(FULL)
    lines = request(wanted, spec_of())
    assert lines[0] == f"public_key={HEX}"
    assert sorted(lines[1:]) == sorted(new)
    assert lines.index(f"tls_pin={PIN}") < lines.index(new[0]), "no endpoint of TLS is there without a pin"
    assert request(wanted, wanted, told(*ABOUT)) == []
    roamed = told(f"way={HEX} tcp://203.0.113.9:5555 fallback {UDP},{TLS} - -", *ABOUT[1:])
    assert request(wanted, wanted, roamed) == []


def test_another_order_and_another_pin_are_sent() -> None:
    wanted = spec_of({**FULL, "endpoints": [TLS, UDP], "tls_pin": [PIN, OTHER_PIN]})
    expected = [
        f"public_key={HEX}",
        "update_only=true",
        f"tls_pin={PIN},{OTHER_PIN}",
        f"endpoints={TLS},{UDP}",
    ]
    assert request(wanted, spec_of(FULL), told(*ABOUT)) == expected


def test_from_a_list_to_one_plain_endpoint_and_to_none() -> None:
    plain, none = spec_of({"public_key": A, "endpoint": UDP}), spec_of({"public_key": A})
    bare = ["tls_pin=", "tls_server_name=", "frame_messages=off"]
    before = [f"public_key={HEX}", "update_only=true"]
    assert request(plain, spec_of(FULL), told(*ABOUT)) == [*before, "endpoint=198.51.100.1:51820", *bare]
    assert request(none, spec_of(FULL), told(*ABOUT)) == [*before, "endpoints=", *bare]


def test_frame_messages_of_a_client_need_no_endpoint() -> None:
    wanted = spec_of({"public_key": A, "frame_messages": True})
    assert request(wanted, spec_of(), Peer(A)) == [
        f"public_key={HEX}",
        "update_only=true",
        "frame_messages=on",
    ]
    assert request(wanted, wanted, told(f"way={HEX} - - -", f"frame_messages={HEX} on")) == []


def test_one_plain_endpoint_is_told_by_its_address_with_frame_messages_too() -> None:
    """A relay has no list then, so it names none."""
    wanted = spec_of({"public_key": A, "endpoint": UDP, "frame_messages": True})
    lines = request(wanted, spec_of(), Peer(A))
    assert lines[2:] == ["endpoint=198.51.100.1:51820", "frame_messages=on"]
    running = replace(told(f"frame_messages={HEX} on"), endpoint="203.0.113.5:7")
    assert request(wanted, wanted, running) == [], "it has roamed"


def test_a_relay_of_layer_2_is_told_nothing_of_frame_messages() -> None:
    """They are on for all its peers, and it says so."""
    wanted = spec_of({"public_key": A}, layer=2)
    assert request(wanted, wanted, told(f"frame_messages={HEX} on"), layer=2) == []
    assert request(wanted, wanted, Peer(A), layer=2) == []


def test_an_older_relay_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, lines: object) -> None:
        raise Refused("the relay refuses the change", 22)

    monkeypatch.setattr(_relay_peers_host, "configure", refuse)
    backend = _relay_peers_host.PeersBackend(spec_of(by_tls()))
    with pytest.raises(HostError, match=r"does not know streams \(TCP, TLS\) and lists of endpoints"):
        backend.apply(Change("relay culvert0", None, None, "set", [("endpoints", TLS)]))


@pytest.mark.parametrize(
    ("peer", "option", "words"),
    [
        (gate("ftp://a:1"), "peers[0].endpoints[0]", "begins with none of udp://, tcp://, tls://"),
        (gate("tcp://a"), "peers[0].endpoints[0]", "is not host:port"),
        (gate("a:1", "tcp://2001:db8::1:1"), "peers[0].endpoints[1]", "without brackets"),
        (gate("a:1", "udp://a:1"), "peers[0].endpoints[1]", "is endpoints[0] already"),
        (gate("a:1", endpoint="b:1"), "peers[0].endpoints", "instead of endpoint"),
        (gate("tls://a:1"), "peers[0].tls_pin", "is required"),
        ({"public_key": A, "endpoint": "tls://a:1"}, "peers[0].tls_pin", "is required"),
        (gate("tls://a:1", tls_pin=["QUJD"]), "peers[0].tls_pin[0]", "SHA-256"),
        (gate("tls://a:1", tls_pin=[PIN[:-1]]), "peers[0].tls_pin[0]", "SHA-256"),
        (gate("tcp://a:1", tls_pin=[PIN]), "peers[0].tls_pin", "there is none"),
        (gate("tcp://a:1", tls_server_name="a"), "peers[0].tls_server_name", "there is none"),
        (gate(TLS, tls_pin=[PIN], tls_server_name="a b"), "peers[0].tls_server_name", "not a host name"),
        (gate(*(f"a:{port}" for port in range(1, 18))), "peers[0].endpoints", "more than 16"),
    ],
)
def test_what_is_wrong_with_a_peer(peer: dict[str, Any], option: str, words: str) -> None:
    with pytest.raises(SpecError) as refused:
        spec_of(peer)
    assert refused.value.option == option
    assert words in refused.value.message


@pytest.mark.parametrize(
    ("params", "option"),
    [
        ({"listen_tls": 443}, "tls_certificate_file"),
        ({"listen_tls": 443, "tls_certificate_file": "/a"}, "tls_private_key_file"),
        ({"tls_certificate_file": "/a"}, "tls_certificate_file"),
        ({"listen_tls": 443, "listen_tcp": 443, **FILES}, "listen_tls"),
        ({"listen_tls": 443, **FILES, "tls_alpn": "a,b"}, "tls_alpn"),
        ({"listen_tcp": 65536}, "listen_tcp"),
        ({"layer": 4}, "layer"),
        ({"client_isolation": True}, "client_isolation"),
        ({"storm_limit": 5}, "storm_limit"),
        ({"layer": 2, "mac_limit": 0}, "mac_limit"),
        ({"layer": 2, "peers": [{"public_key": A, "allowed_ips": ["10.0.0.0/8"]}]}, "peers[0].allowed_ips"),
        ({"layer": 2, "peers": [{"public_key": A, "failover": 1}]}, "peers[0].failover"),
    ],
)
def test_what_is_wrong_with_the_interface(params: dict[str, Any], option: str) -> None:
    with pytest.raises(SpecError) as refused:
        PeersSpec.from_params({"peers": [], **params})
    assert refused.value.option == option


# --- What a relay says --------------------------------------------------------------------------------------


def test_what_a_relay_says_of_ways() -> None:
    ways = Ways((PIN,), "www.example.net", True)
    assert parse_ways("\n".join(ABOUT)) == {A: Current(TLS, "fallback", (UDP, TLS), ways)}
    assert parse_ways(f"way={HEX} - waiting [2001:DB8:0::1]:1\nway=zz\nway=\nerrno=0") == {
        A: Current("", "waiting", ("[2001:db8::1]:1",))
    }
    about = "listener=tls 443\nlistener=tcp 8443\nlistener=quic 1\nlistener=tls\nlayer=2\n"
    assert parse_listeners(about) == [{"transport": "tls", "port": 443}, {"transport": "tcp", "port": 8443}]
    assert (parse_layer(about), parse_layer("layer=9"), parse_layer("")) == (2, 3, 3)
    assert Listeners().options()


def test_the_module_relay_info_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    other = f"public_key={'02' * 32}\nendpoint=203.0.113.2:5"
    get = f"public_key={HEX}\nendpoint=203.0.113.1:443\n{other}\nerrno=0\n\n"
    answers = {
        b"get=1\n\n": get,
        b"culvert=1\n\n": "\n".join([*ABOUT, "layer=2", "listener=tcp 7", "errno=0\n\n"]),
    }
    monkeypatch.setattr(_uapi, "_exchange", lambda path, request, timeout_s: answers[request].encode())
    found = _relay_info.info({"name": "culvert0"})
    assert (found["layer"], found["listeners"]) == (2, [{"transport": "tcp", "port": 7}])
    first, second = found["peers"]
    assert (first["way"], first["transport"], first["way_state"]) == (TLS, "tls", "fallback")
    assert (first["endpoints"], first["tls_pin"], first["frame_messages"]) == ([UDP, TLS], [PIN], True)
    assert (second["way"], second["transport"], second["way_state"]) == ("203.0.113.2:5", "udp", None)
    assert (second["endpoints"], second["tls_server_name"]) == ([], None)


@given(st.text(max_size=300) | st.lists(st.sampled_from(ABOUT), max_size=6).map("\n".join))
def test_whatever_a_relay_says(reply: str) -> None:
    for current in parse_ways(reply).values():
        current.as_dict(None)
    parse_listeners(reply)
    parse_layer(reply)


@given(st.text(max_size=40))
def test_whatever_is_written_for_an_endpoint(text: str) -> None:
    assert all(normal(endpoint) == endpoint for endpoint in listed(text) if not endpoint.startswith("udp://"))
