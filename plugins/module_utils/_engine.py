# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Looks at what a host's container engine has, by Docker's API over its socket: a few milliseconds, and no
library. Making containers is left to community.docker; what is changed here is what has to happen on the host
in one go, while one relay takes over from another.
"""

from __future__ import annotations

import http.client
import json
import socket
import struct
from typing import Any
from urllib.parse import quote

from ._core import HostError, Runner
from ._iptables import find

SOCKET = "/var/run/docker.sock"
# An engine that has just been started reads all of its images first.
_TIMEOUT_S = 20.0
# What a container gets to end by itself.
_STOP_S = 10
# Before each piece of a log: the stream, three unused bytes and the length.
_PIECE = struct.Struct(">BxxxI")
#: Return codes of :func:`state`, as a shell would give them.
ANSWERS, NO_COMMAND = 0, 2


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a socket of the file system."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Engine:
    """:param path: of its socket."""

    def __init__(self, path: str = SOCKET) -> None:
        self._path = path

    def answers(self) -> bool:
        try:
            return self._request("GET", "/_ping")[0] == http.client.OK
        except HostError:
            return False

    def image(self, name: str) -> dict[str, Any]:
        """Id, digests of the layers, labels and tags; empty when there is no such image.

        :raises HostError: the engine does not answer, or not as Docker does.
        """
        found = self._inspect(f"/images/{quote(name, safe='')}/json")
        if not found:
            return {}
        return {
            "id": found["Id"],
            "layers": (found.get("RootFS") or {}).get("Layers") or [],
            "labels": (found.get("Config") or {}).get("Labels") or {},
            "tags": found.get("RepoTags") or [],
        }

    def container(self, name: str) -> dict[str, Any]:
        """What it is like, see :func:`described`; empty when there is no such container.

        :raises HostError: as :meth:`image`.
        """
        found = self._inspect(f"/containers/{quote(name, safe='')}/json")
        return described(found) if found else {}

    def start(self, name: str) -> None:
        """:raises HostError: it does not, as the next ones. One that runs is left alone."""
        self._change("POST", f"/containers/{quote(name, safe='')}/start")

    def stop(self, name: str) -> None:
        """One that does not run is left alone."""
        self._change("POST", f"/containers/{quote(name, safe='')}/stop?t={_STOP_S}")

    def restart(self, name: str) -> None:
        self._change("POST", f"/containers/{quote(name, safe='')}/restart?t={_STOP_S}")

    def remove(self, name: str) -> None:
        """Also one that runs; one that is not there is no error."""
        self._change("DELETE", f"/containers/{quote(name, safe='')}?force=1", http.client.NOT_FOUND)

    def rename(self, name: str, new: str) -> None:
        self._change("POST", f"/containers/{quote(name, safe='')}/rename?name={quote(new, safe='')}")

    def log(self, name: str, lines: int) -> list[str]:
        """The last lines that a container has written, of both streams; empty when it has no log."""
        status, body = self._request(
            "GET", f"/containers/{quote(name, safe='')}/logs?stdout=1&stderr=1&tail={lines}"
        )
        return joined(body).decode(errors="replace").splitlines()[-lines:] if status == http.client.OK else []

    def _change(self, method: str, path: str, *allowed: int) -> None:
        status, body = self._request(method, path)
        # Not modified: it is so already.
        if status < http.client.BAD_REQUEST or status in allowed:
            return
        try:
            reason = str(json.loads(body)["message"])
        except (ValueError, KeyError, TypeError):
            reason = f"status {status}"
        raise HostError(f"the container engine refuses {method} {path.partition('?')[0]}: {reason}")

    def _inspect(self, path: str) -> dict[str, Any]:
        status, body = self._request("GET", path)
        if status == http.client.NOT_FOUND:
            return {}
        try:
            found = json.loads(body)
        except ValueError:
            found = None
        if status != http.client.OK or not isinstance(found, dict):
            raise HostError(f"the container engine answers {path} with status {status}")
        return found

    def _request(self, method: str, path: str) -> tuple[int, bytes]:
        connection = _UnixConnection(self._path)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise HostError(f"the container engine does not answer on {self._path}: {error}") from None
        finally:
            connection.close()


def described(found: dict[str, Any]) -> dict[str, Any]:
    """A container as Docker's API shows it. ``options`` are those that the roles give to theirs, in an order
    and a spelling that two equal containers share; labels and environment are the image's as well.
    """
    config, host = found.get("Config") or {}, found.get("HostConfig") or {}
    log = host.get("LogConfig") or {}
    return {
        "status": (found.get("State") or {}).get("Status", ""),
        "restarts": int(found.get("RestartCount") or 0),
        "image": found.get("Image", ""),
        "labels": config.get("Labels") or {},
        "environment": config.get("Env") or [],
        "options": {
            "command": config.get("Cmd") or [],
            "user": config.get("User") or "",
            "network_mode": host.get("NetworkMode") or "",
            "restart_policy": (host.get("RestartPolicy") or {}).get("Name") or "",
            "read_only": bool(host.get("ReadonlyRootfs")),
            "pids_limit": host.get("PidsLimit") or 0,
            "capabilities": _capabilities(host.get("CapAdd")),
            "cap_drop": _capabilities(host.get("CapDrop")),
            "security_opts": sorted(host.get("SecurityOpt") or []),
            "volumes": sorted(host.get("Binds") or []),
            "devices": sorted(_device(device) for device in host.get("Devices") or []),
            "log": {"driver": log.get("Type") or "", **(log.get("Config") or {})},
        },
    }


def joined(log: bytes) -> bytes:
    """What is in the pieces in which an engine sends a container's log; what is none of them is left out."""
    found, at = bytearray(), 0
    while at + _PIECE.size <= len(log):
        stream, length = _PIECE.unpack_from(log, at)
        if stream > 2:
            break
        found += log[at + _PIECE.size : at + _PIECE.size + length]
        at += _PIECE.size + length
    return bytes(found)


def _capabilities(names: list[str] | None) -> list[str]:
    # Since Docker 23 they come back with the prefix.
    return sorted(name[4:] if name.startswith("CAP_") else name for name in names or [])


def _device(device: dict[str, str]) -> str:
    return ":".join(device.get(key, "") for key in ("PathOnHost", "PathInContainer", "CgroupPermissions"))


def state(engine: Engine, run: Runner) -> tuple[int, str]:
    """Whether there is an engine, as a return code (:data:`ANSWERS`, :data:`NO_COMMAND` or another), and why
    not.
    """
    docker = find("docker")
    if docker is None:
        return NO_COMMAND, "there is no command docker"
    if engine.answers():
        return ANSWERS, ""
    # It says best what is wrong; and it knows of engines that are elsewhere.
    code, _out, err = run([docker, "ps", "--quiet"], "")
    return code, err.strip()
