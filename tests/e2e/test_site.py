# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A deployment's life, in order: blank hosts, dry run, deploy, use, run again, teardown; then reboots."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from fleet import PENDING, ROOT, Fleet

pytestmark = pytest.mark.e2e

SERVER, CLIENT1, CLIENT2 = HOSTS = ["demo-server", "demo-client1", "demo-client2"]
SITE, TEARDOWN, STATUS, ROLLBACK = (
    f"playbooks/{name}.yml" for name in ("site", "teardown", "status", "rollback")
)
Snapshots = dict[str, dict[str, list[str]]]


def snapshots(fleet: Fleet) -> Snapshots:
    return {host: fleet.snapshot(host) for host in HOSTS}


def assert_same(before: Snapshots, after: Snapshots) -> None:
    for host, parts in before.items():
        for part, lines in parts.items():
            gone = [line for line in lines if line not in after[host][part]]
            new = [line for line in after[host][part] if line not in lines]
            assert lines == after[host][part], f"{host}: {part}: gone {gone}, new {new}"


def seen_address(fleet: Fleet, client: str) -> str:
    """Return the address under which the internet host sees a client, or what curl said instead."""
    script = f"curl -sS --max-time 5 http://{fleet.internet(29)}/ 2>&1 || true"
    return fleet.shell(client, script).strip()


def wait_until_seen(fleet: Fleet, client: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while (seen := seen_address(fleet, client)) != fleet.internet(11):
        assert time.monotonic() < deadline, f"{client} is seen as: {seen}"
        time.sleep(0.5)


@pytest.fixture(scope="module")
def blank(fleet: Fleet) -> Snapshots:
    """The hosts as they were before us. Asked twice: the first look may load kernel modules."""
    snapshots(fleet)
    return snapshots(fleet)


@pytest.fixture(scope="module")
def deployed(fleet: Fleet, blank: Snapshots) -> str:
    """What the deployment printed, as much of it as Ansible can be made to print."""
    run = fleet.play(SITE, "-vvvv", "--diff")
    assert run.code == 0, run.output[-4000:]
    return run.output


def test_without_a_tunnel_the_internet_is_out_of_reach(fleet: Fleet, blank: Snapshots) -> None:
    assert not re.fullmatch(r"[\d.]+", seen_address(fleet, CLIENT1))


def test_check_on_blank_hosts_shows_the_changes_and_makes_none(fleet: Fleet, blank: Snapshots) -> None:
    run = fleet.play(SITE, "--check", "--diff")
    assert run.code == 0, run.output[-4000:]
    assert all(count > 5 for count in run.changed().values()), run.changed()
    assert "device culvert0" in run.output
    assert "PrivateKeyFile" in run.output
    assert_same(blank, snapshots(fleet))


def test_a_client_reaches_the_internet_from_the_servers_address(fleet: Fleet, deployed: str) -> None:
    for client in (CLIENT1, CLIENT2):
        wait_until_seen(fleet, client)


def test_status_shows_every_host(fleet: Fleet, deployed: str) -> None:
    run = fleet.play(STATUS, status_egress_url=f"http://{fleet.internet(29)}/")
    assert run.code == 0, run.output[-4000:]
    for host in HOSTS:
        assert re.search(rf"{host} .* \d+ s ago .* [\d.]+ ms .*ok", run.output), run.output
    assert fleet.internet(11) in run.output


def test_a_second_run_changes_nothing(fleet: Fleet, deployed: str) -> None:
    run = fleet.play(SITE)
    assert run.code == 0, run.output[-4000:]
    assert set(run.changed().values()) == {0}, run.output[-6000:]


def test_check_on_deployed_hosts_reports_no_change(fleet: Fleet, deployed: str) -> None:
    run = fleet.play(SITE, "--check", "--diff", "--limit", f"{SERVER},{CLIENT1}")
    assert run.code == 0, run.output[-4000:]
    assert run.changed() == {SERVER: 0, CLIENT1: 0}, run.output[-6000:]


def test_a_peer_is_added_to_a_running_relay(fleet: Fleet, deployed: str) -> None:
    """The server forgets a client, as if that were new to the inventory: nobody is restarted for it."""
    ask = "wg show culvert0 public-key"
    stays, new = (fleet.shell(client, ask).strip() for client in (CLIENT1, CLIENT2))
    others = f"awk -v RS= -v ORS='\\n\\n' 'index($0, \"{new}\") == 0' culvert0.conf"
    forget = f"{others} >new && cat new >culvert0.conf && rm new"
    fleet.shell(SERVER, f"cd /etc/culvert && wg set culvert0 peer {new} remove && {forget}")

    started = "docker inspect --format '{{.State.StartedAt}} {{.State.Pid}}' culvert-culvert0"
    received = f"wg show culvert0 transfer | awk '$1 == \"{stays}\" {{ print $2 }}'"
    processes = {host: fleet.shell(host, started) for host in HOSTS}
    before = int(fleet.shell(SERVER, received))
    assert before > 0
    run = fleet.play(SITE, "--diff", "--limit", f"{SERVER},{CLIENT1}")
    assert run.code == 0, run.output[-4000:]
    assert run.changed() == {SERVER: 1, CLIENT1: 0}, run.output[-6000:]
    assert f"peer {new}" in run.output
    assert f"peer {stays}" not in run.output
    assert {host: fleet.shell(host, started) for host in HOSTS} == processes
    assert int(fleet.shell(SERVER, received)) >= before, "the counters of the other session began anew"
    wait_until_seen(fleet, CLIENT2)


def test_offloads_change_in_a_running_relay_and_the_batch_in_a_new_one(fleet: Fleet, deployed: str) -> None:
    """Of the batch the container says what it was started with, so another one is another container: it is
    started beside the one before, and takes over.
    """
    started = "docker inspect --format '{{.State.StartedAt}}' culvert-culvert0"
    show = "docker exec culvert-culvert0 culvert show culvert0"
    assert "  batch: compiled\n" in fleet.shell(CLIENT1, show)
    processes = fleet.shell(CLIENT1, started)

    def play(**variables: Any) -> str:
        run = fleet.play(SITE, "--limit", CLIENT1, **variables)
        assert run.code == 0, run.output[-4000:]
        assert run.changed() == {CLIENT1: 1 if len(variables) == 1 else 3}, run.output[-4000:]
        wait_until_seen(fleet, CLIENT1)
        return fleet.shell(CLIENT1, show)

    off = ["gro", "gso", "tso", "uso"]
    assert "  offloads: none\n" in play(relay_disable_offloads=off)
    assert fleet.shell(CLIENT1, started) == processes, "offloads are no reason for a restart"
    shown = play(relay_disable_offloads=off, relay_batch="python")
    assert "  batch: python\n" in shown
    assert "  offloads: none\n" in shown
    assert fleet.shell(CLIENT1, started) != processes
    again = fleet.play(SITE, "--limit", CLIENT1, relay_disable_offloads=off, relay_batch="python")
    assert again.changed() == {CLIENT1: 0}, again.output[-4000:]
    back = fleet.play(SITE, "--limit", CLIENT1)
    assert back.code == 0, back.output[-4000:]
    assert "  batch: compiled\n" in fleet.shell(CLIENT1, show)


def test_the_relay_has_no_more_privileges_than_it_needs(fleet: Fleet, deployed: str) -> None:
    pid = fleet.shell(SERVER, "docker inspect --format '{{.State.Pid}}' culvert-culvert0").strip()
    status = fleet.shell(SERVER, f"cat /proc/{pid}/status")
    fields = dict(re.findall(r"^(\w+):\s+(.*)$", status, flags=re.M))
    net_admin = f"{1 << 12:016x}"
    assert fields["Uid"].split() == ["51820"] * 4
    assert fields["Gid"].split() == ["51820"] * 4
    assert (fields["CapEff"], fields["CapPrm"], fields["CapInh"]) == (net_admin, net_admin, "0" * 16)
    assert fields["NoNewPrivs"] == "1"
    readonly = fleet.shell(
        SERVER, "docker inspect --format '{{.HostConfig.ReadonlyRootfs}}' culvert-culvert0"
    )
    assert readonly.strip() == "true"


def test_the_responder_has_no_privileges_and_is_on_the_tunnels_addresses(fleet: Fleet, deployed: str) -> None:
    inspect = "docker inspect --format '{{.State.Pid}}' culvert-responder-culvert0"
    status = fleet.shell(SERVER, f"cat /proc/$({inspect})/status")
    fields = dict(re.findall(r"^(\w+):\s+(.*)$", status, flags=re.M))
    assert fields["Uid"].split() == ["51820"] * 4
    assert {fields[f"Cap{kind}"] for kind in ("Eff", "Prm", "Inh", "Bnd", "Amb")} == {"0" * 16}
    assert fields["NoNewPrivs"] == "1"
    addresses = fleet.shell(SERVER, "ip -o addr show dev culvert0 scope global | awk '{print $4}'").split()
    listening = fleet.shell(SERVER, "ss -Hlntu sport = :51821 | awk '{print $5}'").split()
    expected = {address.partition("/")[0] for address in addresses}
    assert {entry.rpartition(":")[0].strip("[]") for entry in listening} == expected
    for address in expected:
        url = f"http://{f'[{address}]' if ':' in address else address}:51821"
        seen = fleet.shell(CLIENT1, f"curl -sg --max-time 20 {url}/").strip()
        assert seen in fleet.shell(CLIENT1, "ip -o addr show dev culvert0")
        assert (
            fleet.shell(CLIENT1, f"curl -sg --max-time 20 {url}/bytes/1000000 | wc -c").strip() == "1000000"
        )


def test_a_capture_comes_out_of_the_container(fleet: Fleet, deployed: str) -> None:
    """And is over when the command that asked for it is, however that ended."""
    show = "docker exec culvert-culvert0 culvert show culvert0"
    command = "culvert capture culvert0 --filter 'proto icmp and out' --packets 2"
    address = fleet.shell(SERVER, "ip -4 -o addr show dev culvert0 | awk '{print $4}'").partition("/")[0]
    script = f"""
        {command} > /tmp/seen.pcap & capture=$!
        for i in $(seq 50); do {show} | grep -q 'capture: running' && break; sleep 0.1; done
        ping -c 3 -W 2 {address} > /dev/null; wait $capture; stat -c %s /tmp/seen.pcap; rm /tmp/seen.pcap
    """
    assert fleet.shell(CLIENT1, script).strip() == str(24 + 2 * (16 + 84))
    script = f"""
        sleep 30 | culvert capture culvert0 --seconds 0 > /dev/null &
        for i in $(seq 100); do {show} | grep -q 'capture: running' && break; sleep 0.1; done
        sleep 2; {show} | grep 'capture: running' || exit 1
        kill -TERM $(pgrep -f '[d]ocker exec -i culvert-culvert0 culvert capture')
        for i in $(seq 50); do {show} | grep -q 'capture: running' || break; sleep 0.1; done
        {show} | grep -c 'capture: running'; true
    """
    assert fleet.shell(CLIENT1, script).strip().splitlines()[-1] == "0"


def test_no_private_key_leaves_its_host(fleet: Fleet, deployed: str, tmp_path: Path) -> None:
    keys = [fleet.shell(host, "cat /etc/culvert/culvert0.key").strip() for host in HOSTS]
    assert all(re.fullmatch(r"[A-Za-z0-9+/]{43}=", key) for key in keys)
    assert len(set(keys)) == len(HOSTS)
    printed = "\n".join(fleet.logs)
    assert "relay_key" in printed  # the search looks at the right text
    facts = fleet.play(STATUS, "-vvvv").output
    haystacks = {"output of Ansible": printed, "output of status": facts}
    for host in HOSTS:
        haystacks[f"container log on {host}"] = fleet.shell(host, "docker logs culvert-culvert0 2>&1")
        haystacks[f"docker inspect on {host}"] = fleet.shell(host, "docker inspect culvert-culvert0")
        haystacks[f"arguments on {host}"] = fleet.shell(host, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
        haystacks[f"journal on {host}"] = fleet.shell(host, "journalctl --no-pager")
        haystacks[f"configuration on {host}"] = fleet.shell(host, "cat /etc/culvert/*.conf")
    for key in keys:
        assert not [where for where, text in haystacks.items() if key in text]
    places = [str(ROOT), str(Path.home() / ".ansible"), "/tmp", "/var/tmp"]
    pattern = tmp_path / "patterns"
    pattern.write_text("\n".join(keys) + "\n")
    found = subprocess.run(
        ["grep", "-rlsaF", "--exclude=patterns", "--exclude-dir=.venv", "-f", str(pattern), *places],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout == "", f"private keys on the controller: {found.stdout}"


def test_the_key_files_can_be_read_by_the_relay_only(fleet: Fleet, deployed: str) -> None:
    listing = fleet.shell(
        SERVER, "stat -c '%a %u %g' /etc/culvert/culvert0.key /etc/culvert/culvert0.conf /etc/culvert"
    )
    assert listing.split("\n")[:3] == ["400 51820 51820", "640 0 51820", "750 0 51820"]


def test_a_restarted_container_carries_on(fleet: Fleet, deployed: str) -> None:
    fleet.shell(SERVER, "docker restart culvert-culvert0")
    wait_until_seen(fleet, CLIENT1)
    fleet.shell(CLIENT1, "docker restart culvert-culvert0")
    wait_until_seen(fleet, CLIENT1)


def links_towards(fleet: Fleet, client: str, address: str) -> set[str]:
    """Return the devices through which packets to or from `address` go while a client tries to reach it."""
    script = f"""
        timeout 6 tcpdump -i any -n -l host {address} and not icmp >/tmp/seen 2>/dev/null & sleep 1
        curl -sS --max-time 3 http://{address}/; wait; cat /tmp/seen
    """
    lines = fleet.shell(client, script, check=False).splitlines()
    return {words[1] for line in lines if len(words := line.split()) > 2 and words[2] in ("In", "Out")}


def test_a_stopped_relay_sends_nothing_in_the_clear(fleet: Fleet, deployed: str) -> None:
    """That nothing arrives proves nothing, as the lab's network drops foreign packets: look at the links."""
    assert links_towards(fleet, CLIENT2, fleet.internet(29)) == {"culvert0"}
    fleet.shell(CLIENT2, "docker stop culvert-culvert0")
    assert links_towards(fleet, CLIENT2, fleet.internet(29)) <= {"culvert0"}
    fleet.shell(CLIENT2, "docker start culvert-culvert0")
    wait_until_seen(fleet, CLIENT2)


def test_teardown_leaves_the_hosts_as_they_were(fleet: Fleet, deployed: str, blank: Snapshots) -> None:
    check = fleet.play(TEARDOWN, "--check", "--diff")
    assert check.code == 0, check.output[-4000:]
    wait_until_seen(fleet, CLIENT2)  # check mode removed nothing
    run = fleet.play(TEARDOWN)
    assert run.code == 0, run.output[-4000:]
    assert_same(blank, snapshots(fleet))
    again = fleet.play(TEARDOWN)
    assert again.code == 0, again.output[-4000:]
    assert set(again.changed().values()) == {0}, again.output[-6000:]


@pytest.fixture(scope="module")
def deployed_again(fleet: Fleet) -> None:
    """For what comes last: a reboot renews much that is not ours, such as hardware addresses."""
    run = fleet.play(SITE)
    assert run.code == 0, run.output[-4000:]
    wait_until_seen(fleet, CLIENT1)


# What these tests change of the clients: rules stay, routes do not.
DOCUMENT = "/var/lib/culvert/network.d/20-client-culvert0.json"
ELSEWHERE = {"client_tunnel_prefixes": ["203.0.113.0/24"]}


def network(fleet: Fleet, host: str) -> dict[str, list[str]]:
    """Return a host's network state and the documents that it keeps of it, but for what a reboot renews."""
    parts = fleet.snapshot(host)
    # What the relay keeps for itself is none of the host's.
    documents = fleet.shell(host, "cd /var/lib/culvert && grep -r --exclude-dir=relay . . | sort")
    # The record of what was made in nftables says in which boot it was.
    documents = re.sub(r"[0-9a-f-]{36}-\d+/\d+", "BOOT", documents)
    kept = {name: parts[name] for name in ("ip rule", "ip route", "iptables-save", "ip6tables-save")}
    routes = [line for line in kept["ip route"] if "fe80:" not in line]
    # Docker's resolver in the host listens on other ports after each start.
    filters = [re.sub(r"(127\.0\.0\.11:|--sport )\d+", r"\1", line) for line in kept["iptables-save"]]
    return {**kept, "ip route": routes, "iptables-save": filters, "documents": documents.splitlines()}


def assert_network(fleet: Fleet, host: str, wanted: dict[str, list[str]]) -> None:
    found = network(fleet, host)
    for part, lines in wanted.items():
        gone, new = set(lines) - set(found[part]), set(found[part]) - set(lines)
        assert found[part] == lines, f"{host}: {part}: gone {gone}, new {new}"


def wait_for(fleet: Fleet, host: str, script: str, timeout_s: float = 60) -> None:
    """Wait until a command succeeds on a host; it may be booting."""
    until = f"until {script}; do sleep 0.1; done"
    fleet.shell(host, f"timeout {timeout_s:.0f} sh -c '{until}'", timeout_s=timeout_s + 30)


def test_a_change_that_nobody_confirms_is_undone_by_the_host(
    fleet: Fleet, deployed_again: None, tmp_path: Path
) -> None:
    before = network(fleet, CLIENT1)
    with fleet.out_of_reach_while_pending(CLIENT1, tmp_path):
        run = fleet.play(SITE, **ELSEWHERE, relay_confirm_timeout_s=30)
    assert run.code != 0, run.output[-4000:]
    recap = run.recap()
    assert {host: recap[host]["failed"] for host in HOSTS} == {SERVER: 0, CLIENT1: 1, CLIENT2: 0}
    assert "The host has its previous state back." in " ".join(run.output.split()), run.output[-4000:]
    assert_network(fleet, CLIENT1, before)
    assert "203.0.113.0/24 dev culvert0" in fleet.shell(CLIENT2, "ip route show table vpn")


def test_a_host_that_restarts_before_the_confirmation_comes_up_restored(
    fleet: Fleet, deployed_again: None, tmp_path: Path
) -> None:
    before = network(fleet, CLIENT1)
    with fleet.out_of_reach_while_pending(CLIENT1, tmp_path):
        running = fleet.start(SITE, "--limit", CLIENT1, **ELSEWHERE, relay_confirm_timeout_s=600)
        try:
            wait_for(fleet, CLIENT1, "ip route show table vpn | grep -q ^203", timeout_s=300)
            subprocess.run(["docker", "restart", fleet.container(CLIENT1)], check=True, capture_output=True)
            output, _ = running.communicate(timeout=300)
        finally:
            running.kill()
    assert running.returncode != 0, output[-4000:]
    assert "the host restarted before the change was confirmed" in " ".join(output.split()), output[-4000:]
    wait_until_seen(fleet, CLIENT1)  # until its relay is there, routes are marked as those of a dead link
    assert_network(fleet, CLIENT1, before)


def test_a_killed_controller_leaves_the_old_state_or_the_new_one(fleet: Fleet, deployed_again: None) -> None:
    old = network(fleet, CLIENT1)
    running = fleet.start(SITE, "--limit", CLIENT1, **ELSEWHERE)
    try:
        wait_for(fleet, CLIENT1, f"test -e {PENDING}", timeout_s=300)
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.communicate(timeout=60)
    wait_for(fleet, CLIENT1, f"! test -e {PENDING}", timeout_s=120)
    if network(fleet, CLIENT1) != old:  # it confirmed in its last moment
        assert fleet.shell(CLIENT1, "ip route show table vpn").count("\n") == 2
        assert "203.0.113.0/24" in fleet.shell(CLIENT1, f"cat {DOCUMENT}")
    run = fleet.play(SITE)
    assert run.code == 0, run.output[-4000:]
    assert network(fleet, CLIENT1)["ip route"] == old["ip route"]
    wait_until_seen(fleet, CLIENT1)


def test_the_last_change_is_undone_on_request(fleet: Fleet, deployed_again: None) -> None:
    limit = ("--limit", CLIENT1)
    before = network(fleet, CLIENT1)
    run = fleet.play(SITE, *limit, **ELSEWHERE)
    assert run.code == 0, run.output[-4000:]
    assert network(fleet, CLIENT1)["ip route"] != before["ip route"]
    check = fleet.play(ROLLBACK, *limit, "--check", "--diff")
    back = fleet.play(ROLLBACK, *limit, "--diff")
    assert check.code == back.code == 0, check.output[-4000:] + back.output[-4000:]
    assert check.changed() == back.changed() == {CLIENT1: 1}
    assert network(fleet, CLIENT1)["ip route"] == before["ip route"]
    run = fleet.play(SITE, *limit)
    assert run.code == 0, run.output[-4000:]
    wait_until_seen(fleet, CLIENT1)


@pytest.mark.parametrize("host", [SERVER, CLIENT1])
def test_a_rebooted_host_comes_back(fleet: Fleet, deployed_again: None, host: str) -> None:
    subprocess.run(["docker", "restart", fleet.container(host)], check=True, capture_output=True, timeout=120)
    wait_until_seen(fleet, CLIENT1)
    state = fleet.shell(host, "systemctl is-active culvert-network.service")
    assert state.strip() == "active"
    finished = "ActiveEnterTimestampMonotonic", "culvert-network"
    begun = "ExecMainStartTimestampMonotonic", "docker"
    show = "systemctl show --value --property {} {}.service"
    ours, engines = (int(fleet.shell(host, show.format(*what))) for what in (finished, begun))
    assert 0 < ours <= engines, "the engine, which starts the relay, did not wait for the network state"


def test_after_a_reboot_a_run_changes_nothing(fleet: Fleet, deployed_again: None) -> None:
    run = fleet.play(SITE)
    assert run.code == 0, run.output[-4000:]
    assert set(run.changed().values()) == {0}, run.output[-6000:]
