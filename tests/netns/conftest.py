# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the namespace tests, and the promise that they leave no namespace behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns import lab as lab_module

HERE = Path(__file__).parent
LONGEST = "test_a_session_is_replaced_after_two_minutes_without_loss"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is here, and begin with the test that mostly waits: others run beside it (``-n 2``)."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.netns)
    items.sort(key=lambda item: item.name != LONGEST)


@pytest.fixture(scope="session")
def machine() -> Iterator[None]:
    """What the lab needs of this machine; a missing piece fails every test that asks for a lab, by name.

    At the end of the run: no namespace of it may be left.
    """
    if os.geteuid() != 0:
        pytest.fail("the namespace tests must run as root", pytrace=False)
    missing = lab_module.required_tools()
    if missing:
        pytest.fail(f"the namespace tests need these programs: {', '.join(missing)}", pytrace=False)
    lab_module.remove_stale()
    yield
    left = lab_module.namespaces()
    if left:
        pytest.fail(f"namespaces left behind by the tests: {', '.join(left)}", pytrace=False)


@pytest.fixture
def lab(machine: None, tmp_path: Path) -> Iterator[lab_module.Lab]:
    """An empty network; everything in it is gone after the test, failed or not."""
    with lab_module.Lab(tmp_path) as network:
        yield network
