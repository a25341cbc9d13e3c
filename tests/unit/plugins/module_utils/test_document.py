# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A document: when two are the same, what is wrong with one, and the files that keep them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.module_utils import _store
from ansible_collections.culvert.vpn.plugins.module_utils._core import HostError, SpecError
from ansible_collections.culvert.vpn.plugins.module_utils._document import Document, refuse_what_is_anothers

SMALL: dict[str, Any] = {
    "name": "20-client-culvert0",
    "devices": [{"name": "culvert0", "owner": "51820", "addresses": ["10.86.0.2/16"]}],
    "sysctls": {"net.ipv4.ip_forward": 1},
    "chains": [{"name": "CULVERT-A", "jump": {"from": "FORWARD"}}],
    "tables": [
        {
            "name": "vpn",
            "id": 5,
            "routes": [{"destination": "10.9.0.0/16", "device": "culvert0"}],
            "rules": [{}],
        }
    ],
    "fwmark": "0xca6c",
    "endpoints": ["VPN.example.com", "2001:DB8::0"],
}
# The same with all that Ansible fills in.
FULL: dict[str, Any] = {
    **SMALL,
    "devices": [
        {
            **SMALL["devices"][0],
            "mode": "tun",
            "group": None,
            "mtu": None,
            "up": True,
            "vnet_hdr": False,
            "multi_queue": False,
            "addresses_exclusive": True,
        }
    ],
    "sysctls": {"net.ipv4.ip_forward": "1"},
    "chains": [
        {
            "name": "CULVERT-A",
            "table": "filter",
            "family": "ipv4",
            "rules": [],
            "jump": {"from": "FORWARD", "position": "first", "match": ""},
            "comment": "culvert",
            "backend": "auto",
        }
    ],
    "tables": [
        {
            "name": "vpn",
            "id": 5,
            "rule_priority": 31820,
            "routes": [
                {"destination": "10.9.0.0/16", "device": "culvert0", "type": "unicast", "metric": None}
            ],
            "rules": [{"family": "both", "invert": False, "priority": None, "table": None}],
        }
    ],
    "fwmark": 51820,
    "endpoints": ["vpn.example.com", "2001:db8::"],
}


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(_store, "DIRECTORY", str(tmp_path / "culvert" / "network.d"))
    return tmp_path / "culvert" / "network.d"


def test_defaults_make_no_difference() -> None:
    small, full = Document.from_params(SMALL), Document.from_params(FULL)
    assert small == full
    assert small.params == full.params
    assert small.sha256 == full.sha256
    assert Document.from_params(small.params) == small, "what is kept is what was meant"
    assert small.fwmark == 0xCA6C
    assert "up" not in small.params["devices"][0]
    json.dumps(small.params)


@pytest.mark.parametrize(
    "change",
    [{"fwmark": 1}, {"endpoints": []}, {"sysctls": {}}, {"chains": []}, {"tables": []}, {"devices": []}],
)
def test_any_other_difference_is_one(change: dict[str, Any]) -> None:
    assert Document.from_params({**SMALL, **change}).sha256 != Document.from_params(SMALL).sha256


def test_a_document_that_comes_back_from_a_file_is_carried_out_in_the_same_order() -> None:
    settings = {
        "net.ipv4.tcp_fwmark_accept": 1,
        "net.ipv4.fwmark_reflect": 1,
        "net.ipv4.conf.all.forwarding": 1,
    }
    made = Document.from_params({**SMALL, "sysctls": settings})
    kept = Document.from_params(json.loads(json.dumps(made.params, sort_keys=True)))
    assert list(made.sysctls) == list(kept.sysctls)


def test_accounts_are_kept_by_number() -> None:
    document = Document.from_params({"name": "a", "devices": [{"name": "t", "owner": "root"}]})
    assert document.params["devices"] == [{"name": "t", "owner": "0"}]


def test_what_is_empty() -> None:
    assert Document.empty("a").is_empty
    assert Document.from_params(
        {"name": "a", "fwmark": 1, "leftovers": {"devices": [{"name": "t"}]}}
    ).is_empty
    assert not Document.from_params(SMALL).is_empty


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"name": ""}, "name"),
    ({"name": "a/b"}, "name"),
    ({"no_such": 1}, "no_such"),
    ({"devices": "t"}, "devices"),
    ({"devices": ["t"]}, "devices[0]"),
    ({"devices": [{"name": "t", "state": "absent"}]}, "devices[0].state"),
    ({"devices": [{"name": "t"}, {"name": "t"}]}, "devices[1].name"),
    ({"devices": [{"name": "t", "mtu": 1000, "addresses": ["fd00::1/64"]}]}, "devices[0].mtu"),
    ({"devices": [{"name": "t", "addresses": ["10.0.0.1/33"]}]}, "devices[0].addresses[0]"),
    ({"sysctls": ["a"]}, "sysctls"),
    ({"sysctls": {"net.ipv4.ip_forward": True}}, "sysctls.net.ipv4.ip_forward"),
    ({"chains": [{"name": "CULVERT-A", "rules": ["-j ACCEPT", "-A X"]}]}, "chains[0].rules[1]"),
    ({"chains": [{"name": "CULVERT-A", "jump": {"from": "INPUT", "match": "-j X"}}]}, "chains[0].jump.match"),
    ({"chains": [{"name": "CULVERT-A"}, {"name": "CULVERT-A"}]}, "chains[1].name"),
    ({"tables": [{"name": "vpn"}]}, "tables[0].id"),
    ({"tables": [{"name": "vpn", "id": 254}]}, "tables[0].id"),
    ({"tables": [{"name": "vpn", "id": 5}, {"name": "v", "id": 5}]}, "tables[1].id"),
    ({"tables": [{"name": "vpn", "id": 5}, {"name": "v", "id": 6}]}, "tables[1].rule_priority"),
    (
        {"tables": [{"name": "vpn", "id": 5, "routes": [{"destination": "::/0"}, {"destination": "::/0"}]}]},
        "tables[0].routes[0].device",
    ),
    ({"tables": [{"name": "vpn", "id": 5, "rules": [{}, {"fwmark": "x"}]}]}, "tables[0].rules[1].fwmark"),
    ({"fwmark": True}, "fwmark"),
    ({"fwmark": -1}, "fwmark"),
    ({"endpoints": ["ok", "vpn example"]}, "endpoints[1]"),
    ({"endpoints": "vpn"}, "endpoints"),
]


@pytest.mark.parametrize(("params", "option"), WRONG)
def test_what_is_wrong_is_named_with_its_whole_path(params: dict[str, Any], option: str) -> None:
    with pytest.raises(SpecError) as refused:
        Document.from_params({"name": "a", **params})
    assert refused.value.option == option


def test_leftovers_need_only_names() -> None:
    lists = {
        "devices": [{"name": "culvert0"}, {"name": "culvert9"}],
        "chains": [{"name": "CULVERT-A"}],
        "tables": [{"name": "vpn"}, {"name": "old"}],
    }
    gone = Document.from_params({"name": SMALL["name"], "leftovers": lists}).leftovers
    assert gone is not None
    assert not any(spec.present for spec in (*gone.devices, *gone.chains, *gone.tables))
    joined = Document.from_params(SMALL).joined(gone)
    assert [device.name for device in joined.devices] == ["culvert0", "culvert9"]
    assert [(table.name, table.id) for table in joined.tables] == [("vpn", 5), ("old", None)]


def test_two_documents_cannot_have_the_same() -> None:
    other = Document.from_params(SMALL)
    for kind in ("devices", "chains", "tables"):
        document = Document.from_params({"name": "30-other", kind: SMALL[kind]})
        with pytest.raises(SpecError, match=SMALL["name"]) as refused:
            refuse_what_is_anothers(document, [other])
        assert refused.value.option == f"{kind}[0].name"
    six = Document.from_params({"name": "30-other", "chains": [{"name": "CULVERT-A", "family": "ipv6"}]})
    refuse_what_is_anothers(six, [other])


def test_a_document_and_the_one_before_it_are_kept(directory: Path) -> None:
    first = Document.from_params(SMALL)
    second = Document.from_params({**SMALL, "fwmark": 7})
    assert _store.load(first.name) is None
    assert _store.load_previous(first.name) is None
    assert _store.save(first).generation == 1
    assert _store.save(first).generation == 1, "the same again is no change"
    assert _store.load_previous(first.name) is None
    assert _store.save(second).generation == 2
    now, before = _store.load(first.name), _store.load_previous(first.name)
    assert now == _store.Stored(second, 2)
    assert before == _store.Stored(first, 1)
    assert _store.save(first).generation == 3
    content = json.loads((directory / f"{first.name}.json").read_text())
    assert (content["format"], content["sha256"]) == (1, first.sha256)
    _store.remove(first.name)
    assert not directory.exists(), "nor is an empty folder left"
    _store.remove(first.name)


def test_documents_come_in_the_order_of_their_names() -> None:
    for name in ("20-b", "10-a", "30-c"):
        _store.save(Document.from_params({"name": name}))
    assert _store.names() == ["10-a", "20-b", "30-c"]
    assert [stored.document.name for stored in _store.load_all()] == ["10-a", "20-b", "30-c"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("51820", "51821", "checksum"),
        ('"format": 1', '"format": 2', "format"),
        ('"generation": 1', '"generation": "x"', "generation"),
        ("}", "", "delete it"),
        ('"sha256"', '"sha"', "sha256"),
        (SMALL["name"], "other", "checksum"),
    ],
)
def test_a_damaged_file_is_named_with_the_way_out(directory: Path, old: str, new: str, words: str) -> None:
    document = Document.from_params(SMALL)
    _store.save(document)
    file = directory / f"{document.name}.json"
    file.write_text(file.read_text().replace(old, new, 1))
    for read in (lambda: _store.load(document.name), _store.load_all, lambda: _store.save(document)):
        with pytest.raises(HostError, match=words) as failed:
            read()
        assert str(file) in str(failed.value)


def test_a_document_under_another_name_is_refused(directory: Path) -> None:
    document = Document.from_params(SMALL)
    _store.save(document)
    (directory / f"{document.name}.json").rename(directory / "30-other.json")
    with pytest.raises(HostError, match=document.name):
        _store.load("30-other")
