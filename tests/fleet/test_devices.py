# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A device that Ansible does not manage: Debian's wg-quick and wireguard-go with the exported file and
nothing else, in a fleet that the real playbooks have made; and its limits, from the inventory to the relay.

    phone .200 ── "outer" (router .1 leads nowhere) ── server1 .11 ── "internet"
                                └── client1 .31
"""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import zxingcpp
from PIL import Image

from tests.e2e.secrets_scan import Pile, Secret
from tests.fleet.fleet import Fleet, Run
from tests.fleet.network import INTERNET, beyond, outer
from tests.fleet.test_keys import files, in_use
from tests.netns.lab import Host, eventually
from tests.netns.services import PYTHON, ask_callers_address

PORT = 7070
# Sends as many bytes as it is asked for.
_SOURCE = """
import socket, sys
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("listening", flush=True)
while True:
    connection, peer = listener.accept()
    with connection:
        try:
            connection.settimeout(60)
            connection.sendall(bytes(int(connection.makefile().readline())))
        except OSError:
            pass
"""
# Asks for them, and says how many came and in what time.
_SINK = """
import socket, sys, time
began, got = time.monotonic(), 0
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5) as connection:
        connection.sendall(sys.argv[3].encode() + b"\\n")
        while part := connection.recv(65536):
            got += len(part)
except OSError:
    pass
print(got, time.monotonic() - began)
"""
# What wg-quick tells of name servers.
_RESOLVCONF = """#!/bin/sh
[ "$1" != -a ] || cat >"$(dirname "$0")/nameservers"
"""


@dataclass
class Phone:
    """:ivar folder: the controller's, with the exported files."""

    fleet: Fleet
    host: Host
    folder: Path
    is_up: bool = False
    vault: tuple[str, ...] = ()
    entry: dict[str, Any] = field(default_factory=lambda: {"name": "phone"})

    def told(self, **entry: Any) -> Run:
        """Have this in the inventory, and the servers know it."""
        self.entry = {"name": "phone", **entry}
        self.fleet.variables["external_peers"] = [self.entry]
        return self.fleet.deploy("--limit", "vpn_servers").check()

    def exported(self, **variables: Any) -> Run:
        wishes = {"device": "phone", "device_dir": str(self.folder), **variables}
        start = self.fleet.start
        return start("-vvvv", *self.vault, playbook="culvert.vpn.client_config", **wishes).wait().check()

    def given(self, preshared_key: bytes) -> None:
        """Have a key in the inventory, encrypted as the documentation says."""
        site = self.fleet.checkout()
        (site / "group_vars").mkdir(exist_ok=True)
        password = self.fleet.directory / "password"
        password.write_text("correct horse battery staple\n")
        argv = [str(Path(sys.executable).with_name("ansible-vault")), "encrypt_string"]
        argv += ["--vault-password-file", str(password), "--stdin-name", "preshared_key"]
        made = subprocess.run(argv, input=preshared_key, capture_output=True, check=True).stdout.decode()
        entry = f"external_peers:\n  - name: phone\n    {made}"
        (site / "group_vars" / "all.yml").write_text(entry)
        self.vault = ("--vault-password-file", str(password))

    def taken_back(self) -> None:
        (self.fleet.checkout() / "group_vars" / "all.yml").unlink()

    def down(self) -> None:
        self.host.run(["wg-quick", "down", str(self.host.directory / "phone.conf")], check=False)

    def up(self) -> None:
        """What a person does who has got the file."""
        programs = self.host.directory / "programs"
        programs.mkdir(exist_ok=True)
        (programs / "resolvconf").write_text(_RESOLVCONF)
        (programs / "resolvconf").chmod(0o755)
        file = self.host.directory / "phone.conf"
        shutil.copyfile(self.folder / "phone.conf", file)
        file.chmod(0o600)
        path = f"PATH={programs}:/usr/sbin:/usr/bin:/sbin:/bin"
        self.host.run(["env", path, "wg-quick", "up", str(file)])
        self.is_up = True

    def nameservers(self) -> list[str]:
        return (self.host.directory / "programs" / "nameservers").read_text().split()[1::2]

    def seen_as(self, timeout_s: float = 3.0) -> str:
        """The address that the internet sees; '' if it is not reached."""
        return ask_callers_address(self.host, INTERNET, timeout_s=timeout_s)

    def fetch(self, count: int) -> tuple[int, float]:
        """Bytes that came of so many, and the seconds that it took."""
        argv = [*PYTHON, _SINK, INTERNET, str(PORT), str(count)]
        got, seconds = self.host.run(argv, check=False, timeout_s=90).stdout.split()
        return int(got), float(seconds)

    def is_let_in(self, wish: bool, timeout_s: float = 20.0) -> None:
        eventually(lambda: bool(self.seen_as(2)) == wish, timeout_s, f"the phone gets through: {wish}")

    def row(self) -> list[str]:
        """Its cells in the table that status.yml shows."""
        run = self.fleet.start(playbook="culvert.vpn.status").wait()
        (line,) = re.findall(r"^.*\bphone  .*$", run.output.replace("\\n", "\n"), re.MULTILINE)
        return [cell for cell in re.split(r"\s{2,}", line.strip(" \"'-,")) if cell]


@pytest.fixture(scope="module")
def phone(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Phone:
    """Deployed, with the phone on the network and nothing on it."""
    number = 200
    host = fleet.lab.host("phone")
    fleet.network._plug(host, "eth0", fleet.network.outside, "phone", number)
    host.ip("link", "set", "eth0", "up")
    host.add_address("eth0", f"{outer(number)}/24")
    host.ip("route", "add", "default", "via", outer(1))
    source = fleet.network.internet.spawn([*PYTHON, _SOURCE, INTERNET, str(PORT)], "source")
    eventually(lambda: "listening" in source.output(), 5, "the source")
    # Measured, it may be another one when the machine is busy.
    fleet.variables |= {"external_peers": [{"name": "phone"}], "relay_mtu": 1420}
    fleet.deploy().check()
    return Phone(fleet, host, tmp_path_factory.mktemp("devices"))


def test_with_the_file_and_nothing_else_it_is_in_the_full_tunnel(fleet: Fleet, phone: Phone) -> None:
    run = phone.exported(device_dns=["10.86.0.53"])
    assert "servers let it in after" in run.output
    text = (phone.folder / "phone.conf").read_text()
    image = Image.open(io.BytesIO((phone.folder / "phone.png").read_bytes()))
    (code,) = zxingcpp.read_barcodes(image, formats=zxingcpp.BarcodeFormat.QRCode)
    assert bytes(code.bytes).decode() == text
    phone.up()
    assert phone.seen_as() == "", "no server knows it yet, and there is no way around"
    before = fleet.await_sessions()
    assert phone.told().changed() == {"server1"}
    phone.is_let_in(True)
    assert phone.seen_as() == beyond(11)
    assert before["client1"]["server1"].goes_on(fleet.session("client1", "server1"))
    assert phone.nameservers() == ["10.86.0.53"]
    addresses = fleet.addresses()
    for label in ("server1", "client1"):
        for address in addresses[label]:
            assert phone.host.ping(address.split("/")[0], 2).received, (label, address)
    again = fleet.deploy().check()
    assert again.changed() == set(), again.output
    assert phone.exported(device_dns=["10.86.0.53"]).recap["server1"].changed == 0
    cells = phone.row()
    assert cells[0] == "phone"
    assert cells[2] == "server1"
    assert cells[-1] == "connected"


def test_an_acl_and_a_rate_limit_act(phone: Phone, fleet: Fleet) -> None:
    client, size = fleet.addresses()["client1"][0].split("/")[0], 1_000_000
    got, free_s = phone.fetch(size)
    assert got == size
    phone.told(acl=[{"to": f"{INTERNET}/32", "protocol": "tcp", "port": PORT}], rate_limit="2M")
    assert phone.seen_as() == "", "another port"
    assert not phone.host.ping(client, 1).received
    got, held_s = phone.fetch(size)
    assert got == size
    rate = 8 * size / held_s
    assert rate < 3_000_000, f"{rate / 1e6:.1f} Mbit/s, without a limit {8 * size / free_s / 1e6:.1f}"
    assert rate > 500_000, "it is a limit, not a wall"


def test_a_quota_acts_and_more_of_it_lets_in_again_until_the_device_expires(phone: Phone) -> None:
    phone.told(quota="3M", quota_period="total", rate_limit="100M")
    got, _seconds = phone.fetch(20_000_000)
    assert 0 < got < 4_000_000
    phone.is_let_in(False)
    cells = phone.row()
    assert cells[-1] == "quota used up"
    assert "100 Mbit/s" in cells
    # It is not forgotten with the relay.
    phone.fleet.stop_relay("server1")
    phone.fleet.start_relay("server1")
    phone.fleet.await_sessions()
    assert phone.seen_as() == ""

    at = datetime.now(UTC) + timedelta(seconds=30)
    run = phone.told(quota="1G", quota_period="total", expires_at=at.isoformat(timespec="seconds"))
    assert run.changed() == {"server1"}
    if datetime.now(UTC) < at - timedelta(seconds=15):
        phone.is_let_in(True)
    time.sleep(max(0.0, (at - datetime.now(UTC)).total_seconds()) + 1)
    assert phone.seen_as() == ""
    assert phone.row()[-1] == "expired"
    later = at + timedelta(days=400)
    phone.told(expires_at=later.isoformat(timespec="seconds"))
    phone.is_let_in(True)
    assert phone.fleet.reaches_internet("client1", timeout_s=10) == "server1"


def key_of_the_phone(fleet: Fleet) -> tuple[str, str]:
    """What the running relay has for it, in hexadecimal, and the name of its file."""
    text = (fleet.directory / "site" / "culvert_registry.txt").read_text()
    entry = json.loads(text)["hosts"]["phone"]
    return in_use(fleet, "server1")[entry["public_key"]], entry.get("device", {}).get("preshared_id", "")


def test_with_a_pre_shared_key_it_gets_through_and_with_another_one_it_does_not(
    fleet: Fleet, phone: Phone
) -> None:
    def deploy(*words: str) -> Run:
        return fleet.deploy("--limit", "vpn_servers", *words, *phone.vault)

    texts = [phone.host.run(["wg", "genpsk"]).stdout.encode() for _key in range(2)]
    first, second = (base64.b64decode(text) for text in texts)
    before = files(fleet, "server1")
    phone.given(b"x" + texts[0])
    run = deploy()
    assert run.code
    assert "external_peers: phone.preshared_key is not a WireGuard key" in " ".join(run.output.split())
    assert run.changed() == run.unreachable() == set()
    assert "host_facts" not in run.output

    phone.given(texts[0])
    rehearsal = deploy("--check", "--diff").check()
    assert rehearsal.changed() == {"server1"}
    assert files(fleet, "server1") == before
    runs = [run, rehearsal, deploy("-vvvv", "--diff").check()]
    assert runs[-1].changed() == {"server1"}
    assert "relay_device_keys.py" in runs[-1].output
    used, name = key_of_the_phone(fleet)
    assert used == first.hex()
    assert set(files(fleet, "server1")) == {*before, name}
    file = fleet.machines["server1"].files / "etc/culvert/culvert0.psk" / name
    assert (file.stat().st_mode & 0o777, file.stat().st_uid) == (0o400, file.parent.stat().st_uid)
    runs.append(deploy("-vvvv", "--diff").check())
    assert runs[-1].changed() == set()
    assert "relay_device_keys.py" not in runs[-1].output, "a server that has it is asked nothing"

    phone.down()
    phone.up()
    assert phone.seen_as() == "", "the device has none yet"
    phone.down()
    runs.append(phone.exported())
    text = (phone.folder / "phone.conf").read_text()
    assert f"\nPresharedKey = {texts[0].decode()}" in text
    phone.up()
    phone.is_let_in(True)
    phone.down()
    (phone.folder / "phone.conf").write_text(text.replace(texts[0].decode(), texts[1].decode()))
    phone.up()
    assert phone.seen_as() == ""
    assert phone.seen_as() == ""

    phone.given(texts[1])
    runs.append(deploy("-vvvv", "--diff").check())
    used, other = key_of_the_phone(fleet)
    assert used == second.hex()
    assert other != name
    assert set(files(fleet, "server1")) == {*before, other}
    phone.is_let_in(True)
    runs.append(fleet.start("-vvvv", *phone.vault, playbook="culvert.vpn.status").wait())
    nobody_else_has(fleet, phone, [Secret("first", first), Secret("second", second)], runs)


def nobody_else_has(fleet: Fleet, phone: Phone, secrets: list[Secret], runs: list[Run]) -> None:
    """Neither what was printed, facts among it, nor the controller's disk has the keys."""
    pile = Pile()
    for number, run in enumerate(runs):
        pile.add(f"output {number}", run.output.encode())
    kept = [path for name in ("site", "ansible") for path in (fleet.directory / name).rglob("*")]
    assert any(path.name == "all.yml" for path in kept)
    for path in kept:
        if path.is_file():
            pile.add(str(path), path.read_bytes())
    assert pile.find(secrets) == []
    pile.add("the device's", (phone.folder / "phone.conf").read_bytes())
    assert pile.find(secrets), "it finds what is there"


def test_another_key_and_out_of_the_list(fleet: Fleet, phone: Phone) -> None:
    phone.taken_back()
    phone.exported(device_new_key=True)
    phone.told()
    used, name = key_of_the_phone(fleet)
    assert (used, name) == ("", "")
    assert len(files(fleet, "server1")) == 3, "the one with the client, and the server's own"
    phone.is_let_in(False)  # with the old one
    phone.down()
    phone.up()
    phone.is_let_in(True)
    fleet.variables["external_peers"] = []
    run = fleet.deploy("--limit", "vpn_servers").check()
    assert run.changed() == {"server1"}
    assert "revoked: phone" in run.output
    phone.is_let_in(False)
    assert fleet.reaches_internet("client1") == "server1"
