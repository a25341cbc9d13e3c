# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The network of the full tunnel's tests."""

from __future__ import annotations

import pytest

from tests.netns.fulltunnel import network as network_module
from tests.netns.fulltunnel.network import Network
from tests.netns.lab import Lab


@pytest.fixture
def network(lab: Lab) -> Network:
    return network_module.make(lab)
