# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module relay_peers against a relay at work.

client  eth0 198.51.100.2 ──────────────── eth0 198.51.100.1  server
        cvt0 10.86.0.2    ═══ WireGuard ══ cvt0 10.86.0.1     the module runs here
"""

from __future__ import annotations

import base64
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.netns.endpoints import DEVICE, PORT, Culvert, Key, preshared_key
from tests.netns.lab import Lab, eventually
from tests.netns.modules.host import COLLECTIONS, PYTHON, Result
from tests.netns.topology import OUTER, Tunnel, direct_hosts, make_tunnel

MODULE = "ansible_collections.culvert.vpn.plugins.modules.relay_peers"
EXTRA_PREFIX = "10.30.0.0/24"


class FileRelay(Culvert):
    """A relay whose configuration is the one that the module writes."""

    config: Path

    def write_settings(self) -> Path:
        return self.config


class Site:
    """A tunnel whose server is looked after by the module, and the peers that the server should have."""

    def __init__(self, tunnel: Tunnel, directory: Path) -> None:
        self.tunnel = tunnel
        self.server = tunnel.server
        self.directory = directory
        self.config = directory / "cvt0.conf"
        self.key = directory / "cvt0.key"
        self.key.write_text(tunnel.server_key.private + "\n")
        self.key.chmod(0o400)
        self.client = tunnel.client_key.public
        self.client_peer: dict[str, Any] = {
            "name": "client",
            "public_key": self.client,
            "allowed_ips": [f"{tunnel.client_addresses[4]}/32", f"{tunnel.client_addresses[6]}/128"],
        }
        self.params: dict[str, Any] = {
            "name": DEVICE,
            "config_path": str(self.config),
            "private_key_file": str(self.key),
            "listen_port": PORT,
            "fwmark": 0,
            "group": "51820",
        }

    def run(self, *peers: dict[str, Any], check: bool = False, **params: Any) -> Result:
        """Run the module as Ansible does; ``text`` is all that it printed."""
        wished = {**self.params, "peers": list(peers), **params}
        arguments = {**wished, "_ansible_check_mode": check, "_ansible_diff": True}
        done = self.server.host.run(
            [PYTHON, "-m", MODULE],
            stdin=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
            env={"PYTHONPATH": str(COLLECTIONS)},
            check=False,
        )
        return Result(json.loads(done.stdout), done.stdout + done.stderr)

    def state(self) -> tuple[str, str | None]:
        """What the relay and the file say about peers; without counters."""
        relay = [line.split("\t") for line in self.server.wg("show", DEVICE, "dump").splitlines()]
        parts = [[*row[:4], row[-1]] for row in relay]
        return str(parts), self.config.read_text() if self.config.exists() else None

    def session(self) -> tuple[int, int, str]:
        """What is the client's session: handshake, what it received, and where it is."""
        received = int(self.server.shown("transfer")[self.client].split()[0])
        return self.server.handshake_s(self.client), received, self.server.endpoint_of(self.client)

    def start(self) -> Site:
        """Write the configuration with the module, start both relays, have a session."""
        assert self.run(self.client_peer)["running"] is False
        self.tunnel.start()
        assert self.ping()
        return self

    def ping(self) -> bool:
        return self.tunnel.client.host.ping(self.tunnel.server_addresses[4], count=1).received == 1


@pytest.fixture
def site(lab: Lab, tmp_path: Path) -> Site:
    client, server = direct_hosts(lab)
    tunnel = make_tunnel(("relay", "relay"), client, server, OUTER[4][0])
    old = tunnel.server
    relay = FileRelay(server, old.settings, old.addresses)
    tunnel.server = relay
    directory = tmp_path / "etc"
    directory.mkdir()
    site = Site(tunnel, directory)
    relay.config = site.config
    return site


def peer(key: str, *allowed_ips: str, **more: Any) -> dict[str, Any]:
    return {"public_key": key, "allowed_ips": list(allowed_ips), **more}


def test_without_a_relay_the_file_is_written_and_a_relay_starts_with_it(site: Site) -> None:
    foretold = site.run(site.client_peer, check=True)
    assert foretold.changed
    assert not site.config.exists()
    done = site.run(site.client_peer)
    assert done.changed
    assert done["running"] is False
    assert done["public_key"] == site.tunnel.server_key.public
    assert done["diff"] == foretold["diff"]
    status = site.config.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o640, 0, 51820)
    assert sorted(os.listdir(site.directory)) == ["cvt0.conf", "cvt0.key"], "no temporary file is left"
    site.tunnel.start()
    assert site.ping()
    again = site.run(site.client_peer)
    assert not again.changed
    assert again["running"] is True


def test_peers_come_change_and_go_and_the_others_keep_their_sessions(site: Site) -> None:
    site.start()
    process = site.server.process
    handshake_s, _received, endpoint = site.session()
    one, two = Key().public, Key().public
    far = {"endpoint": "198.51.100.77:51820", "persistent_keepalive": 25}
    steps: list[list[dict[str, Any]]] = [
        [peer(one, "10.86.1.1/32")],
        [peer(one, "10.86.1.1/32"), peer(two, "10.86.1.2/32", EXTRA_PREFIX, name="two", **far)],
        [peer(one, "10.86.1.1/32", EXTRA_PREFIX), peer(two, "10.86.1.2/32", name="two", **far)],
        [peer(one, "10.86.1.9/32"), peer(two, "10.86.1.2/32", EXTRA_PREFIX)],
        [peer(two, "10.86.1.2/32", endpoint="198.51.100.78:1")],
        [],
    ]
    for others in steps:
        foretold = site.run(site.client_peer, *others, check=True)
        done = site.run(site.client_peer, *others)
        assert done.changed
        assert done["diff"] == foretold["diff"]
        assert site.client not in json.dumps(done["diff"]), "who stays is not mentioned"
        assert not site.run(site.client_peer, *others).changed
        shown = {key: set(value.split()) for key, value in site.server.shown("allowed-ips").items()}
        wanted = {entry["public_key"]: set(entry["allowed_ips"]) for entry in (site.client_peer, *others)}
        assert {key: value - {"(none)"} for key, value in shown.items()} == wanted
        for entry in others:
            live = site.server.endpoint_of(entry["public_key"])
            assert live == entry.get("endpoint", live)
        received = site.session()[1]
        assert site.ping()
        assert site.session()[0] == handshake_s, "the session is the old one"
        assert site.session()[1] > received, "its counters go on"
        assert site.session()[2] == endpoint
    assert site.server.process is process
    assert process is not None
    assert process.running


def test_a_relay_that_is_restarted_has_the_same_peers(site: Site) -> None:
    site.start()
    one = Key().public
    site.run(site.client_peer, peer(one, "10.86.1.1/32", endpoint="198.51.100.77:51820"))
    before = set(site.server.shown("allowed-ips").items())
    site.server.restart()
    assert set(site.server.shown("allowed-ips").items()) == before
    assert not site.run(site.client_peer, peer(one, "10.86.1.1/32", endpoint="198.51.100.77:51820")).changed


def test_a_roamed_endpoint_is_no_drift(site: Site) -> None:
    configured = {**site.client_peer, "endpoint": "198.51.100.77:51820"}
    site.run(configured)
    site.tunnel.start()
    assert site.ping(), "the client calls from elsewhere"
    live = site.session()[2]
    assert live != configured["endpoint"]
    assert not site.run(configured).changed
    assert site.run(configured, peer(Key().public)).changed
    assert site.session()[2] == live
    moved = {**configured, "endpoint": "198.51.100.78:51820"}
    assert site.run(moved).changed
    assert site.session()[2] == "198.51.100.78:51820"
    assert not site.run(moved).changed


def test_what_others_put_into_relay_and_file_is_removed(site: Site) -> None:
    site.start()
    in_relay, in_file = Key().public, Key().public
    site.server.wg("set", DEVICE, "peer", in_relay, "allowed-ips", EXTRA_PREFIX)
    site.server.wg("set", DEVICE, "peer", site.client, "persistent-keepalive", "7")
    with site.config.open("a") as stream:
        stream.write(f"\n[Peer]\nPublicKey={in_file}\nnonsense\n")
    done = site.run(site.client_peer)
    before, after = done["diff"]["before"], done["diff"]["after"]
    assert set(before[f"relay {DEVICE}"]) == {f"peer {in_relay}", f"peer {site.client}"}
    assert set(before[f"file {site.config}"]) == {f"peer {in_file}"}
    assert after[f"relay {DEVICE}"][f"peer {site.client}"]["PersistentKeepalive"] == 0
    assert set(site.server.shown("allowed-ips")) == {site.client}
    assert in_file not in site.config.read_text()
    assert not site.run(site.client_peer).changed


def test_port_and_mark_change_without_a_restart(site: Site) -> None:
    site.start()
    handshake_s = site.session()[0]
    assert site.run(site.client_peer, listen_port=PORT + 1, fwmark=0xCA6C).changed
    assert site.server.wg("show", DEVICE, "listen-port").strip() == str(PORT + 1)
    assert site.server.wg("show", DEVICE, "fwmark").strip() == "0xca6c"
    assert not site.run(site.client_peer, listen_port=PORT + 1, fwmark=0xCA6C).changed
    assert site.session()[0] == handshake_s


def test_a_port_that_is_taken_changes_nothing(site: Site) -> None:
    site.start()
    site.server.host.spawn(
        [PYTHON, "-c", "import socket, time\ns = socket.socket(2, 2)\ns.bind(('', 4444))\ntime.sleep(60)"],
        "taken",
    )
    eventually(lambda: ":115C " in site.server.host.path("/proc/net/udp").read_text(), 10, "port 4444 taken")
    before = site.state()
    refused = site.run(site.client_peer, peer(Key().public), listen_port=4444)
    assert refused.failed
    assert "Address already in use" in refused.msg
    assert site.state() == before


def test_preshared_keys_are_used_and_shown_nowhere(site: Site) -> None:
    site.start()
    secrets = [preshared_key(), preshared_key()]
    file = site.directory / "client.psk"
    shared = {**site.client_peer, "preshared_key_file": str(file)}
    site.run(shared).assert_refused("peers[0].preshared_key_file", ["does not exist"])
    results = [site.run(shared, check=True)]
    for secret in secrets:
        file.write_text(secret + "\n")
        results += [site.run(shared, check=True), site.run(shared), site.run(shared)]
        assert [result.changed for result in results[-3:]] == [True, True, False]
        assert site.server.shown("preshared-keys")[site.client] == secret
    results.append(site.run(site.client_peer))
    assert site.server.shown("preshared-keys")[site.client] == "(none)"
    file.write_text(secrets[0][:20])
    results.append(site.run(shared))
    assert results[-1].failed
    everything = "".join(result.text for result in results) + site.config.read_text()
    private = site.tunnel.server_key.private
    for secret in (*secrets, private):
        assert secret[:16] not in everything
        assert base64.b64decode(secret).hex()[:16] not in everything
    assert '"PresharedKey": "yes"' in everything


def test_names_are_resolved_on_the_host_and_the_unknown_is_left_to_the_relay(site: Site) -> None:
    site.start()
    named, unknown = Key().public, Key().public
    wish = [
        site.client_peer,
        peer(named, "10.86.1.1/32", endpoint="localhost:4500"),
        peer(unknown, "10.86.1.2/32", endpoint="nowhere.invalid:4500"),
    ]
    done = site.run(*wish)
    assert done.changed
    assert done["reload"] is True
    assert any("nowhere.invalid:4500" in str(warning) for warning in done["warnings"])
    assert site.server.endpoint_of(named) in ("127.0.0.1:4500", "[::1]:4500")
    assert site.server.endpoint_of(unknown) == "(none)"
    assert "nowhere.invalid:4500" in site.config.read_text()
    again = site.run(*wish)
    assert (again.changed, again["reload"]) == (False, False)


def test_what_the_relay_reads_from_the_file_alone(site: Site) -> None:
    site.start()
    before = site.session()
    done = site.run(site.client_peer, disable_offloads=["gso", "tso"], batch="python")
    assert (done.changed, done["reload"]) == (True, True)
    assert "Batch = python\nDisableOffloads = tso, gso\n" in site.config.read_text()
    again = site.run(site.client_peer, disable_offloads=["tso", "gso"], batch="python")
    assert (again.changed, again["reload"]) == (False, False)
    done = site.run(site.client_peer, disable_offloads=["tso", "gso"])
    assert (done.changed, done["reload"]) == (True, False), "another batch is no matter of reading again"
    assert site.session()[0] == before[0]


def test_most_peers_and_the_identity_are_kept_unless_told_otherwise(site: Site) -> None:
    site.start()
    others = [peer(Key().public, f"10.86.1.{number}/32", name=f"host{number}") for number in range(3)]
    site.run(site.client_peer, *others)
    before = site.state()
    for check in (True, False):
        site.run(site.client_peer, check=check).assert_refused("allow_removal", ["3 of the 4", "host1"])
    assert site.state() == before
    assert site.run(site.client_peer, others[0], others[1]).changed, "few may go"
    site.run(site.client_peer, *others)

    old, new = site.tunnel.server_key, Key()
    site.key.unlink()
    site.key.write_text(new.private)
    before = site.state()
    for check in (True, False):
        refused = site.run(site.client_peer, check=check)
        refused.assert_refused("allow_identity_change", [old.public, new.public])
    assert site.state() == before
    assert site.ping()
    site.key.unlink()
    site.run(site.client_peer, check=True).assert_refused("allow_identity_change", ["does not exist"])
    site.run(site.client_peer).assert_refused("private_key_file", ["relay_key"])

    site.key.write_text(new.private)
    meant = {"allow_removal": True, "allow_identity_change": True}
    assert site.run(site.client_peer, **meant)["public_key"] == new.public
    assert site.server.wg("show", DEVICE, "public-key").strip() == new.public
    assert set(site.server.shown("allowed-ips")) == {site.client}
    done = site.run(site.client_peer)
    assert not done.changed
    assert new.private not in done.text


def test_fifty_runs_change_nothing(site: Site) -> None:
    site.start()
    wish = [
        site.client_peer,
        peer(Key().public, EXTRA_PREFIX, endpoint="[2001:db8::1]:51820", name="ü [x] # y"),
    ]
    assert site.run(*wish).changed
    state, handshake_s, changed = site.state(), site.session()[0], site.config.stat().st_mtime_ns
    for number in range(50):
        assert not site.run(*wish, check=number % 2 == 0).changed
    assert site.state() == state
    assert site.session()[0] == handshake_s
    assert site.config.stat().st_mtime_ns == changed


def test_an_interrupted_run_is_finished_by_the_next(site: Site) -> None:
    """The file cannot be written: the relay has changed, a restarted one would have the old peers."""
    site.start()
    moved = {**site.client_peer, "endpoint": "198.51.100.78:51820"}
    text = site.config.read_text()
    site.server.host.run(["mount", "--bind", "-o", "ro", str(site.directory), str(site.directory)])
    failed = site.run(moved, peer(Key().public, EXTRA_PREFIX))
    assert failed.failed
    assert "cannot write" in failed.msg
    site.server.host.run(["umount", str(site.directory)])
    assert site.config.read_text() == text
    assert site.run(moved).changed
    assert set(site.server.shown("allowed-ips")) == {site.client}
    assert site.session()[2] == "198.51.100.78:51820"
    assert not site.run(moved).changed


def info(site: Site) -> Any:
    arguments = {"name": DEVICE, "config_path": str(site.config)}
    done = site.server.host.run(
        [PYTHON, "-m", MODULE.replace("relay_peers", "relay_info")],
        stdin=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
        env={"PYTHONPATH": str(COLLECTIONS)},
    )
    return json.loads(done.stdout)


def test_ways_of_a_peer_reach_the_running_relay(site: Site) -> None:
    site.start()
    session = site.session()
    there = f"198.51.100.2:{site.session()[2].rpartition(':')[2]}"
    names = ["gate.example.net:443", "other.example.net:443"]
    pin = base64.b64encode(bytes(range(32))).decode()
    ways = {
        "endpoints": [f"udp://{there}", f"tls://{names[0]}", f"tls://{names[1]}"],
        "tls_pin": [pin],
        "tls_server_name": "www.example.net",
        "frame_messages": True,
    }
    member = {**site.client_peer, **ways}
    before = site.state()
    foretold = site.run(member, check=True)
    assert site.state() == before
    done = site.run(member)
    assert done.changed, done.text
    assert done["diff"] == foretold["diff"]
    assert done["warnings"] == [] if "warnings" in done.values else True, "names are left to the relay"
    (found,) = info(site)["peers"]
    assert found["endpoints"] == [there, *(f"tls://{name}" for name in names)]
    assert {option: found[option] for option in ("tls_pin", "tls_server_name", "frame_messages")} == {
        option: ways[option] for option in ("tls_pin", "tls_server_name", "frame_messages")
    }
    assert (found["transport"], found["way"], found["endpoint"]) == ("udp", there, there)
    again = site.run(member)
    assert (again.changed, again["reload"], again["restart"]) == (False, False, False)
    turned = {**member, "endpoints": ways["endpoints"][::-1]}
    assert site.run(turned).changed
    assert not site.run(turned).changed
    framed = {**site.client_peer, "frame_messages": True}
    assert site.run(framed).changed
    (found,) = info(site)["peers"]
    assert (found["endpoints"], found["tls_pin"], found["frame_messages"]) == ([], [], True)
    assert not site.run(framed).changed
    assert site.run(site.client_peer).changed
    assert not site.run(site.client_peer).changed
    assert site.ping()
    assert site.session()[0] == session[0], "it is one session all along"


def test_what_the_relay_learns_from_the_file_alone(site: Site) -> None:
    site.start()
    listening = site.run(site.client_peer, listen_tcp=8443)
    assert (listening.changed, listening["reload"], listening["restart"]) == (True, True, False)
    assert list(listening["diff"]["after"]) == [f"file {site.config}"]
    assert not site.run(site.client_peer, listen_tcp=8443).changed
    bridged = site.run({**site.client_peer, "allowed_ips": []}, layer=2, check=True)
    assert (bridged.changed, bridged["restart"]) == (True, True)
    assert (info(site)["layer"], info(site)["listeners"]) == (3, [])


def test_a_prefix_moves_into_a_failover_group_and_back_under_traffic(site: Site) -> None:
    site.client_peer["allowed_ips"].append(EXTRA_PREFIX)
    site.start()
    assert (info(site)["failover"], info(site)["registry_id"]) == ({}, None)
    site.tunnel.client.host.add_address("lo", "10.30.0.1/32")
    site.server.host.ip("route", "add", EXTRA_PREFIX, "dev", DEVICE)
    handshake_s = site.session()[0]
    flow = site.server.host.spawn(["ping", "-i", "0.01", "10.30.0.1"], "flow")
    eventually(lambda: "bytes from" in flow.output(), 10, "the flow flows")

    far = Key().public
    member = {**site.client_peer, "allowed_ips": site.client_peer["allowed_ips"][:2], "failover": 1}
    other = peer(far, "10.86.1.1/32", endpoint="198.51.100.77:51820", failover=2)
    grouped = {"failover": {"allowed_ips": [EXTRA_PREFIX], "return_s": 0}, "registry": {"id": "1-a"}}
    foretold = site.run(member, other, check=True, **grouped)
    done = site.run(member, other, **grouped)
    assert done.changed, done.text
    assert done["diff"] == foretold["diff"]
    assert not site.run(member, other, **grouped).changed
    assert EXTRA_PREFIX in site.server.shown("allowed-ips")[site.client], "packets go there"
    found = info(site)
    assert found["registry_id"] == "1-a"
    assert found["failover"]["active"] == site.client
    assert found["failover"]["allowed_ips"] == [EXTRA_PREFIX]
    assert (found["failover"]["timeout_s"], found["failover"]["return_s"]) == (2.5, 0)
    members = {each["public_key"]: each["priority"] for each in found["failover"]["members"]}
    assert members == {site.client: 1, far: 2}

    # Drained, while the other one does not answer; and the other one leaves.
    assert site.run({**member, "failover": 1001}, other, **grouped).changed
    assert info(site)["failover"]["active"] == site.client
    assert site.run(member, **grouped).changed
    assert site.run(site.client_peer).changed
    assert info(site)["failover"] == {}
    assert not site.run(site.client_peer).changed

    def answered() -> set[int]:
        return {int(number) for number in re.findall(r"icmp_seq=(\d+) ttl", flow.output())}

    before = max(answered())
    eventually(lambda: max(answered()) > before + 10, 10, "the flow goes on")
    assert answered() >= set(range(1, before)), "none was lost"
    assert site.session()[0] == handshake_s


def test_a_relay_that_is_restarted_has_the_same_group(site: Site) -> None:
    member = {**site.client_peer, "failover": 1}
    wish: dict[str, Any] = {"failover": {"allowed_ips": [EXTRA_PREFIX, "::/0"], "timeout_s": 1.5}}
    other = peer(Key().public, "10.86.1.1/32", failover=0)
    site.run(member, other, **wish)
    site.tunnel.start()
    assert site.ping()
    assert not site.run(member, other, **wish).changed
    before = {**info(site)["failover"], "members": None}
    assert before["timeout_s"] == 1.5
    site.server.restart()
    assert not site.run(member, other, **wish).changed
    assert {**info(site)["failover"], "members": None} == before


def test_peers_of_another_registry_are_left_alone(site: Site) -> None:
    site.start()
    one, two = peer(Key().public, "10.86.1.1/32"), peer(Key().public, "10.86.1.2/32")
    first = {"id": "1-a", "lineage": ["1-a"]}
    theirs = {"id": "2-b", "lineage": ["1-a", "2-b"]}
    stale = {"id": "2-c", "lineage": ["1-a", "2-c"]}
    assert site.run(site.client_peer, one, registry=first).changed
    assert site.run(site.client_peer, one, two, registry=theirs).changed
    before = site.state()
    for check in (True, False):
        site.run(site.client_peer, one, registry=stale, check=check).assert_refused(
            "registry", ["2-b", "2-c"]
        )
    assert site.state() == before
    # The same peers by a later state: nothing to write, and the one after that is written.
    merged = {"id": "3-d", "lineage": ["1-a", "2-b", "2-c", "3-d"]}
    assert not site.run(site.client_peer, one, two, registry=merged).changed
    assert site.state() == before
    assert site.run(site.client_peer, two, registry=merged).changed
    assert info(site)["registry_id"] == "3-d"
    site.run(site.client_peer, two, registry=theirs).assert_refused("registry", ["3-d"])
    assert site.run(site.client_peer, one, registry={**theirs, "adopt": True}).changed
    assert info(site)["registry_id"] == "2-b"
