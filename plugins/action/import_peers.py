# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Reads a wg-quick file on the controller; pre-shared keys are encrypted in memory. The decisions are in
plugin_utils/_wg_quick.py.
"""

from __future__ import annotations

import os
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.culvert.vpn.plugins.modules.import_peers import ARGUMENTS
from ansible_collections.culvert.vpn.plugins.plugin_utils import _vaulted
from ansible_collections.culvert.vpn.plugins.plugin_utils._registry import plain
from ansible_collections.culvert.vpn.plugins.plugin_utils._wg_quick import (
    Seal,
    as_yaml,
    imported,
    vaulted_in,
    without_keys,
)

_MOST_BYTES = 16 * 1024 * 1024


class ActionModule(ActionBase):
    """Action plugin of ``culvert.vpn.import_peers``."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        _checked, options = self.validate_argument_spec(argument_spec=ARGUMENTS)
        options = plain(options)
        try:
            result.update(self._imported(options, (task_vars or {}).get("groups", {})))
        except OSError as error:
            result.update(failed=True, msg=f"{error.filename}: {error.strerror}.")
        return result

    def _imported(self, options: dict[str, Any], groups: Any) -> dict[str, Any]:
        with open(options["src"], encoding="utf-8", errors="replace") as stream:
            text = stream.read(_MOST_BYTES)
        hosts = {str(name) for members in groups.values() for name in members}
        dest = options["dest"]
        there = _text_of(dest) if dest else ""
        found = imported(text, (options["network"], options["network6"]), hosts, self._seal(there))
        if found.problems:
            sentences = " ".join(found.problems)
            return {
                "failed": True,
                "problems": found.problems,
                "msg": f"{options['src']}: {sentences} Nothing was written.",
            }
        made = as_yaml(found.peers)
        before = there if dest else made
        if before not in ("", made) and not options["force"]:
            return {
                "failed": True,
                "msg": f"{dest} is there already, and says something else. Take it away, name another file, "
                "or set force (of the playbook: import_force) to have it replaced.",
            }
        if before != made and not self._task.check_mode:
            with open(dest, "w", encoding="utf-8") as stream:
                stream.write(made)
        return {
            "changed": before != made,
            "external_peers": found.peers,
            "yaml": made,
            "warnings": found.notes,
            "diff": {
                "before": without_keys(before),
                "after": made,
                "before_header": dest,
                "after_header": dest,
            },
        }

    def _seal(self, there: str) -> Seal | None:
        """How a key is encrypted: as it is in the file that is there, if it is in that, so that a second run
        changes nothing. ``None`` without a vault password.
        """
        if not _vaulted.can_encrypt(self._loader):
            return None
        known: dict[str, str] = {}
        for block in vaulted_in(there):
            try:
                known.setdefault(_vaulted.decrypt(self._loader, block.encode()).decode(), block)
            except (_vaulted.Unreadable, ValueError):
                continue
        return lambda key: known.get(key) or _vaulted.encrypt(self._loader, key.encode()).decode()


def _text_of(path: str) -> str:
    if not os.path.exists(path):
        return ""
    with open(path, encoding="utf-8", errors="replace") as stream:
        return stream.read()
