# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a document must not do to a host, and that the roles' own documents are never refused without cause.

host: up0 (198.51.100.7/24, 2001:db8::7/64; default routes by .1 and ::1), docker0 (172.17.0.1/16), culvert0
"""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.module_utils._core import SpecError
from ansible_collections.culvert.vpn.plugins.module_utils._document import Document
from ansible_collections.culvert.vpn.plugins.module_utils._facts import (
    Facts,
    Link,
    MarkUse,
    iptables_marks,
    nft_marks,
    resolve,
)
from ansible_collections.culvert.vpn.plugins.module_utils._forecast import afterwards, answer_mark
from ansible_collections.culvert.vpn.plugins.module_utils._refusals import check
from ansible_collections.culvert.vpn.plugins.module_utils._routes import MASK_ALL, Route, Rule

from tests.role_documents import documents

LOCAL4 = Route(4, "198.51.100.7/32", 0, 2, protocol=2)
LAN4 = Route(4, "198.51.100.0/24", 0, device="up0", protocol=2)
DOCKER = Route(4, "172.17.0.0/16", 0, device="docker0", protocol=2)
DEFAULT4 = Route(4, "0.0.0.0/0", 0, gateway="198.51.100.1", device="up0", protocol=3)
LAN6 = Route(6, "2001:db8::/64", 256, device="up0", protocol=2)
DEFAULT6 = Route(6, "::/0", 1024, gateway="2001:db8::1", device="up0", protocol=3)
RULES = tuple(
    Rule(version, priority, table, protocol=2)
    for version in (4, 6)
    for priority, table in ((0, 255), (32766, 254), *(((32767, 253),) if version == 4 else ()))
)
CONTROLLER = ("203.0.113.50", "198.51.100.7")
CONTROLLER6 = ("2001:db8:9::50", "2001:db8::7")
ENDPOINT = "203.0.113.9"
HOST = Facts(
    links={"lo": Link(), "up0": Link(), "docker0": Link("bridge"), "culvert0": Link("tun")},
    networks=tuple(
        (device, ipaddress.ip_network(network))
        for device, network in (
            ("lo", "127.0.0.0/8"),
            ("up0", "198.51.100.0/24"),
            ("up0", "2001:db8::/64"),
            ("docker0", "172.17.0.0/16"),
        )
    ),
    addresses=(("up0", "198.51.100.7"), ("up0", "2001:db8::7"), ("docker0", "172.17.0.1")),
    routes={254: (LAN4, DOCKER, DEFAULT4, LAN6, DEFAULT6), 255: (LOCAL4,)},
    rules=RULES,
    controller=CONTROLLER,
)
ALL_WAYS = {
    "name": "vpn",
    "id": 51820,
    "routes": [{"destination": "0.0.0.0/0", "device": "culvert0"}],
    "rules": [{}],
}


def role(member: str, name: str, **variables: Any) -> Document:
    return Document.from_params(documents(member, **variables)[name])


def client(*endpoints: str, **variables: Any) -> Document:
    made = role("client", "client", relay_peers=[{"endpoint": f"{ENDPOINT}:51820"}], **variables)
    return replace(made, endpoints=endpoints or made.endpoints)


def document(*destinations: str, rules: list[Any] | None = None, **params: Any) -> Document:
    """Everything to these destinations goes into the tunnel, before the main table is asked."""
    routes = [{"destination": destination, "device": "culvert0"} for destination in destinations]
    table = {"name": "vpn", "id": 51820, "routes": routes, "rules": [{}] if rules is None else rules}
    return Document.from_params({"name": "test", "tables": [table] if destinations else [], **params})


def applied(wish: Document, host: Facts) -> Facts:
    """The host when the document is in force."""
    routing = afterwards(wish, None, host)
    return replace(host, rules=routing.rules, routes=routing.routes)


def refused(wish: Document, host: Facts, option: str, *words: str, allow: str = "") -> None:
    with pytest.raises(SpecError) as refusal:
        check(wish, None, host)
    assert refusal.value.option == option, refusal.value
    for word in (*words, *((f"allow: [{allow}]",) if allow else ())):
        assert word in refusal.value.message
    if allow:
        assert check(wish, None, host, [allow]) == []


# -- The roles' documents


def without(host: Facts, *routes: Route) -> Facts:
    return replace(host, routes={**host.routes, 254: tuple(r for r in host.routes[254] if r not in routes)})


def with_routes(host: Facts, *routes: Route, table: int = 254) -> Facts:
    return replace(host, routes={**host.routes, table: (*host.routes.get(table, ()), *routes)})


UPLINKS = replace(
    with_routes(
        with_routes(HOST, Route(4, "198.51.101.0/24", 0, device="up1", protocol=2)),
        Route(4, "0.0.0.0/0", 0, gateway="198.51.101.1", device="up1"),
        table=101,
    ),
    rules=(*RULES, Rule(4, 100, 101, source="198.51.101.7/32", protocol=4)),
    addresses=(*HOST.addresses, ("up1", "198.51.101.7")),
)
SIX_ONLY = replace(
    without(HOST, LAN4, DOCKER, DEFAULT4),
    networks=(("up0", ipaddress.ip_network("2001:db8::/64")),),
    controller=CONTROLLER6,
)
ON_LINK = replace(without(HOST, DEFAULT4, DEFAULT6), controller=("198.51.100.60", "198.51.100.7"))
CONTROLLERS = {
    "far": CONTROLLER,
    "near": ("198.51.100.60", "198.51.100.7"),
    "ipv6": CONTROLLER6,
    "none": ("", ""),
    "itself": ("198.51.100.7", "198.51.100.7"),
    "loopback": ("127.0.0.1", "127.0.0.1"),
    "docker": ("172.17.0.5", "172.17.0.1"),
    "the gateway": ("198.51.100.1", "198.51.100.7"),
    "unknown": ("203.0.113.50", ""),
}


@pytest.mark.parametrize("controller", CONTROLLERS.values(), ids=CONTROLLERS)
@pytest.mark.parametrize("member", ["client", "server"])
def test_the_roles_are_not_refused_at_first_nor_again(member: str, controller: tuple[str, str]) -> None:
    host = replace(HOST, controller=controller)
    server = role(member, member, server_networks=["192.168.77.0/24"]) if member == "server" else client()
    for wish in (role("client", "relay", relay_peers=[{"endpoint": f"{ENDPOINT}:51820"}]), server):
        assert check(wish, None, host) == []
        host = applied(wish, host)
        assert check(wish, wish, host) == []
        # The document was lost, the host is as it made it.
        assert check(wish, None, host) == []


def test_the_device_is_not_there_yet_in_check_mode() -> None:
    links = {name: link for name, link in HOST.links.items() if name != "culvert0"}
    assert check(client(), None, replace(HOST, links=links)) == []


@pytest.mark.parametrize("local", ["198.51.100.7", "198.51.101.7"])
def test_several_uplinks(local: str) -> None:
    assert check(client(), None, replace(UPLINKS, controller=(CONTROLLER[0], local))) == []


def test_ipv6_only() -> None:
    assert check(client("2001:db8:9::9"), None, SIX_ONLY) == []
    # Nothing of the document is about the controller's family.
    assert check(client(ipv6=False), None, replace(HOST, controller=CONTROLLER6)) == []


def test_no_default_route() -> None:
    near = client("198.51.100.9")
    assert check(near, None, ON_LINK) == []
    assert check(near, near, applied(near, ON_LINK)) == []


def test_tunnel_prefixes_that_hold_the_lan_leave_it_where_it_is() -> None:
    wish = client(client_tunnel_prefixes=["198.51.0.0/16", "172.16.0.0/12", "203.0.113.0/24"])
    assert check(wish, None, HOST) == []


@pytest.mark.parametrize("peer", ["10.86.0.9", "203.0.113.50"])
def test_the_controller_that_comes_through_the_tunnel(peer: str) -> None:
    there = applied(
        client(), applied(role("client", "relay", relay_peers=[{"endpoint": f"{ENDPOINT}:51820"}]), HOST)
    )
    there = replace(
        there, controller=(peer, "10.86.0.2"), addresses=(*HOST.addresses, ("culvert0", "10.86.0.2"))
    )
    for previous in (client(), None):
        assert check(client(), previous, there) == []
    # The same without the chains: for this connection they decide nothing.
    assert check(replace(client(), chains=()), client(), there) == []


# -- 1. The controller


def test_answers_into_the_tunnel() -> None:
    refused(
        document("203.0.113.0/24"),
        HOST,
        "tables[0].routes[0].destination",
        "answers to the controller (203.0.113.50, connected to 198.51.100.7)",
        "to culvert0",
        "to up0 via 198.51.100.1",
        allow="controller_in_tunnel",
    )
    six = replace(HOST, controller=CONTROLLER6)
    refused(
        document("10.9.0.0/16", "2001:db8:9::/48"),
        six,
        "tables[0].routes[1].destination",
        CONTROLLER6[0],
        allow="controller_in_tunnel",
    )
    assert check(document("2001:db8:9::/48"), None, HOST) == []


@pytest.mark.parametrize("missing", ["CULVERT-PREROUTING", "CULVERT-OUTPUT"])
def test_both_chains_are_needed(missing: str) -> None:
    wish = client()
    chains = tuple(c for c in wish.chains if c.name != missing)
    with pytest.raises(SpecError, match="answers to the controller"):
        check(replace(wish, chains=chains), None, HOST)
    # And without the rule about the mark they are no use.
    rules = tuple(
        replace(w, rule=replace(w.rule, mark=0, mask=0, invert=False)) for w in wish.tables[0].rules
    )
    unmarked = replace(wish.tables[0], rules=rules)
    with pytest.raises(SpecError, match="answers to the controller"):
        check(replace(wish, tables=(unmarked,)), None, HOST)


def test_taking_the_chains_away_is_seen() -> None:
    with pytest.raises(SpecError, match="answers to the controller"):
        check(replace(client(), chains=()), client(), applied(client(), HOST))


def test_answers_to_nowhere() -> None:
    table = {**ALL_WAYS, "routes": [{"destination": "203.0.113.0/24", "type": "unreachable"}]}
    wish = document(tables=[table])
    refused(
        wish,
        HOST,
        "tables[0].routes[0].destination",
        "nowhere (the route or rule unreachable 203.0.113.0/24)",
        allow="controller_in_tunnel",
    )


def test_a_device_of_the_document_takes_the_controllers_network() -> None:
    device = {"name": "culvert0", "addresses": ["203.0.113.1/24"]}
    wish = document(devices=[device])
    refused(wish, HOST, "devices[0].addresses[0]", "to culvert0", allow="controller_in_tunnel")


def test_a_device_that_goes_takes_its_routes_along() -> None:
    previous = document(devices=[{"name": "up0"}])
    refused_route = afterwards(Document.empty("test"), previous, HOST).lookup("203.0.113.50")
    assert refused_route is None
    with pytest.raises(SpecError, match=r"nowhere \(no route\)"):
        check(Document.empty("test"), previous, HOST)


def test_rules_that_cannot_be_judged_are_a_warning() -> None:
    """Such as one that keeps SSH where it is, by its port."""
    ports = Rule(4, 50, 254, other="FRA_SPORT_RANGE {'start': 22, 'end': 22}", protocol=4)
    host = replace(HOST, rules=(*RULES, ports))
    wish = document("203.0.113.0/24")
    (warning,) = check(wish, None, host)
    assert "may enter the tunnel" in warning
    assert str(ports) in warning
    # What is so already is not said again.
    assert check(wish, wish, applied(wish, host)) == []
    # The other way round nothing can go wrong.
    elsewhere = replace(ports, destination="10.0.0.0/8")
    with pytest.raises(SpecError, match="answers to the controller"):
        check(wish, None, replace(HOST, rules=(*RULES, elsewhere)))


@pytest.mark.parametrize(
    ("rule", "mark"),
    [
        ("-j CONNMARK --set-xmark 0x7/0xffffffff", 7),
        ("! -i culvert0 -p tcp -m tcp -m conntrack --ctstate NEW -j CONNMARK --set-mark 7", 7),
        ("-i up0 -s 203.0.113.0/24 -d 198.51.100.7 -j CONNMARK --set-mark 7", 7),
        ("! -i up0 -j CONNMARK --set-mark 7", 0),
        ("-i up1 -j CONNMARK --set-mark 7", 0),
        ("-s 10.0.0.0/8 -j CONNMARK --set-mark 7", 0),
        ("-m connmark --mark 0x5 -j CONNMARK --set-mark 7", 0),
        ("-m addrtype --src-type LOCAL -j CONNMARK --set-mark 7", 0),
        ("-p udp -j CONNMARK --set-mark 7", 0),
        # Not understood, and so not relied on.
        ("-p tcp -m tcp --dport 443 -j CONNMARK --set-mark 7", 0),
        ("-m mark --mark nonsense -j CONNMARK --set-mark 7", 0),
        ("-j CONNMARK --set-mark nonsense", 0),
        ("-j CONNMARK --save-mark", 0),
        ("-j MARK --set-mark 7", 0),
        ("-j ACCEPT", 0),
        ("", 0),
    ],
)
def test_the_mark_of_answers(rule: str, mark: int) -> None:
    peer, local = map(ipaddress.ip_address, CONTROLLER)
    for back in ("-j CONNMARK --restore-mark", "-m connmark --mark 7 -j MARK --set-xmark 0x7/0xffffffff"):
        params = {
            "chains": [
                {"name": "CULVERT-IN", "table": "mangle", "rules": [rule], "jump": {"from": "PREROUTING"}},
                {"name": "CULVERT-OUT", "table": "mangle", "rules": [back], "jump": {"from": "OUTPUT"}},
            ]
        }
        chains = document(**params).chains
        assert answer_mark(chains, peer, local, "up0") == mark
        six = [ipaddress.ip_address(address) for address in CONTROLLER6]
        assert answer_mark(chains, *six, "up0") == 0
        assert answer_mark([replace(chain, table="raw") for chain in chains], peer, local, "up0") == 0
        assert answer_mark([replace(chain, jump=None) for chain in chains], peer, local, "up0") == 0


# -- 2. The tunnel's peers


def test_packets_to_the_peer_into_the_tunnel() -> None:
    wish = document("203.0.112.0/20", endpoints=["198.51.100.9", ENDPOINT])
    host = replace(HOST, controller=("", ""))
    refused(wish, host, "endpoints[1]", ENDPOINT, "would enter the tunnel", "culvert0", "set fwmark")
    # The mark alone does not help, the rule does.
    refused(replace(wish, fwmark=7), host, "endpoints[1]", "with the mark 0x7", "would enter the tunnel")
    excepted = document(
        "203.0.112.0/20", rules=[{"fwmark": 7, "table": "main"}, {}], endpoints=[ENDPOINT], fwmark=7
    )
    assert check(excepted, None, host) == []
    # In force already: it is said, and not more.
    (warning,) = check(wish, wish, applied(wish, host))
    assert warning.startswith("endpoints[1]: ")


def test_no_way_to_the_peer() -> None:
    host = replace(without(HOST, DEFAULT4), controller=("", ""))
    (warning,) = check(document("10.9.0.0/16", endpoints=[ENDPOINT]), None, host)
    assert warning.startswith(
        f"endpoints[0]: the tunnel's own packets to its peer {ENDPOINT} would go nowhere"
    )
    # Nor would a full tunnel go into itself: without a way out there is none for the mark either.
    (warning,) = check(client(), None, host)
    assert "with the mark 0xca6c would go nowhere (no route)" in warning
    # As it would if its rules were not about the mark.
    rules = [{"table": "main", "suppress_prefixlength": 0}, {}]
    unmarked = document("0.0.0.0/0", rules=rules, endpoints=[ENDPOINT], fwmark=51820)
    refused(unmarked, host, "endpoints[0]", "would enter the tunnel")
    table = {**ALL_WAYS, "routes": [{"destination": "203.0.113.0/24", "type": "prohibit"}]}
    taken = document(tables=[table], endpoints=[ENDPOINT])
    refused(taken, replace(HOST, controller=("", "")), "endpoints[0]", "would go nowhere")


def test_names_of_peers() -> None:
    wish = document("203.0.112.0/20", endpoints=["vpn.example.com"])
    host = replace(HOST, controller=("", ""))
    for unresolved in (host, replace(host, resolved={"vpn.example.com": ()})):
        assert check(wish, None, unresolved) == [
            "endpoints[0]: vpn.example.com has no address now, so its route was not checked"
        ]
    resolved = replace(host, resolved={"vpn.example.com": (ENDPOINT,)})
    refused(wish, resolved, "endpoints[0]", f"vpn.example.com ({ENDPOINT})")
    both = replace(host, resolved={"vpn.example.com": (ENDPOINT, "2001:db8:9::9")})
    assert check(wish, None, both) == []
    assert check(document("0.0.0.0/0", rules=[], endpoints=["127.0.0.1", "fe80::1"]), None, HOST) == []


def test_a_name_that_nobody_knows_has_no_addresses() -> None:
    assert resolve(["localhost"])["localhost"]
    assert resolve(["nobody.invalid", "x" * 70])["nobody.invalid"] == ()
    assert resolve([]) == {}


# -- 3. Networks


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        ("198.51.100.128/25", ["198.51.100.0/24", "this host (up0)"]),
        ("198.51.0.0/16", ["198.51.100.0/24", "this host (up0)"]),
        ("172.17.5.0/24", ["172.17.0.0/16", "Docker (docker0)"]),
        ("172.16.0.0/12", ["172.17.0.0/16", "Docker (docker0)"]),
        ("2001:db8::/96", ["2001:db8::/64", "this host (up0)"]),
    ],
)
def test_networks_of_the_host(prefix: str, words: list[str]) -> None:
    option = "tables[0].routes[0].destination"
    host = replace(HOST, controller=("", ""))
    # Of up0 the gateway goes along, which is the next question.
    gateway = ["gateway_hidden"] if prefix.startswith(("198", "2001")) else []
    with pytest.raises(SpecError) as refusal:
        check(document(prefix), None, host, gateway)
    assert refusal.value.option == option
    for word in [*words, prefix, "culvert0", "allow: [overlap]"]:
        assert word in refusal.value.message
    assert check(document(prefix), None, host, ["overlap", *gateway]) == []
    assert check(document(prefix), None, applied(document(prefix), host)) == []
    # Where the main table is asked first, nothing changes.
    kept = document(prefix, rules=[{"table": "main", "suppress_prefixlength": 0}, {}])
    if not prefix.endswith(("/25", "/24", "/96")):
        assert check(kept, None, host) == []


def test_default_routes_are_no_overlap() -> None:
    assert (
        check(document("0.0.0.0/0", "::/0"), None, replace(HOST, controller=("", "")), ["gateway_hidden"])
        == []
    )


def test_dockers_networks_by_name_even_while_their_bridge_is_down() -> None:
    bridge = "br-0123456789ab"
    host = replace(
        HOST,
        links={**HOST.links, bridge: Link("bridge", up=False)},
        networks=(*HOST.networks, (bridge, ipaddress.ip_network("10.86.4.0/24"))),
    )
    wish = document("10.86.0.0/16")
    option = "tables[0].routes[0].destination"
    refused(wish, host, option, "10.86.4.0/24", "the Docker network 0123456789ab", bridge, allow="overlap")
    # A full tunnel takes what is left, and nothing is left of a network that comes back.
    assert check(client(), None, host) == []


def test_another_tunnels_networks() -> None:
    wg = Route(4, "10.86.0.0/16", 0, device="wg0")
    host = with_routes(replace(HOST, links={**HOST.links, "wg0": Link("wireguard")}), wg)
    option = "tables[0].routes[0].destination"
    refused(document("10.86.9.0/24"), host, option, "another tunnel (wg0)", allow="overlap")
    device = document(devices=[{"name": "culvert0", "addresses": ["10.86.9.1/24"]}])
    refused(device, host, "devices[0].addresses[0]", "another tunnel (wg0)", allow="overlap")
    everything = with_routes(host, Route(4, "0.0.0.0/0", 5, device="wg0"))
    assert check(document("10.85.0.0/16"), None, everything) == []


def test_networks_behind_a_router_are_a_warning() -> None:
    routed = with_routes(HOST, Route(4, "10.0.0.0/8", 0, gateway="198.51.100.2", device="up0"))
    (warning,) = check(document("10.20.0.0/16"), None, routed)
    assert warning == (
        "tables[0].routes[0].destination: 10.20.0.0/16 goes into culvert0 from now on; "
        "until now it goes to up0 via 198.51.100.2 (the route 10.0.0.0/8)"
    )
    assert check(document("10.20.0.0/16"), None, applied(document("10.20.0.0/16"), routed)) == []


# -- 4. The mark


@pytest.mark.parametrize(
    ("rule", "taken"),
    [
        (Rule(4, 9, 7, mark=0xCA6C, mask=MASK_ALL, invert=True, protocol=3), True),
        (Rule(4, 9, 7, mark=0x4000, mask=0x4000, protocol=3), True),
        (Rule(4, 9, 7, mark=0x80000, mask=0xFF0000, protocol=3), False),
        (Rule(4, 9, 7, mark=0xCA6D, mask=MASK_ALL, protocol=3), False),
        (Rule(4, 9, 7, mark=0, mask=0xFF0000, protocol=3), False),
        (Rule(4, 9, 7, mark=0xCA6C, mask=MASK_ALL), False),
        (Rule(4, 9, 51820, mark=0xCA6C, mask=MASK_ALL, protocol=3), False),
        (Rule(4, 9, 7, protocol=3), False),
    ],
)
def test_rules_of_others_with_the_mark(rule: Rule, taken: bool) -> None:
    host = replace(HOST, rules=(*RULES, rule))
    if not taken:
        assert check(client(), None, host) == []
        return
    refused(client(), host, "fwmark", "0xca6c", str(rule), allow="mark_taken")
    (warning,) = check(client(), client(), host)
    assert warning.startswith("fwmark: ")
    assert check(document("10.9.0.0/16"), None, host) == []


SAVED = (
    "-m mark ! --mark 0x4000/0x4000 -j RETURN",
    "-j MARK --set-xmark 0xca6c/0xffffffff",
    '-m comment --comment "--mark 0x1" -j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xff',
    "-j CULVERT-OUTPUT",
)
LISTED = """
table inet theirs {
    chain forward {
        type filter hook forward priority filter; policy accept;
        meta mark & 0x00ff0000 == 0x00040000 accept
        meta mark 0x0000ca6c accept
        ct mark != 0x00000005 drop
        ip protocol tcp ct mark set 0x00000006
        meta mark set ct mark
    }
}
table ip mangle {
    chain CULVERT-OUTPUT {
        meta mark set 0x0000ca6c
    }
    chain OUTPUT {
        counter packets 0 bytes 0 jump CULVERT-OUTPUT
    }
}
""".replace("    ", "\t")


def test_marks_in_firewalls() -> None:
    uses = list(iptables_marks("table mangle", "KUBE", SAVED))
    assert [(use.mark, use.mask, use.sets) for use in uses] == [
        (0x4000, 0x4000, False),
        (0xCA6C, MASK_ALL, True),
    ]
    assert list(iptables_marks("table mangle", "CULVERT-OUTPUT", SAVED)) == []
    listed = list(nft_marks(LISTED))
    assert [(use.mark, use.mask, use.sets) for use in listed] == [
        (0x40000, 0xFF0000, False),
        (0xCA6C, MASK_ALL, False),
        (5, MASK_ALL, False),
        (6, MASK_ALL, True),
    ]
    assert listed[1].where == "nft table inet theirs, chain forward: meta mark 0x0000ca6c accept"


@pytest.mark.parametrize(
    ("use", "taken"),
    [
        (MarkUse("here", 0xCA6C), True),
        (MarkUse("here", 0x4000, 0x4000), True),
        (MarkUse("here", 0x4000, 0x4000, sets=True), False),
        (MarkUse("here", 0xCA6C, sets=True), True),
        (MarkUse("here", 0), False),
    ],
)
def test_firewall_rules_of_others_with_the_mark(use: MarkUse, taken: bool) -> None:
    host = replace(HOST, marks=(use,))
    if taken:
        refused(client(), host, "fwmark", "here", allow="mark_taken")
    else:
        assert check(client(), None, host) == []


# -- 5. Gateways


def test_the_gateway_elsewhere() -> None:
    host = replace(HOST, controller=("", ""))
    option = "tables[0].routes[0].destination"
    refused(
        document("198.51.100.1/32"), replace(host, networks=()), option, "198.51.100.1", "up0", "culvert0",
        allow="gateway_hidden",
    )  # fmt: skip
    refused(document("0.0.0.0/0"), host, option, "the default gateway 198.51.100.1", allow="gateway_hidden")
    refused(document("::/0"), host, option, "the default gateway 2001:db8::1", allow="gateway_hidden")
    hidden = applied(document("0.0.0.0/0"), host)
    assert check(document("0.0.0.0/0"), None, hidden) == []


def test_a_gateway_that_needs_no_route() -> None:
    """As in clouds: an address without network, a gateway that is on the link by decree."""
    host = replace(without(HOST, LAN4, LAN6), networks=(), controller=("", ""))
    assert check(document("0.0.0.0/0"), None, host) == []
    refused(document("198.51.100.0/24"), host, "tables[0].routes[0].destination", allow="gateway_hidden")
    near = with_routes(HOST, Route(6, "::/0", 512, gateway="fe80::1", device="up0"))
    assert check(client(), None, near) == []


def test_an_unknown_table_is_named() -> None:
    wish = document("10.9.0.0/16", rules=[{"table": "nobodys"}])
    with pytest.raises(SpecError, match=r"^tables\[0\]\.rules\[0\]\.table: .*nobodys"):
        check(wish, None, HOST)


# -- Connections that are there already


def test_the_controllers_connection_is_lost_where_unmarked_answers_are_refused() -> None:
    """Its socket has no mark, and what it sends is routed before a chain can give it one."""
    wish = client(ipv6=False, ansible_facts={"all_ipv6_addresses": ["2001:db8::7"]})
    assert check(wish, None, HOST) == []
    host = replace(HOST, controller=CONTROLLER6)
    refused(wish, host, "tables[0].routes[2].destination", "would end", allow="controller_in_tunnel")
    # Where it is so already, the connection has come since.
    assert check(wish, wish, applied(wish, host)) == []
    # From the same link there is a route that the tunnel's rules leave alone.
    assert check(wish, None, replace(HOST, controller=("2001:db8::50", "2001:db8::7"))) == []


# -- Bridges of containers


@pytest.mark.parametrize(
    ("patterns", "named"),
    [(["up0"], "up0"), (["docker0", "up+"], "up+"), (["u+"], "u+"), (["up"], ""), (["docker0", "br-+"], "")],
)
def test_a_bridge_that_is_the_way_out(patterns: list[str], named: str) -> None:
    wish = client(client_kill_switch=True, client_container_devices=patterns)
    if not named:
        assert check(wish, None, HOST) == []
        return
    with pytest.raises(SpecError, match="client_container_devices") as refusal:
        check(wish, None, HOST, ["controller_in_tunnel", "overlap", "gateway_hidden", "mark_taken"])
    assert refusal.value.message.startswith(f"{named} is let pass as a bridge of containers")
    assert "leads to up0" in refusal.value.message
    number = int(refusal.value.option.split("[")[1].split("]")[0])
    assert wish.chains[number].name == "CULVERT-KILLSWITCH"


def test_an_uplink_of_any_table_is_a_way_out() -> None:
    wish = client(client_dns_servers=["10.86.0.1"], client_container_devices=["up1"])
    assert check(wish, None, HOST) == []
    with pytest.raises(SpecError, match="leads to up1"):
        check(wish, None, UPLINKS)


def test_exceptions_may_name_the_uplink() -> None:
    allowed = [{"to": "192.168.1.0/24", "device": "up0"}]
    assert check(client(client_kill_switch=True, client_kill_switch_allow=allowed), None, HOST) == []
