#!/usr/bin/env bash
# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Runs the tests of the batches against an extension that is compiled with AddressSanitizer and
# UndefinedBehaviorSanitizer: what reads or writes where it must not ends the run.
#
#   sanitize.sh                   the tests
#   sanitize.sh --fuzz SECONDS    and the fuzz targets of both directions
. "$(dirname "$0")/lib.sh"

FUZZED=(seal open frames)
seconds=0
case ${1:-} in
    '') ;;
    --fuzz) seconds=${2:?usage: sanitize.sh [--fuzz SECONDS]} ;;
    *) die "usage: sanitize.sh [--fuzz SECONDS]" ;;
esac
tools/native.sh sanitized

# The relay and its tests find each other by where they are, so a copy of both beside the sanitized extension needs
# no switch in either. A copy for each run: nobody changes it meanwhile.
tree=$(mktemp -d "$CACHE/native/sanitized/run.XXXXXX")
trap 'rm -rf "$tree"' EXIT
ln -s "$CACHE" "$tree/.cache" # what fuzzing finds goes where it always goes
git ls-files -z --cached --others --exclude-standard -- images/relay/{src,tests,pyproject.toml} |
    while IFS= read -r -d '' path; do [[ ! -e $path ]] || printf '%s\0' "$path"; done |
    xargs -0 cp --parents -t "$tree"
cp "$CACHE"/native/sanitized/_native.*.so "$tree/images/relay/src/culvert"
cd "$tree"

# ASan has to be there before Python. Python does not give everything back at its end, and that is no leak of ours.
# PYTHONMALLOC: Python's own allocator hands out parts of what ASan takes for one piece.
sanitized() {
    env LD_PRELOAD="$("${CC:-gcc}" -print-file-name=libasan.so) $("${CC:-gcc}" -print-file-name=libstdc++.so)" \
        ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=1:allocator_may_return_null=1 \
        UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
        PYTHONMALLOC=malloc PYTHONPATH="$tree/images/relay/src" "$@"
}

# Half of the time without sanitizers and guided by coverage, where that can be had, to find inputs that get far.
fuzz() {
    local target
    if python -c 'import atheris' 2>/dev/null; then
        seconds=$((seconds / 2))
        (cd "$ROOT" && tools/native.sh && python images/relay/tests/fuzz.py "$seconds" "${FUZZED[@]}")
    fi
    for target in "${FUZZED[@]}"; do
        find "$CACHE/fuzz/$target" -type f -exec cp -t "images/relay/tests/corpus/$target" {} + 2>/dev/null || true
    done
    sanitized python "$ROOT/tools/sanitized_fuzz.py" images/relay/tests "$seconds" "${FUZZED[@]}"
}

# One that is built without them would find nothing, and say so in the same words.
sanitized python -c 'import culvert._native as native; assert native.__file__.startswith("'"$tree"'"), native.__file__'
[[ $(nm -D "$tree"/images/relay/src/culvert/_native.*.so) == *__asan_report_store* ]] ||
    die "the extension in .cache/native/sanitized is not sanitized: remove that folder and try again"

# Not captured: the report of a sanitizer is the last thing that the process writes.
sanitized python -m pytest -q --capture=no -p no:cacheprovider -p no:faulthandler -p no:xdist \
    images/relay/tests/test_relay_batch*.py
if ((seconds > 0)); then
    fuzz
fi
say "the sanitizers found nothing"
