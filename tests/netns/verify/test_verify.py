# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""``verify.yml`` on a VPN that works, and on fifteen that somebody has broken."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.netns.endpoints import REPOSITORY
from tests.netns.verify.broken import BREAKS, Break, broken
from tests.netns.verify.fleet import Report, VpnFleet


def test_a_vpn_that_works_passes(vpn: VpnFleet) -> None:
    report = vpn.verify()
    assert report.code == 0, report.output
    assert {name: host["verdict"] for name, host in report.hosts.items()} == {"server": "ok", "client": "ok"}
    checks = {check["name"]: check["ok"] for check in report.hosts["client"]["checks"]}
    # Nobody has asked for a throughput; all the rest is known.
    assert {name for name, ok in checks.items() if ok is not True} == {"throughput"}
    assert _row(report, "client")[:3] == ["client", "client", "ok"]
    assert set(_row(report, "client")[3:]) == {"ok"}
    for host, suite in report.suites.items():
        assert (suite.get("failures"), suite.get("errors")) == ("0", "0"), host


@pytest.mark.parametrize("one", BREAKS, ids=lambda one: one.name.replace(" ", "_"))
def test_what_is_broken_is_named(vpn: VpnFleet, one: Break) -> None:
    with broken(vpn, one):
        report = vpn.verify()
    assert report.code == 2, report.output
    client = report.hosts["client"]
    assert client["verdict"] == "FAIL"
    assert one.check in report.failed("client"), report.failed("client")
    assert client["cause"]["name"] in one.causes, client
    for word in one.words:
        assert word in client["says"]
    told = [a["cause"]["name"] for a in client["explained"] + client["explained_by_server"] if a["cause"]]
    assert set(told) & set(one.explained), (told, client)
    _is_told_everywhere(report, one)


def test_a_host_that_cannot_be_reached_is_in_the_report(vpn: VpnFleet) -> None:
    report = vpn.verify(ansible_port=2222)
    assert report.code != 0
    for host in ("server", "client"):
        assert report.hosts[host]["verdict"] == "unreachable"
        assert _row(report, host)[2] == "unreachable"
        case = report.suites[host].find("testcase/error")
        assert case is not None
        assert "Ansible cannot reach it" in case.get("message", "")


def test_some_of_the_hosts_can_be_verified(vpn: VpnFleet) -> None:
    report = vpn.verify("--limit", "client")
    assert report.code == 0, report.output
    assert list(report.hosts) == list(report.suites) == ["client"]


def test_a_rollout_stops_at_the_first_batch_with_a_bad_tunnel(vpn: VpnFleet, tmp_path: Path) -> None:
    """What a check that may fail does not stop: the other host of the play, in a batch of its own."""
    tasks = REPOSITORY / "playbooks" / "tasks" / "verify_host.yml"
    play = {
        "hosts": "vpn_servers:vpn_clients",
        "gather_facts": False,
        "become": True,
        "serial": 1,
        "max_fail_percentage": 0,
        "tasks": [
            {"ansible.builtin.import_tasks": str(tasks)},
            {"ansible.builtin.debug": {"msg": "{{ inventory_hostname }} is done"}},
        ],
    }
    playbook = tmp_path / "rollout.yml"
    playbook.write_text(yaml.safe_dump([play]))
    vpn.stop_relay("server")
    try:
        stopped = vpn.play(tmp_path / "stopped", str(playbook))
    finally:
        vpn.start_relay("server")
        vpn.await_tunnel()
    assert stopped.returncode == 2, stopped.stdout
    assert "no relay is attached" in stopped.stdout
    assert "is done" not in stopped.stdout
    passed = vpn.play(tmp_path / "passed", str(playbook))
    assert passed.returncode == 0, passed.stdout
    assert "server is done" in passed.stdout
    assert "client is done" in passed.stdout


def _is_told_everywhere(report: Report, one: Break) -> None:
    """The table, the JUnit file and the failure of the host itself agree with the JSON file."""
    says = report.hosts["client"]["says"]
    assert _row(report, "client")[2] == "FAIL"
    printed = _squeezed(report.output)
    assert _squeezed(f"- client: {says}") in printed
    assert _squeezed(f"msg: {says}") in printed
    suite = report.suites["client"]
    failed = {case.get("name"): case.find("failure") for case in suite.iter("testcase")}
    failure = failed[one.check]
    assert failure is not None
    reasons = {check["name"]: check["reasons"] for check in report.hosts["client"]["checks"]}
    assert failure.get("message") == reasons[one.check][0]
    assert suite.findtext("system-out") == f"cause: {says}"


def _row(report: Report, host: str) -> list[str]:
    """The host's line in the table."""
    lines = [line.strip().removeprefix("- ").strip("'") for line in report.output.splitlines()]
    return next(line.split() for line in lines if line.startswith(f"{host} ") and "ok=" not in line)


def _squeezed(text: str) -> str:
    """Without what YAML puts around, into and between the words of a long text."""
    return " ".join(text.replace("'", "").replace('"', "").replace("\\", "").split())
