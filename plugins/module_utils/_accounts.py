# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Users and groups of the host, by name or number."""

from __future__ import annotations

import grp
import pwd

from ._options import Options

# (uid_t) -1 means "leave it" to the kernel, so it is nobody's number.
_NOBODY = 0xFFFFFFFF


def account_number(options: Options, which: str) -> int | None:
    """The number behind option ``which`` (``owner`` or ``group``); ``None`` when the option is not given.

    A number need not belong to anybody: a container's user seldom has a name on its host.

    :raises SpecError: a name that the host does not know.
    """
    value = options.raw(which)
    if value is None or value == "":
        return None
    if str(value).isdecimal() and int(value) < _NOBODY:
        return int(value)
    try:
        return pwd.getpwnam(value).pw_uid if which == "owner" else grp.getgrnam(value).gr_gid
    except (KeyError, TypeError):
        raise options.refuse(which, f"{value!r} is neither known on the host nor a number") from None
