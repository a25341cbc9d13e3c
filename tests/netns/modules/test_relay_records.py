# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Events and limits, from the module relay_peers to a relay at work.

client  eth0 198.51.100.2 ──────────────── eth0 198.51.100.1  server
        cvt0 10.86.0.2    ═══ WireGuard ══ cvt0 10.86.0.1     the module runs here
"""

from __future__ import annotations

import json
import signal
from typing import Any

from tests.netns.lab import eventually
from tests.netns.modules.test_relay_peers import Site, site

__all__ = ["site"]


def events(site: Site) -> list[dict[str, Any]]:
    process = site.server.process
    assert process is not None
    return [json.loads(line) for line in process.output().splitlines() if line.startswith("{")]


def test_events_and_limits_of_a_relay_at_work(site: Site) -> None:
    site.start()
    assert events(site) == []
    usage = site.directory / "usage"
    wished = {"events": True, "usage_file": str(usage)}
    done = site.run(site.client_peer, **wished)
    assert (done.changed, done["reload"]) == (True, True)
    process = site.server.process
    assert process is not None
    process.send_signal(signal.SIGHUP)
    eventually(lambda: [event["event"] for event in events(site)] == ["config_reloaded"], 5, "events are on")

    limited = {**site.client_peer, "quota": "2k", "quota_period": "total"}
    done = site.run(limited, **wished)
    assert (done.changed, done["reload"]) == (True, False)
    again = site.run(limited, **wished)
    assert (again.changed, again["reload"]) == (False, False)
    for _ in range(30):
        site.ping()
        if events(site)[-1]["event"] == "quota_exceeded":
            break
    changed, exceeded = events(site)[-2:]
    assert (changed["event"], changed["changed"]) == ("peer_changed", ["limits"])
    assert (exceeded["event"], exceeded["peer"], exceeded["peer_name"]) == (
        "quota_exceeded",
        site.client,
        "client",
    )
    assert not site.ping()
    again = site.run(limited, **wished)
    assert not again.changed, "that it is barred is no difference"

    assert site.run(site.client_peer, **wished).changed
    eventually(site.ping, 20, "the client is let in again")
    site.server.stop()
    assert site.client in usage.read_text()


def test_a_certificate_that_the_relay_was_not_told_of(site: Site) -> None:
    """As after a run that ended between writing the file and telling the relay: the next one tells it."""
    folder = site.directory / "tls"
    site.server.culvert("certificate", "--directory", str(folder), "--name", "a.example.org")
    files = {
        "tls_certificate_file": str(folder / "certificate.pem"),
        "tls_private_key_file": str(folder / "key.pem"),
    }
    wished = {"listen_tls": 8443, **files}
    site.start()
    process = site.server.process
    assert process is not None
    for _run in ("writes the file", "finds it there"):
        assert site.run(site.client_peer, **wished)["reload"] is True
    process.send_signal(signal.SIGHUP)
    eventually(lambda: not site.run(site.client_peer, **wished)["reload"], 5, "it listens")

    (folder / "certificate.pem").unlink()
    assert site.run(site.client_peer, **wished)["reload"] is False, "there is nothing to be read"
    site.server.culvert("certificate", "--directory", str(folder), "--name", "b.example.org")
    assert site.run(site.client_peer, **wished)["reload"] is True
    process.send_signal(signal.SIGHUP)
    eventually(lambda: not site.run(site.client_peer, **wished)["reload"], 5, "it shows the new one")
    assert site.run(site.client_peer)["reload"] is True, "and is to end that"
