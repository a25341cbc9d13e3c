# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of a packet in the relay, of the tunnel's own packets, and on the server."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
from ansible_collections.culvert.vpn.plugins.module_utils._document import Document
from ansible_collections.culvert.vpn.plugins.module_utils._drift import Drift
from ansible_collections.culvert.vpn.plugins.module_utils._explain import explain_facts
from ansible_collections.culvert.vpn.plugins.module_utils._explain_facts import Device, Knock
from ansible_collections.culvert.vpn.plugins.module_utils._explain_way import model
from ansible_collections.culvert.vpn.plugins.module_utils._forecast import Routing
from ansible_collections.culvert.vpn.plugins.module_utils._nft_ruleset import Chain, Ruleset
from ansible_collections.culvert.vpn.plugins.module_utils._relay_ways import Current
from ansible_collections.culvert.vpn.plugins.module_utils._routes import Route, Rule
from ansible_collections.culvert.vpn.plugins.module_utils._uapi import Rejection, Relay, parse_rejections

from tests.unit.plugins.module_utils.explained import (
    CLIENT,
    CLIENT_KEY,
    FAR,
    LAN,
    MARK,
    NAT,
    NOW,
    OTHER_KEY,
    SERVER,
    SERVER_KEY,
    SILENT,
    TUNNEL,
    assert_cause,
    cause_of,
    client,
    filtering,
    relay_of,
    routing,
    rules_of,
    server,
    server_relay,
    stage_of,
    tables,
)


def test_the_relay_is_down() -> None:
    idle = Device("culvert0", True, True, False, 1420, ("10.86.0.2",))
    container = "its container culvert-culvert0 is exited (status 137, since yesterday)"
    assert_cause(client(device=idle, relay=None, container=container), "relay_down", "no carrier", "137")
    named = client(device=idle, relay=None, container_name="my-relay")
    assert "docker start my-relay" in cause_of(named)["fix"]
    assert_cause(client(relay=None), "relay_down", "control socket")
    assert stage_of(client(relay=None, relay_problem="it hangs"), "tunnel device")["ok"] is None


def test_the_destination_is_nobodys_or_anothers() -> None:
    nobody = relay_of(allowed_ips=("10.86.0.0/16",))
    assert_cause(client(relay=nobody), "allowed_ips", f"{FAR} is in no peer's")
    sender = Rejection("source", f"{CLIENT}:1", OTHER_KEY, "10.86.0.2", 3, 1)
    mine = server_relay(allowed_ips=("10.86.0.9/32",))
    assert_cause(server(relay=mine, rejections=(sender,), **SILENT), "allowed_ips", OTHER_KEY[:8])
    assert_cause(
        server(rejections=(sender,), **SILENT), "allowed_ips", OTHER_KEY[:8], "in the allowed IPs of"
    )
    # It answers, so that was before.
    assert cause_of(server(rejections=(sender,))) is None


@pytest.mark.parametrize(
    ("reason", "key", "name", "word"),
    [
        ("mac1", "", "wrong_key", "another key than this relay's"),
        ("unknown_peer", OTHER_KEY, "wrong_key", OTHER_KEY),
        ("stale_timestamp", CLIENT_KEY, "clock", "its clock went back"),
        ("bad_response", CLIENT_KEY, "wrong_key", "pre-shared keys differ"),
        ("expired", CLIENT_KEY, "barred", "its time is up"),
        ("quota", CLIENT_KEY, "barred", "its quota is up"),
    ],
)
def test_what_the_relay_refused(reason: str, key: str, name: str, word: str) -> None:
    refused = (Rejection(reason, f"{CLIENT}:51820", key, "", 4, 2),)
    never = server_relay(latest_handshake_s=0, endpoint=None)
    assert_cause(server(relay=never, rejections=refused, **SILENT), name, word)
    stale = server_relay(latest_handshake_s=NOW - 100)
    assert_cause(server(relay=stale, rejections=refused, **SILENT), name, word)
    # What was before the latest handshake, or of somebody else while all is well, is nothing.
    assert cause_of(server(relay=server_relay(latest_handshake_s=NOW - 1), rejections=refused)) is None
    assert cause_of(server(relay=stale, rejections=refused)) is None
    elsewhere = (replace(refused[0], endpoint="198.51.100.77:9", public_key=OTHER_KEY),)
    assert_cause(server(relay=stale, rejections=elsewhere, **SILENT), "endpoint_silent")


def test_a_client_that_nobody_knows() -> None:
    nobody = Relay(SERVER_KEY, 51820, MARK, ())
    refused = (Rejection("unknown_peer", f"{CLIENT}:51820", CLIENT_KEY, "", 4, 2),)
    assert_cause(server(relay=nobody, rejections=refused, **SILENT), "wrong_key", CLIENT_KEY)


def test_the_mark_is_another() -> None:
    relay = replace(relay_of(), fwmark=0)
    assert_cause(client(relay=relay, **SILENT), "mark_stripped", "no mark", f"{MARK:#x}")
    text = "*mangle\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -p udp -j MARK --set-xmark 0x7/0xffffffff\nCOMMIT\n"
    assert_cause(
        client(tables=tables(text), **SILENT), "mark_stripped", "0x7 instead", "chain OUTPUT: -p udp"
    )
    restored = text.replace("-j MARK", f"-m mark ! --mark {MARK:#x} -j MARK")
    assert cause_of(client(tables=tables(restored))) is None


def test_the_endpoint_has_no_route() -> None:
    facts = client(routing(main=(LAN, TUNNEL)), **SILENT)
    assert_cause(facts, "endpoint_no_route", f"no route to the endpoint {SERVER}:51820 (ENETUNREACH)")
    unmarked = Routing(tuple(replace(r, mark=0, mask=0, invert=False) for r in rules_of()), routing().routes)
    assert_cause(client(unmarked, **SILENT), "route_loop", "into culvert0 again")


@pytest.mark.parametrize(
    ("hook", "rule", "word"),
    [
        ("OUTPUT", "-p udp -m udp --dport 51820 -j DROP", "on their way out"),
        ("INPUT", f"-s {SERVER}/32 -j DROP", "drops what"),
    ],
)
def test_the_hosts_own_firewall(hook: str, rule: str, word: str) -> None:
    assert_cause(client(tables=tables(filtering(hook, rule))), "own_firewall", word, rule)


def test_answers_that_a_strict_source_filter_drops() -> None:
    strict = {"net.ipv4.conf.up0.rp_filter": "1", "net.ipv4.conf.all.rp_filter": "0"}
    assert_cause(
        client(sysctls=strict, **SILENT), "rp_filter", "rp_filter=1", "src_valid_mark is 0", "by culvert0"
    )
    valid = {**strict, "net.ipv4.conf.all.src_valid_mark": "1"}
    # Nobody gives the answers the mark.
    assert_cause(client(sysctls=valid, **SILENT), "rp_filter", "without a mark")
    chains = (
        "*mangle\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n"
        f"-A PREROUTING -m connmark --mark {MARK:#x} -j MARK --set-xmark {MARK:#x}/0xffffffff\n"
        f"-A OUTPUT -m mark --mark {MARK:#x} -j CONNMARK --set-xmark {MARK:#x}/0xffffffff\nCOMMIT\n"
    )
    assert stage_of(client(sysctls=valid, tables=tables(chains)), "rp_filter")["ok"] is True
    loose = {**strict, "net.ipv4.conf.all.rp_filter": "2"}
    assert cause_of(client(sysctls=loose)) is None


@pytest.mark.parametrize(
    ("knock", "name", "word"),
    [
        (Knock("ECONNREFUSED", SERVER), "endpoint_refused", "nothing listens on UDP port 51820"),
        (Knock("EHOSTUNREACH", "198.51.100.1"), "endpoint_refused", "the router 198.51.100.1 reports"),
        (Knock("EHOSTUNREACH"), "endpoint_no_neighbour", "this host reports"),
        (Knock("ENETUNREACH"), "endpoint_no_route", "no route"),
        (Knock("EPERM"), "own_firewall", "own firewall refuses"),
        (Knock("EMSGSIZE"), "endpoint_refused", "larger"),
        (Knock("ENOBUFS"), "endpoint_refused", "ENOBUFS"),
    ],
)
def test_what_comes_back_from_a_knock(knock: Knock, name: str, word: str) -> None:
    endpoint = f"{SERVER}:51820"
    assert_cause(client(knocks={endpoint: knock}, **SILENT), name, word)
    if not knock.reporter:
        said = (Rejection("send_error", endpoint, SERVER_KEY, "", 9, 1, knock.error),)
        assert_cause(client(knocks={endpoint: Knock()}, rejections=said, **SILENT), name, word)
        assert cause_of(client(rejections=said)) is None


def test_a_neighbour_that_does_not_answer() -> None:
    failed = {"198.51.100.1": "FAILED"}
    assert_cause(
        client(neighbours=failed, **SILENT), "endpoint_no_neighbour", "the gateway 198.51.100.1", "ARP"
    )
    assert cause_of(client(neighbours={"198.51.100.1": "STALE"})) is None


def test_silence() -> None:
    never = relay_of(latest_handshake_s=0)
    knocked = {f"{SERVER}:51820": Knock()}
    assert_cause(client(relay=never, knocks=knocked, **SILENT), "endpoint_silent", "no answer from", "yet")
    old = relay_of(latest_handshake_s=NOW - 1000)
    assert_cause(client(relay=old, **SILENT), "endpoint_silent", "1000 s")
    uncalled = server_relay(latest_handshake_s=0, endpoint=None)
    assert_cause(server(relay=uncalled, **SILENT), "endpoint_silent", "has not called")
    # Not every host answers pings; the other end of the tunnel does, and a probe may know better.
    assert cause_of(client(**SILENT)) is None
    assert stage_of(client(**SILENT), "answer")["ok"] is None
    assert_cause(client(destination="10.86.0.1", **SILENT), "endpoint_silent", "does not answer")
    known = {"round_trip": {"name": "round_trip", "ok": False}}
    assert_cause(client(checks=known, **SILENT), "endpoint_silent")
    assert_cause(client(checks=known, answered=False, heard=True), "other_side", "its peer is there")


def test_the_servers_own_firewall() -> None:
    text = NAT + filtering("INPUT", "-p udp -m udp --dport 51820 -j DROP")
    assert_cause(server(tables=tables(text)), "own_firewall", "UDP port 51820", "--dport 51820 -j DROP")
    policy = NAT + filtering("INPUT", "-p tcp -m tcp --dport 22 -j ACCEPT", policy="DROP")
    assert_cause(server(tables=tables(policy)), "own_firewall", "the policy of chain INPUT is DROP")
    chain = Chain("inet", "f", "in", "input", "drop", ())
    assert_cause(server(nft=Ruleset({("inet", "f", "in"): chain})), "own_firewall", "table inet f, chain in")
    friends = [{"xt": {"type": "match", "name": "recent"}}, {"accept": None}]
    knocking = Chain("inet", "f", "in", "input", "drop", (friends,))
    facts = server(nft=Ruleset({("inet", "f", "in"): knocking}))
    assert stage_of(facts, "inbound port")["ok"] is None
    perhaps = NAT + filtering("INPUT", "-m set --match-set friends src -j ACCEPT", policy="DROP")
    assert stage_of(server(tables=tables(perhaps)), "inbound port")["ok"] is None


def test_a_server_that_takes_streams_is_called_by_any_of_its_ports() -> None:
    shut = NAT + filtering("INPUT", "-p udp -m udp --dport 51820 -j DROP")
    listening = server(tables=tables(shut), listeners={"tls": 443})
    stage = stage_of(listening, "inbound port")
    assert (stage["ok"], stage["text"]) == (True, "TCP port 443 is let in; UDP port 51820 is dropped")
    both = NAT + filtering("INPUT", policy="DROP")
    assert_cause(server(tables=tables(both), listeners={"tls": 443}), "own_firewall", "UDP port 51820")


def test_a_peer_that_came_by_a_stream_is_looked_at_as_one() -> None:
    by_tls = {CLIENT_KEY: Current(f"tls://{CLIENT}:40000", "preferred")}
    shut = NAT + filtering("INPUT", "-p tcp -m tcp --dport 443 -j DROP")
    facts = server(tables=tables(shut), listeners={"tls": 443}, ways=by_tls)
    assert_cause(facts, "own_firewall", "TCP port 443: table filter, chain INPUT")
    assert stage_of(replace(facts, ways={}), "inbound port")["ok"] is True
    own = {SERVER_KEY: Current(f"tls://{SERVER}:443", "fallback", (f"{SERVER}:51820", f"tls://{SERVER}:443"))}
    kept_in = filtering("OUTPUT", f"-d {SERVER}/32 -p tcp -m tcp --dport 51820 -j DROP")
    assert cause_of(client(tables=tables(kept_in))) is None
    assert_cause(client(tables=tables(kept_in), ways=own), "own_firewall", "OUTPUT")
    assert cause_of(client(tables=tables(kept_in), ways=own))["fix"] == "let TCP to port 51820 out there"


def test_a_server_that_does_not_forward() -> None:
    text = NAT + filtering("FORWARD", "-i eth1 -j ACCEPT", policy="DROP")
    assert_cause(server(tables=tables(text)), "forward_dropped", "policy of chain FORWARD is DROP")
    one_way = NAT + filtering("FORWARD", "-i culvert0 -j ACCEPT", policy="DROP")
    assert_cause(server(tables=tables(one_way)), "forward_dropped", "answers from eth0")
    lost = Drift(
        "20-server-culvert0",
        "chain",
        "chain CULVERT-FORWARD in filter (ipv4) on nft",
        "write",
        "x (ipv4) gone",
    )
    assert_cause(server(tables=tables(text), drift=(lost,)), "forward_dropped", "x (ipv4) gone")
    assert_cause(server(sysctls={"net.ipv4.ip_forward": "0"}), "forwarding_off")


ACL = """*mangle
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:CULVERT-ACL - [0:0]
:CULVERT-ACL-OUT - [0:0]
:CULVERT-ACL-REFUSED - [0:0]
-A PREROUTING -i culvert0 -j CULVERT-ACL
-A POSTROUTING -j CULVERT-ACL-OUT
-A CULVERT-ACL -m conntrack --ctdir REPLY -j RETURN
-A CULVERT-ACL -s 10.86.0.2/32 -g CULVERT-ACL-REFUSED
-A CULVERT-ACL-OUT ! -o culvert0 -m mark --mark 0x6200ca6c -j DROP
-A CULVERT-ACL-REFUSED -j MARK --set-xmark 0x6200ca6c/0xffffffff
COMMIT
"""
REFUSING = "-i culvert0 -m mark --mark 0x6200ca6c -j REJECT --reject-with icmp-admin-prohibited"


@pytest.mark.parametrize(
    "first", [REFUSING, "-o eth0 -j ACCEPT"], ids=["refused", "accepted by others first"]
)
def test_what_an_acl_does_not_permit_is_told_as_that(first: str) -> None:
    chains = tables(NAT + ACL + filtering("FORWARD", first, REFUSING))
    to_far = {"destination": ip_address(FAR), "source": ip_address("10.86.0.2"), "tables": chains}
    assert_cause(server(**to_far), "acl", "the ACL of 10.86.0.2 does not permit it", "CULVERT-ACL")
    assert cause_of(server(**{**to_far, "source": ip_address("10.86.0.3")})) is None
    # It is no fault of the server that forwards for the client.
    assert cause_of(server(tables=chains)) is None
    assert ("by its ACL" in stage_of(server(tables=chains), "forward")["text"]) == (first == REFUSING)


def test_a_server_that_keeps_its_clients_apart() -> None:
    kept = "*filter\n:FORWARD ACCEPT [0:0]\n:CULVERT-FORWARD - [0:0]\n-A FORWARD -j CULVERT-FORWARD\n"
    kept += "-A CULVERT-FORWARD -i culvert0 -o culvert0 -j REJECT\nCOMMIT\n"
    between = server(source=ip_address("10.86.0.9"), tables=tables(NAT + kept))
    assert_cause(between, "isolation", "clients are kept apart")
    assert cause_of(server(tables=tables(NAT + kept))) is None


def test_a_server_that_does_not_translate() -> None:
    assert_cause(server(tables={}), "no_masquerade", "10.86.0.2")
    before = NAT.replace("-A POST", "-A POSTROUTING -o eth0 -j ACCEPT\n-A POST", 1)
    assert_cause(server(tables=tables(before)), "no_masquerade")
    plain = Document.from_params({"name": "20-server-culvert0", "sysctls": {"net.ipv4.ip_forward": "1"}})
    facts = server(tables={}, documents=(plain,))
    assert cause_of(facts) is None
    assert "by this server's document" in stage_of(facts, "nat")["text"]
    nft = Chain("ip", "mine", "post", "postrouting", "accept", ([{"masquerade": None}],))
    assert stage_of(server(tables={}, nft=Ruleset({("ip", "mine", "post"): nft})), "nat")["ok"] is None


def test_a_server_whose_tunnel_filters_sources() -> None:
    strict = {"net.ipv4.ip_forward": "1", "net.ipv4.conf.culvert0.rp_filter": "1"}
    assert cause_of(server(sysctls=strict)) is None
    away = Routing((Rule(4, 32766, 254),), {254: (Route(4, "0.0.0.0/0", 0, device="eth0"),)})
    found = explain_facts(server(sysctls=strict, ask=model(away)))
    assert "dropped as it comes out of culvert0" in str(found["stages"])


def test_rejections_of_relays_old_and_new() -> None:
    text = (
        "batch=native\noffloads=none\n"
        f"rejection=mac1 {CLIENT}:51820 - - 3 7 -\n"
        f"rejection=send_error {SERVER}:51820 {SERVER_KEY} {FAR} 1 0 EHOSTUNREACH more\n"
        "rejection=short\nrejection=odd - - - x 1\ncapture=1 2 3 -\nerrno=0\n\n"
    )
    mac1, failed = parse_rejections(text) or ()
    assert mac1 == Rejection("mac1", f"{CLIENT}:51820", "", "", 3, 7)
    assert (failed.detail, failed.address, failed.public_key) == ("EHOSTUNREACH", FAR, SERVER_KEY)
    assert parse_rejections("errno=0\n\n") == ()
    for other in ("", "errno=-22\n\n", "HTTP/1.1 400 Bad Request\n\n"):
        assert parse_rejections(other) is None
