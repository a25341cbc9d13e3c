# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a client may begin, and nothing else: by address, port and protocol, for what is forwarded and for the
server itself, whatever the client does.

branch1 has the ACL; gate1 is its server.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
from typing import Any

import pytest

from tests.netns.fleetrules.fleet import DEVICE, INTERNET, REFUSED, SERVICE, TALK, Fleet, ask, hears, serve
from tests.netns.pcap import ICMP, ICMPV6, Capture
from tests.netns.services import PYTHON

ANY = ("0.0.0.0/0", "::/0")
# The client's own network has the number of its host.
GATE, BRANCH2 = 1, 4
RESPONDER = 51821
PORTS = (8000, 8099, 8100)


@pytest.fixture(scope="module")
def served(hub: Fleet) -> Fleet:
    for port in PORTS:
        serve(hub["gate1"].behind, port)
    serve(hub["gate1"].host, RESPONDER)
    return hub


@pytest.fixture
def fleet(served: Fleet) -> Fleet:
    """Nobody has an ACL, or branch1 that of another test."""
    if set(served.variables) - {"branch1"} or not served["gate1"].made:
        served.deploy()
    return served


def network(number: int, **more: Any) -> list[dict[str, Any]]:
    """Rules for what is behind a host, of both families."""
    return [{"to": to, **more} for to in (f"192.168.{number}.0/24", f"fd00:{number}::/64")]


def test_by_address(fleet: Fleet) -> None:
    gate, one, other = fleet["gate1"], fleet["branch1"], fleet["branch2"]
    fleet.permit("branch1", [*network(GATE), *({"to": other.inside[version]} for version in (4, 6))])
    for version in (4, 6):
        for protocol in ("tcp", "udp"):
            assert ask(one.host, gate.far[version], protocol=protocol) == one.inside[version]
            assert ask(one.host, other.inside[version], protocol=protocol) == one.inside[version]
        assert hears(one.host, gate.far[version])
        # All else is refused, not dropped.
        assert ask(one.host, other.far[version]) == "ECONNREFUSED"
        assert ask(one.host, INTERNET[version]) == "ECONNREFUSED"
        assert ask(one.host, INTERNET[version], protocol="udp") == REFUSED[version]
        refusal = one.host.ping(INTERNET[version], 1, wait_s=2).output.lower()
        assert "filtered" in refusal or "prohibited" in refusal
        # What is behind the client is the client.
        assert ask(one.behind, gate.far[version]) == one.far[version]
        assert ask(one.behind, INTERNET[version]) == "ECONNREFUSED"
        # Another client is not concerned.
        assert ask(other.host, INTERNET[version]) == gate.public[version]


def test_by_port_and_protocol(fleet: Fleet) -> None:
    gate, one = fleet["gate1"], fleet["branch1"]
    tcp = [rule for port in (SERVICE, "8000:8099") for rule in network(GATE, protocol="tcp", port=port)]
    fleet.permit("branch1", [*tcp, *({"to": to, "protocol": "icmp"} for to in ANY)])
    for version in (4, 6):
        far = gate.far[version]
        assert {ask(one.host, far, port) for port in (SERVICE, 8000, 8099)} == {one.inside[version]}
        assert ask(one.host, far, 8100) == "ECONNREFUSED"
        assert ask(one.host, far, protocol="udp") == REFUSED[version]
        assert hears(one.host, far)
        assert hears(one.host, INTERNET[version])
        assert ask(one.host, INTERNET[version]) == "ECONNREFUSED"


def test_the_lists_of_the_families_are_apart(fleet: Fleet) -> None:
    gate, one = fleet["gate1"], fleet["branch1"]
    fleet.permit("branch1", [{"to": ANY[0]}])
    assert ask(one.host, gate.far[4]) == one.inside[4]
    assert ask(one.host, gate.far[6]) == "ECONNREFUSED"


def test_the_server_itself(fleet: Fleet) -> None:
    """Its services in the tunnel may always be asked. All else of it is like anybody's."""
    gate, one = fleet["gate1"], fleet["branch1"]
    fleet.permit("branch1", [])
    for version in (4, 6):
        here = gate.inside[version]
        assert hears(one.host, here)
        for protocol in ("tcp", "udp"):
            assert ask(one.host, here, RESPONDER, protocol) == one.inside[version]
        assert ask(one.host, here) == "ECONNREFUSED"
        assert ask(one.host, here, protocol="udp") == REFUSED[version]
        assert ask(one.host, gate.far[version]) == "ECONNREFUSED"
    listed = [{"to": gate.inside[version], "protocol": "tcp", "port": SERVICE} for version in (4, 6)]
    fleet.permit("branch1", listed)
    for version in (4, 6):
        assert ask(one.host, gate.inside[version]) == one.inside[version]
        assert ask(one.host, gate.inside[version], protocol="udp") == REFUSED[version]


def test_answers_to_what_others_begin(fleet: Fleet) -> None:
    gate, one, other = fleet["gate1"], fleet["branch1"], fleet["branch2"]
    fleet.permit("branch1", [])
    for version in (4, 6):
        for protocol in ("tcp", "udp"):
            for asking in (gate, other):
                assert ask(asking.behind, one.far[version], protocol=protocol) == asking.far[version]
        assert hears(other.host, one.inside[version])
        # What the client has to say of their packets comes through as well.
        assert ask(other.host, one.inside[version], 9, protocol="udp") == "ECONNREFUSED"


def test_an_acl_that_becomes_tighter_ends_what_it_does_not_permit(fleet: Fleet) -> None:
    gate, one = fleet["gate1"], fleet["branch1"]
    fleet.permit("branch1", network(GATE))
    with contextlib.ExitStack() as stack:
        talks = {
            version: stack.enter_context(one.host.converse([*PYTHON, TALK, gate.far[version], str(SERVICE)]))
            for version in (4, 6)
        }
        assert {version: heard(talk) for version, talk in talks.items()} == one.inside
        fleet.permit("branch1", network(BRANCH2))
        assert {heard(talk) for talk in talks.values()} == {"ECONNRESET"}
        for talk in talks.values():
            talk.kill()
    fleet.permit("branch1", None)
    assert ask(one.host, gate.far[4]) == one.inside[4]
    assert "CULVERT-ACL" not in gate.host.state()


def heard(talk: subprocess.Popen[str]) -> str:
    """What comes of one more question on a connection."""
    assert talk.stdin is not None
    assert talk.stdout is not None
    talk.stdin.write("\n")
    talk.stdin.flush()
    return talk.stdout.readline().strip()


@pytest.mark.parametrize("version", [4, 6])
def test_a_source_that_is_not_ones_own_is_no_way_around(fleet: Fleet, version: int) -> None:
    """The client takes the address of one who may do anything, and one that is nobody's."""
    gate, one, other = fleet["gate1"], fleet["branch1"], fleet["branch2"]
    fleet.permit("branch1", [])
    for forged in (other.inside[version], {4: "10.86.0.77", 6: "fd86:ea04:1115::77"}[version]):
        one.host.add_address("lo", f"{forged}/{32 if version == 4 else 128}")
        try:
            with Capture(one.host, DEVICE) as sent, Capture(gate.behind, "eth0") as arrived:
                one.host.ping(gate.far[version], 3, wait_s=0.3, options=["-I", forged])
                # Behind it, to be sure that what was to be seen has been.
                assert ask(other.host, gate.far[version]) == other.inside[version]
        finally:
            one.host.ip("address", "del", f"{forged}/{32 if version == 4 else 128}", "dev", "lo")
        echoes = [ICMP, ICMPV6]
        assert [p for p in sent.packets if p.source == forged and p.protocol in echoes]
        assert [p for p in arrived.packets if p.source == forged and p.protocol in echoes] == []


def test_a_published_port_is_what_the_client_calls_it(fleet: Fleet) -> None:
    """Docker translates before routing, and puts its ACCEPT before everybody's whenever it starts."""
    gate, one = fleet["gate1"], fleet["branch1"]
    published = f"-d {gate.inside[4]} -p tcp --dport 8443"
    rules = [
        ("-t nat {} PREROUTING", f"{published} -j DNAT --to-destination {gate.far[4]}:{SERVICE}"),
        ("{} FORWARD", f"-d {gate.far[4]} -p tcp --dport {SERVICE} -j ACCEPT"),
    ]
    try:
        for to, answer in (
            # Nobody says so, as it is accepted before we can: it goes no further.
            ({"to": gate.far[4]}, "silence"),
            ({"to": gate.inside[4], "protocol": "tcp", "port": 8443}, one.inside[4]),
        ):
            fleet.permit("branch1", [to])
            for place, rule in rules:
                gate.host.run(["sh", "-c", f"iptables {place.format('-D')} {rule}"], check=False)
                gate.host.iptables(f"{place.format('-I')} {rule}")
            assert ask(one.host, gate.inside[4], 8443) == answer
    finally:
        for place, rule in rules:
            gate.host.iptables(f"{place.format('-D')} {rule}")


def test_explain_names_the_acl(fleet: Fleet) -> None:
    gate, one, other = fleet["gate1"], fleet["branch1"], fleet["branch2"]
    fleet.permit("branch1", network(GATE))
    told = fleet.explain("gate1", INTERNET[4], "--from", one.inside[4])
    assert f"the ACL of {one.inside[4]} does not permit it" in told, told
    assert "client_acl" in told
    fine = fleet.explain("gate1", gate.far[4], "--from", one.inside[4])
    assert "ACL of" not in fine, fine
    others = fleet.explain("gate1", INTERNET[4], "--from", other.inside[4])
    assert "ACL of" not in others, others
    # That there is one is no fault of the server's.
    about = fleet.explain("gate1", one.inside[4])
    assert "not all that it sends, by its ACL" in about, about


def test_an_acl_is_changed_in_its_place(fleet: Fleet) -> None:
    """Nothing else of the document is written again, and the same ACL is no change."""
    gate = fleet["gate1"]
    fleet.permit("branch1", network(GATE))
    assert not gate.host.network(gate.made["server"])["changed"]
    fleet.variables = {"branch1": {"client_acl": [{"to": f"192.168.{BRANCH2}.0/24"}]}}
    fleet.make_documents(gate)
    done = gate.host.network(gate.made["server"], _ansible_diff=True)
    assert done["changed"]
    changed = set(re.findall(r"CULVERT-\S+ in \w+ \(ipv4\)", str(done["diff"])))
    # A short list is in both.
    assert changed == {"CULVERT-ACL in mangle (ipv4)", "CULVERT-ACL-ANSWERS in mangle (ipv4)"}


def test_the_other_backend(fleet: Fleet) -> None:
    """Of iptables; the host's own is the one of the other tests."""
    gate, one = fleet["gate1"], fleet["branch1"]
    fleet.permit("branch1", network(GATE))
    made = {**gate.made["server"]}
    made["chains"] = [{**chain, "backend": "legacy"} for chain in made["chains"]]
    # What one backend accepts, the other still judges.
    for version in (4, 6):
        gate.host.iptables("-P FORWARD ACCEPT", version)
    done = gate.host.try_network(made)
    assert not done.get("failed"), done["msg"]
    assert "CULVERT-ACL" not in gate.host.run(["iptables-nft-save"]).stdout
    for version in (4, 6):
        assert ask(one.host, gate.far[version]) == one.inside[version]
        assert ask(one.host, INTERNET[version]) == "ECONNREFUSED"
    # And back to where somebody else filters.
    for version in (4, 6):
        gate.host.iptables("-P FORWARD DROP", version)
    gate.host.network(gate.made["server"])
    assert ask(one.host, gate.far[4]) == one.inside[4]
    assert ask(one.host, INTERNET[4]) == "ECONNREFUSED"
