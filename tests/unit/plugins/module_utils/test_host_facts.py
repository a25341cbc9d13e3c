# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``host_facts`` says of hosts that are made of files, of bare ones too, and of an engine."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any

import pytest

from plugins.module_utils import _engine, _host_facts, _x25519
from plugins.module_utils._core import HostError, SpecError
from plugins.module_utils._host_facts import FactsSpec

ROOT = Path(__file__).resolve().parents[4]
_OS_RELEASE = {
    "trixie": 'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nNAME="Debian GNU/Linux"\nVERSION_ID="13"\n'
    "VERSION_CODENAME=trixie\nID=debian\n",
    "sid": 'NAME="Debian GNU/Linux"\nVERSION_CODENAME=forky\nID=debian\n',
    "noble": 'NAME="Ubuntu"\nVERSION_ID="24.04"\nID=ubuntu\nID_LIKE=debian\n',
    "mint": 'NAME="Linux Mint"\nVERSION_ID="22"\nID=linuxmint\nID_LIKE="ubuntu debian"\n',
    "rocky": 'NAME="Rocky Linux"\nID="rocky"\nID_LIKE="rhel centos fedora"\nVERSION_ID="9.4"\n',
    "alpine": '# a comment\nNAME="Alpine Linux"\nID=alpine\nVERSION_ID=3.20.1\nbroken="\n',
}


def no_command(_words: list[str], _stdin: str) -> tuple[int, str, str]:
    raise AssertionError("nothing is to be run here")


def write(root: Path, path: str, text: str) -> Path:
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


class _Api(BaseHTTPRequestHandler):
    """Docker's, of an engine that has one image and one container."""

    found: dict[str, Any]

    def do_GET(self) -> None:
        status, body = self.found.get(self.path, (404, {"message": "no such thing"}))
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_words: Any) -> None:
        pass

    def address_string(self) -> str:
        return "local"


class _Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True


_FOUND: dict[str, Any] = {
    "/_ping": (200, b"OK"),
    "/images/culvert%2Frelay%3A1/json": (
        200,
        {"Id": "sha256:1", "RootFS": {"Layers": ["a", "b"]}, "Config": {"Labels": {"l": "1"}}},
    ),
    "/images/bare/json": (200, {"Id": "sha256:2", "RootFS": {}, "Config": None}),
    "/images/broken/json": (500, {"message": "disk full"}),
    "/containers/culvert-culvert0/json": (
        200,
        {
            "State": {"Status": "exited"},
            "Image": "sha256:1",
            "Config": {
                "Labels": {"io.culvert.batch": "auto"},
                "Env": ["CULVERT_INTERFACE=culvert0"],
                "Cmd": ["run", "culvert0"],
            },
            "HostConfig": {
                "RestartPolicy": {"Name": "unless-stopped"},
                "CapAdd": ["CAP_SETUID", "CAP_NET_ADMIN"],
                "CapDrop": ["ALL"],
                "Binds": ["/run/wireguard:/run/wireguard:rw", "/etc/culvert:/etc/culvert:ro"],
                "Devices": [
                    {
                        "PathOnHost": "/dev/net/tun",
                        "PathInContainer": "/dev/net/tun",
                        "CgroupPermissions": "rwm",
                    }
                ],
                "LogConfig": {"Type": "json-file", "Config": {"max-size": "5m"}},
            },
        },
    ),
    "/containers/empty/json": (200, {"State": None, "Config": None, "HostConfig": None}),
}


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[_engine.Engine]:
    path = str(tmp_path / "docker.sock")
    with _Server(path, type("Api", (_Api,), {"found": _FOUND})) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield _engine.Engine(path)
        server.shutdown()


@pytest.mark.parametrize(
    ("name", "distribution", "major", "family"),
    [
        ("trixie", "Debian", "13", "Debian"),
        ("sid", "Debian", "", "Debian"),
        ("noble", "Ubuntu", "24", "Debian"),
        ("mint", "Linux", "22", "Debian"),
        ("rocky", "Rocky", "9", "RedHat"),
        ("alpine", "Alpine", "3", "Alpine"),
    ],
)
def test_distributions_are_named_as_ansible_names_them(
    tmp_path: Path, name: str, distribution: str, major: str, family: str
) -> None:
    write(tmp_path, "/etc/os-release", _OS_RELEASE[name])
    facts = _host_facts.system("culvert0", str(tmp_path))
    assert facts["ansible_distribution"] == distribution
    assert facts["ansible_distribution_major_version"] == major
    assert facts["ansible_os_family"] == family
    assert facts.get("ansible_pkg_mgr") == ("apt" if family == "Debian" else None)


def test_a_host_without_any_of_the_files_has_facts_as_well(tmp_path: Path) -> None:
    facts = _host_facts.system("culvert0", str(tmp_path))
    assert facts["ansible_os_family"] == "Linux"
    assert facts["ansible_service_mgr"] == "service"
    assert facts["ansible_effective_user_id"] == os.geteuid()
    assert facts["ansible_default_ipv6"] == {}
    assert facts["ansible_all_ipv6_addresses"] == []


@pytest.mark.parametrize(
    ("made", "manager"),
    [("run/systemd/system", "systemd"), ("sbin/openrc", "openrc"), ("etc/init.d", "sysvinit")],
)
def test_the_service_manager_is_the_one_that_runs(tmp_path: Path, made: str, manager: str) -> None:
    (tmp_path / made).mkdir(parents=True)
    assert _host_facts.system("culvert0", str(tmp_path))["ansible_service_mgr"] == manager


def _route(destination: str, gateway: str, metric: int, flags: int, device: str) -> str:
    plen = "00" if destination == "0" * 32 else "40"
    return f"{destination} {plen} {'0' * 32} 00 {gateway} {metric:08x} 00000001 00000000 {flags:08x} {device}"


def test_the_default_route_is_the_best_one_outside_the_tunnel(tmp_path: Path) -> None:
    router = "fe80" + "0" * 27 + "1"
    anything = "0" * 32
    lines = [
        _route("fd00" + "0" * 28, "0" * 32, 1, 0x1, "eth9"),
        _route(anything, "0" * 32, 1, 0x1, "culvert0"),
        _route(anything, "0" * 32, 0xFFFFFFFF, 0x200, "lo"),
        _route(anything, router, 2048, 0x3, "eth1"),
        _route(anything, router, 1024, 0x3, "eth0"),
        _route(anything, router, 1, 0x2, "eth7"),  # not up
    ]
    write(tmp_path, "/proc/net/ipv6_route", "\n".join([*lines, ""]))
    facts = _host_facts.system("culvert0", str(tmp_path))
    assert facts["ansible_default_ipv6"] == {"interface": "eth0", "gateway": "fe80::1"}


def test_addresses_are_those_of_the_kernel(tmp_path: Path) -> None:
    rows = ["0" * 31 + "1 01 80 10 80       lo", "20010db8" + "0" * 23 + "5 02 40 00 80     eth0"]
    rows += ["fd86ea0411150000" + "0" * 14 + "07 03 40 00 80 culvert0"]
    rows += ["fe80" + "0" * 27 + "7 03 40 20 80 culvert0", ""]
    write(tmp_path, "/proc/net/if_inet6", "\n".join(rows))
    facts = _host_facts.system("culvert0", str(tmp_path))
    assert facts["ansible_all_ipv6_addresses"] == ["2001:db8::5", "fd86:ea04:1115::7", "fe80::7"]
    seen = _host_facts.culvert(FactsSpec(), no_engine, str(tmp_path), _engine.Engine(str(tmp_path / "no")))
    assert [address for address in seen["addresses"] if ":" in address] == ["fd86:ea04:1115::7/64"]


def no_engine(words: list[str], _stdin: str) -> tuple[int, str, str]:
    """An engine's command, if there is one here, that has nobody to ask."""
    assert words[1:] == ["ps", "--quiet"]
    return 1, "", "Cannot connect to the Docker daemon\n"


def test_a_bare_host_has_nothing_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_engine, "find", lambda _name: None)
    spec = FactsSpec(packages=("iptables",), image="culvert/relay:1", containers=("c",), files=("/etc/x",))
    monkeypatch.setattr(_host_facts, "find", lambda _name: None)
    found = _host_facts.culvert(spec, no_command, str(tmp_path))
    assert found["engine"] == {"rc": 2, "error": "there is no command docker"}
    assert found["packages_missing"] == ["iptables"]
    assert (found["tun"], found["ipv6"], found["kernel_ipv6"]) == (False, False, False)
    assert (found["image"], found["containers"], found["files"]) == ({}, {}, {"/etc/x": False})
    assert found["local_ports"] == ["32768", "60999"]
    assert not found["config_dir"]["exists"]
    assert (found["key"]["exists"], found["key"]["public_key"]) == (False, None)
    assert found["relay"] == {"running": False, "public_key": None, "error": ""}
    assert found["registry_id"] is None


def test_of_a_key_the_public_one_is_told(tmp_path: Path) -> None:
    private = _x25519.generate_private_key()
    key = write(tmp_path, "/etc/culvert/culvert0.key", _x25519.to_base64(private) + "\n")
    key.chmod(0o400)
    found = _host_facts.culvert(FactsSpec(), no_engine, str(tmp_path), _engine.Engine(str(tmp_path / "no")))
    assert found["key"]["public_key"] == _x25519.to_base64(_x25519.public_key_of(private))
    assert (found["key"]["mode"], found["key"]["owner"]) == ("0400", os.getuid())
    assert _x25519.to_base64(private) not in json.dumps(found)


def test_what_is_no_key_is_a_problem_and_is_not_shown(tmp_path: Path) -> None:
    write(tmp_path, "/etc/culvert/culvert0.key", "correct horse\n")
    found = _host_facts.culvert(FactsSpec(), no_engine, str(tmp_path), _engine.Engine(str(tmp_path / "no")))
    assert "does not hold one X25519 key" in found["key"]["problem"]
    assert found["key"]["public_key"] is None
    assert "horse" not in json.dumps(found)


def test_a_folder_is_described_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "etc/culvert").mkdir(parents=True)
    (tmp_path / "etc/culvert").chmod(0o750)
    found = _host_facts.culvert(FactsSpec(), no_engine, str(tmp_path), _engine.Engine(str(tmp_path / "no")))
    assert found["config_dir"] == {"exists": True, "mode": "0750", "owner": os.getuid(), "group": os.getgid()}


@pytest.mark.parametrize(
    ("text", "id"),
    [
        ("# Managed by culvert.vpn\n# Registry: 9f3a21c4\n\n[Interface]\n", "9f3a21c4"),
        ("# Managed by culvert.vpn\n\n[Interface]\nListenPort = 51820\n# Registry: aaaaaaaa\n", None),
        ("# Registry: \n", None),
        ("", None),
    ],
)
def test_the_registry_is_in_the_head_of_the_configuration(tmp_path: Path, text: str, id: str | None) -> None:
    write(tmp_path, "/etc/culvert/culvert0.conf", text)
    found = _host_facts.culvert(FactsSpec(), no_engine, str(tmp_path), _engine.Engine(str(tmp_path / "no")))
    assert found["registry_id"] == id


def test_a_relay_that_does_not_answer_is_a_problem(tmp_path: Path) -> None:
    """Who listens there is something else: what is behind the socket is not known."""
    path = tmp_path / "run/wireguard"
    path.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path / "culvert0.sock"))
        listener.listen()

        def hang_up() -> None:
            listener.accept()[0].close()

        threading.Thread(target=hang_up, daemon=True).start()
        found = _host_facts.culvert(
            FactsSpec(), no_engine, str(tmp_path), _engine.Engine(str(tmp_path / "no"))
        )
    assert found["relay"]["running"] is True
    assert "culvert0.sock" in found["relay"]["error"]


def test_packages_are_those_that_are_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(words: list[str], stdin: str) -> tuple[int, str, str]:
        if words[0] != "/usr/bin/dpkg-query":
            return no_engine(words, stdin)
        assert words[-3:] == ["iptables", "iproute2", "docker.io"]
        return 1, "iptables installed\niproute2 config-files\n", "dpkg-query: no packages found\n"

    monkeypatch.setattr(_host_facts, "find", lambda name: f"/usr/bin/{name}")
    spec = FactsSpec(packages=("iptables", "iproute2", "docker.io"))
    found = _host_facts.culvert(spec, run, str(tmp_path), _engine.Engine(str(tmp_path / "no")))
    assert found["packages_missing"] == ["iproute2", "docker.io"]


def test_an_engine_is_asked_for_images_and_containers(
    engine: _engine.Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_engine, "find", lambda _name: "/usr/bin/docker")
    spec = FactsSpec(
        image="culvert/relay:1", images=("bare", "none"), containers=("culvert-culvert0", "other")
    )
    found = _host_facts.culvert(spec, no_command, str(tmp_path), engine)
    assert found["engine"] == {"rc": 0, "error": ""}
    assert found["image"] == {"id": "sha256:1", "layers": ["a", "b"], "labels": {"l": "1"}, "tags": []}
    assert found["images"] == {
        "bare": {"id": "sha256:2", "layers": [], "labels": {}, "tags": []},
        "none": {},
    }
    assert found["containers"]["other"] == {}
    seen = found["containers"]["culvert-culvert0"]
    assert (seen["status"], seen["image"]) == ("exited", "sha256:1")
    assert seen["labels"] == {"io.culvert.batch": "auto"}
    assert seen["environment"] == ["CULVERT_INTERFACE=culvert0"]
    assert seen["options"] == {
        "command": ["run", "culvert0"],
        "user": "",
        "network_mode": "",
        "restart_policy": "unless-stopped",
        "read_only": False,
        "pids_limit": 0,
        "capabilities": ["NET_ADMIN", "SETUID"],
        "cap_drop": ["ALL"],
        "security_opts": [],
        "volumes": ["/etc/culvert:/etc/culvert:ro", "/run/wireguard:/run/wireguard:rw"],
        "devices": ["/dev/net/tun:/dev/net/tun:rwm"],
        "log": {"driver": "json-file", "max-size": "5m"},
    }
    assert engine.container("empty")["options"]["command"] == []
    assert engine.image("bare") == {"id": "sha256:2", "layers": [], "labels": {}, "tags": []}
    with pytest.raises(HostError, match="status 500"):
        engine.image("broken")


def test_an_engine_that_does_not_answer_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_engine, "find", lambda _name: "/usr/bin/docker")
    state = _engine.state(_engine.Engine(str(tmp_path / "none.sock")), no_engine)
    assert state == (1, "Cannot connect to the Docker daemon")


def test_an_option_that_does_not_exist_is_refused() -> None:
    with pytest.raises(SpecError, match="container"):
        FactsSpec.from_params({"container": "x"})


def test_it_runs_where_none_of_the_libraries_is(tmp_path: Path) -> None:
    """In an interpreter without site packages: neither pyroute2 nor cryptography is there."""
    write(tmp_path, "/etc/culvert/culvert0.key", _x25519.to_base64(bytes(32)) + "\n")
    code = f"""
import sys
for name in ("pyroute2", "cryptography", "requests"):
    sys.modules[name] = None
sys.path.insert(0, {str(ROOT)!r})
from plugins.module_utils import _engine, _host_facts
found = _host_facts.culvert(
    _host_facts.FactsSpec(), lambda *_: (1, "", ""), {str(tmp_path)!r}, _engine.Engine("/none"))
assert found["key"]["exists"] and found["key"]["public_key"] is None and not found["key"]["problem"], found
assert not found["relay"]["running"]
_host_facts.system("culvert0")
print("well")
"""
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "well\n", done.stderr


def test_the_real_tun_driver_is_told_from_a_file(tmp_path: Path) -> None:
    write(tmp_path, "/dev/net/tun", "")
    assert not _host_facts._is_character_device(f"{tmp_path}/dev/net/tun")
    assert _host_facts._is_character_device("/dev/null")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
