# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Configurations of devices: by the real playbook, which connects to nobody; their QR codes; and that a key
which is made here is in the files that it is for, and nowhere else.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zxingcpp
from ansible_collections.culvert.vpn.plugins.module_utils import _x25519
from ansible_collections.culvert.vpn.plugins.plugin_utils._device_config import (
    DeviceConfig,
    painted,
    private_key_in,
)
from ansible_collections.culvert.vpn.plugins.plugin_utils._registry import Entry, Registry, read, write
from PIL import Image

from tests.e2e.secrets_scan import Pile, Secret

ROOT = Path(__file__).resolve().parents[4]
PASSWORD = "correct horse battery staple"


def key_of(name: str) -> str:
    return base64.b64encode(hashlib.sha256(name.encode()).digest()).decode()


def decoded(image: bytes) -> str:
    """What a QR code's image says, by another library than the one that has drawn it."""
    (found,) = zxingcpp.read_barcodes(Image.open(io.BytesIO(image)), formats=zxingcpp.BarcodeFormat.QRCode)
    return bytes(found.bytes).decode()


DEVICES: list[dict[str, Any]] = [
    {"name": "phone", "expires_at": "2027-06-30", "quota": "50G"},
    {"name": "laptop", "public_key": key_of("laptop"), "prefixes": "split", "dns": ["9.9.9.9"], "mtu": 1420},
    {"name": "tablet", "servers": ["s2"], "keepalive": 25},
]


class Controller:
    """A controller with an inventory of hosts that nobody can reach, whose registry knows them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.devices = [dict(device) for device in DEVICES]
        self.site = folder / "site"
        self.site.mkdir()
        self.output = folder / "devices"
        self.registry = self.site / "culvert_registry.txt"
        (folder / "password").write_text(PASSWORD)
        entries = {
            name: Entry(
                "server",
                f"10.86.0.{number}/16",
                f"fd86:ea04:1115::{number}/64",
                key_of(name),
                f"{name}.example.net:51820",
                (f"10.{number}.0.0/16",),
            )
            for number, name in enumerate(("s1", "s2"), 1)
        }
        write(str(self.registry), Registry().with_hosts(entries))

    def run(
        self, *words: str, terminal: int | None = None, **variables: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run the playbook; `terminal` is its standard input."""
        hosts = {name: {"ansible_host": "203.0.113.99"} for name in ("s1", "s2")}
        hosts["s1"]["server_resolver"] = "dnsmasq"
        inventory = {
            "all": {
                "children": {"vpn_servers": {"hosts": hosts}},
                "vars": {"external_peers": self.devices},
            }
        }
        (self.site / "hosts.json").write_text(json.dumps(inventory))
        home = self.folder / "home"
        given = {"device_dir": str(self.output), **variables}
        return subprocess.run(
            [
                str(Path(sys.executable).with_name("ansible-playbook")),
                *("-i", str(self.site / "hosts.json"), "-e", json.dumps(given), *words),
                "culvert.vpn.client_config",
            ],
            env={
                **os.environ,
                "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".cache" / "collections"),
                "ANSIBLE_HOME": str(home),
                "ANSIBLE_LOCAL_TEMP": str(home / "tmp"),
                "ANSIBLE_LOG_PATH": str(self.folder / "ansible.log"),
                "ANSIBLE_CACHE_PLUGIN": "ansible.builtin.jsonfile",
                "ANSIBLE_CACHE_PLUGIN_CONNECTION": str(self.folder / "facts"),
                "ANSIBLE_NOCOLOR": "1",
                "TMPDIR": str(self.folder),
            },
            stdin=subprocess.DEVNULL if terminal is None else terminal,
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
        )

    def written(self, name: str) -> str:
        return (self.output / name).read_text()

    def everything(self, but: Path) -> Iterator[tuple[str, bytes]]:
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and but not in path.parents:
                yield str(path), path.read_bytes()


@pytest.fixture(scope="module")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Controller:
    return Controller(tmp_path_factory.mktemp("controller"))


def test_first_it_says_what_is_missing(controller: Controller) -> None:
    done = controller.run()
    assert done.returncode
    assert "phone, laptop, tablet" in done.stdout
    done = controller.run(device="nobody")
    assert "'nobody' is none of external_peers (laptop, phone, tablet)" in " ".join(done.stdout.split())
    assert not controller.output.exists()


def test_a_key_that_is_made_here_is_in_the_devices_files_and_nowhere_else(controller: Controller) -> None:
    done = controller.run("-vvvv", "--diff", device="phone, tablet")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "servers let it in after" in done.stdout
    secrets = []
    for name in ("phone", "tablet"):
        text = controller.written(f"{name}.conf")
        key = private_key_in(text.encode())
        assert key is not None
        secrets.append(Secret(name, key))
        public = _x25519.to_base64(_x25519.public_key_of(key))
        assert read(str(controller.registry)).hosts[name].public_key == public  # type: ignore[union-attr]
        assert public in done.stdout, "the public one is told: the search would find a key that is"
        for kind in ("conf", "png", "svg"):
            assert (controller.output / f"{name}.{kind}").stat().st_mode & 0o777 == 0o600
        assert decoded((controller.output / f"{name}.png").read_bytes()) == text
    assert controller.output.stat().st_mode & 0o777 == 0o700
    places = [("output", done.stdout.encode()), ("errors", done.stderr.encode())]
    places += controller.everything(but=controller.output)
    assert any(name.endswith("ansible.log") for name, _content in places)
    pile = Pile()
    for name, content in places:
        pile.add(name, content)
    assert pile.find(secrets) == []
    pile.add("the file", (controller.output / "phone.conf").read_bytes())
    assert [finding.secret for finding in pile.find(secrets)], "it finds what is there"


def test_what_it_says(controller: Controller) -> None:
    tablet = read(str(controller.registry)).hosts["tablet"]  # type: ignore[union-attr]
    assert controller.written("tablet.conf").splitlines() == [
        "# tablet, through s2",
        "[Interface]",
        controller.written("tablet.conf").splitlines()[2],
        f"Address = {tablet.address.split('/')[0]}/32, {tablet.address6.split('/')[0]}/128",
        "MTU = 1280",
        "",
        "[Peer]",
        f"PublicKey = {key_of('s2')}",
        "AllowedIPs = 0.0.0.0/0, ::/0",
        "Endpoint = s2.example.net:51820",
        "PersistentKeepalive = 25",
    ]
    through_s1 = "phone" if "through s1" in controller.written("phone.conf") else ""
    assert ("DNS = 10.86.0.1, fd86:ea04:1115::1" in controller.written("phone.conf")) == bool(through_s1)


def test_again_changes_nothing_and_other_wishes_keep_the_key(controller: Controller) -> None:
    before = {path.name: path.read_bytes() for path in controller.output.iterdir()}
    done = controller.run(device="phone,tablet")
    assert "changed=0" in done.stdout, done.stdout
    assert {path.name: path.read_bytes() for path in controller.output.iterdir()} == before
    key = private_key_in(before["phone.conf"])
    done = controller.run("--check", device="phone", device_prefixes="split", device_server="s2")
    assert "changed=1" in done.stdout
    assert (controller.output / "phone.conf").read_bytes() == before["phone.conf"]
    done = controller.run(device="phone", device_prefixes="split", device_server="s2", device_dns="10.86.0.9")
    text = controller.written("phone.conf")
    assert "AllowedIPs = 10.86.0.0/16, fd86:ea04:1115::/64, 10.1.0.0/16, 10.2.0.0/16\n" in text
    assert "DNS = 10.86.0.9\n" in text
    assert private_key_in(text.encode()) == key
    assert decoded((controller.output / "phone.png").read_bytes()) == text
    done = controller.run(device="tablet", device_server="s1")
    assert "s1 is no server of tablet" in done.stdout


def test_a_device_that_keeps_its_key_to_itself(controller: Controller) -> None:
    assert controller.run(device="laptop").returncode == 0
    text = controller.written("laptop.conf")
    assert private_key_in(text.encode()) is None
    assert f"# of which `wg pubkey` says {key_of('laptop')}" in text
    assert "\n# PrivateKey =\n" in text
    assert "DNS = 9.9.9.9\nMTU = 1420\n" in text
    assert not (controller.output / "laptop.png").exists()
    controller.run(device="laptop", device_qr=["png"])
    assert decoded((controller.output / "laptop.png").read_bytes()) == text
    # Who has put the key there by hand finds it again; a wrong one does not stay.
    own = _x25519.generate_private_key()
    filled = text.replace("# PrivateKey =", f"PrivateKey = {_x25519.to_base64(own)}")
    (controller.output / "laptop.conf").write_text(filled)
    controller.run(device="laptop")
    assert controller.written("laptop.conf") == text
    controller.devices[1]["public_key"] = _x25519.to_base64(_x25519.public_key_of(own))
    (controller.output / "laptop.conf").write_text(filled)
    controller.run(device="laptop")
    assert private_key_in(controller.written("laptop.conf").encode()) == own


def test_a_key_is_made_once_unless_another_is_asked_for(controller: Controller) -> None:
    key = private_key_in(controller.written("phone.conf").encode())
    done = controller.run(device="phone", device_dir=str(controller.folder / "elsewhere"))
    assert "The key of phone was made before" in " ".join(done.stdout.split())
    assert not (controller.folder / "elsewhere").exists()
    (controller.output / "phone.conf").chmod(0o644)
    assert controller.run(device="phone", device_new_key=True).returncode == 0
    made = private_key_in(controller.written("phone.conf").encode())
    assert made not in (None, key)
    assert (controller.output / "phone.conf").stat().st_mode & 0o777 == 0o600
    # A run that ended before it had written down the public key.
    registry = read(str(controller.registry))
    assert registry is not None
    hosts = dict(registry.hosts)
    public = hosts["phone"].public_key
    hosts["phone"] = Entry(
        "external", hosts["phone"].address, hosts["phone"].address6, device=hosts["phone"].device
    )
    write(str(controller.registry), registry.with_hosts(hosts))
    controller.run(device="phone")
    assert read(str(controller.registry)).hosts["phone"].public_key == public  # type: ignore[union-attr]
    assert private_key_in(controller.written("phone.conf").encode()) == made


def test_a_revoked_key_does_not_come_back(controller: Controller) -> None:
    registry = read(str(controller.registry))
    assert registry is not None
    entry = registry.hosts["phone"]
    revoked = {"public_key": entry.public_key, "name": "phone", "date": "2026-11-23"}
    left = {name: other for name, other in registry.hosts.items() if name != "phone"}
    write(str(controller.registry), registry.with_hosts(left, revoked=[revoked]))
    done = controller.run(device="phone")
    assert "The key of phone was revoked" in " ".join(done.stdout.split())
    assert read(str(controller.registry)).hosts["phone"].public_key == ""  # type: ignore[union-attr]
    assert controller.run(device="phone", device_new_key=True).returncode == 0
    made = read(str(controller.registry)).hosts["phone"].public_key  # type: ignore[union-attr]
    assert made not in ("", entry.public_key)


def test_encrypted_with_the_vault_password(controller: Controller) -> None:
    key = private_key_in(controller.written("tablet.conf").encode())
    done = controller.run(device="tablet", device_vault=True)
    assert "needs a vault password" in " ".join(done.stdout.split()), done.stdout
    password = ["--vault-password-file", str(controller.folder / "password")]
    done = controller.run(*password, "-vvvv", device="tablet", device_vault=True)
    assert done.returncode == 0, done.stdout
    assert controller.written("tablet.conf").startswith("$ANSIBLE_VAULT;1.")
    assert "changed=0" in controller.run(*password, device="tablet", device_vault=True).stdout
    done = controller.run(device="tablet")
    assert "no vault password of this run fits" in " ".join(done.stdout.split())
    done = controller.run(*password, device="tablet", device_vault=True, device_qr=["png"])
    assert "no image" in " ".join(done.stdout.split())
    controller.run(*password, device="tablet", device_qr=[])
    assert private_key_in(controller.written("tablet.conf").encode()) == key


def test_a_pre_shared_key_is_in_the_file_and_its_qr_code_and_nowhere_else(controller: Controller) -> None:
    key = hashlib.sha256(b"pre-shared").digest()
    password = ["--vault-password-file", str(controller.folder / "password")]
    argv = [str(Path(sys.executable).with_name("ansible-vault")), "encrypt_string", *password]
    vaulted = subprocess.run(
        [*argv, "--stdin-name", "preshared_key"],
        input=base64.b64encode(key) + b"\n",
        capture_output=True,
        check=True,
    ).stdout.decode()
    devices = [json.dumps(device) for device in controller.devices]
    devices += [
        f"name: desk\n    {vaulted}",
        f"name: shelf\n    public_key: {key_of('shelf')}\n    {vaulted}",
    ]
    (controller.site / "group_vars").mkdir()
    variables = controller.site / "group_vars" / "all.yml"
    variables.write_text("external_peers:\n" + "".join(f"  - {device}\n" for device in devices))
    done = controller.run(*password, "-vvvv", "--diff", device="desk,shelf", device_qr=["png"])
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("desk", "shelf"):
        text = controller.written(f"{name}.conf")
        assert f"\nPresharedKey = {base64.b64encode(key).decode()}\nAllowedIPs" in text
        assert decoded((controller.output / f"{name}.png").read_bytes()) == text
        assert (controller.output / f"{name}.conf").stat().st_mode & 0o777 == 0o600
    assert "changed=0" in controller.run(*password, device="desk,shelf", device_qr=["png"]).stdout
    pile = Pile()
    pile.add("output", (done.stdout + done.stderr).encode())
    for place, content in controller.everything(but=controller.output):
        pile.add(place, content)
    secret = Secret("pre-shared key", key)
    assert pile.find([secret]) == []
    pile.add("the file", (controller.output / "shelf.conf").read_bytes())
    assert pile.find([secret]), "it finds what is there"
    variables.unlink()


def test_on_the_terminal_and_not_in_the_output(controller: Controller) -> None:
    """A terminal is the standard input; the output, which may be kept, is not one."""
    ours, theirs = pty.openpty()
    seen = bytearray()

    def look() -> None:
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:
                return
            seen.extend(part)
            if not part:
                return

    reader = threading.Thread(target=look, daemon=True)
    reader.start()
    try:
        done = controller.run("-vvvv", terminal=theirs, device="phone", device_qr=["terminal"])
    finally:
        os.close(theirs)
    reader.join(10)
    os.close(ours)
    assert done.returncode == 0, done.stdout
    expected = painted(controller.written("phone.conf"), "terminal")
    assert expected.replace(b"\n", b"\r\n") in bytes(seen).replace(b"\r\r\n", b"\r\n")
    assert "\u2588" not in done.stdout + done.stderr
    done = controller.run(device="phone", device_qr=["terminal"])
    assert "There is no terminal" in done.stdout + done.stderr


def test_no_text_of_it_shows_a_key() -> None:
    config = DeviceConfig(
        "a", "P", ("10.0.0.1/8",), "s", "S", "s:1", ("0.0.0.0/0",), private_key=bytes(range(32))
    )
    assert "private_key" not in repr(config)
    assert _x25519.to_base64(bytes(range(32))) in config.text()
    with pytest.raises(ValueError, match="too long"):
        painted("x" * 5000, "png")
