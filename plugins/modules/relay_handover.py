#!/usr/bin/python

# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: relay_handover
short_description: Have one relay container take over from another
description:
  - Of two containers of one interface, the one called O(container) and another one called the same with
    C(-next), leaves one, called O(container).
  - The second one was started with C(culvert run --take-over). It asks the first one for its sockets and
    sessions. As soon as it serves, the first one is removed and the second one gets its name. Packets wait
    meanwhile, and sessions go on.
  - Where the first one cannot hand over, because it is of an older image, it is stopped when the second one
    is ready to start.
  - A second one that ends, or does not serve in time, is removed. The first one goes on, or is started again.
  - Two containers that somebody has left behind who was interrupted are settled in the same way.
  - All of it happens on the host in one call, because it may be that the host is reached through this very
    tunnel.
author:
  - Culvert contributors (@culvert-vpn)
extends_documentation_fragment:
  - culvert.vpn._attributes
  - culvert.vpn._attributes.actiongroup_culvert
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
    details:
      - Where there is no second container, nothing is done.
requirements:
  - python >= 3.9
options:
  name:
    description:
      - Name of the relay's interface.
    type: str
    default: culvert0
  container:
    description:
      - Name of the container that the relay has, and is to have.
    type: str
    required: true
  timeout_s:
    description:
      - For how many seconds the second container may try to serve, from 1 to 600.
      - The same time once more where the first one has to be stopped.
    type: int
    default: 30
  wait:
    description:
      - Whether to wait for the second container at all. V(false) settles what is there. It stays if it serves
        by now, or if it is the only one, and is removed otherwise.
    type: bool
    default: true
seealso:
  - module: culvert.vpn.relay_info
"""

EXAMPLES = r"""
- name: Have the new container take over
  culvert.vpn.relay_handover:
    container: culvert-culvert0
  register: handover

- name: Fail if it has not
  ansible.builtin.assert:
    that: handover.outcome in ['handover', 'restart']
    fail_msg: "{{ handover.says }}: {{ handover.log }}"
"""

RETURN = r"""
outcome:
  description:
    - V(none) if there was no second container, V(handover) if it has taken over, V(restart) if it was
      started after the first one had been stopped, V(finished) if it only had to get its name, V(abandoned)
      if it was removed.
  returned: success
  type: str
  sample: handover
says:
  description: The same as a sentence. Empty if there was nothing to do.
  returned: success
  type: str
  sample: the new relay has taken over from the one before
log:
  description: The last lines that a second container has written which was removed.
  returned: success
  type: list
  elements: str
  sample: []
option:
  description: The option to look at.
  returned: when bad input was refused
  type: str
  sample: container
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.culvert.vpn.plugins.module_utils._module import run_result
from ansible_collections.culvert.vpn.plugins.module_utils._relay_handover import hand_over


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "default": "culvert0"},
            "container": {"type": "str", "required": True},
            "timeout_s": {"type": "int", "default": 30},
            "wait": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    run_result(module, lambda: hand_over(module.params, module.check_mode))


if __name__ == "__main__":
    main()
