# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The long run of the fuzz targets in test_relay_corpus.py: ``make fuzz ARGS='[SECONDS] [TARGET...]'``.

With atheris (coverage-guided, x86-64) where that is installed, else with the random changes of the short run.
New inputs that reach new code are kept in .cache/fuzz/TARGET for the next run; one that breaks something is
written to .cache/fuzz/broken-TARGET-*, and ``make fuzz ARGS='--replay TARGET FILE'`` runs it again.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import logging
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
WORK = HERE.parents[2] / ".cache" / "fuzz"
DEFAULT_SECONDS = 300
# What an input may cost: more is a finding, as an exception is.
MAX_INPUT_BYTES = 8192
MAX_INPUT_SECONDS = 10
MAX_MEMORY_MB = 1024


def load() -> dict[str, Callable[[bytes], None]]:
    """The targets, with the relay's source found beside us."""
    sys.path[:0] = [str(HERE.parent / "src"), str(HERE)]
    logging.disable()
    from test_relay_corpus import TARGETS

    return TARGETS


def guided(target: str, seconds: int) -> None:
    """Fuzz one target with atheris. Does not return: libFuzzer ends the process, with 0 if all is well."""
    import atheris

    # It announces every module.
    with contextlib.redirect_stderr(io.StringIO()), atheris.instrument_imports(include=["culvert"]):
        targets = load()
    (WORK / target).mkdir(parents=True, exist_ok=True)
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={MAX_INPUT_BYTES}",
        f"-timeout={MAX_INPUT_SECONDS}",
        f"-rss_limit_mb={MAX_MEMORY_MB}",
        f"-artifact_prefix={WORK}/broken-{target}-",
        "-print_final_stats=1",
        "-verbosity=0",
    ]
    corpora = [str(WORK / target), str(HERE / "corpus" / target)]
    atheris.Setup([sys.argv[0], *options, *corpora], targets[target])
    atheris.Fuzz()


def unguided(target: str, seconds: int) -> None:
    """Fuzz one target with random changes of its seeds. :raises Exception: what the target raised."""
    run = load()[target]
    from test_relay_corpus import changes

    end, count = time.monotonic() + seconds, 0
    for data in changes(target, random.SystemRandom()):
        started = time.monotonic()
        if started > end:
            break
        try:
            run(data)
            assert time.monotonic() - started < MAX_INPUT_SECONDS, "this input takes too long"
        except BaseException:
            WORK.mkdir(parents=True, exist_ok=True)
            path = WORK / f"broken-{target}-{random.getrandbits(64):016x}"
            path.write_bytes(data)
            print(f"the input is in {path}", file=sys.stderr)
            raise
        count += 1
    print(f"{count} inputs")


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the relay's parsers.")
    parser.add_argument(
        "seconds", nargs="?", type=int, default=DEFAULT_SECONDS, help="for all targets together"
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="all when none is given")
    parser.add_argument(
        "--replay", nargs=2, metavar=("TARGET", "FILE"), help="run one input and nothing else"
    )
    parser.add_argument("--one", metavar="TARGET", help=argparse.SUPPRESS)
    options = parser.parse_args()
    has_atheris = importlib.util.find_spec("atheris") is not None
    if options.replay:
        load()[options.replay[0]](Path(options.replay[1]).read_bytes())
        return 0
    if options.one:
        (guided if has_atheris else unguided)(options.one, options.seconds)
        return 0
    targets = load()
    chosen = options.targets or list(targets)
    if unknown := set(chosen) - set(targets):
        parser.error(f"there is no target {', '.join(sorted(unknown))}: {', '.join(targets)}")
    seconds = max(1, options.seconds // len(chosen))
    how = "atheris" if has_atheris else "random changes (no atheris here)"
    broken = []
    for target in chosen:
        print(f"==> {target}: {seconds} s with {how}", flush=True)
        # A process for each: libFuzzer never returns, and limits memory by process.
        command = [sys.executable, __file__, str(seconds), "--one", target]
        if subprocess.run(command, check=False).returncode != 0:
            broken.append(target)
    if broken:
        print(f"culvert: broken: {', '.join(broken)}; the inputs are in {WORK}/broken-*", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
