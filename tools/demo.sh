#!/usr/bin/env bash
# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# The demo: a fleet of containers on this machine becomes a VPN.
#
#   demo.sh up      make the fleet, apply playbooks/site.yml to it, show what came of it
#   demo.sh down    remove it
. "$(dirname "$0")/lib.sh"

inventory=inventories/demo/hosts.yml
play() { ansible-playbook --inventory "$inventory" "$@"; }

internet_address() {
    docker inspect --format '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' culvert-demo-internet
}

up() {
    local started=$SECONDS
    step "Starting the demo's hosts: a server, two clients and an internet, as containers" play inventories/demo/up.yml
    say "Applying playbooks/site.yml to them"
    play playbooks/site.yml
    say "Looking at what came of it, with playbooks/status.yml"
    play playbooks/status.yml
    say "The demo took $((SECONDS - started)) s. Remove it with: make demo-down"
    say "Look around with: docker exec -it culvert-demo-client1 bash, then e.g. curl http://203.0.113.29"
}

case ${1:-} in
    up) up ;;
    down) step "Removing the demo's hosts and networks" play inventories/demo/down.yml ;;
    *) die "usage: demo.sh up|down" ;;
esac
