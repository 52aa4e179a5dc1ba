# Debian's archive through an apt state of our own, under $target/apt/<suite>: the same packages on
# every machine that has apt, whatever its own lists offer, without root and without touching them.
# Sourced by bash, after lib.sh. What the machine's apt.conf says of proxies stays in force.
#
# MIRROR= and SECURITY_MIRROR= replace Debian's own servers. What comes is checked against Debian's
# keyring, so plain HTTP does.

mirror=${MIRROR:-http://deb.debian.org/debian}
security_mirror=${SECURITY_MIRROR:-http://deb.debian.org/debian-security}

# debian_keyring: prints the path of Debian's keyring. Where it is not installed, the machine's own
# archive has it as a package, as Ubuntu's does.
debian_keyring() {
    local keyring name=usr/share/keyrings/debian-archive-keyring own=${target:?}/apt/keyring
    for keyring in {"","$own"}/"$name".{gpg,pgp}; do
        if [ -e "$keyring" ]; then
            echo "$keyring"
            return
        fi
    done
    build_once "$own" fill_keyring
    debian_keyring
}

fill_keyring() {
    apt_knows debian-archive-keyring || apt_update
    (cd "$1" && quietly apt-get -q download debian-archive-keyring) ||
        die "no Debian keyring here, and apt has none to offer: install debian-archive-keyring"
    dpkg-deb -x "$1"/debian-archive-keyring_*.deb "$1"
    [ -d "$1/usr/share/keyrings" ] || die "debian-archive-keyring holds no keyring"
}

# debian SUITE COMMAND...: runs a command of apt's with the state of that suite.
debian() {
    local state=$target/apt/$1
    shift
    APT_CONFIG=$state/first.conf "$@"
}

# debian_state SUITE: makes the state of a suite and refreshes its lists, once a run of the script.
debian_state() {
    local suite=$1 state=$target/apt/$1 keyring
    need_apt "no apt-get here to fetch Debian's packages with"
    keyring=$(debian_keyring)
    mkdir -p "$state/lists/partial" "$state/cache/archives/partial"
    : >"$state/status"
    local options="[arch=amd64 lang=none target=Packages signed-by=$keyring]"
    printf 'deb %s %s\n' \
        "$options" "$mirror $suite main" \
        "$options" "$security_mirror $suite-security main" >"$state/sources.list"
    # apt reads $APT_CONFIG before the machine's apt.conf.d and the file that Dir::Etc::main names
    # after it, so that the latter has the last word.
    echo "Dir::Etc::main \"$state/main.conf\";" >"$state/first.conf"
    {
        [ ! -e /etc/apt/apt.conf ] || echo '#include "/etc/apt/apt.conf";'
        cat <<END_OF_CONF
#clear APT::Architectures;
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Sandbox::User "";
Dir::State "$state";
Dir::State::lists "$state/lists";
Dir::State::status "$state/status";
Dir::Cache "$state/cache";
Dir::Etc::sourcelist "$state/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::trusted "/dev/null";
Dir::Etc::trustedparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
END_OF_CONF
    } >"$state/main.conf"
    say "reading what Debian's $suite has"
    quietly debian "$suite" apt-get -q update ||
        die "cannot read the package lists of $mirror $suite"
}

# debian_resolve SUITE META PATTERN: the package that META depends on and whose name matches the
# extended regular expression PATTERN. After debian_state.
debian_resolve() {
    debian "$1" apt-cache depends --important "$2" 2>/dev/null |
        awk -v name="$3" '
            $1 == "Depends:" && $2 ~ name && !found { print $2; found = 1 }
            END { exit !found }' ||
        die "Debian's $1 has no $2"
}

# debian_version SUITE PACKAGE: its newest version. After debian_state.
debian_version() {
    # The whole output is read: leaving early would fail apt-cache, and with it the pipe.
    debian "$1" apt-cache policy "$2" | awk '$1 == "Candidate:" { print $2 }'
}

# debian_unpack SUITE DIRECTORY PACKAGE...: unpacks packages into DIRECTORY without installing them.
# What they depend on is not followed. After debian_state.
debian_unpack() {
    local suite=$1 into=$2 debs package
    shift 2
    debs=$(mktemp -d "$into/.debs.XXXXXX")
    for package; do
        say "downloading $package $(debian_version "$suite" "$package")"
        (cd "$debs" && quietly debian "$suite" apt-get -q download "$package") ||
            die "cannot download $package"
    done
    for package in "$debs"/*.deb; do
        dpkg-deb -x "$package" "$into" || die "cannot unpack $package"
    done
    rm -rf "$debs"
}
