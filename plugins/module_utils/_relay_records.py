# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What a relay keeps a record of: events, and in a file what is used of quotas. It learns of these options
from its configuration file alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Records:
    """:ivar usage_file: a path, empty for none.
    :ivar events: whether events go to standard output.
    :ivar events_syslog: path of a datagram socket that they go to, empty for none.
    """

    usage_file: str = ""
    events: bool = False
    events_syslog: str = ""

    def options(self) -> list[tuple[str, str]]:
        """What is written into the section ``[Interface]``, in this order."""
        return [
            ("UsageFile", self.usage_file),
            ("Events", "on" if self.events else ""),
            ("EventsSyslog", self.events_syslog),
        ]


def records_in_file(interface: Mapping[str, str]) -> Records:
    """Of the options of ``[Interface]``, by their names in small letters."""
    return Records(
        interface.get("usagefile", ""),
        interface.get("events", "").lower() == "on",
        interface.get("eventssyslog", ""),
    )
