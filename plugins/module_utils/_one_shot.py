# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Containers of the relay's image that do one thing and end at once: what the host's own libraries cannot do.

They have no network, no capability, and of the host nothing but the files they are for. An engine that hangs
must not hang a playbook, so there is a time limit; what is left of the container then is removed.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from ._core import HostError, Runner
from ._iptables import find

TIME_LIMIT_S = 120.0
#: From the limit on, until it is not asked any more but killed; and for the removal of what is left.
GRACE_S = 10.0
# Of the command timeout, when it ended what it ran, and when it had to kill that and with it itself.
_TIMED_OUT = (124, 137, -9)


@dataclass(frozen=True)
class OneShot:
    """:ivar command: of the relay, with its arguments.
    :ivar user, group: numbers, whom it runs as.
    :ivar read, write: paths of the host that it has under the same names.
    """

    image: str
    command: tuple[str, ...]
    user: int
    group: int
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()


def container(docker: str, shot: OneShot, name: str) -> list[str]:
    """The command that runs it. Nothing in it, and nothing that the engine keeps of it, may be secret."""
    options = [
        "--rm",
        f"--name={name}",
        "--interactive",
        "--network=none",
        "--read-only",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
        "--pids-limit=16",
        "--log-driver=none",
        "--no-healthcheck",
        f"--user={shot.user}:{shot.group}",
        *(f"--volume={path}:{path}:ro" for path in shot.read),
        *(f"--volume={path}:{path}:rw" for path in shot.write),
    ]
    return [docker, "run", *options, shot.image, *shot.command]


def carry_out(run: Runner, shot: OneShot, stdin: str = "") -> str:
    """What it prints.

    :raises HostError: there is no engine, it does not answer in time, or the command fails.
    """
    docker, limiter = find("docker"), find("timeout")
    if docker is None:
        raise HostError("there is no command docker on the host, which runs the relay's image")
    name = f"culvert-{shot.command[0]}-{os.urandom(4).hex()}"
    limited = [limiter, "-k", f"{GRACE_S:g}", f"{TIME_LIMIT_S:g}"] if limiter else []
    began_s = time.monotonic()
    code, out, err = run([*limited, *container(docker, shot, name)], stdin)
    # What runs in a container may have been killed by others.
    if limited and code in _TIMED_OUT and time.monotonic() - began_s >= TIME_LIMIT_S:
        run([*limited[:3], f"{GRACE_S:g}", docker, "rm", "--force", name], "")
        raise HostError(
            f"a container of {shot.image} did not end within {TIME_LIMIT_S:g} s, and has work for one: does "
            "the container engine answer (docker ps)?"
        )
    if code:
        raise HostError(_why(shot, err))
    return out


def _why(shot: OneShot, err: str) -> str:
    word = shot.command[0]
    if f"invalid choice: '{word}'" in err:
        return (
            f"the image {shot.image} is too old: it knows no `culvert {word}`. Take a newer one (of the "
            "role: relay_image). Nothing was changed"
        )
    lines = [line for line in err.strip().splitlines() if line.strip()] or ["no reason given"]
    reason = lines[-1] if "culvert:" in err else lines[0]
    return f"`culvert {word}` in a container of {shot.image} failed: {reason}"
