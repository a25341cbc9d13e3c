# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What playbooks are told of the registry; what the answers are made of is tested with _fleet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible import constants
from ansible.errors import AnsibleError, AnsibleLookupError
from ansible_collections.culvert.vpn.plugins.lookup import fleet
from ansible_collections.culvert.vpn.plugins.plugin_utils._registry import Entry, Registry, write

SERVER = Entry("server", "10.86.0.1/16", "fd86::1/64", "S1", "s1:51820", ("10.1.0.0/24",))
HOSTS = {
    "s1": SERVER,
    "s2": Entry("server", "10.86.0.2/16", "", "S2", "s2:51820"),
    "s3": Entry("server", "10.86.0.3/16", "", "S3", "s3:51820"),
    "c1": Entry("client", "10.86.0.4/16", "", "C1", mtu=1380, acl=()),
}
NAME = "culvert.vpn.fleet"
REGISTRY = Registry().with_hosts({"s1": SERVER}).with_hosts(HOSTS)


@pytest.fixture
def ask(tmp_path: Path) -> Any:
    """Ask as a template does."""
    path = str(tmp_path / "registry.txt")
    write(path, REGISTRY)
    # What Ansible does when it finds a plugin.
    options = yaml.safe_load(fleet.DOCUMENTATION)["options"]
    constants.config.initialize_plugin_configuration_definitions("lookup", NAME, options)

    def answer(term: str, host: str = "", **options: Any) -> Any:
        plugin = fleet.LookupModule()
        plugin._load_name = NAME
        (found,) = plugin.run([term], {}, **{"registry": path, "host": host, **options})
        return found

    return answer


def test_each_term_has_its_answer(ask: Any) -> None:
    member = {"host": "s1", **SERVER.as_dict(), "addresses": ["10.86.0.1/16", "fd86::1/64"]}
    assert ask("member", "s1") == member
    assert ask("member", "nobody") == {}
    assert [each["host"] for each in ask("members")] == ["c1", "s1", "s2", "s3"]
    assert ask("members")[1] == member
    assert ask("addresses", "s1") == ["10.86.0.1/16", "fd86::1/64"]
    assert ask("addresses", "nobody") == []
    assert [peer["name"] for peer in ask("peers", "s1")] == ["c1", "s2", "s3"]
    assert ask("networks", "c1") == ["10.1.0.0/24"]
    assert ask("client_mtus") == {"10.86.0.4/32": 1380}
    assert ask("acls") == {"c1": {"addresses": ["10.86.0.4/32"], "rules": []}}
    assert ask("registry") == {"id": REGISTRY.id, "lineage": list(REGISTRY.lineage)}
    assert ask("name_of", public_key="C1") == "c1"


def test_a_clients_wishes_may_come_as_text(ask: Any) -> None:
    peers = ask("peers", "c1", servers=["s2", "s1"], prefixes=["0.0.0.0/0"], keepalive="25")
    assert [(peer["name"], peer["failover"]) for peer in peers] == [("s1", 2), ("s2", 1), ("s3", 0)]
    assert {peer["persistent_keepalive"] for peer in peers} == {25}
    assert ask("failover", "c1", prefixes=["0.0.0.0/0"], timeout_s="5", return_s="0") == {
        "allowed_ips": ["0.0.0.0/0"],
        "timeout_s": 5.0,
        "return_s": 0,
    }


def test_a_server_has_no_failover_group(ask: Any) -> None:
    assert ask("failover", "s1", prefixes=["0.0.0.0/0"]) == {}
    assert ask("failover", "nobody", prefixes=["0.0.0.0/0"]) == {}


def test_without_a_registry_nobody_is_configured_by_it(ask: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "gone.txt")
    for term, nothing in (("member", {}), ("members", []), ("addresses", []), ("name_of", "")):
        assert ask(term, "s1", registry=path) == nothing
    for term in ("peers", "failover", "networks", "client_mtus", "acls", "registry"):
        with pytest.raises(AnsibleLookupError, match=r"There is no registry .*gone.txt: culvert.vpn.site"):
            ask(term, "s1", registry=path)


@pytest.mark.parametrize(
    ("term", "options", "says"),
    [
        ("peers", {"host": "nobody"}, "nobody is not in it"),
        ("peers", {"host": "c1", "servers": ["s9"]}, "none of which has joined"),
        ("nonsense", {}, "'nonsense' is none of member, members"),
    ],
)
def test_what_cannot_be_answered_is_an_error(ask: Any, term: str, options: Any, says: str) -> None:
    with pytest.raises(AnsibleError, match=says):
        ask(term, **options)


def test_a_damaged_registry_is_an_error(ask: Any, tmp_path: Path) -> None:
    (tmp_path / "registry.txt").write_text("{")
    with pytest.raises(AnsibleLookupError, match="is damaged"):
        ask("members")


def test_terms_are_documented() -> None:
    assert yaml.safe_load(fleet.DOCUMENTATION)["options"]["_terms"]["choices"] == list(fleet._TERMS)
