#!/usr/bin/env bash
# Makes a Debian package of msr-vmm under target/debian: the command, its man pages and completions, and the CPU models and
# profiles as files. The command is linked statically, so the package depends on nothing.
set -euo pipefail
# shellcheck source=resources/lib.sh
. "$(dirname "$0")/lib.sh"

triple=x86_64-unknown-linux-gnu
cargo=${CARGO:-cargo}
# vmm/Cargo.toml, [package.metadata.deb], names this folder.
extra=$root/target/deb-extra

cd "$root"
if ! "$cargo" deb --version >/dev/null 2>&1; then
    say "installing cargo-deb"
    quietly "$cargo" install --locked cargo-deb || die "cargo install cargo-deb failed"
fi
say "building the command"
"$root/resources/build-release.sh"
"$root/resources/sbom.sh"
program=$target/$triple/release/msr-vmm

rm -rf "$extra"
mkdir -p "$extra/man1" "$extra/man5" "$extra/completions"
"$program" man "$extra/man1"
mv "$extra"/man1/*.5 "$extra/man5"
gzip --best --no-name "$extra"/man1/* "$extra"/man5/*
cp "$target/sbom/msr-vmm.cdx.json" "$extra"
for shell in bash zsh fish; do
    # By the name that a shell finds it by, and not by this path.
    (exec -a msr-vmm "$program" completions "$shell") >"$extra/completions/$shell"
done

"$cargo" deb --quiet --package msr-vmm --target "$triple" --no-build --output "$target/debian/"
say "made $(find "$target/debian" -name "msr-vmm_*.deb" -newer "$program")"
