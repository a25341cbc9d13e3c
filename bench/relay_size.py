# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What many peers cost a relay that has little to do: to start, to answer, to change, to keep them alive.

    make bench-size        or, as root,        PYTHONPATH=images/relay/src python -m bench.relay_size

The relay runs with as many peers as a fleet's servers have; the module relay_peers manages them as a run of
site.yml does. Needs root (network namespaces). Seconds are processor time, of which the relay has one core,
except where the answer is waited for.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import socket
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.netns.crowd import Crowd
from tests.netns.endpoints import DEVICE, PORT, Endpoint, Key
from tests.netns.lab import Host, Lab, LabError, eventually
from tests.netns.modules.host import COLLECTIONS, PYTHON
from tests.netns.topology import OUTER, Tunnel, direct_hosts, make_tunnel
from tests.netns.usage import Usage, resident_bytes

MODULE = "ansible_collections.culvert.vpn.plugins.modules.relay_peers"
KEEPALIVE_S = 25
REKEY_S = 120
HEADER = (
    "           start:           memory    get=1:                 reload:    relay_peers:\n"
    " peers  until it answers      in all  waited       answer   no change  no change    one new, the relay's"
)


@dataclass(frozen=True)
class Row:
    """What one number of peers costs."""

    peers: int
    start_s: float
    "From the start of the process until it answers on its control socket; the interpreter's start included."
    resident_bytes: int
    get_s: float
    "Until the answer to get=1 is read, in which time no packet is moved."
    get_bytes: int
    reload_cpu_s: float
    "The relay's processor time for SIGHUP with a file that says the same."
    same_cpu_s: float
    "The module's processor time where nothing is to be done."
    added_cpu_s: float
    "The same where one peer is new."
    added_relay_cpu_s: float
    "The relay's share of that, in which no packet is moved either."

    def print(self) -> None:
        cells = [
            f"{self.peers:6}",
            f"{self.start_s:16.2f} s",
            f"{self.resident_bytes / 2**20:7.1f} MiB",
            f"{self.get_s * 1000:5.0f} ms {self.get_bytes / 2**20:8.2f} MiB",
            f"{self.reload_cpu_s:9.3f} s",
            f"{self.same_cpu_s:8.2f} s {self.added_cpu_s:8.2f} s {self.added_relay_cpu_s:9.3f} s",
        ]
        print(" ".join(cells), flush=True)


def ask(server: Endpoint, request: bytes) -> bytes:
    """The answer of the relay's control socket."""
    answer = bytearray()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(server.socket))
        connection.sendall(request)
        while not answer.endswith(b"\n\n"):
            answer += connection.recv(1 << 20)
    return bytes(answer)


def peer_entries(keys: list[Key]) -> list[dict[str, Any]]:
    """What site.yml gives to the module: a name, a key, an address of each family."""
    return [
        {
            "name": f"client{number}.example.net",
            "public_key": key.public,
            "allowed_ips": [
                f"10.86.{number // 250}.{1 + number % 250}/32",
                f"fd86:ea04:1115::1:{number:x}/128",
            ],
        }
        for number, key in enumerate(keys)
    ]


class Managed:
    """A relay whose configuration is the one that the module writes."""

    def __init__(self, host: Host, directory: Path) -> None:
        directory.mkdir()
        self.host, self.config = host, directory / f"{DEVICE}.conf"
        key = directory / f"{DEVICE}.key"
        key.write_text(Key().private + "\n")
        key.chmod(0o400)
        self.params = {
            "name": DEVICE,
            "config_path": str(self.config),
            "private_key_file": str(key),
            "listen_port": PORT,
            "fwmark": 0,
        }

    def apply(self, peers: list[dict[str, Any]]) -> tuple[bool, float]:
        """Run the module as Ansible does; whether it changed anything, and its processor time."""
        arguments = {**self.params, "peers": peers, "_ansible_diff": False}
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = self.host.run(
            [PYTHON, "-m", MODULE],
            stdin=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
            env={"PYTHONPATH": str(COLLECTIONS)},
            check=False,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        answer = json.loads(done.stdout)
        if answer.get("failed"):
            raise LabError(answer["msg"])
        return answer["changed"], after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(lab: Lab, directory: Path, peers: int) -> Row:
    """One relay with so many peers, from its start on."""
    _, server = direct_hosts(lab)
    managed = Managed(server, directory)
    entries = peer_entries([Key() for _ in range(peers + 1)])
    managed.apply(entries[:peers])
    tunnel = make_tunnel(("go", "relay"), server, server, OUTER[4][0])
    relay = tunnel.server
    relay.write_settings = lambda: managed.config  # type: ignore[method-assign]
    started = time.monotonic()
    relay.start()
    eventually(relay.socket.exists, 60, "control socket")
    answer = ask(relay, b"get=1\n\n")
    start_s = time.monotonic() - started
    if relay.process is None or answer.count(b"\npublic_key=") != peers:
        raise LabError("the relay has not all its peers")
    pid = relay.process.pid
    resident = resident_bytes(pid)
    started = time.monotonic()
    answer = ask(relay, b"get=1\n\n")
    get_s = time.monotonic() - started
    before = Usage.of(pid).cpu_s
    os.kill(pid, signal.SIGHUP)
    # What comes after the signal is answered after it.
    time.sleep(0.1)
    ask(relay, b"culvert=1\n\n")
    reload_cpu_s = Usage.of(pid).cpu_s - before
    changed, same_cpu_s = managed.apply(entries[:peers])
    if changed:
        raise LabError("the module changed something, and there was nothing to change")
    before = Usage.of(pid).cpu_s
    changed, added_cpu_s = managed.apply(entries)
    added_relay_cpu_s = Usage.of(pid).cpu_s - before
    if not changed:
        raise LabError("the module did not add the new peer")
    return Row(
        peers, start_s, resident, get_s, len(answer), reload_cpu_s, same_cpu_s, added_cpu_s, added_relay_cpu_s
    )


def keeping_alive(lab: Lab, peers: int) -> None:
    """Peers with nothing to say but keepalives: what two minutes cost the relay, rekeying included."""
    client, server = direct_hosts(lab)
    tunnel = make_tunnel(("go", "relay"), client, server, OUTER[4][0])
    crowd = Crowd(lab, server, peers)
    tunnel.server.settings.peers += crowd.peers()
    tunnel.server.start()
    crowd.start(tunnel.server, tunnel.server_key)
    made = crowd.keep_alive(KEEPALIVE_S)
    if made != peers or tunnel.server.process is None:
        raise LabError(f"only {made} of {peers} peers have a session")
    pid = tunnel.server.process.pid
    # The first sessions are renewed once in this time, each at its own moment.
    before, received = Usage.of(pid), transferred(tunnel)
    time.sleep(REKEY_S)
    after = Usage.of(pid)
    used_s = after.cpu_s - before.cpu_s
    print(
        f"\n{peers} peers with a keepalive every {KEEPALIVE_S} s, in {REKEY_S} s:"
        f" {used_s:.2f} s of the relay's processor time"
        f" ({used_s / REKEY_S:.2%} of a core, {used_s / peers * 1e6:.0f} µs a peer),"
        f" {(transferred(tunnel) - received) / peers:.0f} bytes from a peer,"
        f" {after.resident_bytes / 2**20:.1f} MiB, {after.descriptors} descriptors",
        flush=True,
    )


def transferred(tunnel: Tunnel) -> int:
    """Bytes that the server has received, of all peers."""
    return sum(int(row.split("\t")[0]) for row in tunnel.server.shown("transfer").values())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.relay_size", description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=int, nargs="+", default=[100, 1000, 5000, 10000], metavar="N")
    parser.add_argument(
        "--alive",
        type=int,
        default=1000,
        metavar="N",
        help="peers that are kept alive, 0 for none (%(default)s)",
    )
    options = parser.parse_args()
    if not all(10 <= peers <= 50000 for peers in options.peers):
        parser.error("--peers: between 10 and 50000")
    print(
        f"{os.cpu_count()} processors, Python {sys.version.split()[0]}, Linux {os.uname().release}\n{HEADER}"
    )
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="culvert-size-")))
        for peers in options.peers:
            with Lab(directory / str(peers)) as lab:
                measure(lab, directory / f"etc-{peers}", peers).print()
        if options.alive:
            with Lab(directory / "alive") as lab:
                keeping_alive(lab, options.alive)


if __name__ == "__main__":
    main()
