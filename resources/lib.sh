# Functions the scripts of this directory share. Sourced by bash; sets $root and $target.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
# apt's configuration wants absolute paths.
[[ $target = /* ]] || target=$root/$target

# One progress line, with the seconds since the script started.
say() {
    printf '%s: %s (%s s)\n' "$(basename "$0" .sh)" "$*" "$SECONDS" >&2
}

die() {
    printf '%s: error: %s\n' "$(basename "$0" .sh)" "$*" >&2
    exit 1
}

# copy_sources FOLDER: copies there what git has of the work tree, as it is now.
copy_sources() {
    (cd "$root" && git ls-files -z | tar --create --null --files-from=-) | tar --extract --directory "$1"
}

# Runs a command as root, asking for sudo only where it is needed.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "needs root to run: $* (there is no sudo here)"
    fi
}

have_apt() {
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null
}

# need_apt MESSAGE: ends with the message where there is no apt.
need_apt() {
    have_apt || die "$1"
}

# Runs a command, hiding its output unless it fails.
quietly() {
    local log status=0
    log=$(mktemp)
    "$@" >"$log" 2>&1 </dev/null || status=$?
    [ "$status" -eq 0 ] || cat "$log" >&2
    rm -f "$log"
    return "$status"
}

apt_update() {
    say "refreshing the package lists"
    quietly as_root apt-get update || die "apt-get update failed"
}

# apt_knows PACKAGE: whether the package lists have a version of it to offer.
apt_knows() {
    # Not grep -q: leaving early would fail apt-cache, and with it the pipe.
    apt-cache policy "$1" 2>/dev/null | grep '^ *Candidate: [^(]' >/dev/null
}

# build_once DIRECTORY FUNCTION ARGUMENT...: has FUNCTION fill a scratch directory, given to it as
# its first argument, and renames that to DIRECTORY when it is complete. An interrupted run leaves
# only scratch, which the next one removes; a second run at the same time waits for the first.
build_once() {
    local directory=$1 fill=$2 parent scratch
    shift 2
    [ ! -e "$directory" ] || return 0
    parent=$(dirname "$directory")
    scratch=$parent/.$(basename "$directory").partial
    mkdir -p "$parent"
    exec 9>"$parent/.lock"
    flock 9
    if [ ! -e "$directory" ]; then
        rm -rf "$scratch"
        mkdir "$scratch"
        "$fill" "$scratch" "$@"
        mv -T "$scratch" "$directory"
    fi
    exec 9>&-
}
