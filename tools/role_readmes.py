# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes the tables of variables in the roles' READMEs from their argument specs, so that they cannot differ.

With --check nothing is written, and the exit code says whether something would be.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- variables: begin -->", "<!-- variables: end -->"


def cell(value: Any) -> str:
    """Return text that is one cell of a Markdown table."""
    text = " ".join(value) if isinstance(value, list) else str(value)
    text = re.sub(r"\b[OVCPM]\(([^)]*)\)", r"`\1`", text)
    return " ".join(text.replace("|", "\\|").split())


def rows(options: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the table's lines for a mapping of options, those of list elements below their list."""
    lines = []
    for name, option in options.items():
        kind = option["type"] + (f" of {option['elements']}" if "elements" in option else "")
        default = (
            f"`{option['default']}`"
            if "default" in option
            else ("required" if option.get("required") else "")
        )
        shown = default.replace("|", "\\|")
        lines.append(f"| `{prefix}{name}` | {kind} | {shown} | {cell(option['description'])} |")
        lines += rows(option.get("options", {}), f"{prefix}{name}{'[]' if option['type'] == 'list' else ''}.")
    return lines


def table(role: Path) -> str:
    """Return the table of a role's variables."""
    spec = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text())["argument_specs"]["main"]
    head = ["| variable | type | default | what it is |", "| --- | --- | --- | --- |"]
    return "\n".join([*head, *rows(spec["options"])])


def main() -> int:
    stale = []
    for role in sorted((ROOT / "roles").iterdir()):
        readme = role / "README.md"
        text = readme.read_text()
        before, _, rest = text.partition(BEGIN)
        _, _, after = rest.partition(END)
        wanted = f"{before}{BEGIN}\n\n{table(role)}\n\n{END}{after}"
        if wanted != text:
            stale.append(readme.relative_to(ROOT))
            if "--check" not in sys.argv:
                readme.write_text(wanted)
    for path in stale:
        print(f"{path}: {'is not what its argument specs say' if '--check' in sys.argv else 'written'}")
    return int(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
