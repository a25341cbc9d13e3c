# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which prefixes need a route of their own."""

from __future__ import annotations

import pytest
from ansible_collections.culvert.vpn.plugins.plugin_utils._prefixes import prefixes_beside


def test_what_overlaps_with_ones_own_and_what_is_covered_is_left_out() -> None:
    prefixes = [
        "10.20.0.0/16",
        "10.20.0.0/16",
        "192.168.0.0/16",
        "192.168.1.128/25",
        "10.30.1.0/24",
        "fd20::/64",
    ]
    assert prefixes_beside(prefixes, ["192.168.1.0/24"], ["10.30.0.0/16"]) == ["10.20.0.0/16", "fd20::/64"]
    assert prefixes_beside(prefixes, [], ["0.0.0.0/0"]) == ["fd20::/64"]
    # A prefix that only holds a part of it does not carry it.
    assert prefixes_beside(["10.0.0.0/8"], [], ["10.0.0.0/9"]) == ["10.0.0.0/8"]


def test_what_is_no_prefix_is_an_error() -> None:
    with pytest.raises(ValueError, match="host bits"):
        prefixes_beside(["10.0.0.1/8"])
