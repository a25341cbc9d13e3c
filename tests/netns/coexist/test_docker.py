# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A server on a host with Docker: a real daemon of Debian's, and what Docker 28 puts into the tables."""

from __future__ import annotations

import pytest

from tests.netns.coexist.firewall_host import FirewallHost, server

OURS = "-j CULVERT-FORWARD"
# After the description in moby 28's integration/network/bridge/iptablesdoc, with a network of one's own and a
# published port: put together from excerpts, the table raw from memory, and not a dump of a running daemon.
DOCKER_28 = """\
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-BRIDGE - [0:0]
:DOCKER-CT - [0:0]
:DOCKER-FORWARD - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-I FORWARD 1 -j DOCKER-FORWARD
-I FORWARD 1 -j DOCKER-USER
-A DOCKER -d 172.18.0.2/32 ! -i br-0123456789ab -o br-0123456789ab -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER ! -i docker0 -o docker0 -j DROP
-A DOCKER ! -i br-0123456789ab -o br-0123456789ab -j DROP
-A DOCKER-BRIDGE -o docker0 -j DOCKER
-A DOCKER-BRIDGE -o br-0123456789ab -j DOCKER
-A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-CT -o br-0123456789ab -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-FORWARD -j DOCKER-CT
-A DOCKER-FORWARD -j DOCKER-ISOLATION-STAGE-1
-A DOCKER-FORWARD -j DOCKER-BRIDGE
-A DOCKER-FORWARD -i docker0 -j ACCEPT
-A DOCKER-FORWARD -i br-0123456789ab -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -i br-0123456789ab ! -o br-0123456789ab -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-2 -o br-0123456789ab -j DROP
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
COMMIT
*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.18.0.0/16 ! -o br-0123456789ab -j MASQUERADE
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER ! -i br-0123456789ab -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.18.0.2:80
COMMIT
*raw
-A PREROUTING -d 172.18.0.2/32 ! -i br-0123456789ab -j DROP
COMMIT
"""


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_a_docker_daemon(host: FirewallHost, backend: str) -> None:
    host.default_backend(backend)
    daemon = host.start_docker()
    host.run(*host.docker_command("network", "create", "--subnet", "172.30.9.0/24", "theirs"))
    assert ":FORWARD DROP" in host.save(backend), "Docker has turned forwarding on, and shut it"
    # Whatever the administrator makes the default meanwhile: Docker's rules are where they are.
    host.default_backend("legacy" if backend == "nft" else "nft")
    theirs = host.others()
    document = server(host.families)

    assert host.network(document).changed
    assert host.others() == theirs
    for family in host.families:
        assert OURS in host.rules_of(backend, family)[0]
    assert host.forwards() == {"ipv4": True, "ipv6": True}
    assert not host.network(document).changed

    host.default_backend(backend)
    host.stop(daemon)
    daemon = host.start_docker()
    again = host.network(document)
    assert not again.changed, "Docker's rules may stand before ours: they are about its own bridges"
    assert host.forwards() == {"ipv4": True, "ipv6": True}
    for family in host.families:
        assert sum(OURS in rule for rule in host.rules_of(backend, family)) == 1

    # The restarted daemon's rules are others than those of before.
    restarted = host.others()
    assert host.network({"name": document["name"]}, state="absent").changed
    assert host.others() == restarted
    assert "CULVERT" not in host.everything()


@pytest.mark.parametrize("families", [["ipv4"]], indirect=True)
@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_docker_28_before_us_and_after_us(host: FirewallHost, backend: str) -> None:
    host.load_legacy_tables()
    host.run(f"iptables-{backend}-restore", "--noflush", stdin=DOCKER_28)
    theirs, before = host.others(), host.everything()
    document = server(host.families)
    host.default_backend("legacy" if backend == "nft" else "nft")
    assert host.network(document).changed
    assert host.others() == theirs
    assert OURS in host.rules_of(backend)[0]
    assert host.forwards() == {"ipv4": True}

    # When it is restarted it puts both of its jumps before everybody's.
    for jump in ("DOCKER-FORWARD", "DOCKER-USER"):
        host.sh(f"iptables-{backend} -D FORWARD -j {jump}; iptables-{backend} -I FORWARD 1 -j {jump}")
    assert [rule.split()[-1] for rule in host.rules_of(backend)] == [
        "DOCKER-USER",
        "DOCKER-FORWARD",
        "CULVERT-FORWARD",
    ]
    assert not host.network(document).changed
    assert host.forwards() == {"ipv4": True}
    assert host.network({"name": document["name"]}, state="absent").changed
    assert host.everything() == before
