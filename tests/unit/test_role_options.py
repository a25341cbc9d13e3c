# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the roles say of options that cannot work, which the playbook asks before it changes any host."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
# By host: its role, its variables, and the words that have to be said; none for options that are well.
HOSTS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "plain": ("client", {}, []),
    "everything": (
        "client",
        {
            "client_kill_switch": True,
            "client_kill_switch_allow": ["10.0.0.0/8", {"to": "::/0", "protocol": "icmp"}],
            "client_dns_servers": ["server", "10.86.0.1", "fd86::1"],
            "client_dns_search": ["example.com", "lan."],
            "client_servers": ["low", "gate"],
            "client_acl": [{"to": "10.0.0.0/8", "protocol": "tcp", "port": "80:90"}],
            "client_remote_networks": ["10.20.0.0/16"],
        },
        [],
    ),
    "remote": (
        "client",
        {"client_remote_networks": ["10.20.0.1/16"]},
        ["client_remote_networks: 10.20.0.1/16"],
    ),
    "permitted": (
        "client",
        {"client_acl": [{"to": "10.0.0.0/8", "port": 80}, {"to": "10.0.0.0/8", "device": "eth0"}]},
        [
            "client_acl[0].port: 80 needs a protocol",
            "client_acl[1] has device, which is none of to, protocol",
        ],
    ),
    "twice": ("client", {"client_servers": ["gate", "gate"]}, ["client_servers names a server twice"]),
    "hasty": (
        "client",
        {"client_failover_timeout_s": 0.5, "client_failover_return_s": 4000},
        [
            "client_failover_timeout_s: 0.5 is not a number from 1 to 60",
            "client_failover_return_s: 4000 is not",
        ],
    ),
    "prefix": ("client", {"client_tunnel_prefixes": ["10.0.0.1/8"]}, ["client_tunnel_prefixes", "host bits"]),
    "exception": (
        "client",
        {"client_kill_switch_allow": ["10.0.0.0/8", {"to": "::/0", "port": 53}]},
        ["client_kill_switch_allow[1].port: 53 needs a protocol"],
    ),
    "exceptions": (
        "client",
        {"client_kill_switch_allow": "10.0.0.0/8"},
        ["client_kill_switch_allow is not a list"],
    ),
    "bridges": (
        "client",
        {"client_container_devices": ["docker0", "+"]},
        ["client_container_devices[1]: '+' is neither a device's name nor a pattern"],
    ),
    "resolver": (
        "client",
        {"client_dns_servers": ["dns.example.com", "10.0.0.0/8", "10.0.0.256"]},
        [
            "dns.example.com is neither an address nor the word server",
            "10.0.0.0/8 is neither",
            "'10.0.0.256'",
        ],
    ),
    "nobody": (
        "client",
        {"client_dns_servers": ["server"], "client_servers": []},
        ["server needs client_servers, hosts of the group vpn_servers"],
    ),
    "elsewhere": (
        "client",
        {"client_servers": ["gate", "plain"]},
        ["client_servers: plain is no host of the group vpn_servers"],
    ),
    "search": ("client", {"client_dns_search": ["example.com", "a b"]}, ["a b is not a domain"]),
    "unmarked": ("client", {"relay_fwmark": 0}, ["relay_fwmark: 0 is no mark"]),
    "tunnel": ("relay", {"relay_mtu": 1300, "relay_disable_offloads": ["gro"], "relay_confirm": "never"}, []),
    "plain4": ("relay", {"relay_network6": "", "relay_mtu": 576}, []),
    "dot": ("relay", {"relay_interface": ".."}, ["relay_interface: .. is not a name"]),
    "long": ("relay", {"relay_interface": "sixteen-bytes-xy"}, ["1 to 15 bytes (this has 16)"]),
    "abroad": (
        "relay",
        {"relay_address": "192.168.1.1/24", "relay_address6": "fd00::1/64"},
        ["relay_address: 192.168.1.1/24 is not an address of relay_network 10.86.0.0/16", "relay_address6"],
    ),
    "small": ("relay", {"relay_mtu": 1279}, ["relay_mtu: 1279 is neither auto nor a number from 1280"]),
    "low port": ("relay", {"relay_listen_port": 53}, ["53 is not a port from 1024 to 65535"]),
    "lro": ("relay", {"relay_disable_offloads": "tso,lro"}, ["lro"]),
    "watched": ("relay", {"relay_events_syslog": "/run/systemd/journal/dev-log"}, []),
    "devlog": (
        "relay",
        {"relay_events_syslog": "/dev/log"},
        ["relay_events_syslog: /dev/log is not", "readlink -f"],
    ),
    "socket": (
        "relay",
        {"relay_events_syslog": "run/journal/log"},
        ["run/journal/log is not the absolute path"],
    ),
    "quick": ("relay", {"relay_batch": "quick", "relay_confirm_timeout_s": 9}, ["quick"]),
    "streams": (
        "relay",
        {
            "relay_transports": ["tls", "tcp"],
            "relay_tls_certificate": "/etc/tls/vpn.crt",
            "relay_tls_private_key": "/etc/tls/vpn.key",
            "relay_tls_server_name": "vpn.example.org",
        },
        [],
    ),
    "no transport": ("relay", {"relay_transports": []}, ["relay_transports:  is not a list of udp, tcp"]),
    "quic": ("relay", {"relay_transports": ["udp", "quic"]}, ["udp, quic is not a list of udp, tcp and tls"]),
    "twofold": ("relay", {"relay_transports": ["tls", "tls"]}, ["relay_transports names one twice"]),
    "one port": (
        "relay",
        {"relay_transports": ["udp", "tcp", "tls"], "relay_tcp_port": 443},
        ["relay_tcp_port and relay_tls_port are both 443"],
    ),
    "no port": ("relay", {"relay_tls_port": 65536}, ["relay_tls_port: 65536 is not a port"]),
    "half a pair": (
        "relay",
        {"relay_tls_certificate": "/etc/tls/vpn.crt"},
        ["relay_tls_certificate and relay_tls_private_key belong together"],
    ),
    "relative": (
        "relay",
        {"relay_tls_certificate": "vpn.crt", "relay_tls_private_key": "/etc/vpn.key"},
        ["not absolute paths on the host"],
    ),
    "nameless": ("relay", {"relay_tls_server_name": "a b"}, ["relay_tls_server_name: a b is not a name"]),
    "frames": ("relay", {"relay_layer": 2, "relay_bridge": "br-lan", "relay_client_isolation": True}, []),
    "layer": ("relay", {"relay_layer": 4}, ["relay_layer: 4 is neither 2 nor 3"]),
    "bridged packets": ("relay", {"relay_bridge": "br0"}, ["relay_bridge: br0 needs relay_layer 2"]),
    "own bridge": (
        "relay",
        {"relay_layer": 2, "relay_bridge": "culvert0"},
        ["culvert0 is not a name that another device than relay_interface"],
    ),
    "isolated packets": (
        "relay",
        {"relay_client_isolation": True},
        ["relay_client_isolation is for relay_layer 2"],
    ),
    "storm": (
        "relay",
        {"relay_layer": 2, "relay_storm_limit": -1},
        ["relay_storm_limit: -1 is not a number"],
    ),
    "group of frames": (
        "relay",
        {"relay_layer": 2, "relay_failover": {"allowed_ips": ["0.0.0.0/0"]}},
        ["relay_failover", "At layer 2 there is one server"],
    ),
    "bridged": ("client", {"relay_layer": 2, "client_tunnel_prefixes": [], "client_servers": []}, []),
    "bridged routes": (
        "client",
        {
            "relay_layer": 2,
            "client_tunnel_prefixes": ["0.0.0.0/0"],
            "client_networks": ["10.9.0.0/16"],
            "client_acl": [],
            "client_kill_switch": True,
            "client_dns_servers": ["10.9.0.53"],
        },
        [
            f"{name} is for relay_layer 3"
            for name in ("client_tunnel_prefixes", "client_networks", "client_acl", "client_kill_switch")
        ]
        + ["client_dns_servers is for relay_layer 3"],
    ),
    "by tls alone": (
        "client",
        {"client_transports": ["tls"], "client_servers": ["hidden"]},
        ["client_transports: by tls alone goes by tls, and gate offers udp alone (relay_transports)"],
    ),
    "by nothing": (
        "client",
        {"client_transports": []},
        ["client_transports:  is not a list of udp, tcp and tls"],
    ),
    "by udp": ("client", {"client_transports": ["udp"]}, ["by udp goes by udp, and hidden offers tls alone"]),
    "gate": ("server", {"server_resolver": "dnsmasq", "server_resolver_upstreams": ["10.0.0.53"]}, []),
    "hidden": ("server", {"relay_transports": ["tls"]}, []),
    "crowded": (
        "server",
        {"relay_transports": ["udp", "tcp"], "relay_tcp_port": 51821},
        ["server_responder_port has port 51821, which is relay_tcp_port, too"],
    ),
    "switch": (
        "server",
        {
            "relay_layer": 2,
            "server_site_networks": ["10.20.0.0/16"],
            "server_client_isolation": True,
            "server_resolver": "dnsmasq",
            "server_drain": True,
        },
        [
            "server_site_networks is for relay_layer 3",
            "server_client_isolation is for relay_layer 3 (use relay_client_isolation)",
            "server_resolver is for relay_layer 3",
            "server_drain is for relay_layer 3",
            "relay_layer 2 needs one server, and vpn_servers has",
        ],
    ),
    "unknown": ("server", {"server_resolver": "unbound"}, ["unbound is none of none, dnsmasq"]),
    "upstream": (
        "server",
        {"server_resolver_upstreams": ["dns"]},
        ["server_resolver_upstreams: dns is not an address"],
    ),
    "taken": (
        "server",
        {"server_responder_port": 51820},
        ["51820 is not a port from 1024 to 65535 other than"],
    ),
    "site": (
        "server",
        {"server_site_networks": ["10.20.0.0/16", "10.30.0.1/16"], "server_networks": ["10.20.0.0/16"]},
        ["server_site_networks: 10.20.0.0/16 is behind another host, too", "10.30.0.1/16 has host bits set"],
    ),
    "closed": (
        "server",
        {"server_site_networks": ["10.20.0.0/16"], "server_forward": False},
        ["server_site_networks are forwarded to, which server_forward forbids"],
    ),
    "listed": (
        "server",
        {"server_client_acls": {"plain": {"addresses": ["10.86.0.2/32"], "rules": [{"to": "lan"}]}}},
        ["server_client_acls[plain].rules[0].to: 'lan'"],
    ),
    "drained": ("server", {"server_drain": "soon"}, ["server_drain: soon is neither true nor false"]),
    "low": ("server", {"server_responder_port": 80}, ["80 is not a port from 1024"]),
}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the roles' checks say of each host, empty where they are content."""
    directory = tmp_path_factory.mktemp("options")
    ask = {"name": "culvert.vpn.{{ role_under_test }}", "tasks_from": "options.yml"}
    tasks = [
        {
            "block": [{"ansible.builtin.include_role": ask}],
            "rescue": [{"ansible.builtin.set_fact": {"said": "{{ ansible_failed_result.msg }}"}}],
        },
        {
            "ansible.builtin.copy": {
                "content": "{{ said | default('') }}",
                "dest": f"{directory}/{{{{ inventory_hostname }}}}.txt",
            },
        },
    ]
    files = [f"{ROOT}/roles/{role}/defaults/main.yml" for role in ("relay", "client", "server")]
    defaults: dict[str, Any] = {}
    for path in files:
        defaults |= yaml.safe_load(Path(path).read_text())
    groups: dict[str, Any] = {f"vpn_{role}s": {"hosts": {}} for role in ("client", "server", "relay")}
    for name, (role, variables, _words) in HOSTS.items():
        groups[f"vpn_{role}s"]["hosts"][name] = {"role_under_test": role, **variables}
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    inventory = {"all": {"vars": {**defaults, **local}, "children": groups}}
    (directory / "inventory.yml").write_text(yaml.safe_dump(inventory))
    play = [{"hosts": "all", "gather_facts": False, "tasks": tasks}]
    (directory / "play.yml").write_text(yaml.safe_dump(play))
    command = [
        str(Path(sys.executable).with_name("ansible-playbook")),
        "-i",
        str(directory / "inventory.yml"),
    ]
    done = subprocess.run(
        [*command, str(directory / "play.yml")],
        env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": f"{ROOT}/.cache/collections"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {name: (directory / f"{name}.txt").read_text() for name in HOSTS}


@pytest.mark.parametrize("host", HOSTS)
def test_what_cannot_work_is_said_and_what_can_is_not(said: dict[str, str], host: str) -> None:
    words = HOSTS[host][2]
    assert bool(said[host]) == bool(words), said[host]
    for word in words:
        assert word in said[host]
    assert "Nothing was changed" in said[host] or not words


def test_the_playbook_asks_before_it_changes_anything() -> None:
    """First the variables of all hosts, then the hosts, then the fleet; the first change comes after that."""
    plays = yaml.safe_load((ROOT / "playbooks" / "site.yml").read_text())
    steps: list[str] = []
    for task in (task for play in plays for task in play.get("tasks", [])):
        role = task.get("ansible.builtin.import_role")
        registry = task.get("culvert.vpn.fleet_registry")
        if role:
            steps.append(f"{role['name'].rpartition('.')[2]} {role['tasks_from'].removesuffix('.yml')}")
        elif registry:
            steps.append(f"registry {registry['state']}")
        elif "that" in task.get("ansible.builtin.assert", {}):
            steps.append("assert")
    first_change = steps.index("relay prepared")
    asked = ["relay options", "server options", "relay options", "client options"]
    assert steps[:first_change] == ["assert", "assert", *asked, "assert", "relay host", "registry check"]
    assert set(asked).isdisjoint(steps[first_change:])
