#!/usr/bin/python

# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: relay_agreement
short_description: Agree with other hosts on pre-shared keys
version_added: 0.1.0
description:
  - Gets a relay the pre-shared keys that it shares with others, without any of them leaving the host. Two
    hosts agree by ML-KEM-768 and X25519, and what they tell each other, an agreement, is public.
  - Keys are in the folder C(CONFIG_DIR/NAME.psk), which belongs to the relay's user alone, in one file each.
    A file is called by the id of its agreement and never changes.
  - The relay's image does the arithmetic, in a container that ends at once and has neither a network nor
    a capability. Keys pass neither Ansible nor the container engine.
author:
  - Culvert contributors (@culvert-vpn)
extends_documentation_fragment:
  - culvert.vpn._attributes
  - culvert.vpn._attributes.actiongroup_culvert
attributes:
  check_mode:
    support: full
    details:
      - Nothing is agreed on, so nothing comes back.
  diff_mode:
    support: full
    details:
      - Shows ids and names, never a key.
  idempotent:
    support: partial
    details:
      - Each time that O(agree) names somebody, there is a new agreement. M(culvert.vpn.fleet_registry) knows
        with whom there is one.
requirements:
  - python >= 3.9
  - a container engine with Docker's command line
options:
  name:
    description:
      - Name of the relay's interface.
    type: str
    default: culvert0
  config_dir:
    description:
      - Folder of the relay's private key, C(NAME.key), and, during a rotation, of its next one,
        C(NAME.next.key). Of the two, that one is used whose public key is meant.
    type: path
    default: /etc/culvert
  image:
    description:
      - The relay's image, which has to be on the host. Required where there is something to do for it.
    type: str
  owner:
    description:
      - User, by name or number, that the relay runs as.
    type: str
    default: "51820"
  group:
    description:
      - Group, by name or number, that the relay runs as.
    type: str
    default: "51820"
  kem:
    description:
      - Which ML-KEM-768 key the host is to have, for others to agree with it. V(next) is for a rotation.
    type: str
    choices: [none, current, next]
    default: none
  agree:
    description:
      - With whom to agree, each time anew.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description:
          - What the other is called.
        type: str
        required: true
      from:
        description:
          - This host's public key that the pre-shared key is to belong to.
        type: str
        required: true
      public_key:
        description:
          - The other's public key.
        type: str
        required: true
      replaces:
        description:
          - Id of an agreement of the same pair, for the diff.
        type: str
        default: ""
  kems:
    description:
      - ML-KEM-768 public keys of those in O(agree), by their public keys.
    type: dict
    default: {}
  derive:
    description:
      - Agreements that others have made with this host. Only those whose key is not there are looked at.
      - One that makes no sense gets a key that nobody has. So whoever made it is kept out, and nobody else.
    type: list
    elements: dict
    default: []
    suboptions:
      id:
        description:
          - By what it is called.
        type: str
        required: true
      from:
        description:
          - Public key of who made it.
        type: str
        required: true
      to:
        description:
          - This host's public key.
        type: str
        required: true
      kem:
        description:
          - SHA-256 of this host's ML-KEM-768 public key, in hexadecimal.
        type: str
        required: true
      eph:
        description:
          - Ephemeral X25519 public key.
        type: str
        required: true
      ct:
        description:
          - Ciphertext of ML-KEM-768.
        type: str
        required: true
  remove:
    description:
      - Ids of keys that are not needed any more.
    type: list
    elements: str
    default: []
seealso:
  - module: culvert.vpn.fleet_registry
  - module: culvert.vpn.relay_peers
"""

EXAMPLES = r"""
- name: Others can agree with this host
  culvert.vpn.relay_agreement:
    image: culvert/relay:0.1.0
    kem: current
  register: gate

- name: Agree with gate1
  culvert.vpn.relay_agreement:
    image: culvert/relay:0.1.0
    agree:
      - name: gate1
        from: xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=
        public_key: hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=
    kems:
      hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=: "{{ hostvars['gate1'].gate.kem.current }}"
  register: culvert_agreed

- name: Have the key on gate1 as well
  culvert.vpn.relay_agreement:
    image: culvert/relay:0.1.0
    derive: "{{ hostvars['client1'].culvert_agreed.agreements }}"
"""

RETURN = r"""
kem:
  description: ML-KEM-768 public keys that the host has, C(current) and C(next), in base64.
  returned: success
  type: dict
  sample: {"current": "zNK4…"}
agreements:
  description: What was agreed, as O(derive) of the others takes it. Public.
  returned: success
  type: list
  elements: dict
unable:
  description: Public keys of those in O(agree) that nobody can agree with.
  returned: success
  type: list
  elements: str
derived:
  description: Ids of the keys that are there now and were not before.
  returned: success
  type: list
  elements: str
refused:
  description: Ids of agreements that make no sense.
  returned: success
  type: list
  elements: str
missing:
  description: Ids of agreements for keys that the host does not have.
  returned: success
  type: list
  elements: str
option:
  description: The option to look at.
  returned: when bad input was refused
  type: str
  sample: derive[0].id
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.culvert.vpn.plugins.module_utils._module import run_module, runner_of
from ansible_collections.culvert.vpn.plugins.module_utils._relay_agreement import (
    AgreementBackend,
    AgreementSpec,
)

AGREE_OPTIONS = {
    "name": {"type": "str", "required": True},
    "from": {"type": "str", "required": True},
    "public_key": {"type": "str", "required": True, "no_log": False},
    "replaces": {"type": "str", "default": ""},
}
DERIVE_OPTIONS = {
    name: {"type": "str", "required": True} for name in ("id", "from", "to", "kem", "eph", "ct")
}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "default": "culvert0"},
            "config_dir": {"type": "path", "default": "/etc/culvert"},
            "image": {"type": "str"},
            "owner": {"type": "str", "default": "51820"},
            "group": {"type": "str", "default": "51820"},
            "kem": {"type": "str", "choices": ["none", "current", "next"], "default": "none"},
            "agree": {"type": "list", "elements": "dict", "default": [], "options": AGREE_OPTIONS},
            "kems": {"type": "dict", "default": {}},
            "derive": {"type": "list", "elements": "dict", "default": [], "options": DERIVE_OPTIONS},
            "remove": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    run, check = runner_of(module), module.check_mode
    run_module(module, lambda: AgreementBackend(AgreementSpec.from_params(module.params), run, check))


if __name__ == "__main__":
    main()
