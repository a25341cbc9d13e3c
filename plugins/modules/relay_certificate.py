#!/usr/bin/python

# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: relay_certificate
short_description: Have a certificate for a relay that takes peers over TLS
version_added: 0.1.0
description:
  - Has a private key and a self-signed certificate made on the host, in the folder C(CONFIG_DIR/NAME.tls),
    which belongs to the relay's user alone, or keeps copies there of files of the user's own.
  - Clients know a relay by the pin of its key, so a key that was made is kept, always. Only the certificate
    is made anew, 30 days before it expires.
  - The relay's image makes both, in a container that ends at once and has neither a network nor a capability.
    The key leaves the host in a backup alone (M(culvert.vpn.relay_backup)), sealed.
  - With files of the user's own (O(certificate_file), O(private_key_file)), what they hold is checked and
    copied. They may be links, as certbot's are, and root's alone. When they change, the copies follow with
    the next run. A key that was made before is kept beside the copy (C(key.pem.made)). Without these options
    again, the copies go, and that key is used again, or another one made if there was none.
  - Where the relay gets another key, the module warns, because clients have to know another pin then.
author:
  - Culvert contributors (@culvert-vpn)
extends_documentation_fragment:
  - culvert.vpn._attributes
  - culvert.vpn._attributes.actiongroup_culvert
attributes:
  check_mode:
    support: full
    details:
      - Where there is no key yet, RV(pin) is empty.
  diff_mode:
    support: full
    details:
      - Shows pins and dates, never a key.
  idempotent:
    support: full
requirements:
  - python >= 3.9
  - cryptography >= 3.3 on the host, for files of the user's own, too (the role C(culvert.vpn.relay) installs
    C(python3-cryptography) before it calls this module)
  - a container engine with Docker's command line, unless O(certificate_file) is given
options:
  name:
    description:
      - Name of the relay's interface.
    type: str
    default: culvert0
  config_dir:
    description:
      - Folder of the relay's configuration.
    type: path
    default: /etc/culvert
  image:
    description:
      - The relay's image, which has to be on the host. Required where there is something to make.
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
  common_name:
    description:
      - Whom the certificate names, a host's name or address. A certificate that names somebody else is made
        anew. By default it names C(localhost), or whom it has named before.
    type: str
  days:
    description:
      - How long a certificate lasts that is made.
    type: int
    default: 3650
  certificate_file:
    description:
      - Absolute path on the host of a certificate in PEM that the user has, with its chain behind it if there
        is one. With O(private_key_file). Then nothing is made. The relay has copies of both, byte for byte.
      - One that has expired, or does so within 30 days, is warned of. Clients do not look at its dates.
    type: path
  private_key_file:
    description:
      - Absolute path on the host of the private key of O(certificate_file), in PEM and without a password.
        Root has to be able to read it. The copy is the relay's user's alone.
    type: path
  state:
    description:
      - V(absent) removes the folder with what was made and copied, never the user's own files. Clients do not
        know the relay by another key.
    type: str
    choices: [present, absent]
    default: present
seealso:
  - module: culvert.vpn.relay_peers
"""

EXAMPLES = r"""
- name: A certificate for the relay
  culvert.vpn.relay_certificate:
    image: culvert/relay:0.1.0
    common_name: gate.example.net
  register: certificate

- name: The relay takes peers over TLS
  culvert.vpn.relay_peers:
    listen_tls: 443
    tls_certificate_file: "{{ certificate.certificate_file }}"
    tls_private_key_file: "{{ certificate.private_key_file }}"
    peers: []

- name: A copy for the relay of a certificate that certbot looks after
  culvert.vpn.relay_certificate:
    certificate_file: /etc/letsencrypt/live/gate.example.net/fullchain.pem
    private_key_file: /etc/letsencrypt/live/gate.example.net/privkey.pem
  register: certificate
"""

RETURN = r"""
pin:
  description:
    - By what clients know the relay, the SHA-256 of the certificate's public key (C(SubjectPublicKeyInfo)) in
      base64, as O(culvert.vpn.relay_peers#module:peers[].tls_pin) takes it.
    - Empty without a certificate.
  returned: success
  type: str
  sample: 6i0Em0k1YX0eGPgzMwnGGYlnYqp3I7vCHkJ1P5h0X1M=
expires_at:
  description: When the certificate expires, V(null) without one. Clients that know the pin do not look at it.
  returned: success
  type: str
  sample: "2036-11-20T18:00:00Z"
certificate_file:
  description: Path of the certificate for the relay, made or copied.
  returned: success
  type: str
  sample: /etc/culvert/culvert0.tls/certificate.pem
private_key_file:
  description: Path of its private key.
  returned: success
  type: str
  sample: /etc/culvert/culvert0.tls/key.pem
option:
  description: The option to look at.
  returned: when bad input was refused
  type: str
  sample: certificate_file
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.culvert.vpn.plugins.module_utils._module import run_module, runner_of
from ansible_collections.culvert.vpn.plugins.module_utils._relay_certificate import (
    CertificateBackend,
    CertificateSpec,
)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "default": "culvert0"},
            "config_dir": {"type": "path", "default": "/etc/culvert"},
            "image": {"type": "str"},
            "owner": {"type": "str", "default": "51820"},
            "group": {"type": "str", "default": "51820"},
            "common_name": {"type": "str"},
            "days": {"type": "int", "default": 3650},
            "certificate_file": {"type": "path"},
            "private_key_file": {"type": "path", "no_log": False},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        required_together=[("certificate_file", "private_key_file")],
        supports_check_mode=True,
    )
    run, check = runner_of(module), module.check_mode
    run_module(module, lambda: CertificateBackend(CertificateSpec.from_params(module.params), run, check))


if __name__ == "__main__":
    main()
