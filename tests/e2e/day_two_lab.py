# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A fleet whose clients keep traffic up while it is worked on, and whose controller is watched.

    client1 .21 ──┐  "outer"             "internet"
                  ├────────── server .11 ────────── internet .29
    client2 .22 ──┘

Its images are its own (`culvert/relay-daytwo`), so that a new one can be built meanwhile. The hosts have
the first of them before the first run: what is recorded of the controller's connections are not archives.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controller_watch import Keeper, Tap, unframed
from culvert.cookie import MacStamper
from culvert.keys import Identity, diffie_hellman
from culvert.messages import RESPONSE_BYTES, Initiation
from culvert.noise import InitiatorHandshake
from culvert.tai64n import encode
from day_two_traffic import Report
from fleet import INVENTORY, NUMBERS, ROOT, Fleet
from secrets_scan import Pile, Secret

SERVER, CLIENT1, CLIENT2, INTERNET = "demo-server", "demo-client1", "demo-client2", "demo-internet"
CLIENTS = (CLIENT1, CLIENT2)
HOSTS = (SERVER, *CLIENTS)
REPOSITORY = "culvert/relay-daytwo"
PORT = 9800
PROGRAM, STATE = "/usr/local/lib/daytwo/day_two_traffic.py", "/var/lib/daytwo"
_KEY = re.compile(rb"^\s*(?:PrivateKey|PresharedKey)\s*=\s*([A-Za-z0-9+/]{43}=)\s*$", re.M)
_SECRET_NAME = re.compile(r"key|psk|kem|seed|secret", re.I)
_FILES = r"""
import base64, json, os
found = {}
for top in ("/etc/culvert", "/var/lib/culvert", "/run/culvert"):
    for folder, _, names in os.walk(top):
        for name in names:
            path = os.path.join(folder, name)
            if os.path.isfile(path) and os.path.getsize(path) < 65536:
                with open(path, "rb") as stream:
                    found[path] = base64.b64encode(stream.read()).decode()
print(json.dumps(found))
"""
_CALL = """
import socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(2)
sock.sendto(bytes.fromhex("{message}"), ("{server}", 51820))
try:
    print(len(sock.recv(2048)))
except OSError:
    print(0)
"""
_SITE_PACKAGES = "/opt/culvert/lib/python3.*/site-packages"
_COMPILE = "/opt/culvert/bin/python -m compileall -q -f --invalidation-mode unchecked-hash /opt/culvert/lib"
#: How images differ from the first one. A deaf one starts, takes over and says that it is well, and hears
#: nothing.
_CHANGES = {
    "2": "RUN touch /opt/culvert/next",
    "crashing": 'ENTRYPOINT ["/bin/false"]\nRUN touch /opt/culvert/crashing',
    "deaf": "RUN echo 'Device.receive_datagrams = lambda *_: None' >>"
    f" $(ls {_SITE_PACKAGES}/culvert/device.py) && {_COMPILE}",
}


@dataclass
class Evidence:
    """What a watched controller has sent, received, printed and written; see :meth:`DayTwo.watched`."""

    pile: Pile = field(default_factory=Pile)
    places: dict[str, int] = field(default_factory=dict)

    def add(self, place: str, data: bytes) -> None:
        self.places[place] = self.places.get(place, 0) + len(data)
        self.pile.add(place, data)


@dataclass
class DayTwo(Fleet):
    """:ivar folder: what the controller has: inventory, registry, archives of images, its temporary files
    and caches.
    """

    folder: Path = Path("/nonexistent")
    _extra_environment: dict[str, str] = field(default_factory=dict)

    @classmethod
    def make(cls, folder: Path) -> DayTwo:
        """Hosts, blank but for the image and the traffic's program."""
        inventory = folder / "controller" / "inventory"
        inventory.mkdir(parents=True)
        (inventory / "group_vars").symlink_to(INVENTORY.parent / "group_vars")
        (inventory / "hosts.yml").write_text(INVENTORY.read_text())
        lab = cls("daytwo", NUMBERS["daytwo"], inventories=[inventory / "hosts.yml"], folder=folder)
        lab.down()
        try:
            lab._take_image()
            lab.up()
            lab._prepare()
        except BaseException:
            lab.down()
            raise
        return lab

    def down(self) -> None:
        super().down()
        tags = ["docker", "images", "--quiet", REPOSITORY, "--format", "{{.Repository}}:{{.Tag}}"]
        found = subprocess.run(tags, text=True, capture_output=True, check=True).stdout.split()
        if found:
            subprocess.run(["docker", "rmi", "--force", *found], capture_output=True, check=True)

    @property
    def registry(self) -> Path:
        return self.folder / "controller" / "inventory" / "culvert_registry.txt"

    @property
    def _variables(self) -> dict[str, Any]:
        return {**super()._variables, "site_registry": str(self.registry), **self.image_variables("1")}

    def _environment(self) -> dict[str, str]:
        return {**super()._environment(), **self._extra_environment}

    # --- Images ---------------------------------------------------------------------------------------------

    def archive(self, tag: str) -> Path:
        return self.folder / f"image-{tag}.tar"

    def image_variables(self, tag: str) -> dict[str, str]:
        """What a playbook is given for the fleet to have one of the images."""
        return {"relay_image": f"{REPOSITORY}:{tag}", "relay_image_archive": str(self.archive(tag))}

    def _take_image(self) -> None:
        tag = re.search(r"^version: *\"?([^\s\"]+)", (ROOT / "galaxy.yml").read_text(), re.M)
        assert tag
        docker("tag", f"culvert/relay:{tag[1]}", f"{REPOSITORY}:1")
        docker("save", "--output", str(self.archive("1")), f"{REPOSITORY}:1")

    def build(self, tag: str) -> None:
        """Make an image that differs from the first one (`_CHANGES`), and its archive, if there is none."""
        if self.archive(tag).exists():
            return
        context = self.folder / f"context-{tag}"
        context.mkdir()
        (context / "Dockerfile").write_text(f"FROM {REPOSITORY}:1\n{_CHANGES[tag]}\n")
        docker("build", "--tag", f"{REPOSITORY}:{tag}", str(context))
        docker("save", "--output", str(self.archive(tag)), f"{REPOSITORY}:{tag}")

    def running_image(self, host: str) -> str:
        """The id of the image of a host's relay."""
        return self.shell(host, "docker inspect --format '{{.Image}}' culvert-culvert0").strip()

    # --- Hosts ----------------------------------------------------------------------------------------------

    def _load(self, host: str, tag: str = "1") -> None:
        with self.archive(tag).open("rb") as stream:
            command = ["docker", "exec", "-i", self.container(host), "docker", "load"]
            subprocess.run(command, stdin=stream, capture_output=True, check=True, timeout=120)

    def _write(self, host: str, path: str, text: str) -> None:
        command = ["docker", "exec", "-i", self.container(host), "sh", "-c", 'cat >"$0"', path]
        subprocess.run(command, input=text, text=True, check=True, timeout=60)

    def _prepare(self) -> None:
        for host in HOSTS:
            self._load(host)
        program = Path(__file__).with_name("day_two_traffic.py").read_text()
        for host in (*CLIENTS, INTERNET):
            self.shell(host, f"mkdir -p {Path(PROGRAM).parent} {STATE}")
            self._write(host, PROGRAM, program)
        self._spawn(INTERNET, "daytwo-answer", "answer", str(PORT))

    def blank_server(self, tag: str) -> None:
        """The server burns down: another host has its addresses and nothing on its disk but an image."""
        docker("rm", "--force", "--volumes", self.container(SERVER))
        self.up()
        self._load(SERVER, tag)

    def _spawn(self, host: str, unit: str, *arguments: str) -> None:
        words = " ".join(arguments)
        self.shell(host, f"systemd-run --quiet --unit {unit} --collect /usr/bin/python3 {PROGRAM} {words}")

    # --- Traffic --------------------------------------------------------------------------------------------

    @contextmanager
    def traffic(self) -> Iterator[dict[str, Report]]:
        """Each client keeps a connection and datagrams up meanwhile; what it saw of them, at the end."""
        reports: dict[str, Report] = {}
        for client in CLIENTS:
            self.shell(client, f"rm -f {STATE}/report")
            self._spawn(client, "daytwo-probe", "probe", self.internet(29), str(PORT), f"{STATE}/report")
        try:
            yield reports
        finally:
            for client in CLIENTS:
                self.shell(client, "systemctl kill --signal TERM daytwo-probe", check=False)
            for client in CLIENTS:
                wait = f"for i in $(seq 400); do test -e {STATE}/report && break; sleep 0.1; done"
                text = self.shell(client, f"{wait}; cat {STATE}/report", check=False)
                reports[client] = Report(**json.loads(text)) if text else Report()

    def sees(self, client: str) -> str:
        """The address under which the internet sees a client; empty if it does not."""
        ask = f"curl -sS --max-time 2 http://{self.internet(29)}/ 2>/dev/null || true"
        return self.shell(client, ask).strip()

    def public_keys(self) -> dict[str, str]:
        """Of the running relays, by host."""
        return {host: self.shell(host, "wg show culvert0 public-key").strip() for host in HOSTS}

    def answers_initiation(self, private_key: bytes, public_key: bytes) -> bool:
        """Whether the server answers somebody who has that private key, and knows it by that public key.

        It is called from the internet's side, so that no tunnel is in the way.
        """
        identity = Identity(private_key)
        shared = diffie_hellman(identity.private, public_key)
        handshake = InitiatorHandshake(identity, public_key, shared, encode(time.time_ns()))
        message = MacStamper(public_key).stamp(Initiation(1, *handshake.message).pack(), 0.0)
        call = _CALL.format(message=message.hex(), server=self.internet(11))
        return int(self.shell(INTERNET, f"python3 -c '{call}'")) == RESPONSE_BYTES

    # --- Secrets --------------------------------------------------------------------------------------------

    def secrets(self) -> list[Secret]:
        """Every private and pre-shared key that the hosts have now, each once, by its first place."""
        found: dict[bytes, Secret] = {}
        for host in HOSTS:
            for place, value in self._secrets_of(host):
                found.setdefault(value, Secret(f"{host}: {place}", value))
        return list(found.values())

    def _secrets_of(self, host: str) -> Iterator[tuple[str, bytes]]:
        files = json.loads(self.shell(host, f"python3 -c '{_FILES}'"))
        for path, text in sorted(files.items()):
            yield from ((path, value) for value in secrets_in(path, base64.b64decode(text)))
        dump = self.shell(host, "wg show culvert0 dump").splitlines()
        keys = [("wg: private key", dump[0].split("\t")[0])]
        keys += [("wg: pre-shared key", line.split("\t")[1]) for line in dump[1:]]
        yield from ((name, base64.b64decode(key)) for name, key in keys if key != "(none)")

    @contextmanager
    def watched(self, evidence: Evidence) -> Iterator[None]:
        """What a controller does meanwhile goes into the evidence: connections, output, files and caches."""
        controller = self.folder / "controller"
        # Of what another one has left, nothing is to be found in this one.
        (controller / "ansible.log").unlink(missing_ok=True)
        for name in ("home", "tmp", "cache"):
            shutil.rmtree(controller / name, ignore_errors=True)
            (controller / name).mkdir()
        tap = Tap(self.folder / "engine.sock")
        keeper = Keeper(controller, self.folder / "kept")
        self._extra_environment = {
            "DOCKER_HOST": f"unix://{tap.path}",
            "TMPDIR": str(controller / "tmp"),
            "ANSIBLE_HOME": str(controller / "home"),
            "ANSIBLE_LOCAL_TEMP": str(controller / "tmp"),
            "ANSIBLE_LOG_PATH": str(controller / "ansible.log"),
            "ANSIBLE_CACHE_PLUGIN": "ansible.builtin.jsonfile",
            "ANSIBLE_CACHE_PLUGIN_CONNECTION": str(controller / "cache"),
        }
        printed = len(self.logs)
        try:
            yield
        finally:
            self._extra_environment = {}
            tap.close()
            for name, data in keeper.stop().items():
                evidence.add(f"disk: {name.partition('/')[0].partition(' ')[0]}", data)
            for text in self.logs[printed:]:
                evidence.add("output", text.encode())
            for there, back in tap.conversations():
                evidence.add("connections, sent", there)
                evidence.add("connections, received", back)
                evidence.add("connections, received", unframed(back))


def secrets_in(path: str, data: bytes) -> Iterator[bytes]:
    """What of a file below a relay's folders is secret.

    Keys in a configuration, and the whole of files whose name says so, which may be text for bytes.
    """
    yield from (base64.b64decode(match) for match in _KEY.findall(data))
    name = path.removeprefix("/etc/culvert/")
    if not _SECRET_NAME.search(name) or name.endswith((".pub", ".conf", ".json")) or len(data) < 16:
        return
    text = data.strip()
    with_values = [data]
    for decode in (base64.b64decode, bytes.fromhex):
        try:
            with_values.append(decode(text.decode("ascii")))
        except (ValueError, binascii.Error):
            continue
    yield with_values[-1]


def docker(*words: str) -> str:
    """Run a command of the machine's engine, and return what it printed."""
    environment = {**os.environ, "DOCKER_BUILDKIT": "0"}
    done = subprocess.run(
        ["docker", *words], capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    assert done.returncode == 0, f"docker {' '.join(words)}: {done.stdout}{done.stderr}"
    return done.stdout
