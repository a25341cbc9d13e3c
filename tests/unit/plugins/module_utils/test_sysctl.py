# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kernel settings on a pretended host: a folder with a /proc/sys in it. (tests/e2e has the real ones.)"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.module_utils._core import SpecError
from ansible_collections.culvert.vpn.plugins.module_utils._sysctl import SysctlSettings

FORWARD = {"net.ipv4.ip_forward": "1"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for path, value in {
        "net/ipv4/ip_forward": "0",
        "net/ipv4/conf/all/forwarding": "0",
        "net/ipv4/conf/eth0/forwarding": "1",
        "net/ipv4/conf/all/accept_redirects": "1",
        "net/ipv4/conf/all/src_valid_mark": "0",
    }.items():
        file = tmp_path / "proc" / "sys" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(value + "\n")
    return tmp_path


def live(root: Path) -> dict[str, str]:
    proc = root / "proc" / "sys"
    return {
        str(path.relative_to(proc)): path.read_text().strip() for path in proc.rglob("*") if path.is_file()
    }


def run(
    root: Path, values: dict[str, Any] | None, stop_after: int | None = None, name: str = "t"
) -> list[str]:
    """Bring a host to `values` (None: absent), or die after some steps, and return what was changed."""
    state = "absent" if values is None else "present"
    backend = SysctlSettings({"name": name, "state": state, "values": values or {}}, str(root))
    plan = backend.plan(backend.observe())
    for change in plan[:stop_after]:
        backend.apply(change)
    return [change.item for change in plan]


def test_values_are_set_and_given_back(root: Path) -> None:
    before = live(root)
    assert "net.ipv4.ip_forward" in run(root, FORWARD)
    assert live(root)["net/ipv4/ip_forward"] == "1"
    text = (root / "etc/sysctl.d/90-culvert-t.conf").read_text()
    assert text.endswith("net.ipv4.ip_forward = 1\n")
    assert run(root, FORWARD) == []
    run(root, None)
    assert live(root) == before
    assert list(root.rglob("*culvert*")) == []
    assert run(root, None) == []


def test_what_the_kernel_changed_along_is_given_back(root: Path) -> None:
    before = live(root)
    run(root, FORWARD)
    for path in ("all/forwarding", "eth0/forwarding", "all/accept_redirects"):  # the kernel's part
        (root / "proc/sys/net/ipv4/conf" / path).write_text("7\n")
    run(root, None)
    assert live(root) == before


def test_a_value_that_was_right_already_stays_afterwards(root: Path) -> None:
    (root / "proc/sys/net/ipv4/ip_forward").write_text("1\n")
    run(root, FORWARD)
    run(root, None)
    assert live(root)["net/ipv4/ip_forward"] == "1"


def test_a_setting_that_is_no_longer_listed_is_given_back_alone(root: Path) -> None:
    run(root, {**FORWARD, "net.ipv4.conf.all.src_valid_mark": "1"})
    run(root, FORWARD)
    assert live(root)["net/ipv4/conf/all/src_valid_mark"] == "0"
    assert live(root)["net/ipv4/ip_forward"] == "1"


@pytest.mark.parametrize("steps", range(4))
def test_a_run_that_died_forgets_nothing(root: Path, steps: int) -> None:
    before = live(root)
    run(root, FORWARD, stop_after=steps)
    run(root, FORWARD)
    assert live(root)["net/ipv4/ip_forward"] == "1"
    run(root, None, stop_after=steps)
    run(root, None)
    assert live(root) == before


@pytest.mark.parametrize("first_to_go", ["20-server-culvert0", "20-client-culvert0"])
def test_a_setting_that_several_sets_hold_goes_with_the_last(root: Path, first_to_go: str) -> None:
    before = live(root)
    names = ["20-server-culvert0", "20-client-culvert0"]
    for name in names:
        run(root, FORWARD, name=name)
    run(root, None, name=first_to_go)
    assert live(root)["net/ipv4/ip_forward"] == "1"
    assert len(list(root.rglob("*culvert0*"))) == 2
    run(root, None, name=next(name for name in names if name != first_to_go))
    assert live(root) == before
    assert list(root.rglob("*culvert0*")) == []


def test_drift_is_repaired(root: Path) -> None:
    run(root, FORWARD)
    (root / "proc/sys/net/ipv4/ip_forward").write_text("0\n")
    assert run(root, FORWARD) == ["net.ipv4.ip_forward"]


@pytest.mark.parametrize("key", ["net.ipv4.ip_forwad", "../../etc/passwd", "net"])
def test_a_setting_that_the_kernel_lacks_is_refused(root: Path, key: str) -> None:
    with pytest.raises(SpecError, match="is not a setting"):
        run(root, {key: "1"})


def test_the_rest_does_not_wait_for_a_device_that_is_not_there_yet(root: Path) -> None:
    """A host's network card may come up after what is applied at boot."""
    values = {**FORWARD, "net.ipv4.conf.eth0.forwarding": "0"}
    run(root, values)
    card = root / "proc/sys/net/ipv4/conf/eth0"
    (card / "forwarding").unlink()
    (root / "proc/sys/net/ipv4/ip_forward").write_text("0\n")
    assert run(root, values) == ["net.ipv4.ip_forward"]
    assert "net.ipv4.conf.eth0.forwarding = 0\n" in (root / "etc/sysctl.d/90-culvert-t.conf").read_text()
    # It is not lost: once the device is there, it is set, and later given back.
    (card / "forwarding").write_text("1\n")
    assert run(root, values) == ["net.ipv4.conf.eth0.forwarding"]
    run(root, None)
    assert (card / "forwarding").read_text() == "1\n"


def test_a_device_that_never_was_there_is_refused(root: Path) -> None:
    with pytest.raises(SpecError, match="is not a setting"):
        run(root, {"net.ipv4.conf.eth7.forwarding": "0"})
