# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose peers a host has: a run whose registry does not descend from them changes nothing."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.module_utils import _x25519
from ansible_collections.culvert.vpn.plugins.module_utils._core import SpecError
from ansible_collections.culvert.vpn.plugins.module_utils._relay_file import registry_id_of, render
from ansible_collections.culvert.vpn.plugins.module_utils._relay_peers import Observed, plan
from ansible_collections.culvert.vpn.plugins.module_utils._relay_peers_spec import (
    LINEAGE_MAX,
    Descent,
    PeersSpec,
)

SECRET = _x25519.SecretKey(b"\x40" * 32)
KEYS = [base64.b64encode(bytes([number]) * 32).decode() for number in range(1, 6)]


def spec_of(*keys: str, **params: Any) -> PeersSpec:
    return PeersSpec.from_params({"peers": [{"public_key": key} for key in keys], **params})


def observed(text: str) -> Observed:
    """A host without a relay that has this file."""
    return Observed(text=text, mode=0o640, key=SECRET, public_key=SECRET.public_key())


def fenced(*lineage: str, own: str = "", adopt: bool = False, peers: int = 2) -> PeersSpec:
    return spec_of(*KEYS[:peers], registry={"id": own, "lineage": list(lineage), "adopt": adopt})


def written_by(own: str, peers: int = 2) -> str:
    return render(fenced(own=own, peers=peers).config)


def test_a_state_that_the_registry_descends_from_is_replaced() -> None:
    spec = fenced("1-a", "2-b", own="3-c", peers=3)
    for own in ("", "1-a", "2-b", "3-c"):
        (step,) = plan(spec, observed(written_by(own)))
        assert registry_id_of(step.data) == "3-c"


@pytest.mark.parametrize("peers", [2, 3])
@pytest.mark.parametrize("own", ["2-x", "4-d", "another"])
def test_another_state_is_refused_before_anything_changes(own: str, peers: int) -> None:
    spec = fenced("1-a", "2-b", own="3-c", peers=peers)
    with pytest.raises(SpecError) as caught:
        plan(spec, observed(written_by(own)))
    assert caught.value.option == "registry"
    for words in (own, "3-c", "Update it and run again", "site_registry_adopt", "Nothing was changed"):
        assert words in str(caught.value)
    later = fenced("1-a", "2-b", own, own="9-z", peers=peers)
    assert all(step.action == "write" for step in plan(later, observed(written_by(own))))
    adopted = replace(spec, descent=replace(spec.descent, adopt=True))
    plan(adopted, observed(written_by(own)))


def test_an_id_alone_is_no_difference() -> None:
    spec = fenced("1-a", own="2-b")
    assert plan(spec, observed(written_by("1-a"))) == []
    assert plan(spec, observed(written_by(""))) == []
    edited = written_by("1-a") + "# mine\n"
    (step,) = plan(spec, observed(edited))
    assert registry_id_of(step.data) == "2-b"


def test_without_a_registry_nobody_is_asked_for_one() -> None:
    spec = spec_of(KEYS[0])
    (step,) = plan(spec, observed(written_by("7-q")))
    assert registry_id_of(step.data) == ""


def test_what_is_older_than_all_that_is_remembered_is_known() -> None:
    lineage = tuple(f"{number}-x" for number in range(100, 100 + LINEAGE_MAX))
    assert Descent(lineage[-1], lineage).knows("99-y")
    assert not Descent(lineage[-1], lineage).knows("100-y")
    assert not Descent(lineage[-1], lineage).knows("nonsense")
    assert not Descent(lineage[-1], lineage[1:]).knows("99-y"), "nothing is forgotten yet"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (written_by("17-9f3a21c4"), "17-9f3a21c4"),
        ("", ""),
        ("[Interface]\n# Registry: 1-a\n", ""),
        ("# Registry:\n[Interface]\n", ""),
        ("# mine\n# Registry: 1-a \n", "1-a"),
    ],
)
def test_the_id_is_in_the_header(text: str, found: str) -> None:
    assert registry_id_of(text) == found
