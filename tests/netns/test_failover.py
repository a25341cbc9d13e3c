# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A client of several servers, at the relay's default settings: a server that is killed, cut off or gone
under running traffic, one that comes back, one that comes and goes. The network is failover_lab.py's.
"""

from __future__ import annotations

import base64
import signal
import socket
import time
from collections.abc import Callable

import pytest

from tests.netns.failover_lab import NATTED, ROUTED, Flow, Servers, make_servers
from tests.netns.lab import Lab, eventually

# What the issue asks for: the one assertion here about a clock.
IN_TIME_S = 5.0
# A move by way of a failure takes longer than this.
NOTICED_S = 2.4
SETTLED_S = 1.5
Report = Callable[[str, object], None]


def running_flows(net: Servers) -> list[Flow]:
    """UDP, one TCP connection, and new connections through masquerade, all of them at work."""
    flows = [net.flow("udp", ROUTED), net.flow("stream", ROUTED), net.flow("connect", NATTED)]
    for flow in flows:
        eventually(lambda flow=flow: len(flow.moments()) > 5, 10, f"{flow.mode} gets answers")  # type: ignore[misc]
    time.sleep(SETTLED_S)
    return flows


def watch(net: Servers, flows: list[Flow], number: int, how: str) -> dict[str, float]:
    """Break a server under the flows; for how long each of them had no answer."""
    start = time.monotonic()
    net.break_server(number, how)
    for flow in flows:
        eventually(
            lambda flow=flow: flow.moments()[-1] > start + 2.0,  # type: ignore[misc]
            20,
            f"{flow.mode} goes on: {net.moves()}",
        )
    time.sleep(SETTLED_S)
    end = time.monotonic()
    return {flow.mode: round(flow.longest_gap_s(start, end), 2) for flow in flows}


@pytest.mark.parametrize("how", ["killed", "cut", "gone"])
@pytest.mark.parametrize("kind", ["relay", "go"])
def test_the_active_server_fails_under_running_traffic(
    lab: Lab, record_property: Report, kind: str, how: str
) -> None:
    net = make_servers(lab, [kind, kind])
    flows = running_flows(net)
    assert net.active() == 0
    gaps_s = watch(net, flows, 0, how)
    record_property("seconds without traffic", gaps_s)
    print(f"{kind}, {how}: {gaps_s}, the relay left it after {net.silences_s()} s")
    assert net.active() == 1
    assert len(net.silences_s()) == 1
    assert all(flow.process.running for flow in flows), "the TCP connection goes on"
    assert max(gaps_s.values()) < IN_TIME_S
    assert net.silences_s()[0] < IN_TIME_S


def goes_on(flows: list[Flow]) -> None:
    """Every flow gets answers from now on, and the TCP connection is the one it was."""
    start = time.monotonic()
    for flow in flows:
        eventually(lambda flow=flow: flow.moments()[-1] > start, 10, f"{flow.mode} goes on")  # type: ignore[misc]
    assert all(flow.process.running for flow in flows)


def test_the_preferred_server_gets_the_traffic_back(lab: Lab) -> None:
    net = make_servers(lab, ["relay", "relay"])
    flows = running_flows(net)
    watch(net, flows, 0, "killed")
    assert net.active() == 1
    net.mend_server(0, "killed")
    mended = time.monotonic()
    eventually(lambda: net.active() == 0, 90, "the first server is back")
    returned = time.monotonic()
    goes_on(flows)
    assert returned - mended > 25, "it had to answer for a while first"
    assert max(flow.longest_gap_s(mended, time.monotonic()) for flow in flows) < NOTICED_S, (
        "make before break"
    )
    assert "answers again" in net.moves()[-1]


@pytest.mark.parametrize("how", ["killed", "cut"])
def test_a_server_that_comes_and_goes_is_left_alone(lab: Lab, how: str) -> None:
    net = make_servers(lab, ["relay", "relay"])
    flows = running_flows(net)
    watch(net, flows, 0, how)
    for _ in range(5):
        net.mend_server(0, how)
        time.sleep(3.0)
        net.break_server(0, how)
        time.sleep(3.0)
    assert net.active() == 1
    assert len(net.moves()) == 2, "the choice at the start, and one move"
    goes_on(flows)


def request(net: Servers, *lines: str) -> str:
    """A request on the control socket of the client's relay; its answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(5)
        connection.connect(str(net.here.socket))
        connection.sendall("\n".join([*lines, "", ""]).encode())
        return connection.recv(65536).decode()


def test_a_drained_server_is_left_without_losing_a_flow(lab: Lab) -> None:
    net = make_servers(lab, ["relay", "go", "relay"])
    flows = running_flows(net)
    # By the file: the third one is to be first.
    net.here.settings.peers[0].failover = 1001
    net.here.settings.peers[1].failover = 1002
    net.here.write_settings()
    assert net.here.process is not None
    started = time.monotonic()
    net.here.process.send_signal(signal.SIGHUP)
    eventually(lambda: net.active() == 2, 10, "the third server has the traffic")
    goes_on(flows)
    # By the socket: the second.
    key = base64.b64decode(net.keys[1].public)
    assert request(net, "set=1", f"public_key={key.hex()}", "failover=2") == "errno=0\n\n"
    eventually(lambda: net.active() == 1, 10, "the second server has the traffic")
    goes_on(flows)
    assert f"failover_active={key.hex()}" in request(net, "culvert=1")
    assert max(flow.longest_gap_s(started, time.monotonic()) for flow in flows) < NOTICED_S
    assert net.silences_s() == []


def test_a_relay_that_starts_anew_in_time_keeps_its_clients(lab: Lab) -> None:
    """By the handshake: its sessions are gone, so it answers nothing else. A busy machine may take longer to
    start a process than the default would wait.
    """
    net = make_servers(lab, ["relay", "relay"], timeout_s=20.0)
    flows = running_flows(net)
    net.break_server(0, "killed")
    net.mend_server(0, "killed")
    goes_on(flows)
    assert net.active() == 0
    assert net.silences_s() == []


def test_the_state_is_shown(lab: Lab) -> None:
    net = make_servers(lab, ["relay", "relay"])
    net.client.ping(ROUTED)
    shown = net.here.culvert("show")
    assert "failover: 10.86.0.0/24, 203.0.113.0/24: after 2.5 s of silence, back after 30 s" in shown
    assert "failover: active, priority 1" in shown
    assert "failover: unknown, priority 2" in shown
    assert "allowed ips: 10.86.0.1/32, 10.86.0.0/24, 203.0.113.0/24" in shown
