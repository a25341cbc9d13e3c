# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""The command ``culvert`` on a host: ``explain`` is done here, every other word by the relay's container."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from ._core import HostError, Runner
from ._processes import run_command
from ._relay_container import Container, engine, look

USAGE = """\
usage: culvert explain DESTINATION [...]   where a packet's way through this host ends, and why
       culvert COMMAND [...]               the relay's own commands, in its container (culvert show)

Of several relays, that of the interface that is named, or else $CULVERT_INTERFACE.
"""


def main(arguments: Sequence[str]) -> int:
    if arguments[:1] == ["explain"]:
        from ._explain_cli import main as explain

        return explain(arguments[1:])
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(USAGE)
        return 0 if arguments else 2
    try:
        words = in_container(arguments, os.environ, run_command)
    except HostError as error:
        sys.stderr.write(f"culvert: {error}\n")
        return 1
    sys.stdout.flush()
    os.execv(words[0], words)
    return 1  # never: this process is another one now


def in_container(arguments: Sequence[str], environment: Mapping[str, str], run: Runner) -> list[str]:
    """The command that has a relay's container do it.

    :raises HostError: there is none, several, or one that does not run.
    """
    docker = engine()
    if docker is None:
        raise HostError("there is no container engine (docker) on this host")
    chosen = choose(arguments, environment.get("CULVERT_INTERFACE", ""), look(run))
    if not chosen.runs:
        raise HostError(f"{chosen}; start it with: docker start {chosen.name}")
    return [docker, "exec", "-i", chosen.name, "culvert", *arguments]


def choose(arguments: Sequence[str], interface: str, containers: Sequence[Container]) -> Container:
    """:raises HostError: none, or more than one."""
    if not containers:
        raise HostError("there is no relay's container on this host")
    named = [container for container in containers if container.interface in arguments]
    named = named or [container for container in containers if container.interface == interface]
    left = named or list(containers)
    if len(left) > 1:
        names = ", ".join(sorted(container.interface for container in left))
        raise HostError(f"there are several relays; say which: {names}")
    return left[0]
