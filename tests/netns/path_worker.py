# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Works on a host for ``path.py``: a request on each line of standard input, JSON, an answer on standard
output.

``{"measure": {…}}``: what the module ``path_mtu`` finds with these parameters.
``{"document": {…}, "previous": {…}}``: leads the host to the document.
"""

from __future__ import annotations

import json
import sys

from ansible_collections.culvert.vpn.plugins.module_utils._path_mtu_host import PathSpec, measure

from tests.netns.modules.document_worker import answer

if __name__ == "__main__":
    for line in sys.stdin:
        request = json.loads(line)
        measuring = "measure" in request
        reply = measure(PathSpec.from_params(request["measure"])) if measuring else answer(request)
        print(json.dumps(reply), flush=True)
