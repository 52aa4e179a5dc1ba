#!/usr/bin/env bash
# fetch-qemu.sh: fetches the QEMU that emulates the outer VM into target/qemu/, once:
#
#   qemu-system-x86_64   runs it, with the libraries, modules and firmware beside it
#   version              its package's version
#
# It is Debian 12's on every distribution: of the QEMUs that were tried, its emulation of AMD SVM is the one that held
# (docs/test-bed.md). The packages are unpacked and not installed, so that no root is needed. QEMU= names another one.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/debian.sh"

suite=bookworm
package=qemu-system-x86

fill() {
    local tree=$1 debs=$1/debs deb directory excludes=()
    debian_state "$suite"
    say "downloading $package $(debian_version "$suite" "$package") and its libraries"
    mkdir -p "$debs/partial"
    quietly debian "$suite" apt-get -q -y -o Dir::Cache::archives="$debs" \
        --download-only --no-install-recommends install "$package" || die "cannot download $package"
    # Since Debian 12 these are links, which no package of that release brings itself.
    for directory in bin sbin lib lib64; do
        mkdir -p "$tree/usr/$directory"
        ln -s "usr/$directory" "$tree/$directory"
    done
    for directory in doc man info locale; do
        excludes+=(--exclude="./usr/share/$directory/*")
    done
    for deb in "$debs"/*.deb; do
        # Neither owners nor devices: nothing is started from the tree but QEMU.
        dpkg-deb --fsys-tarfile "$deb" |
            tar -x --keep-directory-symlink --no-same-owner "${excludes[@]}" -C "$tree" ||
            die "cannot unpack $deb"
    done
    rm -r "$debs"
    cat >"$tree/qemu-system-x86_64" <<'END_OF_SCRIPT'
#!/bin/sh
here=$(dirname "$0")
library=$here/usr/lib/x86_64-linux-gnu
QEMU_MODULE_DIR=$library/qemu
export QEMU_MODULE_DIR
exec "$library/ld-linux-x86-64.so.2" --library-path "$library" "$here/usr/bin/qemu-system-x86_64" \
    -L "$here/usr/share/qemu" -L "$here/usr/share/seabios" "$@"
END_OF_SCRIPT
    chmod +x "$tree/qemu-system-x86_64"
    "$tree/qemu-system-x86_64" --version >/dev/null || die "the QEMU that was fetched does not run here"
    debian_version "$suite" "$package" >"$tree/version"
}

[ -z "${QEMU:-}" ] || exit 0
if ! have_apt; then
    command -v qemu-system-x86_64 >/dev/null ||
        die "no apt-get here to fetch QEMU with: install qemu-system-x86_64, or name it with QEMU="
    exit 0
fi
[ ! -e "$target/qemu" ] || exit 0
build_once "$target/qemu" fill
say "QEMU $(cat "$target/qemu/version") is in $target/qemu"
