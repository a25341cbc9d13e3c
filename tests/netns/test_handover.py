# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A relay is replaced by another process while traffic flows: nothing is lost, whatever goes wrong.

client  eth0 198.51.100.2 ────────────── eth0 198.51.100.1  server: one relay after another
        cvt0 10.86.0.2    ══ WireGuard ═ cvt0 10.86.0.1
"""

from __future__ import annotations

import os
import re
import signal
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.netns.endpoints import DEVICE, Culvert, Key, Peer
from tests.netns.handover import SERVES, WAITS, Pings, break_a_handover, start_successor, take_over
from tests.netns.lab import Lab, await_output, eventually
from tests.netns.pcap import Capture
from tests.netns.topology import OUTER, PAIRS, Tunnel, direct_hosts, make_tunnel
from tests.netns.transfer import MEGABYTE, Transfer

# The aim, for a machine that does other things too; what is measured is in docs/upgrade.md.
GAP_S = 1.0
# Echo requests every 5 ms: on a busy machine some get lost that no handover is to blame for.
BUSY_LOST = 10
RELAY_UID = 51820
TRANSPORT = 4


def replaced_tunnel(lab: Lab, pair: tuple[str, str], *, persistent: bool = True) -> tuple[Tunnel, Culvert]:
    """A started tunnel with a session; its server (also returned) is what is replaced."""
    client, server = direct_hosts(lab)
    tunnel = make_tunnel(pair, client, server, OUTER[4][0])
    relay = tunnel.server
    assert isinstance(relay, Culvert)
    relay.persistent = persistent
    tunnel.start()
    assert client.ping(tunnel.server_addresses[4]).received == 3
    return tunnel, relay


def flows_both_ways(tunnel: Tunnel, megabytes: int, rate_bytes_s: float = 4e6) -> list[Transfer]:
    client, server, size = tunnel.client.host, tunnel.server.host, megabytes * MEGABYTE
    return [
        Transfer(client, server, tunnel.server_addresses[4], size, rate_bytes_s=rate_bytes_s),
        Transfer(server, client, tunnel.client_addresses[6], size, rate_bytes_s=rate_bytes_s, seed=2),
    ]


def as_other_user(relay: Culvert) -> None:
    """Let the relay give up root, with a key that its user alone can read."""
    for directory in (relay.host.directory, *relay.host.directory.parents):
        if directory.stat().st_uid == 0 and str(directory).startswith("/tmp/pytest"):
            directory.chmod(0o755)
    key_file = relay.host.directory / "cvt0.key"
    key_file.write_text(relay.settings.private_key + "\n")
    config = relay.host.directory / "as-user.conf"
    config.write_text(re.sub("PrivateKey = .*", f"PrivateKeyFile = {key_file}", relay.settings.text()))
    for file in (key_file, config):
        file.chmod(0o400)
        os.chown(file, RELAY_UID, RELAY_UID)
    relay.options = ["--config", str(config), "--user", f"{RELAY_UID}:{RELAY_UID}"]


def status_of(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/status").read_text()
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


@pytest.mark.parametrize(
    "kinds", [("compiled", "python", "compiled"), ("python", "compiled", "python")], ids="-".join
)
def test_flows_go_on_from_process_to_process(lab: Lab, kinds: Sequence[str]) -> None:
    """Each with another batch than the one before, all without a handshake; no nonce is used twice."""
    client, server = direct_hosts(lab, offloads=False)
    tunnel = make_tunnel(("relay", kinds[0]), client, server, OUTER[4][0])
    relay = tunnel.server
    assert isinstance(relay, Culvert)
    relay.persistent = kinds[0] == "compiled"
    tunnel.start()
    pings = Pings.start(client, tunnel.server_addresses[4])
    handshake_s = relay.handshake_s(tunnel.client_key.public)
    with Capture(client, "eth0", "udp") as capture:
        for kind in kinds[1:]:
            flows = flows_both_ways(tunnel, 6, 0.8e6)
            pings.await_more()
            before = take_over(relay, ["--batch", kind])
            assert all(flow.running for flow in flows), "the transfers were over before the handover"
            assert f'"batch": "{kind}"' in relay.culvert("show", DEVICE, "--json")
            assert before.stop() == 0
            assert relay.socket.exists(), "the name is the successor's"
            for flow in flows:
                flow.finish()
    pings.await_more()
    assert relay.handshake_s(tunnel.client_key.public) == handshake_s, "nobody shook hands"
    assert pings.gap_s() < GAP_S
    assert pings.lost() <= BUSY_LOST, "what came meanwhile waited"
    sealed: dict[tuple[str, int, int], bytes] = {}
    for packet in capture.packets:
        if packet.datagram[0] == TRANSPORT:
            nonce = (packet.source, *struct.unpack_from("<IQ", packet.datagram, 4))
            assert sealed.setdefault(nonce, packet.datagram) == packet.datagram, "a nonce was used twice"
    assert len(sealed) > 4 * 6 * MEGABYTE // 1500
    assert relay.stop() == 0
    assert not relay.socket.exists()


def test_with_another_user_and_what_is_left_of_the_one_before(lab: Lab) -> None:
    client, server = direct_hosts(lab)
    tunnel = make_tunnel(("go", "relay"), client, server, OUTER[4][0])
    relay = tunnel.server
    assert isinstance(relay, Culvert)
    as_other_user(relay)
    relay.persistent = True
    tunnel.start()
    pings = Pings.start(client, tunnel.server_addresses[4])
    befores = [take_over(relay), take_over(relay)]
    pings.await_more()
    assert pings.lost() <= BUSY_LOST
    assert relay.process
    assert status_of(relay.process.pid)["Uid"].split() == [str(RELAY_UID)] * 4
    for before in befores:
        eventually(
            lambda pid=before.pid: "handed-over" in Path(f"/proc/{pid}/cmdline").read_text(),
            3,
            "its new work",
        )
        status = status_of(before.pid)
        assert status["Uid"].split() == [str(RELAY_UID)] * 4
        assert {status[kind] for kind in ("CapEff", "CapPrm", "CapAmb")} == {"0" * 16}
        held = [os.readlink(entry) for entry in Path(f"/proc/{before.pid}/fd").iterdir()]
        assert not [name for name in held if "socket" in name or "tun" in name or "anon_inode" in name], held
        before.send_signal(signal.SIGHUP)
        assert before.stop() == 0
    pings.await_more()


def test_the_successor_has_its_own_file(lab: Lab) -> None:
    """What is different in it is done after the takeover, as with SIGHUP; if it is wrong, nothing happens."""
    tunnel, relay = replaced_tunnel(lab, ("go", "relay"))
    pings = Pings.start(tunnel.client.host, tunnel.server_addresses[4])
    good = relay.settings
    relay.write_settings().write_text(good.text().replace("/32", "/33"))
    argv = [
        *relay.command,
        "run",
        DEVICE,
        "--config",
        str(relay.host.directory / f"{DEVICE}.conf"),
        "--take-over",
    ]
    done = relay.host.run(argv, check=False, env=relay.environment())
    assert done.returncode == 2
    assert "/33" in done.stderr
    handshake_s = relay.handshake_s(tunnel.client_key.public)
    new = Key()
    relay.settings.peers.append(Peer(new.public, ["10.86.7.0/24"]))
    relay.settings.listen_port += 1
    take_over(relay).stop()
    eventually(relay.listens, 5, "the other port")
    assert new.public in relay.shown("allowed-ips")
    assert relay.handshake_s(tunnel.client_key.public) == handshake_s
    # The server has moved: the client hears of it by the next packet.
    assert tunnel.server.host.ping(tunnel.client_addresses[4]).received == 3
    pings.await_more()


STEPS = ["nonsense", "ask", "state", "ready", "hang-state"]


@pytest.mark.parametrize("step", STEPS)
def test_a_handover_that_comes_to_nothing(lab: Lab, step: str) -> None:
    """The old process goes on with its sessions, and hands over to nobody for a while."""
    tunnel, relay = replaced_tunnel(lab, ("go", "relay"))
    handshake_s = relay.handshake_s(tunnel.client_key.public)
    pings = Pings.start(tunnel.client.host, tunnel.server_addresses[4])
    flows = flows_both_ways(tunnel, 4, 2e6)
    broken = break_a_handover(relay, step)
    pings.await_more()
    for flow in flows:
        flow.finish()
    assert relay.process
    if step != "ready":
        # Whether the word that all is its has reached one that died at that moment nobody knows.
        assert relay.handshake_s(tunnel.client_key.public) == handshake_s, "its sessions are what they were"
    if step == "nonsense":
        assert "handover" not in relay.process.output()
        return
    await_output(relay.process, "handover failed")
    # As long as it lives it holds the device.
    broken.stop()
    # The next one waits instead, and serves when this one has ended.
    successor = start_successor(relay)
    await_output(successor, f"{WAITS} {DEVICE} to end (it does not offer to hand over)")
    assert relay.stop() == 0
    relay.process = successor
    await_output(successor, "the relay before has ended: 1 endpoints")
    pings.await_more()


@pytest.mark.parametrize("step", ["yours", "hang-yours"])
def test_a_successor_that_dies_with_everything_in_its_hands(lab: Lab, step: str) -> None:
    """The old process may not use the sessions again, and makes new ones at once."""
    tunnel, relay = replaced_tunnel(lab, ("go", "relay"))
    pings = Pings.start(tunnel.client.host, tunnel.server_addresses[4])
    flows = flows_both_ways(tunnel, 4, 2e6)
    with Capture(tunnel.client.host, "eth0", "udp") as capture:
        break_a_handover(relay, step)
        pings.await_more()
    for flow in flows:
        flow.finish()
    assert any(packet.datagram[0] == 1 and packet.source == OUTER[4][0] for packet in capture.packets)
    assert relay.process
    await_output(relay.process, "the old process goes on, and has to shake hands anew")


@pytest.mark.parametrize(
    "pair", [pair for pair in PAIRS if pair[1] == "go"] or [("relay", "go")], ids="-to-".join
)
def test_after_one_that_cannot_hand_over(lab: Lab, pair: tuple[str, str]) -> None:
    """wireguard-go knows nothing of this: its successor waits for its end, then asks everybody at once."""
    client, server = direct_hosts(lab)
    tunnel = make_tunnel(pair, client, server, OUTER[4][0])
    before = tunnel.server
    before.persistent = True
    tunnel.start()
    pings = Pings.start(client, tunnel.server_addresses[4])
    flows = flows_both_ways(tunnel, 4, 2e6)
    relay = Culvert(server, before.settings, before.addresses)
    relay.process = start_successor(relay)
    await_output(relay.process, f"{WAITS} {DEVICE} to end (it does not know how to hand over)")
    pings.await_more()
    assert before.stop() == 0
    pings.await_more()
    for flow in flows:
        flow.finish()
    # Without it, the client would notice after 15 s.
    assert pings.gap_s() < GAP_S + 1
    assert SERVES not in relay.process.output()
    waiting = start_successor(relay, ["--batch", "python"])
    await_output(waiting, SERVES)


def test_who_waits_can_be_stopped(lab: Lab) -> None:
    client, server = direct_hosts(lab)
    tunnel = make_tunnel(("relay", "go"), client, server, OUTER[4][0]).start()
    relay = Culvert(server, tunnel.server.settings, tunnel.server.addresses)
    waiting = start_successor(relay)
    await_output(waiting, WAITS)
    assert waiting.stop() == 0
    assert tunnel.client.host.ping(tunnel.server_addresses[4]).received == 3
