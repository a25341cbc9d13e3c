# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose rules may stand before a jump that is to be first."""

from __future__ import annotations

import pytest
from ansible_collections.culvert.vpn.plugins.module_utils._chain import is_dockers


@pytest.mark.parametrize(
    ("rule", "dockers"),
    [
        ("-j DOCKER-USER", True),
        ("-j DOCKER-ISOLATION-STAGE-1", True),
        ("-o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", True),
        ("-s 172.18.0.0/16 ! -o br-0123456789ab -j MASQUERADE", True),
        ("-m addrtype --dst-type LOCAL -j DOCKER", True),
        ("-m set --match-set docker-ext-bridges-v4 dst -m conntrack --ctstate RELATED -j ACCEPT", True),
        ("-m set --match-set theirs dst -j ACCEPT", False),
        ("-i eth0 -j DROP", False),
        ("-i br-lan -j DROP", False),
        ("-s 172.17.0.0/16 -j REJECT", False),
        ("-j ufw-before-forward", False),
    ],
)
def test_rules_that_docker_puts_before_everybodys(rule: str, dockers: bool) -> None:
    assert is_dockers(rule) is dockers
