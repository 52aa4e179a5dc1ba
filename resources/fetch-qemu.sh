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
. "$(dirname "$0")/file-system.sh"

suite=bookworm
package=qemu-system-x86

fill() {
    local tree=$1
    debian_tree "$suite" "$tree" '' "$package"
    # Nothing is started from the tree but QEMU, which needs nobody's rights.
    find "$tree" -type f -perm /6000 -exec chmod ug-s {} +
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
