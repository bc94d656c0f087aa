#!/usr/bin/env bash
# Unpacks a Vulkan driver that needs no GPU (Mesa's lavapipe) into a folder, for `check_gpu` and
# `tfseg-prune export --require_gpu`. Nothing outside the folder changes; no root is needed.
#
#   tools/software_gpu.sh ~/software_gpu
#   export TFSEG_PRUNE_SOFTWARE_GPU=~/software_gpu
#
# The packages come from the Debian or Ubuntu mirror that this machine's apt is set up with, and from
# its backports, signatures checked. What is installed already is not downloaded again, so that
# the folder serves on this machine only. Some 60 MB to download, 300 MB on disk.
set -euo pipefail

OLDEST=25.0.7 # LiteRT's GPU accelerator can't work with older ones

fail() {
    printf 'software_gpu.sh: %s\n' "$*" >&2
    exit 1
}

case ${1-} in
-h | --help) exec sed -n '2,/^set/{s/^# \{0,1\}//;/^set/!p}' "$0" ;;
esac
[ $# -eq 1 ] && [ "${1#-}" = "$1" ] && [ -n "$1" ] ||
    fail "one folder is needed. Expected: software_gpu.sh FOLDER. Received: $# arguments ($*)"
for tool in apt-get apt-cache dpkg dpkg-deb; do
    command -v "$tool" >/dev/null ||
        fail "no $tool here. Expected: Debian 12, Ubuntu 24.04 or later. Received: a system" \
            "without it. Remedy: install Mesa's Vulkan drivers $OLDEST or later by its own" \
            "package manager and set VK_ICD_FILENAMES to the lavapipe ICD (lvp_icd.*.json)"
done
mkdir -p "$(dirname "$1")" 2>/dev/null ||
    fail "the folder can't be made. Expected: a place that can be written to. Received: $1"
folder=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
case $folder in
*[\':]*) fail "the folder's name can't stand in a search path. Expected: no quote or colon. Received: $folder" ;;
esac
say() {
    cat "$folder/env.sh"
    printf '# Set these, or only: export TFSEG_PRUNE_SOFTWARE_GPU=%q\n' "$folder"
    exit 0
}
[ ! -f "$folder/env.sh" ] || say
[ -z "$(ls -A "$folder" 2>/dev/null)" ] ||
    fail "the folder is in use. Expected: an empty or a new one. Received: $folder, which holds" \
        "other files and no env.sh"

# All is made beside the folder and moved there in one step, so that it is whole or not there.
work=$(mktemp -d "$folder.part.XXXXXX" 2>/dev/null) ||
    fail "the folder can't be made. Expected: a place that can be written to. Received: $folder"
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/apt/state/lists/partial" "$work/apt/cache/archives/partial" "$work/apt/sources" \
    "$work/apt/debs" "$work/root"
cp /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources "$work/apt/sources" 2>/dev/null ||
    true
[ ! -f /etc/apt/sources.list ] || cp /etc/apt/sources.list "$work/apt/sources/own.list"
apt=(
    -o "Dir::State=$work/apt/state" -o Dir::State::status=/var/lib/dpkg/status
    -o "Dir::Cache=$work/apt/cache" -o "Dir::Log=$work/apt" -o Dir::Etc::sourcelist=/dev/null
    -o "Dir::Etc::sourceparts=$work/apt/sources" -o APT::Sandbox::User=root
    -o Debug::NoLocking=true -o Acquire::Languages=none -o Acquire::Retries=2
)
# shellcheck disable=SC1091
codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
distribution=$(. /etc/os-release && echo "${ID:-}")
versions='' version='' release=''
# Reads the package lists and finds the newest Mesa that is new enough.
look() {
    # Where only some sources fail, the others count.
    apt-get "${apt[@]}" -qq update >"$work/apt/log" 2>&1 || true
    # Lines such as: mesa-vulkan-drivers | 25.0.7-2~bpo12+1 | URL bookworm-backports/main amd64 ...
    versions=$(apt-cache "${apt[@]}" madison mesa-vulkan-drivers 2>>"$work/apt/log" |
        awk -F'|' '{print $2 $3}')
    while read -r candidate _ suite _; do
        if dpkg --compare-versions "${candidate:-0}" ge "$OLDEST" &&
            dpkg --compare-versions "$candidate" gt "${version:-0}"; then
            version=$candidate release=${suite%%/*}
        fi
    done <<<"$versions"
}

echo "Reading the package lists ..." >&2
look
if [ -z "$version" ] && [ "$distribution" = debian ] && [ -n "$codename" ]; then
    # Backports of the mirror that the system itself comes from, unless they are looked at already.
    targets=$(apt-get "${apt[@]}" indextargets --no-release-info --format \
        '$(CREATED_BY) $(RELEASE) $(COMPONENT) $(SITE)' | grep '^Packages ' || true)
    site=$(awk -v release="$codename" '$2 == release && $3 == "main" {print $4; exit}' <<<"$targets")
    if [ -n "$site" ] && ! grep -q "^Packages $codename-backports main " <<<"$targets"; then
        keyring=/usr/share/keyrings/debian-archive-keyring.gpg
        signed=$([ ! -f $keyring ] || echo "[signed-by=$keyring] ")
        echo "deb $signed$site $codename-backports main" >"$work/apt/sources/software_gpu.list"
        look
    fi
fi
[ -n "$versions" ] || {
    tail -n 3 "$work/apt/log" >&2
    fail "the package lists can't be read (above). Expected: the mirror of this machine's apt" \
        "answers and has Mesa. Received: an error, or no such package. Remedy: see whether" \
        "'apt-get update' works"
}
[ -n "$version" ] || {
    tail -n 3 "$work/apt/log" >&2
    fail "the mirror has no Mesa that is new enough. Expected: mesa-vulkan-drivers $OLDEST or" \
        "later for ${codename:-this system} or its backports. Received:" \
        "$(awk '{printf "%s ", $1}' <<<"$versions")"
}

plan=$(apt-get "${apt[@]}" -s -y --no-install-recommends --reinstall -t "$release" install \
    "mesa-vulkan-drivers=$version" libvulkan1 2>&1) || {
    tail -n 3 <<<"$plan" >&2
    fail "apt can't tell what Mesa $version needs (above). Expected: packages of $release that fit" \
        "this system. Received: a conflict. Remedy: 'apt-get --fix-broken install', or another machine"
}
# Lines such as: Inst libdrm2 [2.4.114-1] (2.4.124-2~bpo12+1 Debian Backports:... [amd64])
mapfile -t wanted < <(sed -nE 's/^Inst ([^ ]+) (\[[^]]*\] )?\(([^ ]+) .*/\1=\3/p' <<<"$plan")
echo "Downloading ${#wanted[@]} packages of Mesa $version ..." >&2
(cd "$work/apt/debs" && apt-get "${apt[@]}" -qq download "${wanted[@]}") >"$work/apt/log" 2>&1 || {
    tail -n 3 "$work/apt/log" >&2
    fail "a package can't be downloaded (above). Expected: the mirror answers, and room for 60 MB" \
        "in $(dirname "$folder"). Received: an error. Remedy: try again"
}
for package in "$work"/apt/debs/*.deb; do
    dpkg-deb -x "$package" "$work/root"
done
driver=$(cd "$work" && find root -name 'libvulkan_lvp.so' -print -quit)
loader=$(cd "$work" && find root -name 'libvulkan.so.1' -print -quit)
[ -n "$driver" ] && [ -n "$loader" ] ||
    fail "Mesa $version holds no lavapipe. Expected: libvulkan_lvp.so and libvulkan.so.1." \
        "Received: ${driver:-no driver}, ${loader:-no loader}"
libraries=$(cd "$work" && find root -name '*.so*' -printf '%h\n' | sort -u | while read -r path; do
    case $path in */lib/*-linux-gnu*) [ "${path##*-linux-gnu}" ] || printf ':%s' "$folder/$path" ;; esac
done)
cat >"$work/lavapipe.json" <<END
{"file_format_version": "1.0.1", "ICD": {"library_path": "./$driver", "api_version": "1.4.0"}}
END
mkdir -m 700 "$work/runtime" "$work/cache"
cat >"$work/env.sh" <<END
# Mesa $version, lavapipe: Vulkan on the CPU.
export VK_ICD_FILENAMES='$folder/lavapipe.json'
export LD_LIBRARY_PATH='${libraries#:}'
export XDG_RUNTIME_DIR='$folder/runtime'
export MESA_SHADER_CACHE_DIR='$folder/cache'
END
rm -rf "$work/apt"
chmod 755 "$work"
[ ! -d "$folder" ] || rmdir "$folder"
mv -T "$work" "$folder" 2>/dev/null || [ -f "$folder/env.sh" ] ||
    fail "the folder can't be written. Expected: that nobody else makes it meanwhile. Received:" \
        "$folder. Remedy: remove it, and try again"
say
