#!/usr/bin/env bash
# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# The demo: a fleet of containers on this machine becomes a VPN.
#
#   demo.sh up      make the fleet, apply playbooks/site.yml to it, show what came of it
#   demo.sh down    remove it, whichever variant it was
#
# Variants, by the environment:
#   TRANSPORT=tcp|tls   the server offers that, too, and a firewall between the hosts drops UDP
#   LAYER=2             each host has a bridge with a machine on it, and the tunnel joins the bridges
. "$(dirname "$0")/lib.sh"

inventory=inventories/demo/hosts.yml
transport=${TRANSPORT:-udp}
layer=${LAYER:-3}
variables=()
play() { ansible-playbook --inventory "$inventory" "$@"; }
site() { play "$1" "${variables[@]}"; }
on() { docker exec "culvert-demo-$1" "${@:2}"; }

# What the playbooks are told in this variant. A lab of the other layer is not made into one of this.
choose() {
    case $transport in
        udp) ;;
        tcp | tls) variables+=(--extra-vars "{\"relay_transports\": [\"udp\", \"$transport\"]}") ;;
        *) die "TRANSPORT is udp, tcp or tls, not $transport" ;;
    esac
    case $layer in
        2) variables+=(--extra-vars '{"relay_layer": 2, "relay_bridge": "br-lan"}') ;;
        3) ;;
        *) die "LAYER is 2 or 3, not $layer" ;;
    esac
    local device
    device=$(on server cat /sys/class/net/culvert0/type 2>/dev/null || true)
    if [[ ($device == 1 && $layer == 3) || ($device == 65534 && $layer == 2) ]]; then
        die "the demo runs with the other layer: remove it first, with make demo-down"
    fi
}

# Whether ARP and packets cross: from the machine behind one host to the one behind another.
across() {
    say "From the machine behind demo-client1 to the one behind demo-server, 192.168.77.11, which only a broadcast finds:"
    on client1 ip netns exec box ping -c 3 -i 0.2 -W 2 192.168.77.11
    say "What ARP has told it, and the address that the other one really has:"
    on client1 ip -n box neighbour show 192.168.77.11
    on server ip -n box -brief link show eth0
}

up() {
    local started=$SECONDS
    choose
    step "Starting the demo's hosts: a server, two clients and an internet, as containers" play inventories/demo/up.yml
    if [[ $transport != udp ]]; then
        step "Dropping UDP between them, by a firewall" play inventories/demo/udp.yml --extra-vars lab_udp=dropped
    elif on server iptables -t raw -S PREROUTING 2>/dev/null | grep -q DROP; then
        step "Letting UDP pass between them again" play inventories/demo/udp.yml --extra-vars lab_udp=passed
    fi
    if [[ $layer == 2 ]]; then
        step "Giving each a bridge with a machine on it" play inventories/demo/bridges.yml
    fi
    say "Applying playbooks/site.yml to them"
    site playbooks/site.yml
    say "Looking at what came of it, with playbooks/status.yml"
    site playbooks/status.yml
    if [[ $transport != udp ]]; then
        say "Verifying it, with playbooks/verify.yml"
        site playbooks/verify.yml
    fi
    if [[ $layer == 2 ]]; then
        across
        say "The demo took $((SECONDS - started)) s. Remove it with: make demo-down"
        say "Look around with: docker exec -it culvert-demo-client1 ip netns exec box bash"
        return
    fi
    say "The demo took $((SECONDS - started)) s. Remove it with: make demo-down"
    say "Look around with: docker exec -it culvert-demo-client1 bash, then e.g. curl http://203.0.113.29"
}

case ${1:-} in
    up) up ;;
    down) step "Removing the demo's hosts and networks" play inventories/demo/down.yml ;;
    *) die "usage: demo.sh up|down" ;;
esac
