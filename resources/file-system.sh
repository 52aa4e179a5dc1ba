# Trees of Debian's packages, and file systems of them, made without root and without running the packages' scripts.
# Sourced by bash, after debian.sh.

# debian_tree SUITE TREE PATTERN PACKAGE...: unpacks PACKAGE..., such as '?essential', and all that these depend on into
# the new directory TREE. Packages whose names match the extended regular expression PATTERN, if it is not empty, and what
# is never read, such as documentation, are left out.
debian_tree() {
    local suite=$1 tree=$2 left_out=$3 archives=${target:?}/apt/$1/cache/archives
    shift 3
    rm -f "$archives"/*.deb
    debian_state "$suite"
    say "downloading $suite's $* and what these need"
    quietly debian "$suite" apt-get -q -y --download-only --no-install-recommends install "$@" ||
        die "cannot download the packages"
    say "unpacking"
    local package directory name excludes=()
    # Since Debian 12 these are links, which no package of that release brings itself.
    mkdir -p "$tree/usr"
    for directory in bin sbin lib lib64; do
        mkdir -p "$tree/usr/$directory"
        ln -s "usr/$directory" "$tree/$directory"
    done
    for directory in doc man info locale zoneinfo; do
        excludes+=(--exclude="./usr/share/$directory/*")
    done
    for package in "$archives"/*.deb; do
        name=$(basename "$package")
        if [ -n "$left_out" ] && [[ ${name%%_*} =~ $left_out ]]; then
            continue
        fi
        dpkg-deb --fsys-tarfile "$package" |
            tar -x -p --keep-directory-symlink "${excludes[@]}" -C "$tree" ||
            die "cannot unpack $package"
    done
    rm -f "$archives"/*.deb
}

# file_system TREE IMAGE SIZE: makes an ext4 file system of a directory, which goes.
file_system() {
    local tree=$1 image=$2 size=$3
    say "making the file system"
    truncate -s "$size" "$image"
    # Where many users' PATH does not lead.
    PATH=$PATH:/usr/sbin:/sbin quietly as_if_root mkfs.ext4 -F -L root -d "$tree" "$image" ||
        die "mkfs.ext4 failed: is $size enough?"
    rm -rf "$tree"
    say "$(du -h "$image" | cut -f1) of $size are in use in $image"
}

# Has the command see every file as root's.
as_if_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        command -v fakeroot >/dev/null || die "no fakeroot here: run resources/setup.sh, or install it"
        fakeroot "$@"
    fi
}
