#!/usr/bin/env bash
# test-deb.sh [RELEASE]: installs the package of make-deb.sh in a clean Debian tree and uses it as a user would: `check`, the
# manual, completion in bash, a model and a profile by name and by file.
set -euo pipefail
# shellcheck source=resources/lib.sh
. "$(dirname "$0")/lib.sh"

release=${1:-bookworm}
deb=$(find "$target/debian" -name 'msr-vmm_*.deb' -printf '%T@ %p\n' | sort -n | tail -n 1 | cut -d' ' -f2-)
[ -n "$deb" ] || die "there is no package; run make deb"
command -v mmdebstrap >/dev/null || { apt_update; quietly as_root apt-get install -y --no-install-recommends mmdebstrap; }

tree=$(mktemp -d)
trap 'as_root rm -rf "$tree"' EXIT
say "making a tree of Debian $release"
quietly as_root mmdebstrap --variant=minbase --include=man-db,bash-completion \
    --dpkgopt=path-include='/usr/share/man/*' "$release" "$tree/root"
as_root cp "$deb" "$tree/root/msr-vmm.deb"
cat >"$tree/use.sh" <<'USE'
set -euo pipefail
fail() { echo "failed: $*" >&2; exit 1; }

dpkg --install /msr-vmm.deb
msr-vmm --version

# What the host's KVM can do is its own affair: without a KVM, `check` says so and gives status 1.
status=0
msr-vmm check || status=$?
[ "$status" -le 1 ] || fail "check: status $status"

for page in msr-vmm msr-vmm-run msr-vmm-check "5 msr-vmm.toml"; do
    # shellcheck disable=SC2086
    text=$(MANPAGER=cat man $page 2>&1)
    case $text in *NAME*SYNOPSIS*|*NAME*DESCRIPTION*) ;; *) fail "man $page: $text" ;; esac
done
echo "man msr-vmm, run, check and msr-vmm.toml are there"

# As an interactive bash completes: the package's file is loaded when it is first asked.
complete() {
    bash --norc -c '
        . /usr/share/bash-completion/bash_completion
        _completion_loader msr-vmm || [ $? -eq 124 ]
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=$((${#COMP_LINE})) COMP_TYPE=9
        COMP_KEY=9
        function=$(complete -p msr-vmm | sed "s/.*-F \([^ ]*\).*/\1/")
        "$function" msr-vmm "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
        printf "%s\n" "${COMPREPLY[@]}"' bash "$@"
}
complete msr-vmm exp | grep -x 'explain *' || fail "bash does not complete msr-vmm exp"
complete msr-vmm run --model ice | grep -x 'icelake-server *' || fail "bash does not complete a model"
for file in zsh/vendor-completions/_msr-vmm fish/vendor_completions.d/msr-vmm.fish; do
    grep -q msr-vmm "/usr/share/$file" || fail "/usr/share/$file"
done

for model in zen3-server /usr/share/msr-vmm/models/zen3-server.toml; do
    msr-vmm filter --model "$model" >/dev/null || fail "model $model"
done
for profile in linux-guest /usr/share/msr-vmm/profiles/linux-guest.toml; do
    msr-vmm filter --profile "$profile" >/dev/null || fail "profile $profile"
done
dpkg --remove msr-vmm
[ ! -e /usr/bin/msr-vmm ] || fail "the command is left behind"
USE
as_root cp "$tree/use.sh" "$tree/root/use.sh"
if [ -e /dev/kvm ]; then
    as_root mknod -m 666 "$tree/root/dev/kvm" c 10 232 2>/dev/null || true
fi
say "installing $(basename "$deb") in it"
as_root chroot "$tree/root" /usr/bin/env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 \
    bash /use.sh || die "the package does not do in Debian $release"
say "the package does in Debian $release"
