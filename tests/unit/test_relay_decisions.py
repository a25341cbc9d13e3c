# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the relay role decides from its one look at a host: what is wrong with it, and what is to be done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
KEY, OTHER_KEY = (
    "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=",
    "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=",
)
_ASKED = {
    "problems": "{{ __relay_host_problems }}",
    "key": "{{ __relay_key_is_made | bool }}",
    "image": "{{ __relay_image_wanted | bool }}",
    "container": "{{ not __relay_container_is_well | bool }}",
    "hands_over": "{{ __relay_hands_over | bool }}",
    "changes_image": "{{ __relay_changes_image | bool }}",
    "unverified": "{{ __relay_is_unverified | bool }}",
    "old_images": "{{ __relay_old_images }}",
    "tag": "{{ __relay_previous_tag }}",
    "packages": "{{ __relay_wanted_packages }}",
    "public_key": "{{ __relay_identity.public_key }}",
    "addresses": "{{ __relay_identity.addresses }}",
    "listens": "{{ [__relay_listen_tcp | int, __relay_listen_tls | int] }}",
    "looks_for": "{{ __relay_looked_for.tcp_ports }}",
    "transports": "{{ __relay_identity.transports }}",
    "pin": "{{ __relay_identity.tls_pin }}",
    "capabilities": "{{ __relay_container_options.capabilities }}",
    "volumes": "{{ __relay_container_options.volumes }}",
    "certificate": "{{ [__relay_tls_certificate_file, __relay_tls_private_key_file] }}",
    "tls_name": "{{ __relay_tls_name }}",
    "reloads": "{{ __relay_reloads | bool }}",
    "device": "{{ __relay_device }}",
    "bridge_chains": "{{ __relay_bridge_chains }}",
    "mss_chains": "{{ __relay_mss_chains | length }}",
}
FALLBACK, PREVIOUS = "culvert/relay:fallback-culvert0", "culvert/relay:previous-culvert0"
# A host on which all is as it should be.
WELL: dict[str, Any] = {
    "name": "culvert0",
    "tun": True,
    "engine": {"rc": 0, "error": ""},
    "ipv6": True,
    "packages_missing": [],
    "image": {"id": "sha256:1", "layers": ["a"], "labels": {}},
    "containers": {
        "culvert-culvert0": {
            "status": "running",
            "image": "sha256:1",
            "labels": {"io.culvert.batch": "auto", "io.culvert.image": "relay"},
            "environment": ["PATH=/bin", "CULVERT_INTERFACE=culvert0"],
            "options": {
                "command": [
                    "run",
                    "culvert0",
                    "--config",
                    "/etc/culvert/culvert0.conf",
                    "--user",
                    "51820:51820",
                ],
                "user": "",
                "network_mode": "host",
                "restart_policy": "unless-stopped",
                "read_only": True,
                "pids_limit": 64,
                "capabilities": ["NET_ADMIN", "SETGID", "SETUID"],
                "cap_drop": ["ALL"],
                "security_opts": ["no-new-privileges"],
                "volumes": [
                    "/etc/culvert:/etc/culvert:ro",
                    "/run/wireguard:/run/wireguard:rw",
                    "/var/lib/culvert/relay/culvert0:/var/lib/culvert/relay/culvert0:rw",
                ],
                "devices": ["/dev/net/tun:/dev/net/tun:rwm"],
                "log": {"driver": "json-file", "max-size": "5m", "max-file": "2"},
            },
        },
        "culvert-responder-culvert0": {},
    },
    "config_dir": {"exists": True, "mode": "0750", "owner": 0, "group": 51820},
    "key": {"exists": True, "problem": "", "mode": "0400", "owner": 51820, "group": 51820, "public_key": KEY},
    "relay": {"running": True, "public_key": KEY, "error": ""},
    "registry_id": None,
}
NOTHING_TO_DO = {"problems": [], "key": True, "image": False, "container": False}
# By host: what is different there (path: value), its variables, and what comes of it.
HOSTS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "well": ({}, {}, {**NOTHING_TO_DO, "public_key": KEY}),
    "stopped": ({"containers.culvert-culvert0.status": "exited"}, {}, {"container": True, "image": False}),
    "gone": ({"containers.culvert-culvert0": {}}, {}, {"container": True}),
    "of-another-image": (
        {"containers.culvert-culvert0.image": "sha256:2"},
        {},
        {
            "container": True,
            "hands_over": False,
            "changes_image": True,
            "unverified": False,
            "old_images": [],
        },
    ),
    # An image whose relay takes over is told to, and so the container has to be made anew.
    "takes-over": (
        {"image.labels": {"io.culvert.take-over": "1"}},
        {},
        {"container": True, "hands_over": True},
    ),
    "takes-over-of-none": (
        {"image.labels": {"io.culvert.take-over": "1"}, "containers.culvert-culvert0.status": "exited"},
        {},
        {"container": True, "hands_over": False, "changes_image": False},
    ),
    "not-verified-yet": (
        {"images": {FALLBACK: {"id": "sha256:0", "tags": [FALLBACK]}, PREVIOUS: {}}},
        {},
        {"container": False, "unverified": True, "old_images": []},
    ),
    "older-images": (
        {
            "images": {
                FALLBACK: {"id": "sha256:0", "tags": [FALLBACK]},
                PREVIOUS: {"id": "sha256:9", "tags": ["culvert/relay:0.0.9", PREVIOUS]},
            }
        },
        {},
        {"unverified": True, "old_images": ["culvert/relay:0.0.9", PREVIOUS, "sha256:9"]},
    ),
    "older-image-of-somebody": (
        {
            "images": {
                FALLBACK: {"id": "sha256:0", "tags": [FALLBACK]},
                PREVIOUS: {"id": "sha256:9", "tags": ["mine/relay:1", "culvert/relay:previous-b", PREVIOUS]},
            }
        },
        {},
        {"old_images": [PREVIOUS]},
    ),
    "back-to-the-previous": (
        {
            "images": {
                FALLBACK: {"id": "sha256:0", "tags": [FALLBACK]},
                PREVIOUS: {"id": "sha256:1", "tags": [PREVIOUS]},
            }
        },
        {},
        {"unverified": True, "old_images": []},
    ),
    "not-replaced-yet": (
        {"images": {FALLBACK: {"id": "sha256:1", "tags": [FALLBACK]}, PREVIOUS: {}}},
        {},
        {"unverified": False, "old_images": []},
    ),
    "of-a-registry": (
        {},
        {"relay_image": "registry.example:5000/culvert/relay@sha256:12", "relay_interface": "a+b"},
        {"tag": "registry.example:5000/culvert/relay:previous-a_b"},
    ),
    "other-batch": ({}, {"relay_batch": "python"}, {"container": True, "image": False}),
    "other-user": ({}, {"relay_uid": 1000}, {"container": True, "key": False}),
    "named-endpoint": (
        {},
        {"relay_peers": [{"public_key": OTHER_KEY, "endpoint": "gate.example.net:51820"}]},
        {"container": True},
    ),
    "writable": ({"containers.culvert-culvert0.options.read_only": False}, {}, {"container": True}),
    "not-restarted": ({"containers.culvert-culvert0.options.restart_policy": "no"}, {}, {"container": True}),
    "without-image": ({"image": {}}, {}, {"image": True, "container": True}),
    "no-key-yet": (
        {"key.exists": False, "key.public_key": None, "key.mode": "0000", "relay.public_key": None},
        {},
        {"problems": [], "key": False, "public_key": ""},
    ),
    "open-key": ({"key.mode": "0440"}, {}, {"key": False, "problems": []}),
    "open-folder": ({"config_dir.mode": "0755"}, {}, {"key": False}),
    "without-ipv6": ({"ipv6": False}, {"relay_address": "10.86.0.7/16"}, {"addresses": ["10.86.0.7/16"]}),
    "without-tun": ({"tun": False}, {}, {"problems": ["has no /dev/net/tun"]}),
    "without-engine": ({"engine.rc": 2}, {}, {"problems": [], "packages": ["docker-cli", "docker.io"]}),
    "may-not-install": (
        {"engine.rc": 2},
        {"relay_install_engine": False, "relay_install_packages": False},
        {"problems": ["has no container engine"]},
    ),
    "engine-down": (
        {"engine": {"rc": 1, "error": "Cannot connect"}},
        {},
        {"problems": ["no engine answers it: Cannot connect"]},
    ),
    "no-key": ({"key.problem": "is not a regular file"}, {}, {"problems": ["culvert0.key is not a regular"]}),
    "silent-relay": ({"relay.error": "it does not answer"}, {}, {"problems": ["it does not answer."]}),
    "another-key": (
        {"key.public_key": OTHER_KEY},
        {},
        {"problems": [f"runs with the key pair of {KEY}, but /etc/culvert/culvert0.key holds that of"]},
    ),
    "key-lost": (
        {"key.exists": False, "key.public_key": None},
        {},
        {"problems": ["culvert0.key does not exist"]},
    ),
    "another-key-allowed": (
        {"key.public_key": OTHER_KEY},
        {"relay_allow_identity_change": True},
        {"problems": [], "public_key": OTHER_KEY},
    ),
    "two-things": (
        {"tun": False, "engine.rc": 1},
        {},
        {"problems": ["has no /dev/net/tun", "no engine answers"]},
    ),
    "gate": (
        {},
        {"relay_transports": ["udp", "tcp", "tls"], "__relay_certificate": {"pin": "cGlu", "changed": True}},
        {
            "listens": [8443, 443],
            "looks_for": [8443, 443],
            "transports": {"udp": 51820, "tcp": 8443, "tls": 443},
            "pin": "cGlu",
            "capabilities": ["NET_ADMIN", "NET_BIND_SERVICE", "SETGID", "SETUID"],
            "certificate": ["/etc/culvert/culvert0.tls/certificate.pem", "/etc/culvert/culvert0.tls/key.pem"],
            "tls_name": "gate",
            "container": True,
            "reloads": True,
            "problems": [],
        },
    ),
    "restored-gate": (
        {},
        {
            "relay_transports": ["tls"],
            "__relay_certificate": {"pin": "cGlu", "changed": False},
            "__relay_restored": {"files": ["/etc/culvert/culvert0.key", "/etc/culvert/culvert0.tls/key.pem"]},
        },
        {"reloads": True},
    ),
    "again-gate": (
        {},
        {"relay_transports": ["tls"], "__relay_restored": {"files": ["/etc/culvert/culvert0.psk/0123"]}},
        {"reloads": False},
    ),
    "plain-gate": ({}, {}, {"transports": {}, "listens": [0, 0], "reloads": False, "pin": ""}),
    "hidden-gate": (
        {},
        {
            "relay_transports": ["tls"],
            "relay_tls_port": 8443,
            "relay_endpoint_host": "198.51.100.1",
            "relay_tls_certificate": "/srv/tls/vpn.crt",
            "relay_tls_private_key": "/srv/keys/vpn.key",
        },
        {
            "transports": {"tls": 8443},
            "capabilities": ["NET_ADMIN", "SETGID", "SETUID"],
            "volumes": [
                "/etc/culvert:/etc/culvert:ro",
                "/run/wireguard:/run/wireguard:rw",
                "/var/lib/culvert/relay/culvert0:/var/lib/culvert/relay/culvert0:rw",
            ],
            "certificate": ["/etc/culvert/culvert0.tls/certificate.pem", "/etc/culvert/culvert0.tls/key.pem"],
            "tls_name": "",
        },
    ),
    "client-of-streams": (
        {},
        {"relay_transports": ["udp", "tls"]},
        {
            "listens": [0, 0],
            "looks_for": [],
            "transports": {},
            "container": False,
            "capabilities": ["NET_ADMIN", "SETGID", "SETUID"],
        },
    ),
    "taken-gate": (
        {"tcp_ports": {"443": {"address": "0.0.0.0", "process": "nginx", "pid": 7}}},
        {"relay_transports": ["udp", "tls"]},
        {
            "problems": [
                "relay_tls_port: TCP port 443 of taken-gate is taken by nginx (process 7, at 0.0.0.0): give"
            ]
        },
    ),
    "switched": (
        {"files": {"/sys/class/net/br0/bridge": True}, "kernel_ipv6": False},
        {
            "relay_layer": 2,
            "relay_bridge": "br0",
            "relay_identity": {"interface": "culvert0", "addresses": ["10.86.0.7/16"]},
        },
        {
            "problems": [],
            "device": {
                "name": "culvert0",
                "owner": "51820",
                "group": "51820",
                "mtu": 1500,
                "addresses": [],
                "mode": "tap",
                "bridge": "br0",
            },
            "bridge_chains": [
                {
                    "name": "CULVERT-BRIDGE",
                    "table": "filter",
                    "family": "ipv4",
                    "jump": {"from": "FORWARD"},
                    "rules": ["-i br0 -o br0 -j ACCEPT"],
                }
            ],
            "mss_chains": 0,
        },
    ),
    "without-bridge": (
        {"files": {"/sys/class/net/br0/bridge": False}},
        {"relay_layer": 2, "relay_bridge": "br0"},
        {"problems": ["relay_bridge: without-bridge has no bridge br0"]},
    ),
    "nobody": ({"tun": False}, {"uid": 65534}, {"problems": ["user nobody, not as root"]}),
    "fedora": ({}, {"family": "RedHat"}, {"problems": ["relay_install_packages: this role installs"]}),
}


def _seen(different: dict[str, Any]) -> dict[str, Any]:
    found = deepcopy(WELL)
    for path, value in different.items():
        place: Any = found
        *folders, last = path.split(".")
        for folder in folders:
            place = place[folder]
        place[last] = value
    return found


@pytest.fixture(scope="module")
def decided(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    directory = tmp_path_factory.mktemp("decisions")
    facts = {
        "culvert_host": "{{ seen }}",
        "effective_user_id": "{{ uid | default(0) }}",
        "user_id": "{{ 'nobody' if uid is defined else 'root' }}",
        "os_family": "{{ family | default('Debian') }}",
        "distribution": "{{ 'Fedora' if family is defined else 'Debian' }}",
        "distribution_major_version": "13",
        "cacheable": True,
    }
    tasks: list[dict[str, Any]] = [
        {"ansible.builtin.import_role": {"name": "culvert.vpn.relay", "tasks_from": "variables.yml"}},
        {"ansible.builtin.set_fact": facts},
        {
            "ansible.builtin.copy": {
                "content": "{{ asked | to_json }}",
                "dest": f"{directory}/{{{{ inventory_hostname }}}}.json",
            },
            "vars": {"asked": _ASKED},
        },
    ]
    (directory / "play.yml").write_text(
        yaml.safe_dump([{"hosts": "all", "gather_facts": False, "tasks": tasks}])
    )
    hosts = {name: {"seen": _seen(different), **own} for name, (different, own, _decided) in HOSTS.items()}
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    local |= {"__relay_configured": {"reload": False}}
    usual = {"relay_identity": {"interface": "culvert0", "addresses": ["10.86.0.7/16", "fd86::7/64"]}}
    groups = {
        f"vpn_{role}s": {"hosts": {name: {} for name in names}}
        for role, names in (
            ("server", [n for n in hosts if n.endswith("gate")]),
            ("client", ["client-of-streams"]),
        )
    }
    inventory = {"all": {"hosts": hosts, "vars": {**local, **usual}, "children": groups}}
    (directory / "inventory.yml").write_text(json.dumps(inventory))
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("ansible-playbook")),
            "-i",
            str(directory / "inventory.yml"),
            str(directory / "play.yml"),
        ],
        env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": f"{ROOT}/.cache/collections"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {name: json.loads((directory / f"{name}.json").read_text()) for name in HOSTS}


@pytest.mark.parametrize("host", HOSTS)
def test_the_look_at_a_host_decides(decided: dict[str, dict[str, Any]], host: str) -> None:
    found, expected = decided[host], dict(HOSTS[host][2])
    problems = expected.pop("problems", None)
    if problems is not None:
        assert len(found["problems"]) == len(problems), found["problems"]
        for said, words in zip(found["problems"], problems, strict=True):
            assert words in said
    packages = expected.pop("packages", [])
    assert set(packages) <= set(found["packages"])
    assert {name: found[name] for name in expected} == expected


def test_a_container_is_made_of_what_it_is_compared_with() -> None:
    """An option that the task sets and the comparison leaves out would stay as it is for good."""
    for role, task_file, prefix in (
        ("relay", "run", "relay_container"),
        ("server", "responder", "server_responder"),
    ):
        tasks = yaml.safe_load((ROOT / "roles" / role / "tasks" / f"{task_file}.yml").read_text())
        wish = next(t[m] for t in tasks for m in t if m == "community.docker.docker_container")
        compared = yaml.safe_load((ROOT / "roles" / role / "vars" / "main.yml").read_text())[
            f"__{prefix}_options"
        ]
        otherwise = {"name", "image", "pull", "image_name_mismatch", "env", "labels", "healthcheck", "state"}
        names = {"log_driver": "log", "log_options": "log"}
        assert {names.get(name, name) for name in set(wish) - otherwise} <= set(compared)
        for name in set(wish) - otherwise - {"log_options"}:
            assert f"__{prefix}_options.{names.get(name, name)}" in str(wish[name]), name
