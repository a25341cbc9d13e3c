# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""For tools/sanitize.sh: the seeds of fuzz targets, and random changes of them, until the time is up.

Not guided by coverage, because ASan brings its own of the functions that libFuzzer counts with. The seeds
that guided runs without it have found make up for that.

    sanitized_fuzz.py DIRECTORY_OF_THE_TESTS SECONDS TARGET...
"""

from __future__ import annotations

import itertools
import random
import sys
import time
from pathlib import Path


def fuzz(target: str, seconds: float) -> int:
    """How many inputs were run. A sanitizer ends the process, and leaves the input in a file."""
    from fuzz import WORK, load
    from test_relay_corpus import changes, seeds

    run = load()[target]
    WORK.mkdir(parents=True, exist_ok=True)
    current = WORK.resolve() / f"broken-{target}-sanitized"
    print(f"==> {target}: {seconds:.0f} s; an input that ends this is in {current}", flush=True)
    end, count = time.monotonic() + seconds, 0
    for data in itertools.chain(seeds(target), changes(target, random.SystemRandom())):
        if time.monotonic() > end:
            break
        # Before it is run: nothing of ours runs after a sanitizer has found something.
        current.write_bytes(data)
        run(data)
        count += 1
    current.unlink(missing_ok=True)
    return count


if __name__ == "__main__":
    sys.path[:0] = [sys.argv[1], str(Path(sys.argv[1]).parent / "src")]
    for name in sys.argv[3:]:
        print(f"{fuzz(name, float(sys.argv[2]) / len(sys.argv[3:]))} inputs", flush=True)
