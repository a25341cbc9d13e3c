# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a restart finds: the installed code applies the documents, without Ansible or the collection, after it
has undone a change that nobody confirmed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.netns.modules.host import PYTHON, Host
from tests.netns.modules.test_transaction import (
    CHAIN,
    DOCUMENT,
    OTHER,
    applied,
    change,
    commit,
    eventually,
    journal,
    state,
    undone,
)

LIBRARY = "/usr/local/lib/culvert"
NETWORK = "ip -d link; ip addr; ip rule; ip -6 rule; ip route show table all; iptables-nft-save"
# What a restart does to the network; files stay.
BLANK = """
    for device in culvert0 culvert1; do ip link del $device 2>/dev/null; done
    ip rule flush; ip rule add priority 32766 table main; ip rule add priority 32767 table default
    ip -6 rule del priority 31820; ip -6 rule del priority 31821
    ip route flush table 51820; ip -6 route flush table 51820
    sysctl -qw net.ipv4.ip_forward=0
    nft flush ruleset
"""


def blank(host: Host) -> None:
    """The restart: all processes of a change end, and the kernel knows nothing any more."""
    for line in journal(host):
        for role in ("guard", "worker"):
            if role in line:
                eventually(lambda process=line[role]: not _kill(process))
    host.sh(BLANK)


def _kill(process: int) -> bool:
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def boot(host: Host, *words: str) -> subprocess.CompletedProcess[str]:
    """As at boot: a bare environment, in whatever folder, with modules of the same names in the way."""
    command = ["env", "-i", "PATH=/usr/bin:/bin", "PYTHONPATH=/nowhere", PYTHON, "-IB"]
    command += [f"{LIBRARY}/run.py", *(words or ("boot",))]
    return subprocess.run(host.command(command), capture_output=True, text=True, timeout=60, check=False)


def comparable(text: str) -> list[str]:
    return sorted(line.lstrip("0123456789: ") for line in text.splitlines() if not line.startswith("#"))


def test_the_same_state_as_the_module_made_after_all_of_it_is_gone(host: Host) -> None:
    host.sh(BLANK + "true")
    change(host, "here")
    change(host, "here", document=OTHER)
    deployed = host.sh(NETWORK)
    blank(host)
    done = boot(host)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["10-other: applied", "20-client-culvert0: applied"]
    assert comparable(host.sh(NETWORK)) == comparable(deployed)
    assert change(host, "here")["items"] == [], "the module finds what it would have made"
    assert boot(host).returncode == 0
    assert comparable(host.sh(NETWORK)) == comparable(deployed)


def test_what_fails_does_not_keep_the_rest(host: Host) -> None:
    change(host, "here")
    change(host, "here", document=OTHER)
    blank(host)
    # One document cannot be read, and of the other one part is refused: the priority is somebody else's.
    store = host.directory / "lib/culvert/network.d"
    (store / "10-other.json").write_text("{ not JSON")
    host.sh("ip rule add priority 31825 from 10.1.0.0/16 lookup main")
    done = boot(host)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert any(line.startswith("10-other: ") and "damaged" in line for line in lines)
    assert any(line.startswith("20-client-culvert0: ") for line in lines)
    assert "culvert0" in host.run("ip", "link")
    assert "CULVERT-FORWARD" in host.save("nft")


@pytest.mark.parametrize("previous", [False, True])
def test_a_restart_before_confirmation(host: Host, previous: bool) -> None:
    host.sh(BLANK + "true")
    if previous:
        change(host, "here", document={**DOCUMENT, "tables": [], "sysctls": {}})
    before = host.sh(NETWORK)
    files = state(host)
    change(host, "launch", document={**DOCUMENT, "devices": [{"name": "culvert0", "mtu": 1400}]})
    applied(host)
    blank(host)
    done = boot(host)
    assert (done.returncode, done.stderr) == (0, "")
    assert comparable(host.sh(NETWORK)) == comparable(before)
    assert comparable(state(host)) == comparable(files), "files, too"
    outcome = commit(host)
    assert outcome["state"] == "rolled_back"
    # The host's kernel is the same as before, as a container's is after a restart; its guard is not.
    assert "guard of the change was gone" in outcome["reason"] or "restarted" in outcome["reason"]


def test_a_restart_is_known_by_its_boot(host: Host) -> None:
    change(host, "launch", timeout_s=600)
    applied(host)
    path = host.directory / "lib/culvert/pending/transaction.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "boot": "another/1/2"}))
    assert boot(host).returncode == 0
    assert commit(host)["reason"] == "the host restarted before the change was confirmed"


def test_the_service_is_started_by_hand_while_a_change_is_under_way(host: Host) -> None:
    began = change(host, "launch")
    applied(host)
    assert boot(host).returncode == 0
    assert commit(host, "confirmed", began["id"])["state"] == "confirmed"


def test_a_restart_during_the_last_removal(host: Host) -> None:
    """The code goes when the removal is confirmed, not before: the boot needs it to undo the removal."""
    host.sh(BLANK + "true")
    change(host, "here")
    before = host.sh(NETWORK)
    change(host, "launch", document={"name": DOCUMENT["name"]})
    applied(host)
    assert "culvert0" not in host.run("ip", "link")
    blank(host)
    assert boot(host).returncode == 0
    assert comparable(host.sh(NETWORK)) == comparable(before)
    change(host, "launch", document={"name": DOCUMENT["name"]})
    applied(host)
    commit(host, "confirmed")
    assert not (host.directory / "local/culvert").exists()


def test_the_guard_undoes_the_last_removal(host: Host) -> None:
    change(host, "here")
    before = state(host)
    change(host, "launch", document={"name": DOCUMENT["name"]}, timeout_s=4)
    undone(host)
    assert comparable(state(host)) == comparable(before)


def test_usage(host: Host) -> None:
    change(host, "here", document={"name": "10-chain", "chains": [CHAIN]})
    for words in (("boots",), ("apply", "id"), ("apply", "id", "-1"), ("rollback",)):
        done = boot(host, *words)
        assert done.returncode == 2
        assert "usage" in done.stderr
    assert boot(host, "rollback", "0123456789abcdef").returncode == 0, "undone already, or confirmed"


@pytest.fixture
def sysv(host: Host, tmp_path: Path) -> Host:
    """The host with an /etc of its own, on which sysv-rc runs scripts."""
    for folder in ("upper", "work"):
        (tmp_path / folder).mkdir()
    host.sh(f"""
        set -e
        mount -t overlay overlay -o lowerdir=/etc,upperdir={tmp_path}/upper,workdir={tmp_path}/work /etc
        touch /etc/init.d/rc
    """)
    return host


def test_a_script_starts_it_where_there_is_no_systemd(sysv: Host) -> None:
    links = "ls /etc/rcS.d /etc/init.d | grep culvert || true"
    before = sysv.sh("find /etc | sort")
    items = change(sysv, "here")["items"]
    assert "culvert-network at boot" in items
    assert sysv.sh(links).split() == ["culvert-network", "S01culvert-network"]
    assert change(sysv, "here")["items"] == []
    deployed = sysv.sh(NETWORK)
    blank(sysv)
    assert "applied" in sysv.run("sh", "/etc/rcS.d/S01culvert-network", "start")
    assert comparable(sysv.sh(NETWORK)) == comparable(deployed)
    assert "usage" in sysv.run("sh", "/etc/init.d/culvert-network", "sleep", check=False)
    sysv.run("sh", "/etc/init.d/culvert-network", "stop")
    assert comparable(sysv.sh(NETWORK)) == comparable(deployed), "the state ends with the kernel"
    change(sysv, "here", document={"name": DOCUMENT["name"]})
    assert sysv.sh("find /etc | sort") == before


def test_openrc(sysv: Host, tmp_path: Path) -> None:
    tools: dict[str, Any] = {
        "openrc-run": "#!/bin/sh\n",
        "rc-update": "#!/bin/sh\nlink=/etc/runlevels/$3/$2\n"
        "case $1 in add) mkdir -p /etc/runlevels/$3; ln -s /etc/init.d/$2 $link ;; *) rm $link ;; esac\n",
    }
    folder = tmp_path / "tools"
    folder.mkdir()
    for name, text in tools.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    change(sysv, "here", first=folder)
    script = sysv.run("cat", "/etc/runlevels/boot/culvert-network")
    assert script.startswith("#!/sbin/openrc-run\n")
    assert "before net docker" in script
    assert f"{LIBRARY}/run.py boot" in script
    assert change(sysv, "here", first=folder)["items"] == []
    change(sysv, "here", first=folder, document={"name": DOCUMENT["name"]})
    assert not sysv.sh("find /etc/runlevels /etc/init.d -name culvert-network")
