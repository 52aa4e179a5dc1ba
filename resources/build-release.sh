#!/usr/bin/env bash
# Builds the release executable of msr-vmm: the same sources and the same Rust make the same bytes, wherever the sources, the
# build and cargo's own folder are.
#
# What would differ are paths: rustc writes that of a source file into the message of each panic. They are replaced by names that
# are the same everywhere.
set -euo pipefail
# shellcheck source=resources/lib.sh
. "$(dirname "$0")/lib.sh"

triple=x86_64-unknown-linux-gnu
cargo=${CARGO:-cargo}

cd "$root"
flags=
for name in "${CARGO_HOME:-$HOME/.cargo}=/cargo" "$(rustc --print sysroot)=/rust" "$root=/msr-vmm" "$target=/target"; do
    flags+="'--remap-path-prefix=$name', "
done
# Added to the flags of .cargo/config.toml, which the variable RUSTFLAGS would replace.
"$cargo" build --locked --release --package msr-vmm --bin msr-vmm --config "target.$triple.rustflags = [$flags]"
sha256sum "$target/$triple/release/msr-vmm"
