# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The relays of a fleet get another image: sessions go on, what is not well is taken back, and a run that was
killed is taken up again.

Under the load of TCP transfers, with real containers, and how long the gap is: tests/e2e/test_day_two.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from tests.fleet.fleet import RELAY, RESPONDER, Fleet, Run
from tests.fleet.sessions import changed
from tests.netns.lab import eventually

UPGRADE = "culvert.vpn.upgrade"
NEXT, IMAGE = f"{RELAY}-next", "culvert/relay:0.1.0"
PREVIOUS, FALLBACK = "culvert/relay:previous-culvert0", "culvert/relay:fallback-culvert0"
# What a relay that was started anew is missed by its peers at most.
_WITHIN_S = 30.0


@pytest.fixture(scope="module")
def deployed(fleet: Fleet) -> Fleet:
    """Of an image from before relays could take over."""
    # A simulated host's only resolver is outside of the tunnel, and answers nothing.
    fleet.variables["verify_ignore"] = ["dns", "dns_leak"]
    fleet.variables |= {"verify_explain": False, "verify_path_mtu": False}
    fleet.have_image("old", "old", takes_over=False)
    fleet.deploy().check()
    fleet.await_sessions()
    return fleet


def note(fleet: Fleet, label: str, container: str = RELAY) -> str:
    """Which image a container runs, by what the test called it; empty for no such container."""
    for found in list(fleet.machines[label].engine.containers.values()):
        if found.name == container:
            return str(found.image.config["Labels"]["io.culvert.source"]).removeprefix("the checkout ")
    return ""


def images(fleet: Fleet, label: str) -> dict[str, str]:
    """Names of the images that a host has, and which they are."""
    found = {}
    for image in fleet.machines[label].engine.images:
        source = image.config["Labels"]["io.culvert.source"].removeprefix("the checkout ")
        found |= dict.fromkeys(image.tags or [f"no name {image.id[:12]}"], source)
    return found


def upgrade(fleet: Fleet, *words: str, **variables: object) -> Run:
    return fleet.start(*words, playbook=UPGRADE, **variables).wait()


def await_way_out(fleet: Fleet) -> None:
    """A relay that was stopped has lost its sessions; one of an old image waits to be called."""
    for client in fleet.names("client"):
        words = f"a way out of {client}"
        eventually(partial(_is_out, fleet, client), _WITHIN_S, words)


def _is_out(fleet: Fleet, client: str) -> bool:
    return fleet.reaches_internet(client, 2) == "server1"


@contextmanager
def sessions_go_on(fleet: Fleet) -> Iterator[None]:
    """None of the relays' sessions has ended meanwhile, and traffic goes through."""
    before = fleet.await_sessions()
    yield
    assert changed(before, fleet.sessions()) == set()
    for client in fleet.names("client"):
        assert fleet.reaches_internet(client) == "server1"


@contextmanager
def nothing_is_left(fleet: Fleet) -> Iterator[None]:
    """All run at the end what they ran before, and nothing of an attempt is there."""

    def seen() -> dict[str, list[object]]:
        containers = (RELAY, NEXT, RESPONDER)
        return {
            label: [images(fleet, label), *(note(fleet, label, name) for name in containers)]
            for label in fleet.machines
        }

    before = seen()
    yield
    assert seen() == before


def test_from_relays_that_cannot_hand_over(deployed: Fleet) -> None:
    """They are stopped when the new ones are ready, which shake hands at once."""
    deployed.have_image("one", takes_over=True)
    run = upgrade(deployed).check()
    assert run.changed() == set(deployed.members)
    for label in deployed.machines:
        assert note(deployed, label) == "one"
        assert note(deployed, label, NEXT) == ""
        assert images(deployed, label) == {IMAGE: "one", PREVIOUS: "old"}
    assert note(deployed, "server1", RESPONDER) == "one"
    await_way_out(deployed)


def test_relays_take_over_and_sessions_go_on(deployed: Fleet) -> None:
    deployed.have_image("two", takes_over=True)
    with sessions_go_on(deployed):
        upgrade(deployed).check()
        for label in deployed.machines:
            assert note(deployed, label) == "two"
            # The one before, and none that is older.
            assert images(deployed, label) == {IMAGE: "two", PREVIOUS: "one"}
        again = upgrade(deployed).check()
        assert again.changed() == set(), again.output
        assert deployed.deploy().check().changed() == set()


def test_other_options_by_site_yml_end_no_session_either(deployed: Fleet) -> None:
    with sessions_go_on(deployed), deployed.other_inventory():
        deployed.members["client1"].variables["relay_batch"] = "python"
        assert deployed.deploy().check().changed() == {"client1"}
        assert images(deployed, "client1") == {IMAGE: "two", PREVIOUS: "one"}
    with sessions_go_on(deployed):
        assert deployed.deploy().check().changed() == {"client1"}


def test_an_image_that_does_not_start_stops_the_rollout_and_disturbs_nobody(deployed: Fleet) -> None:
    deployed.have_image("broken", "broken", takes_over=True)
    with sessions_go_on(deployed), nothing_is_left(deployed):
        run = upgrade(deployed)
        assert run.failed() == {"server1"}, run.output
        for words in ("this image is broken", "goes on with the image that it had", "The rollout ends here"):
            assert words in " ".join(run.output.split()), run.output


def test_an_image_that_carries_nothing_is_taken_back(deployed: Fleet) -> None:
    """It takes over, shakes hands, and gives no packet to its host: the first batch's test finds that out."""
    deployed.have_image("lame", "lame", takes_over=True)
    with nothing_is_left(deployed):
        run = upgrade(deployed)
    assert run.failed() == {"server1"}, run.output
    output = " ".join(run.output.split())
    assert "answered through the tunnel before, and not with the new image" in output
    assert "Unknown error" not in output
    assert "has the image back that it had" in output
    await_way_out(deployed)


def wait_for(fleet: Fleet, label: str, container: str, image: str) -> None:
    deadline = time.monotonic() + 120
    while note(fleet, label, container) != image:
        assert time.monotonic() < deadline, f"{container} of {image} on {label}"
        time.sleep(0.01)


@pytest.mark.parametrize("container", [NEXT, RELAY])
def test_a_run_that_was_killed_is_taken_up_again(deployed: Fleet, container: str) -> None:
    """Once while one relay takes over from the other, once right after that."""
    was, wanted = note(deployed, "server1"), f"killed {container}"
    deployed.have_image(wanted, takes_over=True)
    with sessions_go_on(deployed):
        running = deployed.start(playbook=UPGRADE)
        wait_for(deployed, "server1", container, wanted)
        running.kill()
        assert note(deployed, "client1") == was
        upgrade(deployed).check()
        for label in deployed.machines:
            assert note(deployed, label) == wanted
            assert note(deployed, label, NEXT) == ""
            assert images(deployed, label) == {IMAGE: wanted, PREVIOUS: was}


def test_back_to_the_image_before(deployed: Fleet) -> None:
    new, old = note(deployed, "server1"), images(deployed, "server1")[PREVIOUS]
    assert new != old
    with sessions_go_on(deployed):
        upgrade(deployed, upgrade_rollback=True).check()
        for label in deployed.machines:
            assert note(deployed, label) == old
            assert images(deployed, label) == {IMAGE: old, PREVIOUS: new}
