# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The registry in a run: what is read, what is written, and what is not; at the end with Ansible itself."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ansible import constants
from ansible.plugins.action import ActionBase
from ansible_collections.culvert.vpn.plugins.action import fleet_registry
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet import tunnel_address
from ansible_collections.culvert.vpn.plugins.plugin_utils._registry import Registry, parse, read

NETWORK = "10.86.0.0/16"


def key_of(name: str) -> str:
    return base64.b64encode(hashlib.sha256(name.encode()).digest()).decode()


class Fleet:
    """An inventory, and runs of the task."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.hosts: dict[str, dict[str, Any]] = {}
        self.add("s1", "c1", "c2")

    def add(self, *names: str, **variables: Any) -> None:
        for name in names:
            identity = {"public_key": key_of(name), "endpoint": f"{name}:51820"}
            self.hosts[name] = {"relay_identity": identity, **variables}

    def run(
        self, state: str, limit: str = "", absent: str = "", check: bool = False, **options: Any
    ) -> dict[str, Any]:
        """Run the task; `limit` and `absent` (who cannot be reached) are names."""
        chosen = limit.split() or list(self.hosts)
        variables = {
            "groups": {
                "vpn_servers": [name for name in self.hosts if name.startswith("s")],
                "vpn_clients": [name for name in self.hosts if name.startswith("c")],
            },
            "hostvars": self.hosts,
            "ansible_play_hosts_all": chosen,
            "ansible_play_hosts": [name for name in chosen if name not in absent.split()],
        }
        action = object.__new__(fleet_registry.ActionModule)
        network = {} if state == "forgotten" else {"network": NETWORK}
        action._task = SimpleNamespace(
            args={"path": self.path, "state": state, **network, **options}, check_mode=check
        )
        result: dict[str, Any] = action.run(task_vars=variables)
        return result

    def names(self) -> set[str]:
        return set((read(self.path) or Registry()).hosts)

    def file(self) -> tuple[bytes, int]:
        return Path(self.path).read_bytes(), os.stat(self.path).st_mtime_ns


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    monkeypatch.setattr(ActionBase, "run", lambda self, tmp=None, task_vars=None: {})
    monkeypatch.setattr(constants, "DEFAULT_LOCAL_TMP", str(tmp_path / "ansible"))
    (tmp_path / "inventory").mkdir()
    return Fleet(tmp_path / "inventory" / "registry.txt")


def test_who_joins_is_written_down_and_the_same_again_changes_nothing(fleet: Fleet) -> None:
    assert fleet.run("check")["changed"] is False
    assert not os.path.exists(fleet.path)
    done = fleet.run("joined")
    assert done["changed"]
    assert done["added"] == ["c1", "c2", "s1"]
    assert done["path"] == done["ansible_facts"]["culvert_registry"] == fleet.path
    assert done["diff"]["before"] == {}
    assert done["diff"]["after"]["c1"]["address"] == tunnel_address(NETWORK, "c1")
    written = fleet.file()
    again = fleet.run("joined")
    assert (again["changed"], again["added"]) == (False, [])
    assert again["diff"] == {"before": {}, "after": {}}
    assert fleet.file() == written, "not even its time"


def test_a_registry_that_is_only_read_is_left_alone_and_what_differs_is_told(fleet: Fleet) -> None:
    fleet.run("joined")
    written = fleet.file()
    fleet.add("c1", client_networks=["10.20.0.0/16"])
    done = fleet.run("joined", "c1", read_only=True)
    assert (done["changed"], done["path"], done["ansible_facts"]["culvert_registry"]) == (
        False,
        fleet.path,
        fleet.path,
    )
    (warning,) = done["warnings"]
    assert "something else of c1 than the inventory" in warning
    assert "warnings" not in fleet.run("joined", "c2", read_only=True)
    fleet.add("c3")
    for state in ("check", "joined"):
        refused = fleet.run(state, "c3", read_only=True)
        assert refused["failed"]
        assert "c3: not in the registry" in refused["msg"]
        assert "failed" not in fleet.run(state, "c2", read_only=True)
    assert fleet.file() == written


def test_check_mode_writes_nothing_and_the_rest_of_the_run_sees_what_would_be(fleet: Fleet) -> None:
    done = fleet.run("joined", check=True)
    assert done["changed"]
    assert not os.path.exists(fleet.path)
    assert done["path"] == done["ansible_facts"]["culvert_registry"] != fleet.path
    assert set(read(done["path"]).hosts) == {"s1", "c1", "c2"}  # type: ignore[union-attr]
    fleet.run("joined")
    written = fleet.file()
    fleet.add("c3")
    assert fleet.run("joined", check=True)["added"] == ["c3"]
    assert fleet.run("forgotten", check=True, hosts=["c1"])["removed"] == ["c1"]
    assert fleet.run("forgotten", check=True, hosts=list(fleet.hosts))["changed"]
    assert fleet.file() == written
    assert os.listdir(os.path.dirname(fleet.path)) == ["registry.txt"]


@pytest.mark.parametrize("how", [{"limit": "c1"}, {"absent": "s1 c2"}])
def test_who_is_not_there_stays(fleet: Fleet, how: dict[str, str]) -> None:
    fleet.run("joined")
    written = fleet.file()
    for host in fleet.hosts.values():
        host["relay_identity"] = dict(host["relay_identity"])
    fleet.hosts["c2"]["relay_identity"]["public_key"] = key_of("from a cache")
    assert fleet.run("check", **how)["changed"] is False
    done = fleet.run("joined", **how)
    assert done["changed"] is False
    assert fleet.file() == written
    assert done["servers_absent"] == ["s1"]


def test_only_a_full_run_takes_somebody_out(fleet: Fleet) -> None:
    fleet.run("joined")
    del fleet.hosts["c2"]
    assert fleet.run("joined", limit="s1")["removed"] == []
    assert fleet.names() == {"s1", "c1", "c2"}
    done = fleet.run("joined", absent="c1")
    assert done["removed"] == ["c2"]
    assert done["diff"]["before"].keys() == {"c2"}
    assert done["diff"]["after"] == {}
    assert fleet.names() == {"s1", "c1"}


def test_too_many_removals_are_refused_before_and_after(fleet: Fleet) -> None:
    fleet.add(*(f"c{n}" for n in range(3, 9)))
    fleet.run("joined")
    for number in range(3, 9):
        del fleet.hosts[f"c{number}"]
    written = fleet.file()
    for state, rest in (("check", "Nothing was changed on any host."), ("joined", "was not changed.")):
        done = fleet.run(state)
        assert done["failed"]
        assert "site_max_removals to 6" in done["msg"]
        assert done["msg"].endswith(rest)
        assert len(done["problems"]) == 1
    assert fleet.file() == written
    assert fleet.run("joined", max_removals="6")["changed"]


def test_a_host_under_another_name(fleet: Fleet) -> None:
    fleet.run("joined")
    fleet.hosts["c7"] = fleet.hosts.pop("c2")
    done = fleet.run("joined", limit="c7 s1")
    assert (done["renamed"], done["added"], done["removed"]) == ([{"from": "c2", "to": "c7"}], [], [])
    assert done["diff"]["before"]["c2"]["address"] == done["diff"]["after"]["c7"]["address"]


def test_teardown_takes_its_hosts_out_and_the_file_with_the_last(fleet: Fleet) -> None:
    assert fleet.run("forgotten", hosts=["c1"])["changed"] is False
    fleet.run("joined")
    assert fleet.run("forgotten", hosts=["c1", "nobody"])["removed"] == ["c1"]
    assert fleet.names() == {"s1", "c2"}
    assert fleet.run("forgotten", hosts=["c1"])["changed"] is False
    assert fleet.run("forgotten", hosts=["s1", "c2"])["removed"] == ["c2", "s1"]
    assert not os.path.exists(fleet.path)


def test_what_is_wrong_is_said_with_what_to_do(fleet: Fleet) -> None:
    done = fleet.run("check", network="10.86.0.0/30")
    assert done["msg"].startswith("relay_network 10.86.0.0/30 has room for 2 hosts")
    Path(fleet.path).write_text('{"format": 1}')
    for state in ("check", "joined", "forgotten"):
        done = fleet.run(state, hosts=["c1"])
        assert done["failed"]
        assert "is damaged" in done["msg"]
        assert "Restore it" in done["msg"]
    assert Path(fleet.path).read_text() == '{"format": 1}'
    assert "network is required" in fleet.run("joined", network="")["msg"]
    fleet.path = "/nowhere/at/all/registry.txt"
    assert "there is no folder /nowhere/at/all" in fleet.run("check")["msg"]
    assert fleet.run("joined")["failed"]


def test_a_folder_that_cannot_be_written_matters_only_if_it_has_to_be(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.run("joined")
    monkeypatch.setattr(os, "access", lambda path, how: False)
    assert not fleet.run("check").get("failed")
    fleet.add("c3")
    assert "is not writable" in fleet.run("check")["msg"]
    assert not fleet.run("check", limit="c1").get("failed")


# --- With Ansible -------------------------------------------------------------------------------------------

PLAY = """
- hosts: vpn_servers:vpn_clients
  gather_facts: false
  tasks:
    - ansible.builtin.raw: echo
      changed_when: false
    - culvert.vpn.fleet_registry: {path: "{{ registry }}", state: check, network: 10.86.0.0/16}
      run_once: true
    - ansible.builtin.set_fact:
        relay_identity:
          public_key: "{{ inventory_hostname | hash('sha256') | truncate(32, True, '', 0) | b64encode }}"
          endpoint: "{{ inventory_hostname }}:51820"
    - culvert.vpn.fleet_registry: {path: "{{ registry }}", state: joined, network: 10.86.0.0/16}
      run_once: true
      register: joined
    - ansible.builtin.debug:
        msg: "{{ lookup('culvert.vpn.fleet', 'peers', registry=joined.path, host=inventory_hostname,
                        prefixes=['0.0.0.0/0'], keepalive='25') }}"
"""


@pytest.fixture
def playbook(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs the play with Ansible itself; the peers that each host was to have are in ``seen``."""
    collections = next(p for p in sys.path if (Path(p) / "ansible_collections" / "culvert").exists())
    (tmp_path / "play.yml").write_text(PLAY)
    (tmp_path / "inventory").mkdir()

    def play(inventory: dict[str, Any], *argv: str) -> dict[str, Any]:
        (tmp_path / "inventory" / "hosts.yml").write_text(yaml.safe_dump(inventory, sort_keys=False))
        done = subprocess.run(
            [
                str(Path(sys.executable).parent / "ansible-playbook"),
                *("-i", str(tmp_path / "inventory"), "-c", "local"),
                *("-e", json.dumps({"registry": "{{ inventory_dir }}/culvert_registry.txt"})),
                *(*argv, str(tmp_path / "play.yml")),
            ],
            env={
                **os.environ,
                "ANSIBLE_COLLECTIONS_PATH": str(collections),
                "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
                "ANSIBLE_NOCOLOR": "1",
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        told = re.findall(r'^ok: \[(\w+)\] => (\{\n    "msg".*?^\})', done.stdout, re.MULTILINE | re.DOTALL)
        seen = {name: json.loads(text)["msg"] for name, text in told}
        return {"seen": seen, "text": done.stdout + done.stderr}

    return play


def inventory_of(servers: dict[str, Any], clients: dict[str, Any]) -> dict[str, Any]:
    return {
        "all": {
            "vars": {"third": 9},
            "children": {"vpn_servers": {"hosts": servers}, "vpn_clients": {"hosts": clients}},
        }
    }


def test_with_ansible_itself(playbook: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    file = tmp_path / "inventory" / "culvert_registry.txt"
    clients: dict[str, Any] = {
        # Templates, and values that Ansible attaches things to.
        "c1": {"relay_address": "10.86.0.{{ third }}/16", "client_networks": ["10.{{ third }}.0.0/16"]},
        "c2": {"client_acl": [{"to": "10.9.0.0/16", "port": 22, "protocol": "tcp"}]},
    }
    servers: dict[str, Any] = {"s1": {"server_drain": "{{ third == 9 }}"}, "s2": {}}
    foretold = playbook(inventory_of(servers, clients), "--check", "--diff")
    assert not file.exists(), foretold["text"]
    done = playbook(inventory_of(servers, clients))
    assert set(done["seen"]) == {"s1", "s2", "c1", "c2"}, done["text"]
    assert foretold["seen"] == done["seen"]
    registry = parse(file.read_text())
    assert registry.hosts["c1"].address == "10.86.0.9/16"
    assert registry.hosts["c1"].networks == ("10.9.0.0/16",)
    assert registry.hosts["c2"].acl == ({"to": "10.9.0.0/16", "port": 22, "protocol": "tcp"},)
    assert registry.hosts["s1"].drain

    # Another order, a limit, and a server that cannot be reached: nobody's peers change.
    whole = file.read_bytes()
    gone = {**servers, "s2": {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}}
    turned = inventory_of(dict(reversed(gone.items())), dict(reversed(clients.items())))
    some = playbook(turned)
    assert "unreachable=1" in some["text"]
    assert some["seen"] == {name: seen for name, seen in done["seen"].items() if name != "s2"}
    one = playbook(turned, "--limit", "c2")
    assert one["seen"] == {"c2": done["seen"]["c2"]}
    assert file.read_bytes() == whole

    # Who is not in the inventory any more.
    del clients["c2"]
    left = playbook(inventory_of(servers, clients))
    assert [peer["name"] for peer in left["seen"]["s1"]] == ["c1", "s2"], left["text"]

    # A fleet that cannot be.
    wrong = playbook(inventory_of(servers, {**clients, "c3": {"relay_address": "10.86.0.9/16"}}))
    assert wrong["seen"] == {}
    assert "relay_address of c3 is 10.86.0.9" in wrong["text"]
