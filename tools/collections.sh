#!/usr/bin/env bash
# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Puts the collections that ours depends on into .cache/collections, and ours beside them as a symbolic link, so that
# what is run is always the checkout. From Galaxy where it answers, else out of PyPI's `ansible` package.
. "$(dirname "$0")/lib.sh"
only_one collections

tree=$CACHE/collections/ansible_collections
mkdir -p "$tree/culvert"
[[ -L $tree/culvert/vpn ]] || ln -s ../../../.. "$tree/culvert/vpn"

wanted=$(hash_of requirements.yml tools/collections.txt tools/collections.sh)
if fresh collections "$wanted" && [[ -d $tree/community/docker && -d $tree/ansible/posix ]]; then
    exit 0
fi

# The server that ansible-galaxy is configured to use, whichever that is.
galaxy_answers() {
    local server
    server=$(python -c 'from ansible import constants; print(constants.config.get_config_value("GALAXY_SERVER"))')
    curl --silent --fail --output /dev/null --connect-timeout 3 --max-time 6 --location "$server/api/"
}

from_galaxy() {
    ansible-galaxy collection install --force -r requirements.yml -p "$CACHE/collections"
}

# The collections named in the lines that follow come without those they were packed with: 4 MB of 500.
from_pypi() {
    local download=$CACHE/downloads
    mkdir -p "$download"
    python -m pip download --no-deps --require-hashes --only-binary=:all: --python-version 3.12 \
        -r tools/collections.txt -d "$download"
    rm -rf "$tree/community" "$tree/ansible"
    python - "$CACHE/collections" "$download"/ansible-*.whl <<'PYTHON'
import json
import pathlib
import sys
import zipfile

import yaml

NEEDED = ("community/docker", "community/library_inventory_filtering_v1", "ansible/posix")
destination, wheel = sys.argv[1:]
with zipfile.ZipFile(wheel) as archive:
    for name in archive.namelist():
        if name.startswith(tuple(f"ansible_collections/{needed}/" for needed in NEEDED)):
            archive.extract(name, destination)
for collection in yaml.safe_load(pathlib.Path("requirements.yml").read_text())["collections"]:
    path = pathlib.Path(destination, "ansible_collections", *collection["name"].split("."), "MANIFEST.json")
    found = json.loads(path.read_text())["collection_info"]["version"]
    if found != collection["version"]:
        sys.exit(f"{collection['name']}: requirements.yml names {collection['version']}, {wheel} holds {found}")
PYTHON
    rm -r "$download"
}

if galaxy_answers && step "Installing collections from Galaxy" from_galaxy; then
    :
else
    step "Galaxy does not answer: taking the collections out of PyPI's ansible package (51 MB)" from_pypi
fi
stamp collections "$wanted"
