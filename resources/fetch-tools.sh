#!/usr/bin/env bash
# fetch-tools.sh PACKAGE...: unpacks Debian packages under target/tools/<package>/, each once,
# without installing them. What they depend on is not followed: name it too where a tool is not
# static.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

[ $# -gt 0 ] || die "usage: fetch-tools.sh PACKAGE..."

fill() {
    need_apt "no apt-get here to fetch Debian's $2 with"
    fetch_debs "$1" "$2"
}

for package; do
    build_once "$target/tools/$package" fill "$package"
done
