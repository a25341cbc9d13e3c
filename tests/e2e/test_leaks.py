# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A client with a kill switch, from before its deployment to after its removal, with a capture on its uplink.

Host and container try to get out in every way there is, all the time (leak_traffic.py). From the moment in
which the kill switch is there until the one in which it is removed, not one packet leaves by the uplink but
the tunnel's own, what a link needs (ARP, neighbours, listeners, DHCP), answers to connections that came from
outside, and the listed exceptions; and connections from outside are answered whenever the host is up.

Among what happens is that the client's server goes silent: its relay is killed, and later the whole host. The
client then goes to the other server by itself, and back when the first one answers again.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import pytest
from fleet import Run
from leak_lab import ALLOWED_PORT, CLIENT, ROUTER, SERVER, SERVER2, LeakLab
from leak_traffic import Way
from leak_wire import Bridge, Verdict, count_ways, describe

from tests.netns.pcap import Packet

pytestmark = pytest.mark.e2e

SITE, TEARDOWN = "playbooks/site.yml", "playbooks/teardown.yml"
NUMBER = {SERVER: 11, SERVER2: 12}
RELAY = "culvert-culvert0"
#: Seconds in which a tunnel works again.
BACK_WITHIN_S = 60


@dataclass
class Evidence:
    """What was seen of the client, and until when it has been judged."""

    lab: LeakLab
    bridge: Bridge
    judged_until: float = 0.0

    def sent(self) -> tuple[list[Packet], list[Packet]]:
        """All packets of the capture, and those of them that the client sent."""
        time.sleep(0.2)  # what was sent just now is in the kernel's buffer still
        packets = self.bridge.packets()
        return packets, self.lab.uplink().sent(packets)

    def judge(self, since: float, until: float) -> list[Packet]:
        """Fail if something left the client in that time that must not; return what left."""
        packets, sent = self.sent()
        now = [packet for packet in sent if since <= packet.at <= until]
        verdict = Verdict(self.lab.uplink(), packets, self.lab.ways(), self.lab.exceptions())
        leaks = [packet for packet in now if not verdict.allows(packet)]
        assert not leaks, f"left by the uplink:\n{describe(leaks, self.lab.ways(), since)}"
        self.judged_until = until
        return now

    def await_every_way(self, ways: Sequence[Way], since: float = 0.0, timeout_s: float = 30) -> None:
        """Until the capture has seen a packet of each way that was sent after a moment."""
        deadline = time.monotonic() + timeout_s
        while True:
            _, sent = self.sent()
            seen = count_ways([packet for packet in sent if packet.at > since], ways)
            missing = [way.name for way in ways if not seen[way.name]]
            if not missing:
                return
            assert time.monotonic() < deadline, f"not seen: {missing}; {self.lab.progress()}"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LeakLab]:
    made = LeakLab.make(tmp_path_factory.mktemp("leaks"))
    yield made
    made.fleet.down()


@pytest.fixture(scope="module")
def evidence(lab: LeakLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evidence]:
    bridge = Bridge("culvert-leaks-outer", tmp_path_factory.mktemp("capture") / "uplink.pcap")
    yield Evidence(lab, bridge)
    bridge.stop()


def play(lab: LeakLab, playbook: str, *arguments: str) -> Run:
    """Run a playbook with the kill switch on."""
    run = lab.fleet.play(
        playbook,
        *arguments,
        client_kill_switch=True,
        client_kill_switch_allow=[
            {"to": way.address, "protocol": "udp", "port": ALLOWED_PORT} for way in lab.exceptions()
        ],
    )
    assert run.code == 0, run.output[-6000:]
    return run


def await_tunnel(lab: LeakLab, server: str) -> None:
    """Until the internet sees the client as coming from the server."""
    fleet, deadline = lab.fleet, time.monotonic() + BACK_WITHIN_S
    ask = f"curl -sS --max-time 3 http://{fleet.internet(ROUTER)}/ 2>&1 || true"
    while (seen := fleet.shell(CLIENT, ask).strip()) != fleet.internet(NUMBER[server]):
        assert time.monotonic() < deadline, f"the client is seen as: {seen}"
        time.sleep(0.5)


def docker(*words: str) -> None:
    subprocess.run(["docker", *words], check=True, capture_output=True, timeout=120)


@contextmanager
def steady(lab: LeakLab) -> Iterator[None]:
    """Connection tracking begins anew: whatever is open is older than it, be it from inside or outside."""
    lab.forget_connections()
    yield
    await_tunnel(lab, SERVER)


@contextmanager
def relay_crashed(lab: LeakLab) -> Iterator[None]:
    lab.fleet.shell(CLIENT, f"kill -9 $(docker inspect --format '{{{{.State.Pid}}}}' {RELAY})")
    yield
    await_tunnel(lab, SERVER)


@contextmanager
def relay_killed(lab: LeakLab) -> Iterator[None]:
    """By hand, so that the engine does not start it again."""
    lab.fleet.shell(CLIENT, f"docker kill {RELAY}")
    yield
    lab.fleet.shell(CLIENT, f"docker start {RELAY}")
    await_tunnel(lab, SERVER)


@contextmanager
def container_restarted(lab: LeakLab) -> Iterator[None]:
    lab.fleet.shell(CLIENT, f"docker restart {RELAY}")
    yield
    await_tunnel(lab, SERVER)


@contextmanager
def engine_restarted(lab: LeakLab) -> Iterator[None]:
    lab.fleet.shell(CLIENT, "systemctl restart docker")
    yield
    await_tunnel(lab, SERVER)


@contextmanager
def host_rebooted(lab: LeakLab) -> Iterator[None]:
    docker("restart", lab.fleet.container(CLIENT))
    yield
    await_tunnel(lab, SERVER)


@contextmanager
def failover(lab: LeakLab) -> Iterator[None]:
    """The relay of the client's server is killed by hand, so that its engine does not start it again."""
    lab.fleet.shell(SERVER, f"docker kill {RELAY}")
    yield
    await_tunnel(lab, SERVER2)


@contextmanager
def back_again(lab: LeakLab) -> Iterator[None]:
    lab.fleet.shell(SERVER, f"docker start {RELAY}")
    yield
    await_tunnel(lab, SERVER)


@contextmanager
def server_gone(lab: LeakLab) -> Iterator[None]:
    docker("kill", lab.fleet.container(SERVER))
    yield
    await_tunnel(lab, SERVER2)


Phase = Callable[[LeakLab], AbstractContextManager[None]]
PHASES: Sequence[Phase] = (
    steady,
    relay_crashed,
    relay_killed,
    container_restarted,
    engine_restarted,
    host_rebooted,
    failover,
    back_again,
    server_gone,
)


def assert_exceptions_pass(lab: LeakLab, sent: Sequence[Packet]) -> None:
    """They also show that the capture goes on and that the client does."""
    exceptions: list[Way] = lab.exceptions()
    seen = count_ways(sent, exceptions)
    assert all(seen[way.name] for way in exceptions), seen


def test_without_a_kill_switch_the_capture_sees_every_way_out(evidence: Evidence) -> None:
    """Else none of what follows would mean anything."""
    lab = evidence.lab
    evidence.await_every_way([*lab.ways(), *lab.exceptions()])
    assert lab.unanswered() == []
    assert not any(look.there for look in lab.looks())


def test_start(evidence: Evidence) -> None:
    """From the kill switch on, which comes before anything else that the run does to routes."""
    lab = evidence.lab
    play(lab, SITE)
    await_tunnel(lab, SERVER)
    lab.await_rounds()
    assert lab.unanswered() == []
    there = [look for look in lab.looks() if look.there]
    assert there, "there is no kill switch, or not in both families"
    assert_exceptions_pass(lab, evidence.judge(there[0].ended, time.time()))


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.__name__)
def test_nothing_leaves(evidence: Evidence, phase: Phase) -> None:
    lab, begun = evidence.lab, evidence.judged_until
    assert begun, "the deployment leaks already"
    with phase(lab):
        lab.await_rounds()
        assert lab.unanswered() == []
        lab.await_rounds(2)
    looks = [look for look in lab.looks() if look.begun > begun]
    assert looks
    assert all(look.there for look in looks), "the kill switch was away"
    assert_exceptions_pass(lab, evidence.judge(begun, time.time()))


def test_teardown(evidence: Evidence) -> None:
    """Nothing before the kill switch itself is gone, then everything as before."""
    lab, begun = evidence.lab, evidence.judged_until
    play(lab, TEARDOWN, "--limit", CLIENT)
    looks = [look for look in lab.looks() if look.begun > begun]
    there = [look for look in looks if look.there]
    assert there
    assert looks[: len(there)] == there, "it came and went"
    evidence.judge(begun, there[-1].begun)
    # The connections that were kept are from before the reboot.
    ways = [way for way in lab.ways() if way.protocol != "kept"]
    evidence.await_every_way(ways, since=there[-1].begun)
    assert lab.unanswered() == []
