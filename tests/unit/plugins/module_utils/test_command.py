# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command ``culvert`` on a host: in which container a word of the relay is done."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.module_utils import _command, _relay_container
from ansible_collections.culvert.vpn.plugins.module_utils._core import HostError


def inspected(name: str, interface: str, status: str = "running") -> dict[str, Any]:
    """What ``docker inspect`` says of a container, as far as it matters."""
    variables = ["PATH=/usr/bin", f"CULVERT_INTERFACE={interface}"] if interface else ["PATH=/usr/bin"]
    state = {
        "Status": status,
        "ExitCode": 137 if status == "exited" else 0,
        "FinishedAt": "2026-11-23T01:02:03Z",
    }
    return {"Name": f"/{name}", "Config": {"Env": variables}, "State": state}


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Containers of a host with Docker."""
    containers: list[dict[str, Any]] = []
    monkeypatch.setattr(_relay_container, "find", lambda name: f"/usr/bin/{name}")
    return containers


def run_with(containers: list[dict[str, Any]]) -> Any:
    def run(words: list[str], stdin: str) -> tuple[int, str, str]:
        if words[1] == "ps":
            assert "--all" in words
            return 0, "".join(f"{item['Name'][1:]}\n" for item in containers), ""
        return 0, json.dumps(containers), ""

    return run


def asked(containers: list[dict[str, Any]], *words: str, **environment: str) -> list[str]:
    return _command.in_container(words, environment, run_with(containers))


def test_the_only_relay(host: list[dict[str, Any]]) -> None:
    host += [inspected("my-own-name", "culvert0"), inspected("culvert-responder-culvert0", "")]
    assert asked(host, "show", "--json") == [
        "/usr/bin/docker", "exec", "-i", "my-own-name", "culvert", "show", "--json"
    ]  # fmt: skip


def test_one_of_several(host: list[dict[str, Any]]) -> None:
    host += [inspected("culvert-culvert0", "culvert0"), inspected("culvert-office", "office")]
    assert asked(host, "show", "office")[3] == "culvert-office"
    assert asked(host, "capture", "culvert0", "--packets", "1")[3] == "culvert-culvert0"
    assert asked(host, "show", CULVERT_INTERFACE="office")[3] == "culvert-office"
    with pytest.raises(HostError, match="say which: culvert0, office"):
        asked(host, "show")


def test_none_that_could_do_it(host: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HostError, match="no relay's container"):
        asked(host, "show")
    host.append(inspected("culvert-culvert0", "culvert0", "exited"))
    with pytest.raises(HostError, match=r"exited \(status 137.*docker start culvert-culvert0"):
        asked(host, "show")
    with pytest.raises(HostError, match="does not describe"):
        _relay_container.parse("[{}]")
    monkeypatch.setattr(_relay_container, "find", lambda name: None)
    with pytest.raises(HostError, match="no container engine"):
        asked(host, "show")


def test_an_engine_that_does_not_answer(host: list[dict[str, Any]]) -> None:
    with pytest.raises(HostError, match="`/usr/bin/docker ps` failed: Cannot connect"):
        _relay_container.look(lambda words, stdin: (1, "", "Cannot connect to the Docker daemon\n"))


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert _command.main(["--help"]) == 0
    assert _command.main([]) == 2
    assert capsys.readouterr().out.count("culvert explain DESTINATION") == 2
