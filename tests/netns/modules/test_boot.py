# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The boot runner, from files copied as the roles copy them: no Ansible, no collection, only Python and
pyroute2.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.netns.modules.host import PYTHON, REPOSITORY, Host

DEVICE = {"name": "culvert0", "owner": "51820", "addresses": ["10.86.0.2/16", "fd86:ea04:1115::2/64"]}
TABLE: dict[str, Any] = {
    "name": "vpn",
    "id": 51820,
    "routes": [
        {"destination": "0.0.0.0/0", "device": "culvert0"},
        {"destination": "::/0", "type": "unreachable"},
    ],
    "rules": [{"fwmark": 51820, "table": "main"}, {}],
}
CHAIN = {"name": "CULVERT-FORWARD", "rules": ["-i culvert0 -j ACCEPT"], "jump": {"from": "FORWARD"}}
NETWORK = "ip -d link; ip addr; ip rule; ip -6 rule; ip route show table all; iptables-nft-save"


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """``/usr/local/lib/culvert`` of a host: the files of the package that do not import Ansible."""
    package = tmp_path / "lib" / "culvert_host"
    package.mkdir(parents=True)
    for source in (REPOSITORY / "plugins" / "module_utils").glob("_*.py"):
        if "from ansible" not in source.read_text():
            shutil.copy(source, package)
    return package.parent


def boot(host: Host, library: Path, documents: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    directory = library.parent / "boot.d"
    directory.mkdir(exist_ok=True)
    for name, content in documents.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (directory / f"{name}.json").write_text(text)
    command = ["env", "-i", "PATH=/usr/bin:/bin", f"PYTHONPATH={library}", "PYTHONDONTWRITEBYTECODE=1"]
    command += [PYTHON, "-m", "culvert_host._boot", str(directory)]
    return subprocess.run(host.command(command), capture_output=True, text=True, timeout=60, check=False)


def entries(**params: Any) -> list[dict[str, Any]]:
    return [{"module": module, "params": values} for module, values in params.items()]


def test_the_same_state_as_the_modules_made_after_all_of_it_is_gone(host: Host, library: Path) -> None:
    host.module("tun_device", **DEVICE)
    host.module("routing_table", **TABLE)
    host.module("iptables_chain", **CHAIN)
    deployed = host.sh(NETWORK)
    # What a reboot does to the network; files stay.
    host.sh("""
        ip link del culvert0
        ip rule flush; ip rule add priority 32766 table main; ip rule add priority 32767 table default
        ip -6 rule del priority 31820; ip -6 rule del priority 31821
        ip route flush table 51820; ip -6 route flush table 51820
        nft flush ruleset
    """)
    documents = {
        "20-b": entries(routing_table=TABLE, iptables_chain=CHAIN),
        "10-a": entries(tun_device=DEVICE),
    }
    done = boot(host, library, documents)
    assert (done.returncode, done.stderr) == (0, "")
    for module, params in (("tun_device", DEVICE), ("routing_table", TABLE), ("iptables_chain", CHAIN)):
        assert not host.module(module, **params).changed, "the modules find what they would have made"

    def comparable(text: str) -> list[str]:
        return [line.lstrip("0123456789: ") for line in text.splitlines() if not line.startswith("#")]

    assert sorted(comparable(host.sh(NETWORK))) == sorted(comparable(deployed))
    again = boot(host, library, documents)
    assert again.returncode == 0
    assert again.stdout.count(": 0 changes") == 3


def test_a_failing_entry_does_not_keep_the_others(host: Host, library: Path) -> None:
    documents = {
        "10": entries(tun_device={**DEVICE, "adresses": []}, no_such_module={}),
        "15": "{ not JSON",
        "16": {"module": "tun_device"},
        "17": ["text"],
        "20": entries(
            routing_table={"name": "vpn", "id": 1, "routes": TABLE["routes"][:1]}, tun_device=DEVICE
        ),
    }
    done = boot(host, library, documents)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 6
    for line, words in zip(
        lines,
        [
            ("10.json[0] tun_device", "adresses"),
            ("10.json[1]", "no_such_module", "routing_table"),
            ("15.json", "cannot be read"),
            ("16.json", "list"),
            ("17.json[0]", "mapping"),
            ("20.json[0] routing_table", "routes[0].device", "culvert0"),
        ],
        strict=True,
    ):
        for word in words:
            assert word in line
    assert host.json("ip", "-j", "link", "show", "culvert0")


def test_usage(host: Host, library: Path) -> None:
    command = ["env", f"PYTHONPATH={library}", PYTHON, "-m", "culvert_host._boot", "/nowhere"]
    done = subprocess.run(host.command(command), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "usage" in done.stderr
