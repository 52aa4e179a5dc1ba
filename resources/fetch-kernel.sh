#!/usr/bin/env bash
# fetch-kernel.sh [cloud|full]: unpacks the newest Debian kernel under target/kernels/<flavour>/,
# once:
#
#   vmlinuz   the bzImage
#   modules/  the tree of lib/modules/<version>, kernel/ and all
#   version   the kernel's release, as uname -r says it
#
# Nothing is installed. KERNEL= (an image) and MODULES= (a lib/modules/<version> directory) replace
# the cloud kernel; then there is nothing to fetch. To update, remove the directory.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

flavour=${1:-cloud}
case $flavour in
    cloud) meta=linux-image-cloud-amd64 ;;
    full) meta=linux-image-amd64 ;;
    *) die "unknown kernel flavour '$flavour': cloud or full" ;;
esac

if [ "$flavour" = cloud ] && [ -n "${KERNEL:-}${MODULES:-}" ]; then
    [ -n "${KERNEL:-}" ] && [ -n "${MODULES:-}" ] || die "KERNEL and MODULES go together: set both or neither"
    [ -f "$KERNEL" ] || die "KERNEL=$KERNEL: no such file"
    [ -d "$MODULES" ] || die "MODULES=$MODULES: no such directory"
    exit 0
fi

fill() {
    local into=$1 package image modules
    need_apt "no apt-get here to fetch a Debian kernel with: set KERNEL= and MODULES="
    package=$(apt_resolve "$meta" '^linux-image-[0-9]')
    fetch_debs "$into" "$package"
    image=$(echo "$into"/boot/vmlinuz-*)
    # Before Debian 13 the modules are in /lib, then in /usr/lib.
    modules=$(find "$into/lib/modules" "$into/usr/lib/modules" -mindepth 1 -maxdepth 1 2>/dev/null || true)
    [ -f "$image" ] && [ -d "$modules" ] || die "$package holds no kernel image or no modules"
    mv "$image" "$into/vmlinuz"
    mv "$modules" "$into/modules"
    echo "${image##*/vmlinuz-}" >"$into/version"
    rm -rf "$into/boot" "$into/lib" "$into/usr"
    say "$flavour kernel ${image##*/vmlinuz-} is in target/kernels/$flavour"
}

build_once "$target/kernels/$flavour" fill
