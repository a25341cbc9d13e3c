# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds for all modules of the collection."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[4]
MODULES = sorted((ROOT / "plugins" / "modules").glob("*.py"))
ACTIONS = sorted((ROOT / "plugins" / "action").glob("*.py"))
UTILITIES = sorted((ROOT / "plugins" / "module_utils").glob("*.py"))


def section(module: Path, name: str) -> Any:
    found = re.search(rf'^{name} = r"""\n(.*?)^"""', module.read_text(), re.DOTALL | re.MULTILINE)
    assert found, f"{module.name} has no {name}"
    return yaml.safe_load(found.group(1))


def test_the_action_group_is_all_modules() -> None:
    runtime = yaml.safe_load((ROOT / "meta" / "runtime.yml").read_text())
    assert runtime["action_groups"]["culvert"] == [module.stem for module in MODULES]


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_a_module_is_documented(module: Path) -> None:
    documentation = section(module, "DOCUMENTATION")
    assert documentation["module"] == module.stem
    assert {"check_mode", "diff_mode", "idempotent"} <= set(documentation["attributes"])
    fragments = documentation["extends_documentation_fragment"]
    assert "culvert.vpn._attributes.actiongroup_culvert" in fragments
    assert section(module, "RETURN")
    for task in section(module, "EXAMPLES"):
        actions = set(task) - {"name", "register", "vars", "loop", "when", "become", "run_once"}
        assert all(action.count(".") == 2 for action in actions), "examples use full names"


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_a_module_is_a_thin_shell_in_the_one_order(module: Path) -> None:
    text = module.read_text()
    marks = [
        "#!/usr/bin/python",
        "SPDX-License-Identifier",
        "from __future__",
        "DOCUMENTATION = ",
        "EXAMPLES = ",
        "RETURN = ",
        "from ansible.module_utils",
        "def main()",
        'if __name__ == "__main__"',
    ]
    positions = [text.index(mark) for mark in marks]
    assert positions == sorted(positions)
    assert "supports_check_mode=True" in text


@pytest.mark.parametrize("path", ACTIONS, ids=lambda path: path.stem)
def test_an_action_is_documented_where_people_look_for_it(path: Path) -> None:
    assert path.name in {module.name for module in MODULES}
    assert "DOCUMENTATION" not in path.read_text()


@pytest.mark.parametrize("path", UTILITIES, ids=lambda path: path.stem)
def test_a_utility_is_private_and_can_be_copied_flat(path: Path) -> None:
    text = path.read_text()
    assert path.name.startswith("_")
    assert "**PRIVATE** to the collection" in text
    assert "import ansible_collections" not in text
    assert "from ansible_collections" not in text
    if path.stem != "_module":
        assert not re.search(r"^\s*(from|import) ansible", text, re.MULTILINE), "only _module knows Ansible"
