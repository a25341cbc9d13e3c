# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tests of the batches once more, on an extension in which a wrong access to memory ends the process.

``make sanitize`` does the same and fuzzes both directions as well.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
TIMEOUT_S = 600


def test_nothing_is_read_or_written_out_of_bounds() -> None:
    # What this pytest was told by its environment is not meant for the one inside.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    run = subprocess.run(
        [ROOT / "tools" / "sanitize.sh"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=TIMEOUT_S,
    )
    assert run.returncode == 0, run.stdout[-20_000:]
    assert "the sanitizers found nothing" in run.stdout
