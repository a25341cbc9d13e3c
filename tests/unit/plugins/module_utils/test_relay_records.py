# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Events and the file of used quotas, in the relay's configuration as the module writes and reads it."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.module_utils._core import SpecError
from ansible_collections.culvert.vpn.plugins.module_utils._relay_file import FileConfig, parse, render
from ansible_collections.culvert.vpn.plugins.module_utils._relay_peers_host import _of_the_file_alone
from ansible_collections.culvert.vpn.plugins.module_utils._relay_peers_spec import PeersSpec
from ansible_collections.culvert.vpn.plugins.module_utils._relay_records import Records

USAGE, SYSLOG = "/var/lib/culvert/relay/culvert0/usage", "/run/systemd/journal/dev-log"
KEY = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="


def config_of(*peers: dict[str, Any], **params: Any) -> FileConfig:
    return PeersSpec.from_params({"peers": list(peers), **params}).config


def test_what_is_written_is_read() -> None:
    config = config_of(events=True, events_syslog=SYSLOG, usage_file=USAGE)
    assert config.records == Records(USAGE, True, SYSLOG)
    lines = f"UsageFile = {USAGE}\nEvents = on\nEventsSyslog = {SYSLOG}\n"
    assert lines in render(config)
    assert parse(render(config)).records == config.records


def test_without_them_the_file_is_as_it_was() -> None:
    assert "Events" not in render(config_of())
    assert "UsageFile" not in render(config_of())
    assert parse("[Interface]\nEvents = ON\n").records == Records(events=True)
    assert parse("[Interface]\nEvents = off\n").records == Records()


@pytest.mark.parametrize("option", ["events_syslog", "usage_file"])
@pytest.mark.parametrize("path", ["relative", "/folder/", "/a#b", "/a\n[Peer]"])
def test_paths_that_are_none(option: str, path: str) -> None:
    with pytest.raises(SpecError) as caught:
        config_of(**{option: path})
    assert caught.value.option == option


def test_what_a_relay_learns_from_the_file_alone() -> None:
    peer = {"public_key": KEY, "name": "phone"}
    plain, told = config_of(peer), config_of(peer, events=True)
    renamed = {**peer, "name": "laptop"}
    assert _of_the_file_alone(plain) != _of_the_file_alone(told)
    assert _of_the_file_alone(told) != _of_the_file_alone(config_of(renamed, events=True))
    assert _of_the_file_alone(plain) == _of_the_file_alone(config_of(renamed)), "nobody asks for names"
    assert _of_the_file_alone(plain) != _of_the_file_alone(config_of(peer, usage_file=USAGE))
