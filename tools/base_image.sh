#!/usr/bin/env bash
# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Makes the engine have debian:RELEASE-slim: pulled where a registry answers, else built from Debian's packages and kept
# as a tar file in .cache, from which it is imported again if the engine loses it.
#
#   base_image.sh trixie|bookworm
. "$(dirname "$0")/lib.sh"

release=${1:?usage: base_image.sh trixie|bookworm}
image=debian:$release-slim
archive=$CACHE/base-$release.tar
only_one "base-$release"

bootstrap() {
    local -a options=(
        --variant=minbase --mode=root --format=tar --aptopt='Acquire::Languages "none"'
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*'
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright'
        # As in Debian's own images: no package file and no cache of apt stays in a layer.
        --aptopt='Dir::Cache::pkgcache ""' --aptopt='Dir::Cache::srcpkgcache ""'
        --aptopt='DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb"; }'
        --customize-hook="rm -f \"\$1/etc/hostname\" \"\$1/etc/resolv.conf\"; : >\"\$1/etc/machine-id\""
    )
    [[ $release != bookworm ]] || options+=(--include=usr-is-merged)
    # To a file first: a pipe into `docker import` would tag an empty image if this failed half way.
    mmdebstrap "${options[@]}" "$release" "$archive.part"
    mv "$archive.part" "$archive"
}

if docker image inspect "$image" >/dev/null 2>&1; then
    exit 0
fi
if [[ ! -f $archive ]]; then
    if step "Pulling $image" timeout 300 docker pull --quiet "$image" 2>"$CACHE/logs/pull.err"; then
        exit 0
    fi
    say "no registry answers: building $image from Debian's packages"
    tools/packages.sh --only mmdebstrap debian-archive-keyring
    step "Building $image with mmdebstrap (half a minute)" bootstrap
fi
step "Importing $image" docker import --change 'CMD ["bash"]' "$archive" "$image"
