#!/usr/bin/env bash
# setup.sh [PACKAGE...]: installs what the build and the tests need and this machine lacks, and the
# packages named.
# Says nothing and touches no network when nothing is missing.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

packages=("$@")

# need PACKAGE TEST...: PACKAGE is wanted unless the command TEST succeeds.
need() {
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || packages+=("$package")
}

# The C compiler is Rust's linker here; libc.a is what the static executables are linked with.
has_static_libc() {
    [ -e "$(cc -print-file-name=libc.a 2>/dev/null)" ]
}

# The file systems' tools are where many users' PATH does not lead.
PATH=$PATH:/usr/sbin:/sbin
need make command -v make
need gcc command -v cc
need libc6-dev has_static_libc
need e2fsprogs command -v debugfs
if [ "$(id -u)" -ne 0 ]; then
    # Root's file systems are made without root.
    need fakeroot command -v fakeroot
fi
# What the tests of completions and man pages run.
need zsh command -v zsh
need fish command -v fish
need groff-base command -v groff

command -v cargo >/dev/null || die "cargo is missing: install Rust (https://rustup.rs)"
[ ${#packages[@]} -gt 0 ] || exit 0

need_apt "this is not Debian or Ubuntu: install what provides these Debian packages: ${packages[*]}
(a C compiler, glibc's libc.a, make, e2fsprogs, zsh, fish, groff), and give a Linux kernel as KERNEL= and MODULES="

for package in "${packages[@]}"; do
    apt_knows "$package" || { apt_update && break; }
done
say "installing ${packages[*]}"
install() {
    quietly as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -q --no-install-recommends "${packages[@]}"
}
install || { apt_update && install; } || die "could not install ${packages[*]}"
say "installed ${packages[*]}"
