# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleets of the tests: one for a module, which its tests deploy anew as they like."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.netns.fleetrules import fleet as fleet_module
from tests.netns.fleetrules.fleet import Fleet
from tests.netns.lab import Lab


@pytest.fixture(scope="module")
def hub(machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One server, two clients."""
    with Lab(tmp_path_factory.mktemp("hub")) as lab:
        yield fleet_module.make(lab, servers=1)


@pytest.fixture(scope="module")
def mesh(machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two servers, two clients."""
    with Lab(tmp_path_factory.mktemp("mesh")) as lab:
        yield fleet_module.make(lab, servers=2)
