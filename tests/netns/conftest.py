# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the namespace tests, and the promise that they leave no namespace behind."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns import lab as lab_module


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run when a namespace of it is still there."""
    left = lab_module.namespaces()
    if left:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        sys.stderr.write(f"\nnamespaces left behind by the tests: {', '.join(left)}\n")


@pytest.fixture(scope="session")
def machine() -> None:
    """What the lab needs of this machine; a missing piece fails every test that asks for a lab, by name."""
    if os.geteuid() != 0:
        pytest.fail("the namespace tests must run as root", pytrace=False)
    missing = lab_module.required_tools()
    if missing:
        pytest.fail(f"the namespace tests need these programs: {', '.join(missing)}", pytrace=False)
    lab_module.remove_stale()


@pytest.fixture
def lab(machine: None, tmp_path: Path) -> Iterator[lab_module.Lab]:
    """An empty network; everything in it is gone after the test, failed or not."""
    with lab_module.Lab(tmp_path) as network:
        yield network
