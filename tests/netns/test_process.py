# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The relay as a process: how it starts, what it attaches to, how it ends, and what it may do.

    client  eth0 198.51.100.2 ────────────── eth0 198.51.100.1  server
            cvt0 10.86.0.2    ══ WireGuard ═ cvt0 10.86.0.1
    inner   no link at all; gets the client's cvt0 in one test

What wireguard-go does too is tested on both implementations.
"""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from tests.netns.endpoints import DEVICE, PORT, Culvert, Key, Peer
from tests.netns.lab import Lab, eventually, unanswered
from tests.netns.topology import OUTER, PAIRS, Tunnel, direct_hosts, make_tunnel
from tests.netns.transfer import MEGABYTE, transfer

RELAY_UID = 51820
CAP_NET_ADMIN = 12
every_pair = pytest.mark.parametrize("pair", PAIRS, ids="-to-".join)


def relay_tunnel(lab: Lab) -> tuple[Tunnel, Culvert]:
    """A tunnel that is not started, from a relay (also returned, as such) to wireguard-go."""
    client, server = direct_hosts(lab)
    tunnel = make_tunnel(("relay", "go"), client, server, OUTER[4][0])
    assert isinstance(tunnel.client, Culvert)
    return tunnel, tunnel.client


@every_pair
def test_the_device_may_move_to_another_namespace(lab: Lab, pair: tuple[str, str]) -> None:
    """Sockets stay where they were opened: the inner host has no other way out than the tunnel."""
    client, server = direct_hosts(lab)
    tunnel = make_tunnel(pair, client, server, OUTER[4][0]).start()
    assert client.ping(tunnel.server_addresses[4]).received == 3
    inner = lab.host("inner")
    client.ip("link", "set", DEVICE, "netns", inner.namespace)
    for address in tunnel.client.addresses:
        inner.add_address(DEVICE, address)
    inner.ip("link", "set", DEVICE, "up")
    assert inner.ping(tunnel.server_addresses[4]).received == 3
    assert server.ping(tunnel.client_addresses[6]).received == 3
    transfer(inner, server, tunnel.server_addresses[4], MEGABYTE)
    assert client.ping(tunnel.server_addresses[4], count=1, wait_s=1).received == 0
    assert tunnel.client.handshake_s(tunnel.server_key.public), "the control socket stays where it was"


@every_pair
def test_deleting_the_device_ends_the_process(lab: Lab, pair: tuple[str, str]) -> None:
    client, server = direct_hosts(lab)
    end = make_tunnel(pair, client, server, OUTER[4][0]).start().client
    client.ip("link", "del", DEVICE)
    assert end.process
    assert end.process.wait(5) == 0, end.process.output()
    assert not end.socket.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_ends_the_relay_cleanly(lab: Lab, number: signal.Signals) -> None:
    tunnel, relay = relay_tunnel(lab)
    tunnel.start()
    assert relay.host.ping(tunnel.server_addresses[4]).received == 3
    assert relay.stop(number) == 0, relay.process and relay.process.output()
    assert not relay.socket.exists()
    assert not relay.device_exists()
    assert "Traceback" not in (relay.process.output() if relay.process else "")


@pytest.mark.parametrize("flags", ["", "vnet_hdr", "multi_queue", "vnet_hdr multi_queue"])
def test_it_attaches_to_a_persistent_device_of_any_flags(lab: Lab, flags: str) -> None:
    tunnel, relay = relay_tunnel(lab)
    relay.host.ip("tuntap", "add", "dev", DEVICE, "mode", "tun", *flags.split())
    relay.set_up_device()
    relay.persistent = True
    tunnel.start()
    transfer(relay.host, tunnel.server.host, tunnel.server_addresses[4], 10 * MEGABYTE)
    transfer(tunnel.server.host, relay.host, tunnel.client_addresses[6], 10 * MEGABYTE)
    relay.restart()
    assert relay.host.ping(tunnel.server_addresses[4]).received == 3
    assert relay.stop() == 0
    assert relay.device_exists()


def test_it_gives_up_root_and_reads_keys_as_its_user(lab: Lab, tmp_path: Path) -> None:
    """Keys belong to the relay's user alone; of root's powers only NET_ADMIN is left."""
    tunnel, relay = relay_tunnel(lab)
    for directory in (relay.host.directory, *relay.host.directory.parents):
        if directory.stat().st_uid == 0 and str(directory).startswith("/tmp/pytest"):
            directory.chmod(0o755)  # pytest keeps its directories to root
    key_file = relay.host.directory / "cvt0.key"
    key_file.write_text(tunnel.client_key.private + "\n")
    text = re.sub("PrivateKey = .*", f"PrivateKeyFile = {key_file}", relay.settings.text())
    config = relay.host.directory / "relay.conf"
    config.write_text(text)
    for file, mode in ((key_file, 0o400), (config, 0o400)):
        file.chmod(mode)
        os.chown(file, RELAY_UID, RELAY_UID)
    relay.options = ["--config", str(config), "--user", f"{RELAY_UID}:{RELAY_UID}"]
    tunnel.start()
    assert relay.host.ping(tunnel.server_addresses[4]).received == 3
    assert relay.process
    status = Path(f"/proc/{relay.process.pid}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split() == fields["Gid"].split() == [str(RELAY_UID)] * 4
    assert fields["Groups"].split() == []
    for kind in ("CapEff", "CapPrm"):
        assert int(fields[kind], 16) == 1 << CAP_NET_ADMIN, kind
    assert relay.stop() == 0


def test_in_the_background_it_returns_when_all_is_ready(lab: Lab) -> None:
    tunnel, relay = relay_tunnel(lab)
    tunnel.server.start()
    relay.culvert("run", DEVICE, "--background", "--config", str(relay.write_settings()))
    assert relay.socket.exists()
    assert relay.wg("show", DEVICE, "listen-port").strip() == str(PORT)
    relay.set_up_device()
    assert relay.host.ping(tunnel.server_addresses[4]).received == 3
    relay.host.ip("link", "del", DEVICE)
    eventually(lambda: not relay.socket.exists(), 5, "end of the background process")


def test_hangup_reloads_the_file_by_difference(lab: Lab) -> None:
    tunnel, relay = relay_tunnel(lab)
    tunnel.start()
    process = relay.process
    assert process
    assert relay.host.ping(tunnel.server_addresses[4]).received == 3
    handshake_s = relay.handshake_s(tunnel.server_key.public)
    ping = relay.host.spawn(["ping", "-n", "-i", "0.01", "-c", "100", tunnel.server_addresses[4]], "ping")

    new = Key()
    relay.settings.peers.append(Peer(new.public, ["10.86.7.0/24"]))
    relay.write_settings()
    process.send_signal(signal.SIGHUP)
    eventually(lambda: new.public in relay.shown("allowed-ips"), 3, "the peer of the file")
    assert relay.handshake_s(tunnel.server_key.public) == handshake_s, "the other session was kept"

    before = relay.wg("showconf", DEVICE)
    path = relay.write_settings()
    path.write_text(path.read_text().replace("10.86.7.0/24", "10.86.8.0/33"))
    bad_line = 1 + [("/33" in line) for line in path.read_text().splitlines()].index(True)
    process.send_signal(signal.SIGHUP)
    eventually(lambda: f"{path}:{bad_line}" in process.output(), 3, "the line that is wrong, in the log")
    assert relay.wg("showconf", DEVICE) == before, "a bad file changes nothing"
    ping.wait(10)
    assert unanswered(ping.output()) == []
    assert ping.output().count("bytes from") >= 90, ping.output()[-300:]


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("AllowedIPs = 10.86.0.0/40", "AllowedIPs = .*"),
        ("PublicKey = tooshort", "PublicKey = .*"),
        ("ListenPort = 70000", "ListenPort = .*"),
        ("PostUp = reboot", "ListenPort = .*"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(lab: Lab, wrong: str, right: str) -> None:
    _, relay = relay_tunnel(lab)
    path = relay.write_settings()
    path.write_text(re.sub(right, wrong, path.read_text()))
    line = 1 + path.read_text().splitlines().index(wrong)
    for command in (["check", str(path)], ["run", DEVICE, "--config", str(path)]):
        done = relay.host.run([*relay.command, *command], check=False, env=relay.environment())
        assert done.returncode == 2, command
        assert f"{path}:{line}" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
        assert relay.settings.private_key not in done.stdout + done.stderr
    assert not relay.device_exists()
    assert not relay.socket.exists()


def test_a_second_relay_for_the_same_device_is_refused(lab: Lab) -> None:
    tunnel, relay = relay_tunnel(lab)
    tunnel.start()
    argv = [*relay.command, "run", DEVICE, "--config", str(relay.write_settings())]
    done = relay.host.run(argv, check=False, env=relay.environment())
    assert done.returncode == 1
    assert DEVICE in done.stderr
    assert "Traceback" not in done.stderr
    assert relay.host.ping(tunnel.server_addresses[4]).received == 3, "the first one goes on"


def test_what_it_shows_of_itself_holds_no_secret(lab: Lab) -> None:
    client, server = direct_hosts(lab)
    tunnel = make_tunnel(("relay", "go"), client, server, OUTER[4][0], preshared=True).start()
    relay = tunnel.client
    assert isinstance(relay, Culvert)
    assert relay.process
    assert client.ping(tunnel.server_addresses[4]).received == 3
    relay.culvert("health", DEVICE)
    shown = relay.culvert("show", DEVICE) + relay.culvert("show", DEVICE, "--json") + relay.process.output()
    assert tunnel.server_key.public in shown
    assert tunnel.client_key.private not in shown
    assert relay.settings.peers[0].preshared_key not in shown
    assert tunnel.client_key.private not in Path(f"/proc/{relay.process.pid}/cmdline").read_text()
    relay.stop()
    assert (
        client.run([*relay.command, "health", DEVICE], check=False, env=relay.environment()).returncode != 0
    )
