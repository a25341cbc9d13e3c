# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The next key files take the place of the present ones; killed anywhere, there is one key or the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.module_utils._core import HostError, diff_of
from ansible_collections.culvert.vpn.plugins.module_utils._relay_promotion import (
    PromotionBackend,
    PromotionSpec,
)

FILES = {
    "culvert0.key": "old key",
    "culvert0.next.key": "new key",
    "culvert0.psk/kem": "old seed",
    "culvert0.psk/next.kem": "new seed",
    "culvert0.psk/kem.pub": "old public",
    "culvert0.psk/next.kem.pub": "new public",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "culvert0.psk").mkdir()
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o400)
    return tmp_path


def backend(folder: Path, state: str = "promoted") -> PromotionBackend:
    params: dict[str, Any] = {"name": "culvert0", "config_dir": str(folder), "state": state}
    return PromotionBackend(PromotionSpec.from_params(params))


def run(folder: Path, state: str = "promoted", steps: int | None = None) -> int:
    made = backend(folder, state)
    plan = made.plan(made.observe())
    assert "key" not in str(diff_of(plan)).replace(".key", "").replace(str(folder), "")
    for change in plan[:steps]:
        made.apply(change)
    return len(plan)


def present(folder: Path) -> list[str]:
    return [(folder / name).read_text().split()[0] for name in FILES if "next" not in name]


def test_the_next_files_become_the_present_ones_and_then_lose_their_names(folder: Path) -> None:
    assert run(folder) == 3
    assert present(folder) == ["new"] * 3
    assert (folder / "culvert0.next.key").read_text() == "new key"
    assert (folder / "culvert0.key").stat().st_mode & 0o777 == 0o400
    assert run(folder) == 0
    assert run(folder, "cleared") == 3
    assert run(folder, "cleared") == run(folder) == 0
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == [
        "culvert0.key",
        "kem",
        "kem.pub",
    ]


@pytest.mark.parametrize("steps", range(3))
def test_killed_in_between_and_run_again(folder: Path, steps: int) -> None:
    run(folder, steps=steps)
    assert present(folder) == ["new"] * steps + ["old"] * (3 - steps)
    run(folder)
    assert present(folder) == ["new"] * 3


def test_a_next_key_that_is_not_the_present_one_is_not_cleared(folder: Path) -> None:
    assert run(folder, "cleared") == 0
    assert (folder / "culvert0.next.key").exists()


def test_a_host_without_a_rotation_has_nothing_to_do(tmp_path: Path) -> None:
    assert run(tmp_path) == run(tmp_path, "cleared") == 0


def test_a_link_is_not_followed(folder: Path) -> None:
    (folder / "culvert0.next.key").unlink()
    (folder / "culvert0.next.key").symlink_to("/etc/shadow")
    with pytest.raises(HostError, match="cannot read"):
        run(folder)
    assert present(folder) == ["old"] * 3
