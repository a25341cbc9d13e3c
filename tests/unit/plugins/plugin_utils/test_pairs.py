# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which pairs agree on a pre-shared key, who has to be told, and what the files of agreements take."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.plugin_utils import _agreements, _pairs
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet_hosts import Host, Run
from ansible_collections.culvert.vpn.plugins.plugin_utils._registry import Entry, Registry, RegistryError

VECTOR = json.loads((Path(__file__).parents[4] / "images/relay/tests/agreement.json").read_text())[
    "agreement"
]


def key_of(seed: str) -> str:
    return base64.b64encode(hashlib.sha256(seed.encode()).digest()).decode()


def kem_of(seed: str) -> str:
    return base64.b64encode(hashlib.shake_256(seed.encode()).digest(1184)).decode()


def agreement(sender: str, receiver: str, kem: str, turn: int = 0) -> dict[str, str]:
    """One that is well-formed, of public keys."""
    made = {
        "from": sender,
        "to": receiver,
        "kem": _agreements.kem_hash(kem),
        "eph": key_of(f"{sender}{receiver}{turn}"),
        "ct": base64.b64encode(bytes([turn]) * 1088).decode(),
    }
    info = b"culvert.vpn pre-shared key v1" + base64.b64decode(sender) + base64.b64decode(receiver)
    info += bytes.fromhex(made["kem"]) + hashlib.sha256(bytes([turn]) * 1088).digest()
    info += base64.b64decode(made["eph"])
    return {"id": hashlib.sha256(info).hexdigest()[:32], **made}


def entry(name: str, **more: Any) -> Entry:
    server = name.startswith("s")
    found = {"role": "server", "kem": kem_of(name)} if server else {}
    return Entry(**{"public_key": key_of(name), **found, **more})


def host(name: str, **more: Any) -> Host:
    server = name.startswith("s")
    return Host(name, **{"server": server, "client": not server, "here": True, **more})


def run_of(*hosts: Host) -> Run:
    return Run(hosts={each.name: each for each in hosts}, network="10.86.0.0/16")


def who(wanted: dict[str, list[dict[str, str]]]) -> set[tuple[str, str]]:
    return {(name, item["name"]) for name, items in wanted.items() for item in items}


FIRST, SECOND = sorted(["s1", "s2"], key=key_of)
HOSTS = {name: entry(name) for name in ("s1", "s2", "c1", "c2")}
ALL = {("c1", "s1"), ("c1", "s2"), ("c2", "s1"), ("c2", "s2"), (FIRST, SECOND)}


def test_clients_agree_with_servers_and_of_two_servers_one_does() -> None:
    run = run_of(*map(host, HOSTS))
    assert who(_pairs.to_agree(HOSTS, run)) == ALL
    wish = _pairs.to_agree(HOSTS, run)["c1"][0]
    assert wish == {"name": "s1", "from": key_of("c1"), "public_key": key_of("s1"), "replaces": ""}
    kems = _pairs.kems_for(HOSTS, _pairs.to_agree(HOSTS, run))
    assert kems == {key_of(name): kem_of(name) for name in ("s1", "s2")}


def test_a_server_that_is_not_here_is_agreed_with_and_a_client_that_is_not_agrees_with_nobody() -> None:
    run = run_of(host("c1"), host("c2", here=False), host("s1", here=False), host("s2", here=False))
    assert who(_pairs.to_agree(HOSTS, run)) == {("c1", "s1"), ("c1", "s2")}


@pytest.mark.parametrize(
    ("hosts", "change"),
    [
        (HOSTS, {"c1": {"preshared_keys": False}}),
        (HOSTS, {"c1": {"called": {key_of("s1"): "", key_of("s2"): ""}}}),
        ({**HOSTS, "c1": entry("c1", role="external")}, {}),
        ({**HOSTS, "c1": entry("c1", public_key="")}, {}),
    ],
    ids=["not wanted", "has tunnels without", "a device", "no key yet"],
)
def test_who_agrees_with_nobody(hosts: dict[str, Entry], change: dict[str, dict[str, Any]]) -> None:
    run = run_of(*(host(name, **change.get(name, {})) for name in HOSTS))
    assert who(_pairs.to_agree(hosts, run)) == {pair for pair in ALL if pair[0] != "c1"}


def test_with_whom_nobody_agrees() -> None:
    every = [host(name, preshared_keys=name != "s1") for name in HOSTS]
    assert who(_pairs.to_agree(HOSTS, run_of(*every))) == {("c1", "s2"), ("c2", "s2")}
    without = {**HOSTS, "s1": entry("s1", kem="")}
    expected = {("c1", "s2"), ("c2", "s2")} | ({(FIRST, SECOND)} if SECOND == "s2" else set())
    assert who(_pairs.to_agree(without, run_of(*map(host, HOSTS)))) == expected


def agreed(hosts: dict[str, Entry], *pairs: tuple[str, str], turn: int = 0) -> dict[str, Entry]:
    found = dict(hosts)
    for name, other in pairs:
        made = agreement(key_of(name), key_of(other), kem_of(other), turn)
        ids = {**found[name].preshared, key_of(other): made["id"]}
        found[name] = replace(found[name], preshared=ids)
    return found


def test_who_has_agreed_and_has_the_key_is_left_alone_and_who_has_lost_it_agrees_anew() -> None:
    hosts = agreed(HOSTS, *ALL)
    ids = {name: frozenset(hosts[name].preshared.values()) for name in hosts}
    every = [host(name, preshared_ids=ids[name]) for name in hosts]
    assert _pairs.to_agree(hosts, run_of(*every)) == {}
    lost = [host(name, preshared_ids=ids[name] if name != "c1" else frozenset()) for name in hosts]
    wanted = _pairs.to_agree(hosts, run_of(*lost))
    assert who(wanted) == {("c1", "s1"), ("c1", "s2")}
    assert wanted["c1"][0]["replaces"] == hosts["c1"].preshared[key_of("s1")]


def test_both_sides_find_the_same_file() -> None:
    hosts = agreed(HOSTS, *ALL)
    id = hosts["c1"].preshared[key_of("s1")]
    mine = [{"name": "s1", "public_key": key_of("s1")}, {"name": "c9", "public_key": key_of("c9")}]
    theirs = [{"name": "c1", "public_key": key_of("c1")}]
    found = _pairs.with_key_files(hosts, "c1", mine, "/k")
    assert found[0]["preshared_key_file"] == f"/k/{id}"
    assert "preshared_key_file" not in found[1]
    assert _pairs.with_key_files(hosts, "s1", theirs, "/k")[0]["preshared_key_file"] == f"/k/{id}"
    assert (
        _pairs.preshared_id(hosts["s1"], hosts["s2"]) == _pairs.preshared_id(hosts["s2"], hosts["s1"]) != ""
    )
    own = [{"name": "s1", "public_key": key_of("s1"), "preshared_key_file": "/mine"}]
    assert _pairs.with_key_files(hosts, "c1", own, "/k") == own


def test_who_has_to_be_told_and_what_is_lost() -> None:
    hosts = agreed(HOSTS, ("c1", "s1"), ("c2", "s1"))
    made = agreement(key_of("c1"), key_of("s1"), kem_of("s1"))
    stored = {"c1": {made["id"]: made}}
    run = run_of(*map(host, HOSTS))
    assert _pairs.to_derive(hosts, run, lambda name: stored.get(name, {})) == {"s1": [made]}
    lost = _pairs.lost(hosts, run, lambda name: stored.get(name, {}))
    assert [(pair.name, pair.other) for pair in lost] == [("c2", "s1")]
    assert _pairs.forgotten(hosts, lost)["c2"].preshared == {}
    # The server has another ML-KEM key now: nothing that was agreed by the old one can be had any more.
    other = {**hosts, "s1": entry("s1", kem=kem_of("another"))}
    assert len(_pairs.lost(other, run, lambda name: stored.get(name, {}))) == 2
    # Who has the key does not have to be told, whatever became of the agreement.
    has = [host(name, preshared_ids=frozenset(hosts["c1"].preshared.values())) for name in HOSTS]
    assert _pairs.to_derive(hosts, run_of(*has), lambda name: {}) == {}
    assert [pair.name for pair in _pairs.lost(hosts, run_of(*has), lambda name: {})] == ["c2"]


def test_only_what_was_asked_for_is_written_down_and_the_quicker_run_counts() -> None:
    run = run_of(*map(host, HOSTS))
    expected = _pairs.to_agree(HOSTS, run)
    good = agreement(key_of("c1"), key_of("s1"), kem_of("s1"))
    strange = [
        agreement(key_of("c2"), key_of("s1"), kem_of("s1")),
        agreement(key_of("c1"), key_of("c2"), kem_of("s1")),
        agreement(key_of("c1"), key_of("s2"), kem_of("s1")),
    ]
    after = _pairs.with_agreements(HOSTS, expected, {"c1": [*strange, good], "nobody": [good]})
    assert after["c1"].preshared == {key_of("s1"): good["id"]}
    assert {name: after[name] for name in after if name != "c1"} == {
        name: HOSTS[name] for name in HOSTS if name != "c1"
    }
    assert _pairs.with_agreements(HOSTS, {}, {"c1": [good]}) == HOSTS
    quicker = agreed(HOSTS, ("c1", "s1"), turn=7)
    assert _pairs.with_agreements(quicker, expected, {"c1": [good]}) == quicker


def test_of_identities_that_both_have_next_there_is_another_pair() -> None:
    coming = {
        name: replace(
            each, next_public_key=key_of(f"{name}'"), next_kem=kem_of(f"{name}'") if each.kem else ""
        )
        for name, each in HOSTS.items()
    }
    run = run_of(*(host(name, called={key_of("s1"): "", key_of("s2"): ""}) for name in HOSTS))
    wanted = _pairs.to_agree(coming, run)
    assert who(wanted) >= ALL - {(FIRST, SECOND)}
    # Tunnels without a key stay as they are; those that follow get one.
    assert {item["from"] for item in wanted["c1"]} == {key_of("c1'")}
    assert {item["public_key"] for item in wanted["c1"]} == {key_of("s1'"), key_of("s2'")}
    made = agreement(key_of("c1'"), key_of("s1'"), kem_of("s1'"))
    after = _pairs.with_agreements(coming, wanted, {"c1": [made]})
    assert after["c1"].next_preshared == {key_of("s1'"): made["id"]}
    assert _pairs.preshared_id(after["s1"], after["c1"], following=True) == made["id"]
    assert _pairs.preshared_id(after["s1"], after["c1"]) == ""
    assert _pairs.to_derive(after, run, lambda name: {made["id"]: made}) == {"s1": [made]}
    [peer] = _pairs.with_key_files(after, "s1", [{"name": "c1", "public_key": key_of("c1'")}], "/k")
    assert peer["preshared_key_file"] == f"/k/{made['id']}"


def test_ids_go_with_the_keys_they_belong_to() -> None:
    hosts = agreed(HOSTS, ("c1", "s1"), ("c1", "s2"))
    hosts["s1"] = entry("s1", public_key=key_of("another"))
    assert _pairs.settled(hosts)["c1"].preshared == {key_of("s2"): hosts["c1"].preshared[key_of("s2")]}
    ids = [*hosts["c1"].preshared.values(), "0" * 32]
    assert _pairs.unused(hosts, "c1", ids) == ["0" * 32]


def test_tunnels_without_a_key_are_counted() -> None:
    called = {key_of("s1"): "", key_of("s2"): "f" * 32}
    run = run_of(host("s1"), host("s2"), host("c1", called=called), host("c2", called=called))
    assert _pairs.without_key(HOSTS, run) == 2
    unwanted = run_of(host("s1", preshared_keys=False), host("s2"), host("c1", called=called))
    assert _pairs.without_key(HOSTS, unwanted) == 0


# --- Files --------------------------------------------------------------------------------------------------


def test_the_relays_own_vector_is_an_agreement_and_no_changed_one_is() -> None:
    assert _agreements.agreement_of(VECTOR) == VECTOR
    assert _agreements.agreement_of({**VECTOR, "more": 1}) == VECTOR
    for name in _agreements.FIELDS:
        for value in (VECTOR[name][:-1], "A" + VECTOR[name][1:], VECTOR[name] + "\n", None, 5):
            if value != VECTOR[name]:
                assert _agreements.agreement_of({**VECTOR, name: value}) is None, name
    assert _agreements.agreement_of([]) is None


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    path = str(tmp_path / "culvert_registry.txt")
    assert _agreements.read(path, "c1") == {}
    names = ["c1", "a/b", "..", "lab host ä"]
    for name in names:
        _agreements.write(path, name, {VECTOR["id"]: VECTOR})
        assert _agreements.read(path, name) == {VECTOR["id"]: VECTOR}
    assert sorted(each.name for each in tmp_path.iterdir()) == ["culvert_registry_agreements"]
    _agreements.keep_only(path, {"..": {VECTOR["id"]}, "a/b": {"0" * 32}})
    assert _agreements.read(path, "..") == {VECTOR["id"]: VECTOR}
    assert [_agreements.read(path, name) for name in names if name != ".."] == [{}, {}, {}]
    _agreements.write(path, "..", {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"format": 1}', '{"format": 1, "agreements": {}}', "<<<<<<< a\n", '{"agreements": [1]}'],
)
def test_what_is_damaged_counts_as_lost(text: str, tmp_path: Path) -> None:
    path = str(tmp_path / "registry.txt")
    _agreements.write(path, "c1", {VECTOR["id"]: VECTOR})
    file = Path(_agreements.path_of(path, "c1"))
    file.write_text(text)
    assert _agreements.read(path, "c1") == {}
    file.write_text(json.dumps({"format": 2, "agreements": []}))
    with pytest.raises(RegistryError, match=r"newer version of culvert\.vpn"):
        _agreements.read(path, "c1")


def test_a_registry_with_all_that_format_2_has_comes_back_and_has_its_own_id() -> None:
    from ansible_collections.culvert.vpn.plugins.plugin_utils._registry import parse, render

    plain = Registry().with_hosts({"c1": Entry(address="10.86.0.1/16")})
    assert '"format": 1' in render(plain)
    hosts = agreed(HOSTS, ("c1", "s1"))
    hosts["phone"] = entry("phone", role="external", device={"quota": "5G"})
    revoked = [{"public_key": key_of("x"), "name": "x", "date": "2026-11-23"}]
    registry = plain.with_hosts(hosts, revoked=revoked)
    assert '"format": 2' in render(registry)
    assert parse(render(registry)) == registry
    assert registry.sealed
    assert registry.with_hosts(hosts) is registry
    assert registry.with_hosts(hosts, revoked=[]).id != registry.id
    text = render(registry).replace(hosts["c1"].preshared[key_of("s1")], "../../../etc/shadow/aaaaaaaaaaaa")
    with pytest.raises(RegistryError, match="something else than ids"):
        parse(text)
