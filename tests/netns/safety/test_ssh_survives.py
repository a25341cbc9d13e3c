# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""SSH sessions into a client from outside go on, whatever is done to its routes: to a full tunnel, and back.

The documents are those of the roles, applied by a playbook over SSH. There is no relay: what goes into the
tunnel is lost, so a session whose packets took that way would stand still.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.netns.lab import LabError, Process, eventually
from tests.netns.safety import session
from tests.netns.safety.documents import MODULE, unhurried
from tests.netns.safety.fleet import Fleet, addresses
from tests.netns.safety.ssh_host import PYTHON, SshHost
from tests.role_documents import documents

SECOND = "eth1"
OUTSIDE = {4: "203.0.113.9", 6: "2001:db8:9::9"}
# By both ends, at each switch: what the loss of one packet each way makes them do.
LOST_AT_MOST = 2


@dataclass
class Session:
    """One that runs.

    :ivar name: of the uplink that it comes in by, and its IP version.
    """

    name: str
    process: Process
    local: str
    remote: str
    lost: int = 0

    @property
    def heard(self) -> int:
        numbers = re.findall(r"^heard (\d+)$", self.process.output(), flags=re.MULTILINE)
        return int(numbers[-1]) if numbers else 0


def sockets(fleet: Fleet, host: SshHost) -> dict[tuple[str, str], int]:
    """How many segments each SSH connection's two ends have lost, by (controller's end, host's end).

    Those that were sent again without need, because a busy machine was slow, are not counted: the other end
    has said that they came twice (RFC 2883).
    """
    found: dict[tuple[str, str], int] = {}
    for end, argv in (
        (fleet.controllers[0], ["ss", "-Htin", "state", "established", "dport", "22"]),
        (host, ["ss", "-Htin", "state", "established", "sport", "22"]),
    ):
        # Each connection is a line of addresses and an indented one of numbers.
        text = end.run(argv).stdout.replace("\n\t", " ")
        for line in text.splitlines():
            ours, theirs = line.split()[2:4]
            pair = (ours, theirs) if end is not host else (theirs, ours)
            again, twice = (
                int(number[1]) if (number := re.search(pattern, line)) else 0
                for pattern in (r"\bretrans:\d+/(\d+)", r"\bdsack_dups:(\d+)")
            )
            found[pair] = found.get(pair, 0) + max(0, again - twice)
    return found


def second_uplink(fleet: Fleet, host: SshHost) -> dict[int, str]:
    """Give the host another one, of which the answers leave by it; return its addresses."""
    near, far = addresses(2, 2), addresses(2, 1)
    ends = [[f"{pair[4]}/28", f"{pair[6]}/64"] for pair in (near, far)]
    fleet.lab.link(host, SECOND, ends[0], fleet.router, "other", ends[1])
    for version in (4, 6):
        family = f"-{version}"
        host.ip(family, "route", "add", "default", "via", far[version], "table", "79")
        host.ip(family, "rule", "add", "from", near[version], "priority", "32000", "lookup", "79")
    return near


@contextmanager
def open_session(fleet: Fleet, host: SshHost, name: str, address: str) -> Iterator[Session]:
    """A session from the first controller; at its end both ends have to be content."""
    before = sockets(fleet, host)
    program = [PYTHON, str(Path(session.__file__))]
    ssh = ["ssh", *fleet.ssh_options(), "-o", "ControlPath=none", "-T", f"root@{address}", *program]
    process = fleet.controllers[0].spawn([*program, *ssh], f"session-{name}")
    eventually(lambda: "heard" in process.output() or not process.running, 10, f"session {name}")
    new = sockets(fleet, host).keys() - before.keys()
    if len(new) != 1:
        raise LabError(f"no session {name}: {new}: {process.output()}")
    local, remote = new.pop()
    yield Session(name, process, local, remote)
    assert process.stop(timeout_s=10) == 0, f"{name}: {process.output()[-500:]}"
    assert "ended when it was told to: 0" in process.output(), process.output()[-500:]


def apply(fleet: Fleet, host: SshHost, *parameters: Mapping[str, Any]) -> None:
    tasks = [{MODULE: unhurried(dict(one))} for one in parameters]
    result = fleet.play({host: tasks}).wait()[host.label]
    assert result.status == "ok", result.msg
    assert result.values["confirmed"], "it was not a change that can cut the host off"


def assert_uninterrupted(fleet: Fleet, host: SshHost, sessions: list[Session], when: str) -> None:
    """Each goes on, over the connection that it began with, and has lost next to nothing since the last time.

    A session that stands still has a segment that is sent again and again; one that is slow has not.
    """
    marks = [(one, one.heard) for one in sessions]
    eventually(
        lambda: all(one.heard > mark + 10 or not one.process.running for one, mark in marks),
        10,
        f"all sessions go on: {when}",
    )
    for one in sessions:
        assert one.process.running, f"{when}: {one.name}: {one.process.output()[-500:]}"
    found = sockets(fleet, host)
    for one in sessions:
        lost = found.get((one.local, one.remote))
        assert lost is not None, f"{when}: {one.name} has another connection: {found}"
        more, one.lost = lost - one.lost, lost
        assert more <= LOST_AT_MOST, f"{when}: {one.name} lost {more} segments"


def devices(host: SshHost) -> set[str]:
    """Those by which the host sends to somebody outside."""
    routes = [host.ip("route", "get", address) for address in OUTSIDE.values()]
    return {words[words.index("dev") + 1] for words in (route.split() for route in routes)}


def test_sessions_from_outside_survive_a_full_tunnel(fleet: Fleet) -> None:
    """To a full tunnel, to one with a kill switch, and back to nothing."""
    host = fleet.hosts[0]
    uplinks = {"eth0": host.address, SECOND: second_uplink(fleet, host)}
    peers = [{"public_key": "", "endpoint": f"{addresses(1, 1)[4]}:51820"}]
    plain, closed = (
        documents("client", client_kill_switch=on, relay_peers=peers)["client"] for on in (False, True)
    )
    device = documents("client", relay_peers=peers)["relay"]
    with ExitStack() as stack:
        sessions = [
            stack.enter_context(open_session(fleet, host, f"{uplink}-{version}", address))
            for uplink, pair in uplinks.items()
            for version, address in pair.items()
        ]
        assert devices(host) == {"eth0"}
        apply(fleet, host, device, plain)
        assert devices(host) == {device["devices"][0]["name"]}
        assert_uninterrupted(fleet, host, sessions, "full tunnel")

        apply(fleet, host, closed)
        assert all("CULVERT-KILLSWITCH" in host.state()[f"{tool}-nft"] for tool in ("iptables", "ip6tables"))
        assert_uninterrupted(fleet, host, sessions, "kill switch")
        assert all(fleet.reaches(host, version) for version in (4, 6)), "new connections"

        apply(fleet, host, {"name": closed["name"], "state": "absent"})
        assert devices(host) == {"eth0"}
        assert_uninterrupted(fleet, host, sessions, "back")
