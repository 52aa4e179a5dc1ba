#!/usr/bin/env bash
# fetch-kernel.sh SUITE FLAVOUR: unpacks a Debian kernel under target/kernels/<suite>/<flavour>/,
# once:
#
#   vmlinuz   the bzImage
#   modules/  the tree of lib/modules/<version>, compressed where Debian has it so
#   version   the kernel's release, as uname -r says it, and the package's version, for people
#
# SUITE is bookworm (Linux 6.1) or trixie (6.12), FLAVOUR cloud or full. It comes at the newest patch
# level, security updates included, from Debian's archive, whatever this machine runs. Nothing is
# installed. To update, remove the directory.
#
# KERNEL= (an image) and MODULES= (a lib/modules/<version> directory) replace the guests' cloud
# kernel. With them a machine without apt has nothing to fetch.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/debian.sh"

usage="usage: fetch-kernel.sh bookworm|trixie cloud|full"
[ $# -eq 2 ] || die "$usage"
suite=$1 flavour=$2
case $suite in
    bookworm | trixie) ;;
    *) die "unknown suite '$suite'; $usage" ;;
esac
case $flavour in
    cloud) meta=linux-image-cloud-amd64 ;;
    full) meta=linux-image-amd64 ;;
    *) die "unknown kernel flavour '$flavour'; $usage" ;;
esac

if [ "$flavour" = cloud ] && [ -n "${KERNEL:-}${MODULES:-}" ]; then
    if [ -z "${KERNEL:-}" ] || [ -z "${MODULES:-}" ]; then
        die "KERNEL and MODULES go together: set both or neither"
    fi
    [ -f "$KERNEL" ] || die "KERNEL=$KERNEL: no such file"
    [ -d "$MODULES" ] || die "MODULES=$MODULES: no such directory"
    # The outer VM boots Debian's where it can be had.
    have_apt || exit 0
fi

fill() {
    local into=$1 package image modules
    need_apt "no apt-get here to fetch a Debian kernel with: set KERNEL= and MODULES="
    debian_state "$suite"
    package=$(debian_resolve "$suite" "$meta" '^linux-image-[0-9]')
    debian_unpack "$suite" "$into" "$package"
    image=$(echo "$into"/boot/vmlinuz-*)
    # Before Debian 13 the modules are in /lib, then in /usr/lib.
    modules=$(find "$into/lib/modules" "$into/usr/lib/modules" -mindepth 1 -maxdepth 1 2>/dev/null || true)
    if [ ! -f "$image" ] || [ ! -d "$modules" ]; then
        die "$package holds no kernel image or no modules"
    fi
    mv "$image" "$into/vmlinuz"
    mv "$modules" "$into/modules"
    echo "Linux ${image##*/vmlinuz-} ($(debian_version "$suite" "$package"))" >"$into/version"
    rm -rf "${into:?}/boot" "${into:?}/lib" "${into:?}/usr"
    say "$(cat "$into/version") is in target/kernels/$suite/$flavour"
}

build_once "$target/kernels/$suite/$flavour" fill
