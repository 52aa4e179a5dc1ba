#!/usr/bin/env bash
# make-rootfs.sh: makes a small Debian root file system under target/rootfs/<suite>/, once:
#
#   image   a raw ext4 file system, sparse: systemd, udev, a login on the serial console ttyS0
#
# The user is root with the password "root": the image is for tests, keep it off networks. It holds
# no kernel. Boot it with one and with an initrd that loads virtio_mmio and virtio_blk and mounts
# /dev/vda (guest-tests/src/bin/disk-init.rs). Tests write to copies: cp --sparse=always.
#
# SUITE= (bookworm), MIRROR= (https://deb.debian.org/debian) and SIZE= (1G) change what is made; to
# make it anew, remove the directory. What is never read, such as documentation, is not unpacked.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

suite=${SUITE:-bookworm}
mirror=${MIRROR:-https://deb.debian.org/debian}
size=${SIZE:-1G}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

# What the system has beyond the essential packages.
include=systemd-sysv,udev,kmod,e2fsprogs,login,passwd,procps

install_tools() {
    local missing=()
    PATH=$PATH:/usr/sbin:/sbin
    command -v mmdebstrap >/dev/null || missing+=(mmdebstrap)
    [ -e "$keyring" ] || missing+=(debian-archive-keyring)
    command -v mkfs.ext4 >/dev/null || missing+=(e2fsprogs)
    [ ${#missing[@]} -gt 0 ] || return 0
    need_apt "please install ${missing[*]}"
    apt_knows "${missing[0]}" || apt_update
    say "installing ${missing[*]}"
    quietly as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y \
        --no-install-recommends "${missing[@]}" ||
        die "cannot install ${missing[*]}"
}

# Run by a shell inside the new system.
customize() {
    cat <<'END'
set -eu
echo root:root | chpasswd
echo guest >/etc/hostname
echo '127.0.0.1 localhost guest' >/etc/hosts
echo '/dev/vda / ext4 errors=remount-ro 0 1' >/etc/fstab
# A login on the serial line, whatever console= says.
mkdir -p /etc/systemd/system/getty.target.wants
ln -sf /lib/systemd/system/serial-getty@.service \
    /etc/systemd/system/getty.target.wants/serial-getty@ttyS0.service
# Nothing that wakes up by itself in the middle of a test, and no login where there is no screen.
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
    e2scrub_reap.service fstrim.timer systemd-timesyncd.service getty@tty1.service; do
    ln -sf /dev/null "/etc/systemd/system/$unit"
done
# Generated at the first boot of each copy.
: >/etc/machine-id
END
}

fill() {
    local into=$1 tree=$1/tree
    install_tools
    # The tree is root's; an interrupted run must not leave it to a cleanup that is not.
    trap 'as_root rm -rf "'"$tree"'"' EXIT
    say "unpacking $suite from $mirror (about a minute)"
    local never_read options=()
    for never_read in doc man info locale zoneinfo; do
        options+=(--dpkgopt="path-exclude=/usr/share/$never_read/*")
    done
    # Nobody minds if a power cut spoils what is made anew in a minute: no fsync for each file.
    quietly as_root mmdebstrap --mode=root --variant=essential --format=directory \
        --keyring="$keyring" --include="$include" --aptopt='APT::Install-Recommends "0"' \
        --dpkgopt=force-unsafe-io "${options[@]}" \
        "$suite" "$tree" "$mirror" || die "mmdebstrap failed"
    say "setting it up"
    customize | as_root chroot "$tree" /bin/sh || die "cannot set the system up"
    say "making the file system"
    truncate -s "$size" "$into/image"
    quietly as_root mkfs.ext4 -F -L root -d "$tree" "$into/image" ||
        die "mkfs.ext4 failed: is SIZE=$size enough?"
    as_root rm -rf "$tree"
    trap - EXIT
    say "$(du -h "$into/image" | cut -f1) of $size are in use in target/rootfs/$suite/image"
}

build_once "$target/rootfs/$suite" fill
