#!/usr/bin/env bash
# Builds the release executable twice, from copies of the sources in folders of different names, each with a folder of cargo's of
# its own, and compares the two byte by byte.
set -euo pipefail
# shellcheck source=resources/lib.sh
. "$(dirname "$0")/lib.sh"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
first=$scratch/one
second=$scratch/another/folder/further/down
mkdir -p "$first" "$second" "$scratch/cargo" "$scratch/home/of/another/user/.cargo"
copy_sources "$first"
copy_sources "$second"

# build FOLDER HOME
build() {
    say "building in $1"
    quietly env -u CARGO_TARGET_DIR CARGO_HOME="$2" "$1/resources/build-release.sh" || die "the build in $1 failed"
}
build "$first" "$scratch/cargo"
build "$second" "$scratch/home/of/another/user/.cargo"

executable=target/x86_64-unknown-linux-gnu/release/msr-vmm
if ! cmp "$first/$executable" "$second/$executable"; then
    # For the difference to be looked at.
    mkdir -p "$target/reproducible"
    cp "$first/$executable" "$target/reproducible/first"
    cp "$second/$executable" "$target/reproducible/second"
    die "the two executables differ: $target/reproducible"
fi
say "two builds are the same: $(sha256sum <"$first/$executable" | cut -d' ' -f1)"
