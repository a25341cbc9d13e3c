# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The step that a change is blamed on: the kill switch cuts nobody off who is answered."""

from __future__ import annotations

import json
import sys

import pytest

from tests.netns.fulltunnel.network import CLIENT, COLLECTIONS, OUTSIDE, Network

_WATCH = """
import json, sys
from ansible_collections.culvert.vpn.plugins.module_utils._document import Document
from ansible_collections.culvert.vpn.plugins.module_utils._host_network import HostNetwork
from ansible_collections.culvert.vpn.plugins.module_utils._lifeline import Lifeline
from ansible_collections.culvert.vpn.plugins.module_utils._processes import run_command
document = Document.from_params(json.loads(sys.argv[1]))
network = HostNetwork(document, None, run_command)
plan = network.plan(network.observe())
watch = Lifeline(sys.argv[2], document.fwmark, sys.argv[3])
for change in plan:
    network.apply(change)
    said = watch.check()
    if said:
        print(change.item, said)
"""


@pytest.mark.parametrize("version", [4, 6])
def test_no_step_of_a_full_tunnel_with_kill_switch_is_blamed(network: Network, version: int) -> None:
    made = network.documents(client_kill_switch=True)
    network.client.network(made["relay"])
    words = [json.dumps(made["client"]), OUTSIDE[version], CLIENT["up0"][version]]
    env = {"PYTHONPATH": str(COLLECTIONS)}
    assert network.client.run([sys.executable, "-c", _WATCH, *words], env=env).stdout == ""
    # A chain that really does is still found.
    drop = {"name": "CULVERT-TEST", "table": "mangle", "rules": ["-j DROP"], "jump": {"from": "POSTROUTING"}}
    bad = {
        "name": "99-test",
        "fwmark": made["client"]["fwmark"],
        "chains": [{**drop, "family": f"ipv{version}"}],
    }
    words[0] = json.dumps(bad)
    blamed = network.client.run([sys.executable, "-c", _WATCH, *words], env=env).stdout
    assert "CULVERT-TEST" in blamed
    assert "no longer answers" in blamed
