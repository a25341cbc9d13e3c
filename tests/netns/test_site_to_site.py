# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The worked example of docs/site-to-site.md does what it says, for both layers: its own lines are run.

They make namespaces by names that a reader can remember, so they get a machine of their own: mounts, network
and processes, which are gone with the shell.
"""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.netns.endpoints import REPOSITORY

DOCUMENT = REPOSITORY / "docs" / "site-to-site.md"
_OWN_MACHINE = "mount -t tmpfs tmpfs /run; mkdir /run/wireguard /run/netns; set -euxo pipefail; exec 2>&1;"
ALONE = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
_TIMEOUT_S = 90


def blocks(*headings: str) -> str:
    """The shell's lines below some of the document's headings."""
    text = DOCUMENT.read_text(encoding="utf-8")
    parts = re.split(r"^#+ (.+)\n", text, flags=re.M)
    bodies = dict(zip(parts[1::2], parts[2::2], strict=True))
    found = [block for heading in headings for block in re.findall(r"```sh\n(.*?)```", bodies[heading], re.S)]
    assert found, headings
    return "\n".join(found)


def run(*headings: str) -> str:
    script = f"{_OWN_MACHINE}\n{blocks('On one machine, by hand', *headings, 'And back')}\nip netns list\n"
    done = subprocess.run(
        [*ALONE, "bash", "-c", script],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.usefixtures("machine")
def test_two_networks_are_routed() -> None:
    said = run("By hand, layer 3")
    assert "3 packets transmitted, 3 received" in said
    # The one hop less is that of the two hosts: depot and office are not on one network.
    assert "ttl=62" in said


@pytest.mark.usefixtures("machine")
def test_two_networks_are_bridged() -> None:
    said = run("By hand, layer 2")
    assert "3 packets transmitted, 3 received" in said
    assert "ttl=64" in said
    learnt = re.search(r"^10\.30\.0\.2 dev eth0 lladdr (\S+)", said, re.M)
    own = re.search(r"^eth0@\S+ +UP +(\S+)", said, re.M)
    assert learnt
    assert own
    assert learnt[1] == own[1]
