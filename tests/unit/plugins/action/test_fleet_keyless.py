# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs of site.yml in which anything fails: both sides of a pair have one pre-shared key, or neither has one,
or the run has said which pair has no tunnel and what mends it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ansible import constants
from ansible.plugins.action import ActionBase
from ansible_collections.culvert.vpn.plugins.plugin_utils import _agreements
from ansible_collections.culvert.vpn.plugins.plugin_utils._registry import Registry, read
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.plugins.action.test_fleet_agreed import Fleet, data

SERVER, CLIENTS = "s1", ("c1", "c2")
ALL = (SERVER, *CLIENTS)
Said = list[dict[str, str]]


@dataclass
class Site:
    """Hosts with what they have, and runs. The server's name comes first wherever hosts are configured.

    :ivar keys: by host, the ids of its pre-shared keys.
    :ivar told: by host, its peers as they were configured, with the id of the key; empty without.
    """

    fleet: Fleet
    keys: dict[str, set[str]] = field(default_factory=lambda: {name: set() for name in ALL})
    told: dict[str, dict[str, str]] = field(default_factory=lambda: {name: {} for name in ALL})
    turn: int = 0

    def run(self, here: Collection[str] = ALL, fails_at: str = "", fails: Collection[str] = ()) -> Said:
        """One run for ``here``; what it says.

        :param fails_at: ``agree``, ``derive`` or ``configure``, where hosts that are in ``fails`` leave it.
        """
        present = [name for name in ALL if name in here]
        for name in ALL:
            called = {data(SERVER): id for id in self.told[name].values()} if name != SERVER else {}
            self.fleet.hosts[name] = Fleet.facts(name, ids=" ".join(self.keys[name]), called=called)
        joined, agreed = self.fleet.run("joined", " ".join(present)), {}
        added = joined["added"]
        if joined["agree"] or joined["derive"]:
            for name in joined["agree"]:
                if fails_at == "agree" and name in fails:
                    present.remove(name)
                    continue
                self.turn += 1
                made = self.fleet.agreement(name, turn=self.turn)
                self.keys[name].add(made["id"])
                self.fleet.says(name, made)
            agreed = self.fleet.run("agreed", self._left(present), expected=joined["agree"])
            if SERVER in agreed["derive"] and SERVER in present:
                if fails_at == "derive" and SERVER in fails:
                    present.remove(SERVER)
                else:
                    self.keys[SERVER] |= {item["id"] for item in agreed["derive"][SERVER]}
            self.fleet.run("derived", self._left(present))
        for name in [*present]:
            if fails_at == "configure" and name in fails:
                present.remove(name)
                continue
            peers = {peer: path.removeprefix("/k/") for peer, path in self.fleet.peers(name).items()}
            assert set(peers.values()) - {""} <= self.keys[name], f"{name} is to have a key that is not there"
            self.told[name] = peers
        said: Said = [*joined["lost"]]
        said += agreed.get("not_agreed", [])
        said += [pair for pair in agreed.get("agreed", []) if SERVER not in present]
        return said + [{"name": name, "other": SERVER} for name in added if SERVER not in present]

    def _left(self, present: Collection[str]) -> str:
        # Nobody at all is what the fleet takes for everybody.
        return " ".join(present) or "nobody"

    def apart(self) -> set[str]:
        """Clients that have no tunnel with the server although both have been configured for it."""
        return {
            name
            for name in CLIENTS
            if self.told[name] and self.told[name][SERVER] != self.told[SERVER].get(name, "nobody")
        }

    def keyless(self) -> set[str]:
        hosts = (read(self.fleet.path) or Registry()).hosts
        return {name for name in hosts if hosts[name].keyless}


@pytest.fixture(scope="module")
def quiet() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as directory:
        patch.setattr(ActionBase, "run", lambda self, tmp=None, task_vars=None: {})
        patch.setattr(constants, "DEFAULT_LOCAL_TMP", directory)
        yield


@pytest.fixture
def site(tmp_path: Path, quiet: None) -> Site:
    return Site(Fleet(tmp_path / "registry.txt"))


def test_who_failed_to_agree_comes_up_without_a_key(site: Site) -> None:
    said = site.run(fails_at="agree", fails=["c1"])
    assert said == [{"name": "c1", "other": SERVER}]
    assert site.told[SERVER] == {"c1": "", "c2": site.told["c2"][SERVER]}
    assert site.keyless() == {"c1"}
    # The server, which is not in this run, knows it without one.
    assert site.run(["c1"]) == []
    assert site.told["c1"] == {SERVER: ""}
    assert site.apart() == set()
    # That is a tunnel without one, as from before there were any: rotate_keys gives it one.
    assert site.fleet.run("joined")["without_key"] == 0  # by the facts from before it was configured
    site.run()
    assert site.fleet.run("joined")["without_key"] == 1


def test_in_a_run_for_both_they_agree(site: Site) -> None:
    site.run(fails_at="agree", fails=["c1"])
    assert site.run() == []
    assert site.told["c1"][SERVER] == site.told[SERVER]["c1"] != ""
    assert site.keyless() == set()


def test_a_server_that_fails_in_the_middle_decides_for_both(site: Site) -> None:
    site.run(fails_at="agree", fails=["c1"])
    said = site.run(fails_at="derive", fails=[SERVER])
    assert {"name": "c1", "other": SERVER} in said
    assert site.told["c1"] == {SERVER: ""}
    assert site.apart() == set()


def test_who_had_a_key_never_goes_without(site: Site) -> None:
    """Neither when the agreement is withheld, nor when the registry says that the other knows it without."""
    site.run([SERVER])
    site.run(["c1"])  # the server has not derived it yet
    assert site.told["c1"][SERVER]
    shutil.rmtree(_agreements.folder(site.fleet.path))
    assert site.run([SERVER]) == [{"name": "c1", "other": SERVER}]
    assert site.keyless() == {"c1"}
    before = site.told["c1"][SERVER]
    said = site.run(["c1"])
    assert said == [{"name": "c1", "other": SERVER}]
    assert site.told["c1"][SERVER] not in ("", before)
    assert site.run() == []
    assert site.apart() == set()


RUN = st.tuples(
    st.sets(st.sampled_from(ALL), min_size=1),
    st.sampled_from(["", "agree", "derive", "configure"]),
    st.sets(st.sampled_from(ALL), min_size=1),
    st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(runs=st.lists(RUN, min_size=1, max_size=5))
def test_nobody_is_apart_in_silence(quiet: None, runs: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        site = Site(Fleet(Path(directory) / "registry.txt"))
        known: set[str] = set()
        # The server has joined: without one there is no run.
        for here, fails_at, fails, withheld in [((SERVER,), "configure", (SERVER,), False), *runs]:
            if withheld:
                shutil.rmtree(_agreements.folder(site.fleet.path), ignore_errors=True)
            had = {name: site.told[name].get(SERVER, "") for name in CLIENTS}
            known |= {pair["name"] for pair in site.run(here, fails_at, fails)}
            # Who failed where it is configured is red in the run's own output.
            failed = {*fails} if fails_at == "configure" else set()
            known |= set(CLIENTS) if SERVER in failed else failed
            assert site.apart() <= known
            known &= site.apart() | {name for name in CLIENTS if not site.told[name]}
            assert all(site.told[name].get(SERVER) for name, id in had.items() if id), "fell back to none"
        # What the runs say mends it: one that reaches both.
        site.run()
        assert site.apart() == set()
