#!/usr/bin/env bash
# Installs what reads exported traces back in the tests into target/readers, once: Perfetto's published schema and DuckDB, from PyPI.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

versions="perfetto==0.59.1 duckdb==2.0.1"
readers=$target/readers

if [ -e "$readers/.installed" ] && [ "$(cat "$readers/.installed")" = "$versions" ]; then
    exit 0
fi
if ! python3 -c "import ensurepip, venv" 2>/dev/null; then
    need_apt "python3 with venv is missing"
    apt_knows python3-venv || apt_update
    say "installing python3-venv"
    quietly as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3-venv
fi
say "fetching $versions into $readers"
rm -rf "$readers"
python3 -m venv "$readers"
# shellcheck disable=SC2086  # one word each
quietly "$readers/bin/pip" install --no-cache-dir $versions
printf %s "$versions" >"$readers/.installed"
