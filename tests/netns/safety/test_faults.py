# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documents that are good, on hosts where something happens while they are applied."""

from __future__ import annotations

import pytest

from tests.netns.endpoints import FWMARK, Endpoint
from tests.netns.safety.documents import drop_all, full_tunnel, harmless, tunnel, with_chain
from tests.netns.safety.fleet import Fleet, addresses
from tests.netns.safety.ssh_host import SshHost
from tests.netns.safety.undone import RESTORED, assert_refused, assert_undone
from tests.netns.topology import Tunnel, make_tunnel

_RENAME = "ip link set {0} down; ip link set {0} name other0; ip link set other0 up"


def test_our_device_is_renamed_under_us(fleet: Fleet) -> None:
    host = fleet.hosts[0]
    host.apply(**tunnel())
    host.at_first_write(_RENAME.format("culvert0"))
    assert_undone(fleet, host, harmless(), "there is no device culvert0", RESTORED, cuts_off=False)


def test_the_uplink_is_renamed_under_us(fleet: Fleet) -> None:
    """What the device has lost by it comes back. Its name is not ours to give, but it is said."""
    host = fleet.hosts[0]
    host.at_first_write(_RENAME.format("eth0"))
    words = "the host has its previous state back, but for: the device eth0 is called other0 now"
    assert_undone(
        fleet,
        host,
        harmless(),
        "CULVERT-MORE .*: since then",
        f"{words}\\.$",
        afterwards=lambda: host.ip("link", "set", "other0", "name", "eth0"),
    )


def relay_between(fleet: Fleet, host: SshHost) -> tuple[Tunnel, dict[str, object]]:
    """A full tunnel to the router by which the controller can be answered too, and the document that has its
    device only.
    """
    relays = make_tunnel(("relay", "relay"), host, fleet.router, addresses(1, 1)[4])
    relays.client.settings.peers[0].allowed_ips = ["0.0.0.0/0", "::/0"]
    relays.client.settings.fwmark = FWMARK
    relays.server.settings.peers[0].allowed_ips = [
        f"{host.address[4]}/32",
        f"{relays.client_addresses[4]}/32",
    ]
    device = {"name": relays.client.device, "vnet_hdr": True, "addresses": relays.client.addresses}
    relays.client.persistent = True
    return relays, {"name": "10-relay-cvt0", "devices": [device], "confirm_timeout_s": 10}


def revive(relay: Endpoint) -> None:
    relay.stop()
    relay.start()


def test_the_relay_crashes_while_its_tunnel_becomes_the_way_to_the_controller(fleet: Fleet) -> None:
    host = fleet.hosts[0]
    relays, base = relay_between(fleet, host)
    host.apply(**base)
    relays.start()
    assert host.ping(relays.server_addresses[4]).received == 3
    process = relays.client.process
    assert process is not None
    host.at_first_write(f"kill -9 {process.pid}")
    document = {**full_tunnel(), "devices": [], "allow": ["controller_in_tunnel"]}
    for route in document["tables"][0]["routes"]:
        route["device"] = relays.client.device
    assert_undone(
        fleet,
        host,
        document,
        "IPv4 rule 31822: .*: since then",
        RESTORED,
        afterwards=lambda: revive(relays.client),
    )


def test_the_worker_is_killed_between_two_steps(fleet: Fleet) -> None:
    host = fleet.hosts[0]
    host.at_first_write("kill -9 $PPID; exit 1")
    assert_undone(
        fleet,
        host,
        harmless(),
        "the process that applied the change was killed",
        "CULVERT-MORE",
        RESTORED,
        cuts_off=False,
    )


def test_the_worker_is_killed_when_it_has_cut_the_host_off(fleet: Fleet) -> None:
    host = fleet.hosts[0]
    host.apply(**tunnel())
    host.at_first_write('"$real" "$@"; kill -9 $PPID; exit 0')
    assert_undone(fleet, host, with_chain(tunnel(), drop_all()), "CULVERT-INPUT", RESTORED)


def test_the_disk_is_full_before_the_document_is_written(fleet: Fleet) -> None:
    host = fleet.hosts[0]
    host.run(["mkdir", "/var/lib/culvert"])
    host.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", "/var/lib/culvert"])
    host.apply(**tunnel())
    host.run(["sh", "-c", "dd if=/dev/zero of=/var/lib/culvert/filler bs=4k"], check=False)
    assert_refused(fleet, host, with_chain(tunnel(), drop_all()), "No space left", "nothing .*changed")


@pytest.mark.parametrize("cuts_off", [True, False])
def test_the_disk_becomes_full_while_the_change_is_written(fleet: Fleet, cuts_off: bool) -> None:
    host = fleet.hosts[0]
    host.run(["mkdir", "/var/lib/culvert"])
    host.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", "/var/lib/culvert"])
    if cuts_off:
        host.apply(**tunnel())
    filler = host.path("/var/lib/culvert/filler")
    host.at_first_write("dd if=/dev/zero of=/var/lib/culvert/filler bs=4k 2>/dev/null")
    document = with_chain(tunnel(), drop_all()) if cuts_off else harmless()
    assert_undone(
        fleet,
        host,
        document,
        "CULVERT-INPUT .*: since then" if cuts_off else "No space left",
        RESTORED,
        cuts_off=cuts_off,
        afterwards=filler.unlink,
    )


def test_the_route_of_the_uplink_is_deleted(fleet: Fleet) -> None:
    host = fleet.hosts[0]
    host.apply(**tunnel())
    host.at_first_write("ip route del default; ip -6 route del default")
    assert_undone(fleet, host, harmless(), "have no route", RESTORED)
