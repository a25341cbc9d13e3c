# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the playbook refuses: each with a message that says what to change, and no host changed."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fleet import Fleet

pytestmark = pytest.mark.e2e

SERVER, CLIENT1, CLIENT2 = HOSTS = ["demo-server", "demo-client1", "demo-client2"]
# A host that cannot have a tunnel is left out, and the others go on; here there are none.
ALONE = ["--limit", CLIENT1]
# What a run could have begun to do. Comparing everything is test_site.py's work.
TRACES = (
    "ls -d /etc/culvert /var/lib/culvert /run/wireguard /usr/local/lib/culvert; "
    "ip -o link; ip rule; iptables-save -t filter"
)


def traces(fleet: Fleet) -> dict[str, list[str]]:
    return {
        host: [
            line
            for line in fleet.shell(host, TRACES, check=False).splitlines()
            if not line.startswith((":", "#"))
        ]
        for host in HOSTS
    }


@contextmanager
def engine_stopped(fleet: Fleet) -> Iterator[None]:
    fleet.shell(CLIENT1, "systemctl stop docker.socket docker.service")
    try:
        yield
    finally:
        fleet.shell(CLIENT1, "systemctl start docker.socket docker.service")


@contextmanager
def tun_missing(fleet: Fleet) -> Iterator[None]:
    fleet.shell(CLIENT1, "mv /dev/net/tun /dev/net/tun-away")
    try:
        yield
    finally:
        fleet.shell(CLIENT1, "mv /dev/net/tun-away /dev/net/tun")


def registered(*hosts: str, **instead: Any) -> Callable[[Fleet], AbstractContextManager[None]]:
    """A registry in which these hosts are, of a fleet that there has been before; it must not change."""
    nothing = {"endpoint": "", "networks": [], "mtu": 0, "drain": False, "acl": None}

    @contextmanager
    def state(fleet: Fleet) -> Iterator[None]:
        entries = {
            host: {
                "role": "client",
                "address": f"10.86.9.{number}/16",
                "address6": "",
                "public_key": base64.b64encode(bytes(31) + bytes([number])).decode(),
                **nothing,
            }
            for number, host in enumerate(hosts, 1)
        }
        text = json.dumps({"format": 1, "serial": 1, "lineage": ["9f3a21c4"], "hosts": entries, **instead})
        fleet.registry.write_text(text)
        try:
            yield
            assert fleet.registry.read_text() == text
        finally:
            fleet.registry.unlink()

    return state


def untouched(_fleet: Fleet) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass
class Refusal:
    """One mistake: the run's variables and arguments, what is wrong with the hosts, what has to be said."""

    says: list[str]
    variables: dict[str, Any] = field(default_factory=dict)
    arguments: list[str] = field(default_factory=list)
    host_state: Callable[[Fleet], AbstractContextManager[None]] = untouched


REFUSALS = {
    "a device name of 16 bytes": Refusal(
        ["relay_interface", "sixteen-bytes-xy", "1 to 15 bytes"], {"relay_interface": "sixteen-bytes-xy"}
    ),
    "two hosts with one address": Refusal(
        ["relay_address of demo-client2 is 10.86.0.9, which demo-client1 has"],
        {"relay_address": "10.86.0.9/16"},
    ),
    "an address from elsewhere": Refusal(
        ["relay_address", "192.168.1.1/24"], {"relay_address": "192.168.1.1/24"}
    ),
    "a malformed prefix": Refusal(["client_networks", "10.0.0.0/33"], {"client_networks": ["10.0.0.0/33"]}),
    "a port that the relay may not have": Refusal(["relay_listen_port", "1024"], {"relay_listen_port": 53}),
    "a batch that there is not": Refusal(
        ["relay_batch", "auto, compiled, python", "quick"], {"relay_batch": "quick"}
    ),
    "an offload that there is not": Refusal(
        ["relay_disable_offloads", "tso, uso, gso, gro", "lro"], {"relay_disable_offloads": ["tso", "lro"]}
    ),
    "an archive without the image": Refusal(["relay_image_archive", "other:1"], {"relay_image": "other:1"}),
    "a network that is full": Refusal(
        ["relay_network 10.86.0.0/30 has room for 2 hosts, and 3 need an address"],
        {"relay_network": "10.86.0.0/30"},
    ),
    "many hosts that are gone": Refusal(
        ["gone1, gone2, gone3, gone4", "site_max_removals"],
        host_state=registered("gone1", "gone2", "gone3", "gone4"),
    ),
    "a registry of a newer version": Refusal(
        ["newer version", "format 99"], host_state=registered(format=99)
    ),
    "a damaged registry": Refusal(["damaged", "version control"], host_state=registered(hosts=[])),
    "/dev/net/tun missing": Refusal(
        ["demo-client1 has no /dev/net/tun", "modprobe tun"], arguments=ALONE, host_state=tun_missing
    ),
    "the engine not running": Refusal(
        ["demo-client1", "no engine answers", "systemctl start docker"],
        arguments=ALONE,
        host_state=engine_stopped,
    ),
    "not root": Refusal(["not as root", "become"], {"ansible_user": "nobody", "ansible_become": False}),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_and_nothing_changed(fleet: Fleet, name: str) -> None:
    refusal = REFUSALS[name]
    before = traces(fleet)
    with refusal.host_state(fleet):
        run = fleet.play("playbooks/site.yml", *refusal.arguments, **refusal.variables)
    flat = " ".join(run.output.split())
    assert run.code != 0, run.output[-4000:]
    assert all(text in flat for text in refusal.says), run.output[-4000:]
    assert set(run.changed().values()) <= {0}, run.output[-4000:]
    assert traces(fleet) == before
    assert not fleet.registry.exists()


def test_an_inventory_without_a_server_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    inventory = tmp_path / "hosts.yml"
    inventory.write_text("all: {children: {vpn_clients: {hosts: {lonely: {ansible_connection: local}}}}}\n")
    run = fleet.play("playbooks/site.yml", inventory=inventory)
    assert run.code != 0
    assert "no server: put at least one host into the group vpn_servers" in " ".join(run.output.split())
