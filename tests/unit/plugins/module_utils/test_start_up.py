# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The start of a module: pyroute2, which takes as long to load as the rest, is loaded where it is used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ansible_collections.culvert.vpn.plugins.module_utils import _netlink

MODULES = Path(_netlink.__file__).parents[1] / "modules"
# They look at links, addresses, routes or rules whatever they are asked for.
NEED_IT = {"host_network", "network_commit", "path_mtu", "routing_table", "tun_device", "tunnel_probe"}
LOAD = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(f"ansible_collections.culvert.vpn.plugins.modules.{name}")
    print(name, "pyroute2" in sys.modules)
"""


def test_only_who_looks_at_the_network_loads_its_library() -> None:
    names = {path.stem for path in MODULES.glob("*.py")} - {"__init__"}
    assert names > NEED_IT
    chosen = sorted(names - NEED_IT)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *chosen],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.splitlines() == [f"{name} False" for name in chosen]
