#!/usr/bin/env bash
# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Everything that can be said about the source without running it. All checks run, also after one has failed.
. "$(dirname "$0")/lib.sh"

failed=()
# check TEXT COMMAND...: like step, but goes on, and a failure shows all that the command printed
check() {
    local text=$1 out=$CACHE/logs/lint.out started=$SECONDS
    shift
    say "$text"
    if ! "$@" >"$out" 2>&1 </dev/null; then
        sed 's/^/    | /' "$out"
        failed+=("$text")
    fi
    ((SECONDS - started < 5)) || printf '    %s s\n' "$((SECONDS - started))"
}

# What ansible-test prints is nearly all about its virtualenvs.
sanity() {
    local log=$CACHE/logs/sanity.log
    tools/sanity.sh >"$log" 2>&1 && return
    grep -E '^(ERROR|FATAL|[a-z-]+$)' "$log"
    echo "(all of it: $log)"
    return 1
}

check "ruff check" ruff check --output-format concise .
check "ruff format" ruff format --check --diff .
check "mypy, relay" mypy images/relay/src
check "mypy, module_utils" mypy plugins/module_utils images/host
check "shellcheck" shellcheck --external-sources --source-path=SCRIPTDIR tools/*.sh .ci/run
check "yamllint" yamllint --strict .
check "ansible-lint" ansible-lint --offline --profile production --nocolor -q
check "antsibull-changelog" antsibull-changelog lint
check "antsibull-docs" antsibull-docs lint-collection-docs --plugin-docs --validate-collection-refs=all .
check "ansible-test sanity (half a minute)" sanity

if ((${#failed[@]} > 0)); then
    die "lint found fault with: $(printf '%s; ' "${failed[@]}" | sed 's/; $//')"
fi
say "lint is content"
