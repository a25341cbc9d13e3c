#!/usr/bin/env bash
# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Builds an execution environment from meta/execution-environment.yml with this checkout's collection in it. Collections and
# wheels are fetched beforehand, pinned, so that the build downloads nothing but Debian packages: it works where a build reaches
# neither Galaxy nor PyPI. The base image has to have Debian 13's Python.
#
#   execution_environment.sh [--base IMAGE] [--tag TAG]
#
# Without --base it is the definition's own; a debian:*-slim that cannot be pulled is made from Debian's packages.
. "$(dirname "$0")/lib.sh"

definition=meta/execution-environment.yml
builder=$CACHE/builder
context=$CACHE/execution-environment
base=$(sed -n '/base_image:/,/name:/s/^ *name: *//p' "$definition")
tag=culvert/execution-environment:$(version)
while (($# > 0)); do
    case $1 in
        --base) base=${2:?--base needs an image} ;;
        --tag) tag=${2:?--tag needs a name} ;;
        *) die "usage: execution_environment.sh [--base IMAGE] [--tag TAG]" ;;
    esac
    shift 2
done
only_one execution-environment
use_builder

case $(docker version --format '{{.Server.Arch}}') in
    amd64) machine=x86_64 ;;
    arm64) machine=aarch64 ;;
    *) die "no wheels are pinned for the engine's architecture ($(docker version --format '{{.Server.Arch}}'))" ;;
esac

make_builder() {
    uv venv --quiet --clear --python "$VENV/bin/python" "$builder"
    uv pip install --quiet --python "$builder/bin/python" --require-hashes -r tools/builder.txt
}

download_wheels() {
    rm -rf "$context/wheels"
    # 3.13 is the Python of Debian 13. The builds for the older C libraries run on it as well.
    python -m pip download --require-hashes --only-binary=:all: --python-version 3.13 \
        --platform "manylinux_2_34_$machine" --platform "manylinux_2_28_$machine" --platform "manylinux2014_$machine" \
        -r tools/execution-environment.txt -d "$context/wheels"
}

# Each in a folder of its own below collections/, ours as the archive that would be published.
gather_collections() {
    local folder=$context/collections archive name
    rm -rf "$folder" "$context/archive"
    mkdir -p "$folder/culvert.vpn" "$context/archive"
    ansible-galaxy collection build --output-path "$context/archive"
    archive=("$context"/archive/culvert-vpn-*.tar.gz)
    tar -xzf "${archive[0]}" -C "$folder/culvert.vpn"
    for name in community.docker community.library_inventory_filtering_v1 ansible.posix; do
        cp -a "$CACHE/collections/ansible_collections/${name/.//}" "$folder/$name"
    done
}

# The definition, with what it would download replaced by what is here.
derive() {
    python - "$definition" "$context/execution-environment.yml" "$base" <<'PYTHON'
import pathlib
import sys

import yaml

source, target, base = sys.argv[1:]
definition = yaml.safe_load(pathlib.Path(source).read_text())
definition["images"]["base_image"]["name"] = base
definition["build_arg_defaults"]["ANSIBLE_GALAXY_CLI_COLLECTION_OPTS"] = "--offline"
definition["dependencies"]["galaxy"] = {"collections": [{"name": "collections", "type": "subdirs"}]}
definition["additional_build_files"] = [
    {"src": "collections", "dest": "collections"},
    {"src": "wheels", "dest": "wheels"},
    {"src": "pip.conf", "dest": "."},
]
steps = definition["additional_build_steps"]
# Below /output, which is not in the image in the end.
steps["prepend_base"] += ["COPY _build/wheels /output/pinned", "COPY _build/pip.conf /etc/pip.conf"]
steps["append_final"].insert(0, "RUN rm /etc/pip.conf")
pathlib.Path(target).write_text(yaml.safe_dump(definition, sort_keys=False))
PYTHON
    printf '[global]\nno-index = true\nfind-links = /output/pinned\n' >"$context/pip.conf"
    mkdir -p "$context/meta"
    cp meta/ee-*.txt "$context/meta/"
}

build() {
    rm -rf "$context/context"
    "$builder/bin/ansible-builder" build --file "$context/execution-environment.yml" --context "$context/context" \
        --container-runtime docker --tag "$tag" --verbosity 3 \
        --extra-build-cli-args "--label io.culvert.source=execution-environment --label io.culvert.image=execution-environment"
}

mkdir -p "$context"
wanted=$(hash_of tools/builder.txt)
if ! fresh builder "$wanted" || [[ ! -x $builder/bin/ansible-builder ]]; then
    step "Making a virtualenv with ansible-builder" make_builder
    stamp builder "$wanted"
fi
wheels=$(hash_of tools/execution-environment.txt)-$machine
if ! fresh execution-environment-wheels "$wheels" || [[ ! -d $context/wheels ]]; then
    step "Downloading the pinned wheels of the execution environment" download_wheels
    stamp execution-environment-wheels "$wheels"
fi
if [[ $base =~ ^debian:(trixie|bookworm)-slim$ ]]; then
    tools/base_image.sh "${BASH_REMATCH[1]}"
fi
step "Building the collection" gather_collections
derive
step "Building $tag from $base (a minute)" build
docker image prune --force --filter label=io.culvert.image=execution-environment >/dev/null
say "$tag: docker run --rm $tag ansible-playbook --version"
