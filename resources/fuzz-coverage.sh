#!/usr/bin/env bash
# How much of the code under test each fuzz target's inputs reach, by regions of LLVM's source-based coverage.
#
# fuzz-coverage.sh [TARGET...]: all targets unless some are named. The inputs are the committed corpus and what `make fuzz` has
# kept in target/fuzz/TARGET, or in $CORPORA/TARGET. fuzz/under-test.txt says what the code under test is. Tables by file stay in
# target/fuzz-coverage/.
set -euo pipefail
# shellcheck source=resources/lib.sh
. "$(dirname "$0")/lib.sh"

toolchain=${TOOLCHAIN:-nightly}
triple=x86_64-unknown-linux-gnu
out=$target/fuzz-coverage
corpora=${CORPORA:-$target/fuzz}

cd "$root"
tools=$(rustc "+$toolchain" --print target-libdir)/../bin
if [ ! -x "$tools/llvm-cov" ]; then
    say "adding llvm-tools to the $toolchain toolchain"
    quietly rustup component add llvm-tools --toolchain "$toolchain" ||
        die "rustup cannot add llvm-tools to the $toolchain toolchain"
fi

say "building"
# An instrumented build has other flags than all else that is built here.
quietly env CARGO_TARGET_DIR="$out/build" cargo "+$toolchain" build --package fuzz-targets --example replay \
    --config "target.$triple.rustflags = ['-C', 'instrument-coverage']" || die "cargo build failed"
replay=$out/build/$triple/debug/examples/replay

# measure TARGET FILE...: prints the line of one target.
measure() {
    local name=$1 inputs folders=("fuzz/corpus/$1") raw=$out/$1.profraw profile=$out/$1.profdata
    shift
    [ ! -d "$corpora/$name" ] || folders+=("$corpora/$name")
    quietly env LLVM_PROFILE_FILE="$raw" "$replay" "$name" "${folders[@]}" || die "$name: an input fails"
    "$tools/llvm-profdata" merge --sparse -o "$profile" "$raw"
    rm "$raw"
    "$tools/llvm-cov" report "$replay" --instr-profile "$profile" "$@" >"$out/$name.txt"
    inputs=$(find "${folders[@]}" -type f -printf '%s\n' | awk '{ bytes += $1 } END { print NR, bytes + 0 }')
    # The columns of the last line: name, regions, those that are missed, and so on.
    awk -v name="$name" -v inputs="$inputs" '
        $1 == "TOTAL" { split(inputs, n, " "); printf "%-10s %8d %8d  %5.1f %% %8d %10d\n", name, $2 - $3, $2, 100 * ($2 - $3) / $2, n[1], n[2] }
    ' "$out/$name.txt"
}

printf '%-10s %8s %8s %8s %8s %10s\n' target covered regions share inputs bytes
while read -r name files; do
    case $name in '' | '#'*) continue ;; esac
    if [ $# -eq 0 ] || [[ " $* " = *" $name "* ]]; then
        # shellcheck disable=SC2086 # A list of paths without spaces.
        measure "$name" $files
    fi
done <fuzz/under-test.txt
