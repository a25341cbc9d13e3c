# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Peers of a wg-quick file: what comes of them, and which line is wrong."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ansible_collections.culvert.vpn.plugins.plugin_utils._devices import device_problems
from ansible_collections.culvert.vpn.plugins.plugin_utils._wg_quick import (
    as_yaml,
    imported,
    vaulted_in,
    without_keys,
)
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[4]
NETWORKS = ("10.86.0.0/16", "fd86:ea04:1115::/64")


def key_of(name: str) -> str:
    return base64.b64encode(hashlib.sha256(name.encode()).digest()).decode()


SECRET = key_of("the server's private key")
FILE = f"""\
# The old server
[Interface]
Address = 10.86.0.1/16
PrivateKey = {SECRET}
ListenPort = 51820
PostUp = iptables -A FORWARD -i %i -j ACCEPT

### Client Phone of Ann (android)
[Peer]
PublicKey = {key_of("a")}
AllowedIPs = 10.86.0.2/32,fd86:ea04:1115::2/128

### begin office ###
[Peer]
# office
PublicKey={key_of("b")}
AllowedIPs = 10.86.0.3/32
AllowedIPs = 192.168.7.0/24, 10.86.0.77
PersistentKeepalive = 25
### end office ###

[peer]
publickey = {key_of("c")}  # a laptop
allowedips = 10.86.0.4
PersistentKeepalive = off
"""


def test_what_comes_of_a_file() -> None:
    done = imported(FILE, NETWORKS, {"laptop", "a-laptop"})
    assert done.problems == done.notes == []
    assert done.peers == [
        {
            "name": "Phone-of-Ann",
            "public_key": key_of("a"),
            "address": "10.86.0.2",
            "address6": "fd86:ea04:1115::2",
        },
        {
            "name": "office",
            "public_key": key_of("b"),
            "address": "10.86.0.3",
            "networks": ["192.168.7.0/24", "10.86.0.77/32"],
            "keepalive": 25,
        },
        {"name": "a-laptop-2", "public_key": key_of("c"), "address": "10.86.0.4"},
    ]
    assert yaml.safe_load(as_yaml(done.peers)) == {"external_peers": done.peers}
    assert device_problems(done.peers, networks=NETWORKS) == []


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("10.86.0.4", "10.7.0.4", "Line 24: 10.7.0.4 is not an address of relay_network (10.86.0.0/16)"),
        ("10.86.0.4", "10.86.0.0", "Line 24: 10.86.0.0 is not an address"),
        ("allowedips = 10.86.0.4\n", "", "Line 22: this peer has no AllowedIPs"),
        ("allowedips = 10.86.0.4\n", "AllowedIPs = 10.5.0.0/16\n", "Line 22: none of the AllowedIPs is one"),
        ("= off", "= often", "Line 25: PersistentKeepalive is neither"),
        (
            "= off",
            f"= 5\nPresharedKey = {SECRET}",
            "Line 26: this peer has a pre-shared key, which is written",
        ),
        ("= off", f"= 5\nPresharedKey = {SECRET[:-3]}", "Line 26: the PresharedKey is not a WireGuard key"),
        ("= off", f"= 5\nPresharedKey = {'A' * 43}=", "Line 26: the PresharedKey is all zeros"),
        (
            "= off",
            "= 5\nPersistentKeepalive = 6",
            "Line 26: there is another one of the same name in line 25",
        ),
        ("= off", "= 5\nListenPort = 6", "Line 26: ListenPort is nothing that a peer has"),
        ("= off", "= 5\nnonsense", "Line 26 is not of the form NAME = VALUE"),
        ("= off", f"= 5\n{SECRET}", "Line 26"),
        ("[peer]", "[server]", "Line 22: this section is neither"),
        (key_of("c"), key_of("b"), "Line 22: this peer has the public key of that in line 14"),
        (key_of("c"), SECRET[:-3], "Line 23: the PublicKey is not base64"),
        (f"publickey = {key_of('c')}", "", "Line 22: this peer has no PublicKey"),
        ("allowedips = 10.86.0.4", "allowedips = 10.86.0.4, home", "Line 24: 'home' is no address"),
    ],
)
def test_a_wrong_line_is_named_and_no_key_is_told(old: str, new: str, says: str) -> None:
    assert old in FILE
    head, found, tail = FILE.rpartition(old)
    problems = " ".join(imported(head + new + tail, NETWORKS).problems)
    assert found
    assert says in problems, problems
    assert SECRET[:-3] not in problems


def test_no_peer_at_all_and_an_endpoint() -> None:
    assert imported("[Interface]\n", NETWORKS).problems == ["There is no [Peer] in it."]
    done = imported(FILE + "Endpoint = 198.51.100.7:51820\n", NETWORKS)
    assert (done.problems, len(done.notes)) == ([], 1)
    assert "Line 26: the Endpoint is left out" in done.notes[0]


def test_a_pre_shared_key_comes_out_encrypted() -> None:
    def seal(key: str) -> str:
        assert key == SECRET
        return "$ANSIBLE_VAULT;1.2;AES256;home\n6162\n6364\n"

    text = FILE.replace("# a laptop", f"\nPresharedKey = {SECRET} # of it")
    done = imported(text, NETWORKS, seal=seal)
    assert done.problems == []
    made = as_yaml(done.peers)
    block = "    preshared_key: !vault |\n      $ANSIBLE_VAULT;1.2;AES256;home\n      6162\n      6364\n"
    assert made.endswith(block)
    assert made.count("preshared_key") == 1
    assert vaulted_in(made + made) == [seal(SECRET)] * 2
    assert without_keys(made) == made
    by_hand = f"- {{name: a, preshared_key: {SECRET}}}\n- 'preshared_key': '{SECRET}'\n"
    assert SECRET not in without_keys(by_hand)


LINES = st.sampled_from(FILE.splitlines()) | st.text(max_size=40)


@given(st.lists(LINES, max_size=30).map("\n".join) | st.text(max_size=200))
def test_whatever_is_in_a_file(text: str) -> None:
    done = imported(text, NETWORKS)
    assert SECRET not in " ".join([*done.problems, *done.notes])
    if not done.problems:
        assert done.peers
        assert yaml.safe_load(as_yaml(done.peers)) == {"external_peers": done.peers}
        assert device_problems(done.peers, networks=NETWORKS) in ([], *([[]] if done.peers else []))


def test_the_playbook(tmp_path: Path) -> None:
    (tmp_path / "wg0.conf").write_text(FILE)
    (tmp_path / "hosts.json").write_text(
        json.dumps({"vpn_servers": {"hosts": {"office": {"ansible_host": "203.0.113.9"}}}})
    )

    def run(*words: str) -> str:
        argv = [
            str(Path(sys.executable).with_name("ansible-playbook")),
            "-i",
            str(tmp_path / "hosts.json"),
            "-vvvv",
        ]
        argv += ["-e", f"wg_quick={tmp_path / 'wg0.conf'} import_dest={tmp_path / 'devices.yml'}", *words]
        environment = {
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".cache" / "collections"),
            "ANSIBLE_NOCOLOR": "1",
        }
        done = subprocess.run(
            [*argv, "culvert.vpn.import_peers"],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert SECRET not in done.stdout + done.stderr
        return " ".join((done.stdout + done.stderr).split())

    assert "changed=1" in run()
    peers = yaml.safe_load((tmp_path / "devices.yml").read_text())["external_peers"]
    assert [peer["name"] for peer in peers] == ["Phone-of-Ann", "office-2", "a-laptop"]
    (tmp_path / "devices.yml").write_text("mine: true\n")
    assert "is there already" in run()
    assert (tmp_path / "devices.yml").read_text() == "mine: true\n"
    assert "changed=1" in run("-e", "import_force=true")
    (tmp_path / "wg0.conf").write_text(FILE + f"PresharedKey = {SECRET}\n")
    assert "Line 26: this peer has a pre-shared key, which is written down encrypted only." in run()
    (tmp_path / "password").write_text("a password")
    vault = ["--vault-password-file", str(tmp_path / "password"), "--diff"]
    assert "is there already" in run(*vault)
    assert "changed=1" in run(*vault, "-e", "import_force=true")
    again = run(*vault)
    assert "changed=0" in again
    assert "!vault |" in again
    made = (tmp_path / "devices.yml").read_text()
    assert SECRET not in made
    shown = {**os.environ, "ANSIBLE_VAULT_PASSWORD_FILE": str(tmp_path / "password"), "ANSIBLE_NOCOLOR": "1"}
    argv = [str(Path(sys.executable).with_name("ansible")), "localhost", "-e", f"@{tmp_path}/devices.yml"]
    argv += ["-m", "ansible.builtin.debug", "-a", "msg={{ external_peers[2].preshared_key }}"]
    assert SECRET in subprocess.run(argv, env=shown, capture_output=True, text=True, check=True).stdout
    (tmp_path / "wg0.conf").write_text(FILE.replace("10.86.0.4", "10.7.0.4"))
    assert "Line 24: 10.7.0.4 is not an address of relay_network" in run()
