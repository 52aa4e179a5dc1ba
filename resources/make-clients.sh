#!/usr/bin/env bash
# make-clients.sh: makes a root file system of Debian 13's programs that read MSRs under target/clients/trixie/, once:
#
#   image   a raw ext4 file system, sparse, to be mounted read-only and entered by chroot
#
# The tests run these programs in guests of each CPU model. There is no init in it and no kernel. MIRROR= is as in
# debian.sh; to make it anew, remove the directory.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/debian.sh"
. "$(dirname "$0")/file-system.sh"

suite=trixie
# turbostat, cpupower, x86_energy_perf_policy and intel-speed-select are in linux-cpupower.
programs=(linux-cpupower powertop likwid x86info cpuid i7z rasdaemon stress-ng s-tui msr-tools)

fill() {
    local into=$1 tree=$1/tree
    mkdir "$tree"
    # Mesa's drivers, 150 MB, are for stress-ng's load on graphics, and link-time dependencies of nothing.
    debian_tree "$suite" "$tree" '^(libllvm|mesa-libgallium|libz3)' '?essential' "${programs[@]}" kmod
    # Where the guest's init mounts what the programs write to.
    mkdir -p "$tree/var/lib/rasdaemon"
    file_system "$tree" "$into/image" 512M
}

build_once "$target/clients/$suite" fill
