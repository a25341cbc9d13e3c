# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Judging what a probe has found: leaks, the kill switch, name servers, sizes, transfers, the clock."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.module_utils import _icmp, _leaks, _probe, _relay_ways
from ansible_collections.culvert.vpn.plugins.module_utils._core import SpecError
from ansible_collections.culvert.vpn.plugins.module_utils._iptables import Table
from ansible_collections.culvert.vpn.plugins.module_utils._kill_switch import Held, state_of
from ansible_collections.culvert.vpn.plugins.module_utils._nameservers import Resolvers, nameservers
from ansible_collections.culvert.vpn.plugins.module_utils._probe_checks import Check, Findings, checks
from ansible_collections.culvert.vpn.plugins.module_utils._probe_look import Surroundings
from ansible_collections.culvert.vpn.plugins.module_utils._probe_spec import ProbeSpec, Responder, Target
from ansible_collections.culvert.vpn.plugins.module_utils._responder import PathMtu, Transfer
from ansible_collections.culvert.vpn.plugins.module_utils._uapi import Peer, Relay

SERVER = ipaddress.ip_address("10.86.0.1")
SPEC = ProbeSpec("culvert0", "/run/wireguard/culvert0.sock")
DEVICE = _probe.DeviceFacts("culvert0", True, True, True, ("10.86.0.2", "fd86::2"))
PEER = Peer("A" * 43 + "=", "198.51.100.9:51820", ("0.0.0.0/0",), 1000)


def target(*round_trips_s: float, sent: int = 3) -> tuple[Target, _probe.TargetFacts]:
    echo = _icmp.Echo(str(SERVER), sent, list(round_trips_s))
    facts = _probe.TargetFacts(SERVER, _probe.RouteFacts("culvert0"), echo)
    return Target("server", SERVER), facts


FOUND = Findings(
    DEVICE, 1420, Relay("own", 51820, 51820, (PEER,)), [target(0.001, 0.002, 0.003)], 1010.0, Surroundings()
)


def judged(name: str, found: Findings = FOUND, **wishes: Any) -> Check:
    return next(check for check in checks(replace(SPEC, **wishes), found) if check.name == name)


def leaks(kind: str, *seen: str, **more: Any) -> _leaks.LeakFacts:
    trial = _leaks.Trial(kind, "203.0.113.254", (b"word",), "eth0" if kind == "uplink" else "", seen={*seen})
    return _leaks.LeakFacts((trial,), **more)


def test_what_nobody_asked_for_is_neither_good_nor_bad() -> None:
    made = checks(SPEC, Findings(DEVICE, relay=Relay()))
    assert {check.name for check in made if check.ok is not None} == {"device", "relay"}
    assert len({check.name for check in made}) == len(made) == 17


def test_a_tunnel_without_relay_or_device() -> None:
    assert judged("relay", Findings(DEVICE)).ok is False
    gone = Findings(_probe.DeviceFacts("culvert0"))
    assert "no device culvert0" in judged("device", gone).reasons[0]


def test_handshakes_grow_old() -> None:
    assert judged("handshake", handshake_max_age_s=180) == Check("handshake", True, 10)
    late = replace(FOUND, now_s=1181.0)
    assert judged("handshake", late, handshake_max_age_s=180).ok is False
    assert judged("handshake", late).ok is None
    never = replace(FOUND, relay=Relay(peers=(replace(PEER, latest_handshake_s=0),)))
    assert "none yet" in judged("handshake", never, handshake_max_age_s=180).reasons[0]


def test_at_layer_2_those_who_are_called_have_to_have_shaken_hands() -> None:
    """The device may be a bridge's, without addresses, and there may be nobody to send an echo to."""
    calls = replace(PEER, allowed_ips=(), persistent_keepalive_s=25)
    frames = replace(
        FOUND,
        device=replace(DEVICE, addresses=()),
        relay=Relay("own", 51820, 51820, (calls,)),
        targets=[],
        layer=2,
    )
    assert judged("device", frames).ok is True
    assert judged("device", replace(frames, layer=3)).ok is False
    assert judged("handshake", frames, handshake_max_age_s=180) == Check("handshake", True, 10)
    silent = replace(frames, relay=Relay(peers=(replace(calls, latest_handshake_s=0),)))
    assert "198.51.100.9:51820" in judged("handshake", silent, handshake_max_age_s=180).reasons[0]
    # A server is called: who has not called may be switched off.
    waits = replace(frames, relay=Relay(peers=(replace(calls, persistent_keepalive_s=0),)))
    assert judged("handshake", waits, handshake_max_age_s=180).ok is None


def test_who_has_several_ways_and_no_handshake_is_asked_for_all_of_them() -> None:
    ways = {
        PEER.public_key: _relay_ways.Current("", "trying", ("198.51.100.9:51820", "tls://198.51.100.9:443"))
    }
    never = Relay("own", 51820, 51820, (replace(PEER, latest_handshake_s=0),))
    dead = replace(FOUND, relay=never, targets=[target()])
    assert "does UDP reach it" in judged("round_trip", dead).reasons[0]
    reasons = judged("round_trip", replace(dead, ways=ways)).reasons
    assert "does any of 198.51.100.9:51820, tls://198.51.100.9:443 reach it" in reasons[0]


def test_round_trip_and_loss() -> None:
    assert judged("round_trip") == Check("round_trip", True, 2.0)
    assert judged("loss", loss_max=0.0) == Check("loss", True, 0.0)
    lossy = replace(FOUND, targets=[target(0.001)])
    assert judged("loss", lossy).ok is None
    bad = judged("loss", lossy, loss_max=0.5)
    assert (bad.ok, bad.value) == (False, 0.667)
    assert "67%" in bad.reasons[0]
    dead = replace(FOUND, targets=[target()])
    assert judged("round_trip", dead).ok is False


@pytest.mark.parametrize(
    ("egress", "wishes", "ok"),
    [
        (("203.0.113.1", ""), {}, None),
        (("203.0.113.1", ""), {"full_tunnel": True}, True),
        (("198.51.100.7", ""), {"full_tunnel": True}, False),
        (("203.0.113.1", ""), {"egress_expect": (ipaddress.ip_address("203.0.113.1"),)}, True),
        (("203.0.113.2", ""), {"egress_expect": (ipaddress.ip_address("203.0.113.1"),)}, False),
        ((None, "could not be fetched"), {"full_tunnel": True}, False),
    ],
)
def test_the_address_that_the_internet_sees(egress: Any, wishes: dict[str, Any], ok: bool | None) -> None:
    around = Surroundings(addresses=("198.51.100.7",))
    assert judged("egress", replace(FOUND, egress=egress, surroundings=around), **wishes).ok is ok


def test_the_address_that_the_responder_sees() -> None:
    responder = Responder(SERVER)
    assert judged("egress", replace(FOUND, seen_as=("10.86.0.2", "")), responder=responder).ok is True
    assert judged("egress", replace(FOUND, seen_as=("198.51.100.7", "")), responder=responder).ok is False
    silent = replace(FOUND, seen_as=(None, "timed out"))
    assert judged("egress", silent, responder=responder).ok is None
    assert judged("responder", silent, responder=responder).ok is False
    # On the server itself, what its own responder sees says nothing of the tunnel.
    own = replace(FOUND, device=replace(DEVICE, addresses=("10.86.0.1",)), seen_as=("127.0.0.1", ""))
    assert judged("egress", own, responder=responder).ok is None
    assert judged("responder", own, responder=responder).ok is True


@pytest.mark.parametrize("kind", ["ipv4", "ipv6", "dns"])
def test_a_leak_is_what_was_seen_outside(kind: str) -> None:
    name = f"{kind}_leak"
    found = replace(FOUND, resolvers=Resolvers())
    assert judged(name, replace(found, leaks=leaks(kind)), full_tunnel=True).ok is True
    assert judged(name, replace(found, leaks=leaks(kind, "eth0"))).ok is None
    leak = judged(name, replace(found, leaks=leaks(kind, "eth0", "wlan0")), full_tunnel=True)
    assert (leak.ok, leak.value) == (False, "eth0, wlan0")
    assert "eth0 and wlan0" in leak.reasons[0]


def test_what_could_not_be_listened_to_is_no_proof() -> None:
    for more in ({"missed": 7}, {"trouble": "needs root"}):
        check = judged("ipv4_leak", replace(FOUND, leaks=leaks("ipv4", **more)), full_tunnel=True)
        assert check.ok is None
        assert check.reasons
    # What was seen nevertheless is.
    seen = replace(FOUND, leaks=leaks("ipv4", "eth0", missed=7))
    assert judged("ipv4_leak", seen, full_tunnel=True).ok is False


def test_a_resolver_outside_leaks_unless_something_holds_it_back() -> None:
    found = replace(
        FOUND,
        leaks=leaks("dns"),
        resolvers=Resolvers((ipaddress.ip_address("192.168.1.1"),)),
        resolvers_outside=[("192.168.1.1", "eth0")],
    )
    assert "192.168.1.1" in judged("dns_leak", found, full_tunnel=True).reasons[0]
    assert judged("dns_leak", replace(found, dns_guard=Held("on")), full_tunnel=True).ok is True
    assert judged("dns_leak", replace(found, kill_switch=Held("on")), full_tunnel=True).ok is True
    broken = replace(found, dns_guard=Held("broken", ("ipv4: all of it",)))
    assert judged("dns_leak", broken, full_tunnel=True).ok is False
    per_link = replace(
        found, resolvers=Resolvers(found.resolvers.addresses, True) if found.resolvers else None
    )
    assert judged("dns_leak", per_link, full_tunnel=True).ok is True


def test_the_resolvers_are_those_that_are_wished_and_answer() -> None:
    wishes = {"dns_servers": (SERVER, ipaddress.ip_address("fd86::1"))}
    lookup = _leaks.Lookup("x.example.com", answered=True, done=True)
    found = replace(FOUND, resolvers=Resolvers(wishes["dns_servers"]), leaks=_leaks.LeakFacts(lookup=lookup))
    assert judged("dns", found, **wishes).ok is True
    mute = replace(found, leaks=_leaks.LeakFacts(lookup=replace(lookup, answered=False, trouble="try again")))
    assert "try again" in judged("dns", mute, **wishes).reasons[0]
    other = replace(found, resolvers=Resolvers((ipaddress.ip_address("192.168.1.1"),)))
    assert "asks 192.168.1.1" in judged("dns", other, **wishes).reasons[0]
    # A tunnel without IPv6 has no use for the server's IPv6 address.
    plain = replace(found, device=replace(DEVICE, addresses=("10.86.0.2",)), resolvers=Resolvers((SERVER,)))
    assert judged("dns", plain, **wishes).ok is True


@pytest.mark.parametrize(
    ("state", "expected", "seen", "ok", "value"),
    [
        ("on", True, (), True, "on"),
        ("on", True, ("eth0",), False, "broken"),
        ("off", True, (), False, "off"),
        ("broken", True, (), False, "broken"),
        ("off", False, (), True, "off"),
        ("on", False, (), False, "on"),
        ("broken", False, (), False, "broken"),
        ("on", None, (), None, "on"),
    ],
)
def test_the_kill_switch(
    state: str, expected: bool | None, seen: tuple[str, ...], ok: bool | None, value: str
) -> None:
    found = replace(FOUND, kill_switch=Held(state, ("ipv6: all of it",)), leaks=leaks("uplink", *seen))
    check = judged("kill_switch", found, kill_switch=expected)
    assert (check.ok, check.value) == (ok, value)
    assert bool(check.reasons) == (ok is False)


NAME = "CULVERT-KILLSWITCH"
JUMP = f"-m comment --comment culvert -j {NAME}"


def mangle(
    postrouting: tuple[str, ...], chain: tuple[str, ...] | None = ("-o lo -j RETURN", "-j DROP")
) -> Table:
    policies = {"POSTROUTING": "ACCEPT", **({} if chain is None else {NAME: "-"})}
    return Table(policies, {"POSTROUTING": postrouting, **({} if chain is None else {NAME: chain})})


@pytest.mark.parametrize(
    ("six", "state", "word"),
    [
        (mangle((JUMP,)), "on", ""),
        (mangle((), None), "broken", "all of it"),
        (mangle(()), "broken", "jump"),
        (mangle((JUMP,), ("-o lo -j RETURN",)), "broken", "drops"),
        (mangle(("-o eth0 -j ACCEPT", JUMP)), "broken", "comes before"),
    ],
)
def test_a_kill_switch_is_one_in_both_families(six: Table, state: str, word: str) -> None:
    held = state_of(NAME, {"ipv4": [Table(), mangle((JUMP,))], "ipv6": [six]})
    assert held.state == state
    assert word in " ".join(held.missing)
    assert state_of(NAME, {"ipv4": [Table()], "ipv6": [mangle((), None)]}) == Held("off")


def test_sizes_that_do_not_pass() -> None:
    whole = judged("path_mtu", replace(FOUND, path_mtu=PathMtu(1420, 1420, 1420)))
    assert (whole.ok, whole.value) == (True, "to 1420, from 1420 of 1420 bytes")
    hole = judged("path_mtu", replace(FOUND, path_mtu=PathMtu(1420, 1420, 1280)))
    assert hole.ok is False
    assert "from the server, packets of 1280 bytes do" in hole.reasons[0]
    assert "to the server" not in hole.reasons[0]
    # The server's own device takes less, and says so: what it takes has to come, and no more.
    less = PathMtu(1440, 1440, 1420, refused_bytes=1440)
    assert judged("path_mtu", replace(FOUND, path_mtu=less)).ok is True
    lost = judged("path_mtu", replace(FOUND, path_mtu=replace(less, from_bytes=1280)))
    assert lost.ok is False
    assert (
        "packets of 1420 bytes do not get through from the server, packets of 1280 bytes do"
        in lost.reasons[0]
    )
    # Nothing at all came back: that is another check's to say.
    assert judged("path_mtu", replace(FOUND, path_mtu=PathMtu(1420))).ok is None


def test_a_floor_of_throughput() -> None:
    wishes: dict[str, Any] = {"throughput_floor_mbit": 50.0, "responder": Responder(SERVER)}
    rates = {"to": Transfer(80.0), "from": Transfer(20.0)}
    slow = judged("throughput", replace(FOUND, transfers=rates), **wishes)
    assert (slow.ok, slow.value) == (False, "to 80, from 20 Mbit/s")
    assert len(slow.reasons) == 1
    fast = {**rates, "from": Transfer(50.0)}
    assert judged("throughput", replace(FOUND, transfers=fast), **wishes).ok is True
    cut = {**rates, "from": Transfer(trouble="timed out")}
    assert "timed out" in judged("throughput", replace(FOUND, transfers=cut), **wishes).reasons[-1]


@pytest.mark.parametrize(
    ("offset_s", "ok", "words"),
    [(29.0, True, ""), (-31.0, False, "31 seconds behind"), (3 * 86400.0, False, "3 days ahead of")],
)
def test_a_clock(offset_s: float, ok: bool, words: str) -> None:
    check = judged("clock", replace(FOUND, clock_offset_s=offset_s))
    assert check.ok is ok
    assert words in " ".join(check.reasons)


def test_drift_and_explanations() -> None:
    assert judged("drift", replace(FOUND, drift=[])).ok is True
    assert "a rule is missing" in judged("drift", replace(FOUND, drift=["a rule is missing"])).reasons[0]
    cause = {"stage": "route", "text": "the table is empty", "fix": "run it again"}
    lost = {"destination": "10.86.0.1", "ok": False, "cause": cause}
    fine = {"destination": "10.86.0.9", "ok": True, "cause": None}
    check = judged("path", replace(FOUND, explained=[fine, lost]))
    assert (check.ok, check.value) == (False, "1 of 2 pass")
    assert check.reasons == ("to 10.86.0.1: route: the table is empty: run it again",)
    assert judged("path", replace(FOUND, explained=[fine, {**fine, "ok": None}])).ok is None
    # What the operator forbids is no fault.
    kept = {**lost, "cause": {**cause, "name": "acl"}}
    assert judged("path", replace(FOUND, explained=[fine, kept])).ok is None


def test_what_cannot_be_looked_at_is_said() -> None:
    check = judged("drift", replace(FOUND, drift=None, trouble={"drift": "a file is damaged"}))
    assert check == Check("drift", None, None, ("a file is damaged",))


def test_name_servers_of_a_file() -> None:
    text = "# x\nnameserver 10.0.0.1 # y\nnameserver fe80::1%eth0\nnameserver nobody\nnameserver 10.0.0.1\n"
    assert [str(address) for address in nameservers(text)] == ["10.0.0.1", "fe80::1"]


def test_leak_targets_are_nobodys_networks() -> None:
    wished = [SERVER]
    assert Surroundings().leak_targets(wished) == wished
    usual = [str(address) for address in Surroundings().leak_targets([])]
    assert usual == ["203.0.113.254", "2001:db8:ffff:ffff::fffe"]
    lab = Surroundings(networks=(ipaddress.ip_network("203.0.113.0/24"),))
    assert str(lab.leak_targets([])[0]) == "198.51.100.254"


def ipv4(destination: str) -> bytes:
    return b"\x45" + bytes(15) + ipaddress.ip_address(destination).packed


def test_packets_to_containers_do_not_leave_the_host() -> None:
    assert _leaks.matches("br-12ab", ["docker0", "br-+"])
    assert not _leaks.matches("br0", ["docker0", "br-+"])
    assert _leaks.to_private(ipv4("172.17.0.2"))
    assert not _leaks.to_private(ipv4("172.32.0.2"))
    assert not _leaks.to_private(b"")


def test_a_question_for_a_neighbour_is_a_packet_on_the_wire() -> None:
    address = ipaddress.ip_address("203.0.113.254")
    trial = _leaks.trial_to(address, "eth0")
    arp = bytes(24) + address.packed
    assert _leaks.is_question(arp, 0x0806, trial)
    assert not _leaks.is_question(bytes(28), 0x0806, trial)
    six = ipaddress.ip_address("2001:db8::abcd")
    solicitation = bytearray(64)
    solicitation[0], solicitation[6], solicitation[40], solicitation[48:64] = 0x60, 58, 135, six.packed
    assert _leaks.is_question(bytes(solicitation), 0x86DD, _leaks.trial_to(six, "eth0"))
    assert not _leaks.is_question(bytes(solicitation), 0x86DD, trial)


@pytest.mark.parametrize(
    ("params", "option"),
    [
        ({"responder": {"address": "nobody"}}, "responder.address"),
        ({"responder": {"address": "10.86.0.1", "port": 0}}, "responder.port"),
        ({"throughput_floor_mbit": 5}, "throughput_floor_mbit"),
        ({"loss_max": 2}, "loss_max"),
        ({"dns_name": "no name"}, "dns_name"),
        ({"dns_servers": ["server"]}, "dns_servers[0]"),
        ({"leak_targets": ["10.0.0.0/8"]}, "leak_targets[0]"),
        ({"explain": [{"destination": "10.86.0.1", "source": "x"}]}, "explain[0].source"),
        ({"explain": [{}]}, "explain[0].destination"),
    ],
)
def test_malformed_wishes_name_their_option(params: dict[str, Any], option: str) -> None:
    with pytest.raises(SpecError) as refused:
        ProbeSpec.from_params(params)
    assert refused.value.option == option
