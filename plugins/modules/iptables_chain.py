#!/usr/bin/python

# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: iptables_chain
short_description: Manage one owned iptables chain and the jump to it
description:
  - Manages the full content of one chain, and the one tagged jump that leads to it, in one transaction of
    C(iptables-restore --noflush). Everything else in the table stays as it is.
  - However often the module runs, there is one jump, at its position. Stray jumps to the chain are removed.
  - A chain or jump that was edited by hand is put right again. To tell, the jump's comment carries a digest
    of the wish and a digest of chain and jump as C(iptables-save) prints them.
  - With O(state=absent) tables and base chains that C(iptables-nft) made for this chain are removed too, when
    they are empty. The legacy backend cannot do that. A legacy table that was loaded stays loaded, and empty.
author:
  - Culvert contributors (@culvert-vpn)
extends_documentation_fragment:
  - culvert.vpn._attributes
  - culvert.vpn._attributes.actiongroup_culvert
attributes:
  check_mode:
    support: full
    details:
      - Rules are also tried with C(iptables-restore --test), except where that would load a legacy table.
  diff_mode:
    support: full
  idempotent:
    support: full
requirements:
  - python >= 3.9
  - iptables >= 1.8
  - pyroute2 >= 0.7.2, with the nft backend
options:
  name:
    description:
      - Name of the chain. It begins with C(CULVERT-) and has at most 28 bytes.
    type: str
    required: true
  state:
    description:
      - Whether chain and jump should be there.
    type: str
    choices: [present, absent]
    default: present
  table:
    description:
      - The table the chain is in.
    type: str
    choices: [filter, nat, mangle, raw]
    default: filter
  family:
    description:
      - V(ipv4) for C(iptables), V(ipv6) for C(ip6tables).
    type: str
    choices: [ipv4, ipv6]
    default: ipv4
  rules:
    description:
      - All rules of the chain, in order, each as the text that follows C(-A CHAIN).
    type: list
    elements: str
    default: []
  jump:
    description:
      - The jump that leads to the chain. Without it only other owned chains lead there.
    type: dict
    suboptions:
      from:
        description:
          - The chain that the jump is in, such as V(FORWARD).
        type: str
        required: true
      position:
        description:
          - Where in that chain. Jumps to other owned chains do not count, nor do rules that Docker puts
            before everybody's when it starts.
        type: str
        choices: [first, last]
        default: first
      match:
        description:
          - What packets have to match to take the jump, such as V(-i culvert0). Empty for all.
        type: str
        default: ""
  comment:
    description:
      - First words of the jump's comment.
    type: str
    default: culvert
  backend:
    description:
      - Which of the kernel's two rule sets to use.
      - V(auto) takes the one that Docker's chains are in, else the one that rules of others are in, else the
        one that the command C(iptables) uses. A copy of the chain that is left in the other one is removed.
    type: str
    choices: [auto, nft, legacy]
    default: auto
seealso:
  - module: culvert.vpn.tun_device
"""

EXAMPLES = r"""
- name: Forward what comes from the tunnel, and what answers it
  culvert.vpn.iptables_chain:
    name: CULVERT-FORWARD
    rules:
      - -i culvert0 -j ACCEPT
      - -o culvert0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    jump:
      from: FORWARD

- name: Clients reach the internet as the server
  culvert.vpn.iptables_chain:
    name: CULVERT-NAT
    table: nat
    rules:
      - -s 10.86.0.0/16 ! -o culvert0 -j MASQUERADE
    jump:
      from: POSTROUTING
      position: last

- name: No trace of it
  culvert.vpn.iptables_chain:
    name: CULVERT-NAT
    table: nat
    state: absent
"""

RETURN = r"""
backend:
  description: The rule set that was used, V(nft) or V(legacy).
  returned: success
  type: str
  sample: nft
chain:
  description:
    - The chain as it is now. In check mode, as it was found.
    - V(null) when there is none.
  returned: success
  type: dict
  contains:
    name:
      description: Name of the chain.
      type: str
      sample: CULVERT-FORWARD
    rules:
      description: Its rules as C(iptables-save) prints them, without C(-A CHAIN).
      type: list
      elements: str
      sample: ["-i culvert0 -j ACCEPT"]
    jumps:
      description: The rules that lead to it, as C(iptables-save) prints them.
      type: list
      elements: str
      sample: ["-A FORWARD -m comment --comment \"culvert 0f3c6a0c2ad1-b1946ac92492\" -j CULVERT-FORWARD"]
option:
  description: The option to look at, empty when no single option is to blame.
  returned: when bad input was refused
  type: str
  sample: rules[0]
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.culvert.vpn.plugins.module_utils._argument_specs import CHAIN, STATE
from ansible_collections.culvert.vpn.plugins.module_utils._chain import ChainSpec
from ansible_collections.culvert.vpn.plugins.module_utils._chain_host import ChainBackend
from ansible_collections.culvert.vpn.plugins.module_utils._module import run_module, runner_of


def main() -> None:
    module = AnsibleModule(
        argument_spec={**CHAIN, "state": STATE},
        supports_check_mode=True,
    )
    run_module(
        module,
        lambda: ChainBackend(ChainSpec.from_params(module.params), runner_of(module), module.check_mode),
    )


if __name__ == "__main__":
    main()
