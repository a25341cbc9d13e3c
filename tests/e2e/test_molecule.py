# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Molecule's scenarios, as tests among the others: the closing line of `make test` counts them too."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from fleet import ROOT

pytestmark = pytest.mark.e2e

SCENARIOS = sorted(path.parent.name for path in (ROOT / "molecule").glob("*/molecule.yml"))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario(scenario: str, tmp_path: Path) -> None:
    log = tmp_path / "molecule.log"
    with log.open("w") as stream:
        done = subprocess.run(
            ["molecule", "test", "--scenario-name", scenario],
            cwd=ROOT,
            env={**os.environ, "MOLECULE_GLOB": "molecule/*/molecule.yml"},
            stdout=stream,
            stderr=subprocess.STDOUT,
            timeout=1200,
            check=False,
        )
    assert done.returncode == 0, log.read_text()[-8000:]
