# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Small services on hosts of the lab: SSH with throw-away keys, "which address do you see", and the tunnel
probe.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.netns.endpoints import REPOSITORY
from tests.netns.lab import Host, eventually

_WHO_SERVER = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
listener = socket.create_server((sys.argv[1], int(sys.argv[2])), family=family)
print("listening", flush=True)
while True:
    connection, peer = listener.accept()
    connection.sendall(peer[0].encode())
    connection.close()
"""
_WHO_CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[3])) as connection:
    print(connection.recv(100).decode())
"""
PYTHON = [sys.executable, "-I", "-S", "-c"]


def serve_callers_address(host: Host, address: str, port: int = 8080) -> None:
    """Answer every TCP connection to ``address`` with the address it came from, until the host goes."""
    process = host.spawn([*PYTHON, _WHO_SERVER, address, str(port)], "callers-address")
    eventually(lambda: "listening" in process.output(), 5, f"service on {host.label}")


def ask_callers_address(host: Host, address: str, port: int = 8080, timeout_s: float = 5.0) -> str:
    """What the service at ``address`` sees us as; '' when it cannot be reached."""
    argv = [*PYTHON, _WHO_CLIENT, address, str(port), str(timeout_s)]
    return host.run(argv, check=False, timeout_s=timeout_s + 10).stdout.strip()


class Ssh:
    """OpenSSH between hosts of the lab, with host and user keys that exist for one test only."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in ("host_key", "user_key"):
            argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)]
            subprocess.run(argv, check=True, capture_output=True)
        (directory / "authorized_keys").write_bytes((directory / "user_key.pub").read_bytes())

    def serve(self, host: Host) -> None:
        """Run ``sshd`` on every address of the host, port 22."""
        lines = [
            f"HostKey {self.directory / 'host_key'}",
            f"AuthorizedKeysFile {self.directory / 'authorized_keys'}",
            "PidFile none",
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin prohibit-password",
        ]
        config = host.directory / "sshd_config"
        config.write_text("\n".join([*lines, ""]))
        process = host.spawn(["/usr/sbin/sshd", "-D", "-e", "-f", str(config)], "sshd")
        eventually(lambda: "listening on" in process.output(), 5, f"sshd on {host.label}")

    def run(self, host: Host, address: str, command: str) -> str:
        """Run a command through SSH from ``host`` as root at ``address``; raises LabError when that fails."""
        options = [
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "ConnectTimeout=10",
            "BatchMode=yes",
        ]
        argv = ["ssh", "-F", "none", "-q", "-i", str(self.directory / "user_key")]
        for option in options:
            argv += ["-o", option]
        return host.run([*argv, f"root@{address}", command]).stdout


def probe(host: Host, **parameters: object) -> dict[str, Any]:
    """Run the module ``culvert.vpn.tunnel_probe`` on a host, as Ansible would; returns its result."""
    module = "ansible_collections.culvert.vpn.plugins.modules.tunnel_probe"
    env = {"PYTHONPATH": str(REPOSITORY / ".cache" / "collections")}
    stdin = json.dumps({"ANSIBLE_MODULE_ARGS": parameters})
    done = host.run([sys.executable, "-m", module], stdin=stdin, env=env, check=False)
    result: dict[str, Any] = json.loads(done.stdout or json.dumps({"failed": True, "msg": done.stderr}))
    return result
