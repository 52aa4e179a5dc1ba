#!/usr/bin/env bash
# make-rootfs.sh: makes a small Debian root file system under target/rootfs/<suite>/, once:
#
#   image   a raw ext4 file system, sparse: systemd, udev, a login on the serial console ttyS0
#
# The user is root with the password "root": the image is for tests, keep it off networks. It holds
# no kernel. Boot it with one and with an initrd that loads virtio_mmio and virtio_blk and mounts
# /dev/vda (guest-tests/src/bin/disk-init.rs). Tests write to copies: cp --sparse=always.
#
# No root is needed, and nothing of this machine's but apt, tar, e2fsprogs and, for a plain user,
# fakeroot: the packages are unpacked and their scripts not run. What the scripts would have done
# that a boot to a login needs is done here instead.
#
# SUITE= (bookworm), MIRROR= and SIZE= (1G) change what is made; to make it anew, remove the directory.
# What is never read, such as documentation, is not unpacked.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/debian.sh"
. "$(dirname "$0")/file-system.sh"

suite=${SUITE:-bookworm}
size=${SIZE:-1G}

# What the system has beyond the essential packages.
include=(systemd-sysv udev kmod e2fsprogs login passwd procps)

# What the packages' own scripts do where they are installed.
configure() {
    local tree=$1
    # base-passwd; the password's hash is SHA-512 crypt's.
    cp "$tree/usr/share/base-passwd/group.master" "$tree/etc/group"
    sed 's/^\([^:]*\):\*:/\1:x:/' "$tree/usr/share/base-passwd/passwd.master" >"$tree/etc/passwd"
    sed -n 's/^\([^:]*\):.*/\1:*:20000:0:99999:7:::/p' "$tree/etc/passwd" >"$tree/etc/shadow"
    # shellcheck disable=SC2016 # the dollars are the hash's own
    sed -i 's|^root:\*:|root:$6$guestguest$IenN5v.8j1xKjI8JxG9Wsui8x3XrvZh5dJ/FC0zkNfqTMlX6HDo3aKrcEPWC8HsAy1Qbh0WYqOcD/2ItF2qVE.:|' "$tree/etc/shadow"
    chmod 640 "$tree/etc/shadow"
    # base-files and libc-bin.
    cp "$tree/usr/share/base-files/profile" "$tree/etc/profile"
    cp "$tree/usr/share/base-files/dot.bashrc" "$tree/root/.bashrc"
    cp "$tree/usr/share/base-files/dot.profile" "$tree/root/.profile"
    cp "$tree/usr/share/libc-bin/nsswitch.conf" "$tree/etc/nsswitch.conf"
    ln -sfn /run "$tree/var/run"
    ln -sfn /run/lock "$tree/var/lock"
    # dash.
    [ -e "$tree/usr/bin/sh" ] || ln -s dash "$tree/usr/bin/sh"
    # libpam-runtime: pam-auth-update's files, with pam_unix alone.
    local kind
    for kind in auth account password session; do
        echo "$kind required pam_unix.so" >"$tree/etc/pam.d/common-$kind"
    done
    cp "$tree/etc/pam.d/common-session" "$tree/etc/pam.d/common-session-noninteractive"
}

customize() {
    local tree=$1 unit wants=$1/etc/systemd/system/getty.target.wants
    echo guest >"$tree/etc/hostname"
    echo '127.0.0.1 localhost guest' >"$tree/etc/hosts"
    echo '/dev/vda / ext4 errors=remount-ro 0 1' >"$tree/etc/fstab"
    # A login on the serial line, whatever console= says.
    mkdir -p "$wants"
    ln -sf /lib/systemd/system/serial-getty@.service "$wants/serial-getty@ttyS0.service"
    # Nothing that wakes up by itself in the middle of a test, and no login where there is no screen.
    for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
        e2scrub_reap.service fstrim.timer systemd-timesyncd.service getty@tty1.service; do
        ln -sf /dev/null "$tree/etc/systemd/system/$unit"
    done
    # Generated at the first boot of each copy.
    : >"$tree/etc/machine-id"
}

fill() {
    local into=$1 tree=$1/tree
    debian_tree "$suite" "$tree" '' '?essential' "${include[@]}"
    configure "$tree"
    customize "$tree"
    file_system "$tree" "$into/image" "$size"
}

build_once "$target/rootfs/$suite" fill
