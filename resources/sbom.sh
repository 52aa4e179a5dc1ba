#!/usr/bin/env bash
# Writes what the release executable is made of, crates with their versions, licences and checksums, to
# target/sbom/msr-vmm.cdx.json, in the format CycloneDX.
#
# cargo-cyclonedx is the CycloneDX project's own. It lists no crates that only tests or builds need, but those of features that
# other members of the workspace switch on.
set -euo pipefail
# shellcheck source=resources/lib.sh
. "$(dirname "$0")/lib.sh"

cargo=${CARGO:-cargo}

cd "$root"
if ! "$cargo" cyclonedx --version >/dev/null 2>&1; then
    say "installing cargo-cyclonedx"
    quietly "$cargo" install --locked cargo-cyclonedx || die "cargo install cargo-cyclonedx failed"
fi
# It writes beside each manifest of a workspace.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
copy_sources "$scratch"
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) quietly "$cargo" cyclonedx --manifest-path "$scratch/vmm/Cargo.toml" \
    --format json --describe binaries --no-build-deps --target x86_64-unknown-linux-gnu || die "cargo cyclonedx failed"
mkdir -p "$target/sbom"
sed "s|$scratch|/msr-vmm|g" "$scratch/vmm/msr-vmm_bin.cdx.json" >"$target/sbom/msr-vmm.cdx.json"
say "wrote $target/sbom/msr-vmm.cdx.json: $(grep -c '"type": "library"' "$target/sbom/msr-vmm.cdx.json") crates"
