# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds for the tasks of all playbooks and roles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FILES = [*(ROOT / "playbooks").rglob("*.yml"), *(ROOT / "roles").glob("*/tasks/*.yml")]


def tasks_of(items: Any) -> Iterator[dict[str, Any]]:
    """The tasks of a file's plays and blocks, at any depth."""
    for item in items if isinstance(items, list) else ():
        yield item
        for section in ("tasks", "pre_tasks", "post_tasks", "handlers", "block", "rescue", "always"):
            yield from tasks_of(item.get(section))


WAITING = [
    pytest.param(task, id=f"{path.relative_to(ROOT)}: {task['name']}")
    for path in FILES
    for task in tasks_of(yaml.safe_load(path.read_text()))
    if "until" in task
]


def test_there_are_tasks_that_wait() -> None:
    assert len(WAITING) > 2


@pytest.mark.parametrize("task", WAITING)
def test_who_waits_in_vain_says_what_for(task: dict[str, Any]) -> None:
    """Ansible marks a task that has run out of retries as failed, whatever ``failed_when`` says, and calls
    that an unknown error. So the last attempt is content, and what follows says what is wrong.
    """
    assert f"{task['register']}.attempts >" in task["until"]
    last = task["until"].partition(".attempts > ")[2].strip()
    assert last in (str(task["retries"]), str(task["retries"]).strip("{} "))
