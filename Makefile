# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Each command installs what it needs (tools/setup.sh) and can be run again at any time.

ARGS ?=
# Variants of the demo: tcp or tls, with UDP dropped between the hosts; 2 for bridges that the tunnel joins.
TRANSPORT ?= udp
LAYER ?= 3
# Files of tests run side by side, a file's tests in order; the slowest files come first (testpaths in pyproject.toml).
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo demo-down test fuzz sanitize bench bench-fleet bench-load bench-size bench-handover bench-streams soak lint sanity image wheels execution-environment build setup deps-update clean

help: ## this list
	@grep -E '^[a-z-]+: .*## ' $(MAKEFILE_LIST) | sed 's/:.*## /:/' | awk -F: '{ printf "  make %-22s %s\n", $$1, $$2 }'

demo: ## a VPN between containers on this machine, and a table of what it does; TRANSPORT=tls, LAYER=2
	@tools/setup.sh demo
	@TRANSPORT=$(TRANSPORT) LAYER=$(LAYER) tools/demo.sh up

demo-down: ## remove the demo
	@tools/setup.sh tools
	@tools/engine.sh
	@tools/demo.sh down

test: ## all tests; ARGS='tests/unit -k name' for some
	@tools/setup.sh test
	@tools/run.sh pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

fuzz: ## the relay's parsers, for five minutes; ARGS='600 requests' for seconds and some targets
	@tools/packages.sh test
	@tools/setup.sh tools
	@tools/native.sh
	@tools/run.sh python images/relay/tests/fuzz.py $(ARGS)

sanitize: ## the batches' tests and fuzz targets under AddressSanitizer, for two minutes; ARGS=seconds
	@tools/packages.sh test
	@tools/setup.sh tools
	@tools/sanitize.sh --fuzz $(or $(ARGS),120)

bench: ## our relay beside wireguard-go, OpenVPN, Nebula and tinc; ARGS=--quick, ARGS=--help
	@tools/packages.sh bench
	@tools/setup.sh tools
	@tools/native.sh
	@tools/run.sh python -m bench.throughput $(ARGS)

bench-fleet: ## what a rollout costs, on simulated fleets of 10 to 100 hosts; ARGS='--sizes 10 50'
	@tools/packages.sh test
	@tools/setup.sh tools
	@tools/native.sh
	@tools/run.sh python -m bench.fleet $(ARGS)

bench-load: ## what many peers and a flood cost a relay; ARGS='--peers 10 1000'
	@tools/packages.sh test
	@tools/setup.sh tools
	@PYTHONPATH=images/relay/src tools/run.sh python -m bench.relay_load $(ARGS)

bench-size: ## what 100 to 10,000 peers cost a relay that has little to do; ARGS='--peers 1000 --alive 0'
	@tools/packages.sh test
	@tools/setup.sh tools
	@PYTHONPATH=images/relay/src tools/run.sh python -m bench.relay_size $(ARGS)

bench-handover: ## what replacing a relay under load costs: handover, quick handshake, restart; ARGS='--rounds 5'
	@tools/packages.sh test
	@tools/setup.sh tools
	@tools/native.sh
	@PYTHONPATH=images/relay/src tools/run.sh python -m bench.handover $(ARGS)

bench-streams: ## UDP, TCP and TLS beside OpenVPN over TCP and a plain TCP listener; ARGS='--loss 1'
	@tools/packages.sh bench
	@tools/setup.sh tools
	@tools/native.sh
	@tools/run.sh python -m bench.streams $(ARGS)

soak: ## two relays under a transfer, rekeys and peers that come and go; ARGS=minutes
	@tools/packages.sh test
	@tools/setup.sh tools
	@tools/run.sh python -m bench.soak $(ARGS)

lint: ## formatting, types, documentation, ansible-lint, ansible-test sanity
	@tools/setup.sh tools
	@tools/lint.sh

sanity: ## ansible-test sanity; ARGS='--test pep8' for some of it
	@tools/setup.sh tools
	@tools/sanity.sh $(ARGS)

image: ## the relay's image and its archive, .cache/relay-image.tar
	@tools/setup.sh tools
	@tools/engine.sh
	@tools/relay_image.sh

wheels: ## the relay for amd64 and arm64, images/relay/dist/*.whl; ARGS=--check runs both
	@tools/setup.sh tools
	@tools/engine.sh
	@tools/wheels.sh $(ARGS)

execution-environment: ## an image to start Ansible in, with this collection; ARGS='--base IMAGE --tag TAG'
	@tools/setup.sh tools
	@tools/engine.sh
	@tools/execution_environment.sh $(ARGS)

build: ## the archive of the collection, for ansible-galaxy collection install
	@tools/setup.sh tools
	@tools/run.sh ansible-galaxy collection build --force

setup: ## what the tests need, without running them
	@tools/setup.sh test

deps-update: ## resolve the pinned Python packages anew
	@tools/setup.sh tools
	@tools/lock.sh

clean: demo-down ## remove the demo, our images and everything generated
	@tools/clean.sh
