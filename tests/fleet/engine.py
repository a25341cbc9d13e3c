# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What stands in for the container engine of a simulated host: images without content
(:mod:`tests.fleet.images`), containers that are processes.

Of a container this keeps the command, the environment, the user, the capabilities, ``no-new-privileges``, the
log and the restart policy. It has no file system of its own and no limits: it sees the files of its host, and
the image's command is taken from this checkout. :mod:`tests.fleet.api` is how it is spoken to.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.fleet.attach import Streams
from tests.fleet.images import KINDS, TEST_LABEL, Image, Images, Refused

NEVER = "0001-01-01T00:00:00Z"
# Where a host has what is in the image: the source of the relay, and Python with the packages that it needs.
SOURCE, PYTHON = "/run/image/source", "/run/image/python"
_RESTARTED = ("always", "unless-stopped", "on-failure")
_FIRST_WAIT_S, _LONGEST_WAIT_S, _WELL_AFTER_S = 0.1, 60.0, 10.0  # as Docker has them


def now() -> str:
    """The time as the engine writes it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


@dataclass
class Container:
    """:ivar wanted: whether it is to run, as far as the restart policy says.
    :ivar ended: set when its process has ended, and when it is removed, if it is to be, after that.
    :ivar log: a file that containers of one name share, each from ``log_begins`` on.
    :ivar streams: the connection that its input and output are, ``None`` for its log.
    """

    id: str
    name: str
    image: Image
    config: dict[str, Any]
    host_config: dict[str, Any]
    created: str = field(default_factory=now)
    status: str = "created"
    started: str = NEVER
    finished: str = NEVER
    exit_code: int = 0
    restarts: int = 0
    wanted: bool = False
    process: subprocess.Popen[bytes] | None = None
    ended: threading.Event = field(default_factory=threading.Event)
    streams: Streams | None = None
    log: Path = Path("/dev/null")
    log_begins: int = 0

    @property
    def policy(self) -> str:
        return str((self.host_config.get("RestartPolicy") or {}).get("Name") or "no")

    @property
    def pid(self) -> int:
        """The process as this machine knows it; 0 when there is none."""
        if self.process is None:
            return 0
        # nsenter waits for the process that is in the namespaces.
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        try:
            return int(children.read_text().split()[0])
        except (OSError, IndexError):
            return 0

    def command(self) -> list[str]:
        return [*(self.config.get("Entrypoint") or []), *(self.config.get("Cmd") or [])]

    def inspect(self) -> dict[str, Any]:
        return {
            "Id": self.id,
            "Name": f"/{self.name}",
            "Created": self.created,
            "Image": self.image.id,
            "Config": self.config,
            "HostConfig": self.host_config,
            "RestartCount": self.restarts,
            "Path": (self.command() or [""])[0],
            "Args": self.command()[1:],
            "Mounts": [],
            "NetworkSettings": {"Networks": {"host": {"NetworkID": "host", "EndpointID": self.id}}},
            "State": {
                "Status": self.status,
                "Running": self.status in ("running", "restarting"),
                "Restarting": self.status == "restarting",
                "Paused": False,
                "Dead": False,
                "OOMKilled": False,
                "Pid": self.pid,
                "ExitCode": self.exit_code,
                "Error": "",
                "StartedAt": self.started,
                "FinishedAt": self.finished,
            },
        }

    def summary(self) -> dict[str, Any]:
        return {
            "Id": self.id,
            "Names": [f"/{self.name}"],
            "Image": self.config.get("Image"),
            "ImageID": self.image.id,
            "Command": " ".join(self.command()),
            "Created": 0,
            "Ports": [],
            "Labels": self.config.get("Labels") or {},
            "State": self.status,
            "Status": self.status,
            "HostConfig": {"NetworkMode": self.host_config.get("NetworkMode", "default")},
            "NetworkSettings": {"Networks": {}},
            "Mounts": [],
        }


class Engine:
    """The engine of one host.

    :ivar faults: what it refuses, by operation (``create``, ``start`` …), or by operation and container
        (``create culvert-culvert0``): a test puts a message here.
    """

    def __init__(
        self, enter: Callable[[Sequence[str]], list[str]], path: Callable[[str], Path], logs: Path
    ) -> None:
        self._enter, self._path, self._logs = enter, path, logs
        self._lock = threading.RLock()
        self._powered = True
        self.images = Images()
        self.containers: dict[str, Container] = {}
        self.faults: dict[str, str] = {}

    # -- containers

    def remove_image(self, name: str) -> list[dict[str, str]]:
        return self.images.remove(name, {container.image.id for container in self.containers.values()})

    def container(self, name: str) -> Container:
        for container in self.containers.values():
            if name.lstrip("/") in (container.name, container.id, container.id[:12]):
                return container
        raise Refused(404, f"No such container: {name}")

    def create(self, name: str, wish: Mapping[str, Any]) -> Container:
        self.check("create", name)
        name = name or f"unnamed-{os.urandom(4).hex()}"
        with self._lock:
            if any(container.name == name for container in self.containers.values()):
                raise Refused(409, f'The container name "/{name}" is already in use')
            image = self.images.get(wish["Image"])
            config = {
                key: value for key, value in wish.items() if key not in ("HostConfig", "NetworkingConfig")
            }
            variables = {item.partition("=")[0]: item for item in image.config.get("Env") or []}
            variables |= {item.partition("=")[0]: item for item in config.get("Env") or []}
            config["Env"] = list(variables.values())
            config["Labels"] = {**(image.config.get("Labels") or {}), **(config.get("Labels") or {})}
            for key in ("Entrypoint", "Cmd", "Healthcheck", "User"):
                config[key] = config.get(key) or image.config.get(key)
            host_config = {"NetworkMode": "default", "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0}}
            host_config |= {
                key: value for key, value in wish.get("HostConfig", {}).items() if value is not None
            }
            made = Container(os.urandom(32).hex(), name, image, config, host_config)
            made.log = self._logs / f"{name}.log"
            made.log_begins = made.log.stat().st_size if made.log.exists() else 0
            self.containers[made.id] = made
            return made

    def start(self, name: str) -> None:
        self.check("start")
        with self._lock:
            container = self.container(name)
            container.wanted = True
            if container.process is None:
                container.restarts = 0
                self._launch(container)

    def stop(self, name: str, timeout_s: float = 10.0) -> None:
        container = self.container(name)
        container.wanted = False
        self._end(container, signal.SIGTERM, timeout_s)

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        container = self.container(name)
        if container.process is None:
            raise Refused(409, f"Container {container.id} is not running")
        if number in (signal.SIGKILL, signal.SIGTERM):
            container.wanted = False
        self._signal(container, number)

    def crash(self, name: str) -> None:
        """End its process as a fault would: the restart policy brings it back."""
        self._signal(self.container(name), signal.SIGKILL)

    def restart(self, name: str) -> None:
        self.stop(name)
        self.start(name)

    def rename(self, name: str, new: str) -> None:
        self.check("rename")
        with self._lock:
            if any(container.name == new for container in self.containers.values()):
                raise Refused(409, f'The container name "/{new}" is already in use')
            self.container(name).name = new

    def written(self, name: str) -> list[bytes]:
        """The lines of its log."""
        container = self.container(name)
        return container.log.read_bytes()[container.log_begins :].splitlines(keepends=True)

    def remove(self, name: str, force: bool) -> None:
        container = self.container(name)
        if container.process is not None and not force:
            raise Refused(409, f"You cannot remove a running container {container.id}")
        container.wanted = False
        self._end(container, signal.SIGKILL, 10)
        with self._lock:
            self.containers.pop(container.id, None)

    # -- the host's power

    def power_off(self) -> None:
        """All processes are gone, or are about to be; nothing is started any more."""
        with self._lock:
            self._powered = False

    def power_on(self) -> None:
        """Start what ran when the host went down, as the restart policies say."""
        with self._lock:
            self._powered = True
            for container in self.containers.values():
                container.process = None
                container.status, container.exit_code = "exited", 255
                if container.wanted and container.policy in _RESTARTED:
                    self._launch(container)

    # -- processes

    def check(self, operation: str, name: str = "") -> None:
        for fault in (operation, f"{operation} {name}"):
            if fault in self.faults:
                raise Refused(500, self.faults[fault])

    def _launch(self, container: Container) -> None:
        for bind in container.host_config.get("Binds") or []:
            source = self._path(bind.split(":")[0])
            if not source.exists():
                source.mkdir(parents=True)
        variables = dict(item.split("=", 1) for item in container.config["Env"])
        variables["PYTHONPATH"] = SOURCE
        streams, pipe = container.streams, subprocess.PIPE
        with container.log.open("ab") as log:
            container.process = subprocess.Popen(
                self._enter([*_confined(container), *_program(container)]),
                stdin=pipe if streams else subprocess.DEVNULL,
                stdout=pipe if streams else log,
                stderr=pipe if streams else subprocess.STDOUT,
                env=variables,
                cwd="/",
            )
        container.ended.clear()
        if streams:
            streams.carry(container.process)
        container.status, container.started = "running", now()
        keeper = threading.Thread(target=self._keep, args=(container, container.process), daemon=True)
        keeper.start()

    def _keep(self, container: Container, process: subprocess.Popen[bytes]) -> None:
        """Wait for the end of a container's process, and do what the restart policy says."""
        began = time.monotonic()
        code = process.wait()
        with self._lock:
            if container.process is not process:
                return
            container.process = None
            container.exit_code = code if code >= 0 else 128 - code
            container.finished = now()
            again = container.wanted and self._powered and container.policy in _RESTARTED
            again = again and (container.policy != "on-failure" or code != 0)
            container.status = "restarting" if again else "exited"
            if time.monotonic() - began > _WELL_AFTER_S:
                container.restarts = 0
            wait_s = min(_FIRST_WAIT_S * 2**container.restarts, _LONGEST_WAIT_S)
            container.restarts += 1
            if not again and container.host_config.get("AutoRemove"):
                self.containers.pop(container.id, None)
        if not again:
            container.ended.set()
            return
        time.sleep(wait_s)
        with self._lock:
            known = container.id in self.containers
            if known and container.wanted and self._powered and container.process is None:
                self._launch(container)

    def _signal(self, container: Container, number: signal.Signals) -> None:
        pid = container.pid
        if pid:
            os.kill(pid, number)

    def _end(self, container: Container, number: signal.Signals, timeout_s: float) -> None:
        process = container.process
        if process is None:
            container.status = "exited" if container.started != NEVER else container.status
            return
        self._signal(container, number)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._signal(container, signal.SIGKILL)
            process.wait(10)
        with self._lock:
            if container.process is process:
                container.process = None
                container.status, container.finished = "exited", now()
        container.ended.set()


def _confined(container: Container) -> list[str]:
    """What gives the process the user and the rights of its container."""
    wish = container.host_config
    words = [str(shutil.which("setpriv")), "--inh-caps=-all"]
    if "ALL" in (wish.get("CapDrop") or []):
        kept = [f"+{name.lower().removeprefix('cap_')}" for name in wish.get("CapAdd") or []]
        words.append(f"--bounding-set={','.join(['-all', *kept])}")
    if any(option.startswith("no-new-privileges") for option in wish.get("SecurityOpt") or []):
        words.append("--no-new-privs")
    user, _colon, group = str(container.config.get("User") or "").partition(":")
    if user:
        words += [f"--reuid={user}", f"--regid={group or user}", "--clear-groups"]
    return [*words, "--"]


def _program(container: Container) -> list[str]:
    words = container.command()
    instead = list(KINDS.get((container.image.config.get("Labels") or {}).get(TEST_LABEL, ""), ()))
    if instead and words[1:2] == ["run"]:
        program = f"{PYTHON}/bin/python" if instead[0] == "python" else instead[0]
        return [program, *instead[1:], *(words[1:] if instead[0] == "python" else [])]
    if words[:1] != ["culvert"]:
        raise Refused(500, f"this image has no program {words[:1]}")
    return [f"{PYTHON}/bin/python", "-m", *words]
