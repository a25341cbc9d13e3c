# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A change of the network on a real kernel: confirmed, or undone by whatever is still alive to undo it.

    [ host: lo, uplink (veth, 10.7.0.2/24, default via 10.7.0.1), culvert0 ]

Processes are stopped where a test wants them by a program that stands before ``iptables-nft-restore``. No
test asserts a time: each waits for a state that has to come.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.netns.modules.host import COLLECTIONS, PYTHON, REPOSITORY, Host

CHAIN = {"name": "CULVERT-FORWARD", "rules": ["-i culvert0 -j ACCEPT"], "jump": {"from": "FORWARD"}}
DOCUMENT: dict[str, Any] = {
    "name": "20-client-culvert0",
    "devices": [{"name": "culvert0", "addresses": ["10.86.0.2/16", "fd86:ea04:1115::2/64"]}],
    "sysctls": {"net.ipv4.ip_forward": "1"},
    "chains": [CHAIN],
    "tables": [
        {
            "name": "vpn",
            "id": 51820,
            "routes": [{"destination": "0.0.0.0/0", "device": "culvert0"}],
            "rules": [{"fwmark": 51820, "table": "main"}, {}],
        }
    ],
}
OTHER: dict[str, Any] = {"name": "10-other", "devices": [{"name": "culvert1"}]}
PENDING = "/var/lib/culvert/pending"
#: What is left of a change that was undone, for the controller to ask for.
_OUTCOME = re.compile(r"^.*/run/culvert-outcome\.json\n", re.MULTILINE)
PATIENCE_S = 40
# Long enough for a busy machine to come to the step in question.
SHORT_S, LONG_S = 12, 600


@pytest.fixture
def networked(host: Host) -> Iterator[Host]:
    host.sh("""
        set -e
        sysctl -qw net.ipv4.ip_forward=0
        ip link add uplink type veth peer name far
        ip link set far up
        ip addr add 10.7.0.2/24 dev uplink
        ip link set uplink up
        ip route add default via 10.7.0.1
        ip route add 10.99.0.0/16 via 10.7.0.9 metric 7 mtu 1400 proto 42
        ip rule add priority 100 from 10.7.0.0/24 iif lo tos 0x10 lookup main
    """)
    # Addresses of the link's own come a moment after it is up.
    eventually(lambda: "tentative" not in host.run("ip", "addr"))
    yield host
    # Guards, workers, and the programs that workers were waiting for when they were killed.
    listed = subprocess.run(["ip", "netns", "pids", host.name], capture_output=True, text=True, check=True)
    for process in map(int, listed.stdout.split()):
        with contextlib.suppress(OSError):
            if b"infinity" not in Path(f"/proc/{process}/cmdline").read_bytes():
                kill(process)


def eventually(happened: Callable[[], Any]) -> Any:
    give_up_s = time.monotonic() + PATIENCE_S
    while not (found := happened()):
        assert time.monotonic() < give_up_s, "it did not happen"
        time.sleep(0.05)
    return found


def kill(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return


def state(host: Host) -> str:
    return _OUTCOME.sub("", host.snapshot())


def command(host: Host) -> list[str]:
    return host.command([PYTHON, "-m", "tests.netns.modules.change"])


def environment(first: Path | None = None) -> dict[str, str]:
    path = os.environ["PATH"] if first is None else f"{first}:{os.environ['PATH']}"
    inherited = {key: value for key, value in os.environ.items() if key != "SSH_CONNECTION"}
    return {
        **inherited,
        "PATH": path,
        "PYTHONPATH": f"{REPOSITORY}:{COLLECTIONS}",
    }


def change(host: Host, way: str, first: Path | None = None, **wish: Any) -> dict[str, Any]:
    """Begin a change; empty when the process was killed, as it was to be."""
    text = json.dumps({"document": DOCUMENT, "timeout_s": LONG_S, "way": way, **wish})
    done = subprocess.run(
        command(host), input=text, env=environment(first), capture_output=True, text=True, timeout=60
    )
    if done.returncode == -signal.SIGKILL or done.returncode == 128 + signal.SIGKILL:
        return {}
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def journal(host: Host) -> list[dict[str, Any]]:
    text = host.run("cat", f"{PENDING}/journal.jsonl", check=False)
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def commit(host: Host, state: str = "status", transaction: str = "") -> dict[str, Any]:
    found: dict[str, Any] = host.module("network_commit", state=state, transaction=transaction)["commit"]
    return found


def applied(host: Host) -> None:
    eventually(lambda: any("applied" in line for line in journal(host)))


def undone(host: Host) -> None:
    """Without asking the modules, as that would do it."""
    eventually(lambda: not (host.directory / "lib/culvert/pending").exists())
    eventually(lambda: not (host.directory / "run/culvert.lock").exists())


def nobody_is_at(host: Host, transaction: str) -> None:
    """Neither worker nor guard is left."""
    eventually(lambda: not host.run("pgrep", "-f", transaction, check=False))


def tool(folder: Path, script: str) -> Path:
    """A folder with a program that runs ``script`` before a write to the firewall, the first time."""
    folder.mkdir()
    program = folder / "iptables-nft-restore"
    program.write_text(
        '#!/bin/sh\ncase "$*" in *--test*) ;; *) '
        f"if mkdir {folder}/once 2>/dev/null; then\n{script}\nfi ;; esac\n"
        'exec /usr/sbin/iptables-nft-restore "$@"\n'
    )
    program.chmod(0o755)
    return folder


def test_a_confirmed_change_is_in_force_and_leaves_nothing_behind(networked: Host) -> None:
    before = state(networked)
    began = change(networked, "launch")
    applied(networked)
    assert commit(networked, transaction=began["id"])["state"] == "applied"
    confirmed = commit(networked, "confirmed", began["id"])
    assert (confirmed["state"], confirmed["generation"]) == ("confirmed", 1)
    assert confirmed["steps_done"] == len(began["items"])
    assert "10.86.0.2/16" in networked.run("ip", "addr")
    assert not (networked.directory / "lib/culvert/pending").exists()
    nobody_is_at(networked, began["id"])
    assert change(networked, "here")["items"] == []
    assert networked.module("network_commit", state="confirmed", transaction=began["id"]).failed
    change(networked, "here", document={"name": DOCUMENT["name"]})
    assert state(networked) == before


def test_what_nobody_confirms_is_undone_at_the_deadline(networked: Host) -> None:
    before = state(networked)
    began = change(networked, "launch", timeout_s=SHORT_S)
    undone(networked)
    assert state(networked) == before
    outcome = commit(networked, transaction=began["id"])
    assert outcome["state"] == "rolled_back"
    assert outcome["reason"] == f"the change was not confirmed within {SHORT_S} s"
    assert outcome["problems"] == []
    result = networked.module("network_commit", state="confirmed", transaction=began["id"])
    assert result.failed
    assert "not confirmed within" in result.msg


def test_undone_by_hand_before_the_deadline(networked: Host) -> None:
    before = state(networked)
    began = change(networked, "launch")
    applied(networked)
    result = networked.module("network_commit", state="rolled_back")
    assert result.changed
    assert result["commit"]["id"] == began["id"]
    assert state(networked) == before
    nobody_is_at(networked, began["id"])
    assert not networked.module("network_commit", state="rolled_back", transaction=began["id"]).changed


@pytest.mark.parametrize("damaged", [False, True])
def test_a_change_of_a_document_goes_back_to_the_one_before(networked: Host, damaged: bool) -> None:
    """Also when the file of the one before cannot be read any more: the transaction holds it, too."""
    change(networked, "here")
    before = state(networked)
    stored = networked.directory / f"lib/culvert/network.d/{DOCUMENT['name']}.json"
    content = stored.read_text()
    other = {
        **DOCUMENT,
        "devices": [{"name": "culvert0", "addresses": ["10.87.0.2/16"]}],
        "chains": [{**CHAIN, "rules": ["-j DROP"]}],
        "sysctls": {},
        "tables": [],
    }
    change(networked, "launch", document=other, timeout_s=SHORT_S)
    applied(networked)
    assert "10.87.0.2/16" in networked.run("ip", "addr")
    if damaged:
        stored.write_text(content[:-20])
    undone(networked)
    stored.write_text(content)
    assert state(networked) == before


def test_the_worker_is_killed_and_the_guard_restores(networked: Host, tmp_path: Path) -> None:
    before = state(networked)
    stop = tool(tmp_path / "stop", "exec sleep 600")
    change(networked, "launch", first=stop, timeout_s=SHORT_S)
    worker = eventually(lambda: (stop / "once").exists() and worker_of(networked))
    assert "culvert0" in networked.run("ip", "link")
    kill(worker)
    undone(networked)
    assert state(networked) == before


def test_the_worker_is_killed_and_whoever_asks_restores(networked: Host, tmp_path: Path) -> None:
    before = state(networked)
    stop = tool(tmp_path / "stop", "exec sleep 600")
    began = change(networked, "launch", first=stop)
    kill(eventually(lambda: (stop / "once").exists() and worker_of(networked)))
    outcome = commit(networked, transaction=began["id"])
    assert (outcome["state"], outcome["reason"]) == (
        "rolled_back",
        "the process that applied the change was killed",
    )
    assert "CULVERT-FORWARD" in outcome["step"]
    assert state(networked) == before


def test_a_worker_that_hangs_does_not_keep_the_guard(networked: Host, tmp_path: Path) -> None:
    before = state(networked)
    stop = tool(tmp_path / "stop", "exec sleep 600")
    change(networked, "launch", first=stop, timeout_s=SHORT_S)
    eventually(lambda: (stop / "once").exists())
    undone(networked)
    assert state(networked) == before


def worker_of(host: Host) -> int:
    return next((int(line["worker"]) for line in journal(host) if "worker" in line), 0)


def test_killed_after_each_step(networked: Host) -> None:
    before = state(networked)
    steps = len(change(networked, "launch")["items"])
    applied(networked)
    commit(networked, "rolled_back")
    for done in range(steps):
        assert change(networked, "kill", steps=done, guarded=False) == {}
        assert commit(networked)["steps_done"] == done
        assert state(networked) == before, f"killed after {done} steps"
    # The next run undoes it by itself before it starts.
    assert change(networked, "kill", steps=steps - 2, guarded=False) == {}
    assert len(change(networked, "here")["items"]) == steps


def test_killed_before_the_first_step(networked: Host) -> None:
    before = state(networked)
    assert change(networked, "begin") == {}
    identifier = commit(networked)["id"]
    assert commit(networked)["steps_done"] == 0
    assert state(networked) == before
    nobody_is_at(networked, identifier)


def test_a_full_disk_before_anything_is_changed(networked: Host) -> None:
    networked.sh("mount -t tmpfs -o size=128k none /var/lib")
    before = state(networked)
    answer = change(networked, "launch")
    assert "nothing was changed" in answer["error"]
    assert "No space left" in answer["error"]
    assert state(networked) == before


def test_a_full_disk_in_the_middle(networked: Host, tmp_path: Path) -> None:
    networked.sh("mount -t tmpfs -o size=2m none /var/lib")
    before = state(networked)
    fill = tool(tmp_path / "fill", "head -c 4m /dev/zero > /var/lib/full 2>/dev/null")
    # What this one needs in another table of nftables has to be recorded, and cannot be.
    mangle = {**CHAIN, "name": "CULVERT-MANGLE", "table": "mangle"}
    document = {**DOCUMENT, "chains": [CHAIN, mangle]}
    began = change(networked, "launch", first=fill, document=document)
    eventually(lambda: commit(networked, transaction=began["id"])["state"] == "rolled_back")
    outcome = commit(networked, transaction=began["id"])
    assert "No space left" in outcome["reason"]
    assert outcome["problems"] == []
    networked.run("rm", "/var/lib/full")
    assert state(networked) == before


def test_two_at_once(networked: Host) -> None:
    first = change(networked, "launch")
    text = json.dumps({"document": OTHER, "way": "here", "guarded": False})
    with subprocess.Popen(
        command(networked), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), text=True
    ) as second:
        assert second.stdin is not None
        second.stdin.write(text)
        second.stdin.close()
        applied(networked)
        assert second.poll() is None, "waits for the first to be confirmed"
        assert commit(networked, "confirmed", first["id"])["state"] == "confirmed"
        assert second.stdout is not None
        assert "id" in json.loads(second.stdout.read())
    devices = networked.run("ip", "link")
    assert "culvert0" in devices
    assert "culvert1" in devices


def test_a_device_is_renamed_under_us(networked: Host) -> None:
    before = state(networked)
    change(networked, "launch")
    applied(networked)
    networked.run("ip", "link", "set", "culvert0", "down")
    networked.run("ip", "link", "set", "culvert0", "name", "elsewhere0")
    commit(networked, "rolled_back")
    assert state(networked) == before


def test_a_device_of_the_previous_document_is_renamed_under_us(networked: Host) -> None:
    change(networked, "here")
    networked.run("ip", "route", "add", "10.44.0.0/16", "dev", "culvert0")
    before = state(networked)
    change(networked, "launch", document={**DOCUMENT, "chains": []})
    applied(networked)
    networked.run("ip", "link", "set", "culvert0", "down")
    networked.run("ip", "link", "set", "culvert0", "name", "elsewhere0")
    outcome = commit(networked, "rolled_back")
    assert outcome["problems"] == []
    assert state(networked) == before


def test_what_others_had_comes_back(networked: Host) -> None:
    before = state(networked)
    change(networked, "launch")
    applied(networked)
    networked.sh("""
        ip route del default
        ip route del 10.99.0.0/16
        ip rule del priority 100
        ip addr del 10.7.0.2/24 dev uplink
    """)
    outcome = commit(networked, "rolled_back")
    assert outcome["problems"] == []
    assert state(networked) == before


def test_what_others_added_meanwhile_stays(networked: Host) -> None:
    change(networked, "launch")
    applied(networked)
    networked.sh("ip route add 10.55.0.0/16 dev uplink; ip rule add priority 200 lookup main")
    commit(networked, "rolled_back")
    assert "10.55.0.0/16" in networked.run("ip", "route")
    assert "200:" in networked.run("ip", "rule")


def test_a_part_that_cannot_be_undone_does_not_keep_the_rest(networked: Host, tmp_path: Path) -> None:
    change(networked, "launch")
    applied(networked)
    broken = tool(tmp_path / "broken", "")
    (broken / "iptables-nft-restore").write_text("#!/bin/sh\necho it is broken >&2\nexit 1\n")
    result = networked.module("network_commit", state="rolled_back", first=str(broken))
    assert any("it is broken" in problem for problem in result["commit"]["problems"])
    assert "culvert0" not in networked.run("ip", "link")
    assert "51820" not in networked.run("ip", "rule")
    assert networked.run("sysctl", "-n", "net.ipv4.ip_forward") == "0\n"


def test_the_host_is_not_what_it_was_when_the_plan_was_made(networked: Host, tmp_path: Path) -> None:
    # The worker gets the lock only after the module's process: what comes in between is not its plan.
    document = {**DOCUMENT, "tables": []}
    change(networked, "here", document=document)
    before = state(networked)
    text = json.dumps({"document": DOCUMENT, "timeout_s": LONG_S, "way": "launch", "meddle": True})
    done = subprocess.run(
        command(networked), input=text, env=environment(), capture_output=True, text=True, timeout=60
    )
    began = json.loads(done.stdout)
    eventually(lambda: commit(networked, transaction=began["id"])["state"] == "rolled_back")
    assert "after the plan was made" in commit(networked, transaction=began["id"])["reason"]
    # The device is back, under the next number.
    number = re.compile(r"^\d+: ", re.MULTILINE)
    assert number.sub("", state(networked)) == number.sub("", before)


def test_the_step_that_changed_the_way_to_the_controller_is_named(networked: Host) -> None:
    change(networked, "launch", controller="10.200.0.1")
    applied(networked)
    outcome = commit(networked, "rolled_back")
    assert outcome["blame"].startswith("IPv4 rule 31821: from all lookup 51820: since then")
    assert "culvert0" in outcome["blame"]
    assert "uplink via 10.7.0.1" in outcome["blame"]


def test_files_are_only_roots_to_read(networked: Host) -> None:
    change(networked, "launch")
    applied(networked)
    folder = networked.directory / "lib/culvert/pending"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o077 for path in folder.glob("*.json*")} == {0}
    commit(networked, "rolled_back")
