#!/usr/bin/env bash
# fetch-tools.sh PACKAGE...: unpacks packages of Debian's bookworm under target/tools/<package>/, each
# once, without installing them. What they depend on is not followed: name it too where a tool is not
# static.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/debian.sh"

[ $# -gt 0 ] || die "usage: fetch-tools.sh PACKAGE..."
suite=bookworm
read_lists=

fill() {
    need_apt "no apt-get here to fetch Debian's $2 with"
    [ -n "$read_lists" ] || debian_state "$suite"
    read_lists=yes
    debian_unpack "$suite" "$1" "$2"
}

for package; do
    build_once "$target/tools/$package" fill "$package"
done
