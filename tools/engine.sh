#!/usr/bin/env bash
# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Makes a Docker engine answer: uses the one that is there, starts the one that is installed, or installs Debian's.
. "$(dirname "$0")/lib.sh"

# Whether there is an engine to talk to.
answers() { timeout 10 docker info >/dev/null 2>&1; }

start() {
    if [[ -d /run/systemd/system ]]; then
        systemctl start docker
        return
    fi
    # No service manager, as in a container or a minimal virtual machine.
    setsid --fork "$0" --in-foreground </dev/null >>/var/log/dockerd.log 2>&1
}

# The engine outlives the script that starts it and must hold none of its descriptors, or whoever waits for the end of
# our output (a pipe, a CI runner) waits for the engine too.
in_foreground() {
    local fd
    for fd in /proc/self/fd/*; do
        fd=${fd##*/}
        if ((fd > 2)); then
            exec {fd}>&-
        fi
    done
    exec dockerd
}

wait_for() {
    local limit_s=$1
    local end=$((SECONDS + limit_s))
    until answers; do
        ((SECONDS < end)) || return 1
        sleep 0.5
    done
}

if [[ ${1:-} == --in-foreground ]]; then
    in_foreground
fi
if answers; then
    exit 0
fi
[[ $(id -u) == 0 ]] || die "no Docker engine answers (docker info fails), and without root none can be started. Run this as root"
if ! command -v dockerd >/dev/null; then
    tools/packages.sh --only docker.io
fi
# Debian 13 has the command in a package of its own.
if ! command -v docker >/dev/null; then
    tools/packages.sh --only docker-cli
fi
# Two checkouts may get here at once; installing may have started the engine already.
exec {engine_lock}>/run/lock/culvert-engine.lock
flock "$engine_lock"
if ! wait_for 1; then
    say "Starting the Docker engine"
    start
    wait_for 60 || die "the Docker engine did not answer within 60 s; its log: /var/log/dockerd.log (or journalctl -u docker)"
fi
say "Docker engine $(docker version --format '{{.Server.Version}}') answers"
