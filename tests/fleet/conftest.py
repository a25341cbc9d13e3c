# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A simulated fleet for each file of tests that asks for one, and the promise that nothing of it is left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet.fleet import Fleet
from tests.netns import lab as lab_module

HERE = Path(__file__).parent
SIZE = {
    "test_backup": (1, 1),
    "test_changes": (2, 2),
    "test_deployment": (3, 4),
    "test_devices": (1, 1),
    "test_failover": (2, 2),
    "test_keys": (2, 1),
    "test_pull": (1, 2),
    "test_revocation": (1, 2),
    "test_rotation": (1, int(os.environ.get("CULVERT_ROTATION_CLIENTS", "2"))),
    "test_simulation": (1, 1),
    "test_transports": (1, 1),
    "test_upgrade": (1, 1),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.netns)


@pytest.fixture(scope="module")
def fleet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Hosts for one file of tests, removed after it."""
    if os.geteuid() != 0:
        pytest.fail("the fleet is made of namespaces: run its tests as root", pytrace=False)
    missing = lab_module.required_tools()
    if missing:
        pytest.fail(f"the fleet needs these programs: {', '.join(missing)}", pytrace=False)
    lab_module.remove_stale()
    name = request.module.__name__.rpartition(".")[2]
    directory = tmp_path_factory.mktemp("fleet")
    with lab_module.Lab(directory) as lab, Fleet.make(lab, directory, *SIZE[name]) as made:
        yield made
    left = lab_module.namespaces()
    if left:
        pytest.fail(f"namespaces left behind by the fleet: {', '.join(left)}", pytrace=False)
