#!/usr/bin/env bash
# Installs what is missing on Debian 12/13 and Ubuntu 24.04, and sees to it that libvirt answers.
#
#   install-deps.sh demo    what `make demo` needs: compiler, QEMU, libvirt
#   install-deps.sh test    that, and what the tests need: sshd, SASL, certificates, servers to write to, clients for
#                           Python, Node and Chromium for the dashboard, cargo-nextest, cargo-deny
#
# Says what it installs before it does. Needs no network, and no root, where everything is there. Uses sudo where it
# is not root. Rust comes by rustup, only where there is no cargo; cargo's tools, the servers and the clients are
# kept in KVMETRY_TOOLS (default ~/.cache/kvmetry-tools).
set -euo pipefail

readonly URI=qemu:///system
readonly TOOLS=${KVMETRY_TOOLS:-$HOME/.cache/kvmetry-tools}
# libvirtd answers within a second; a first start on a busy machine may take longer.
readonly LIBVIRT_SECONDS=30

# Some of these are parts of others on one release or another; those that a release does not have are skipped.
readonly DEMO_PACKAGES=(gcc libc6-dev make iproute2 procps ca-certificates
    qemu-system-x86 qemu-utils ipxe-qemu seabios
    libvirt-clients libvirt-daemon libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-daemon-log)
# A Node from elsewhere brings its own npm, and Debian's cannot stand beside it.
NODE_PACKAGES=(nodejs npm)
if command -v npm >/dev/null; then NODE_PACKAGES=(); fi
# The tests take another one where CHROMIUM names it.
readonly CHROMIUM=${CHROMIUM:-chromium}
CHROMIUM_PACKAGES=(chromium)
if [ "$CHROMIUM" != chromium ]; then CHROMIUM_PACKAGES=(); fi
readonly TEST_PACKAGES=(openssh-client openssh-server netcat-openbsd openssl sasl2-bin libsasl2-modules python3-venv
    "${CHROMIUM_PACKAGES[@]}" "${NODE_PACKAGES[@]}")
# What the dashboard's tools ask for: Debian 13 has it, older releases need one from elsewhere.
readonly NODE_MAJOR=20

say() { printf 'install-deps: %s\n' "$*"; }

die() {
    printf 'install-deps: %s\n' "$*" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo -- "$@"
    else
        die "needs root for: $* (run as root, or install sudo)"
    fi
}

# ---- Packages

# Empty where it is not installed; dpkg-query fails where it never heard of the package.
installed_version() {
    { dpkg-query -W -f '${db:Status-Status} ${Version}\n' "$1" 2>/dev/null || true; } | sed -n '/^installed /{s///p;q}'
}

# The version that apt would take if the package were not installed: of those that a source offers, the newest of the
# highest priority. apt's own "candidate" is no answer where the installed version is newer than any on offer.
offered_version() {
    apt-cache policy "$1" 2>/dev/null | awk '
        /^ (\*\*\*|   ) [^ ]/ { version = ($1 == "***") ? $2 : $1; next }
        version && $2 ~ /^\// { next } # what dpkg says is installed
        version && $1 ~ /^-?[0-9]+$/ && (best == "" || $1 + 0 > priority) { best = version; priority = $1 + 0 }
        END { print best }'
}

missing_packages() {
    local package
    for package in "$@"; do
        [ -n "$(installed_version "$package")" ] || echo "$package"
    done
}

# An image may come with a part of QEMU from elsewhere (Debian 12 with qemu-utils from backports): then the rest, of
# the release, conflicts with it, and apt gives up ("held broken packages"). So all parts of QEMU that are wanted or
# there are asked for in the one version that is on offer.
with_versions() {
    local package offered machine
    machine=$(installed_version qemu-system-x86)
    for package in "$@"; do
        offered=$(offered_version "$package")
        # Where the machine emulator is there already, what is missing must match it, backport or not.
        if [ -n "$machine" ] && apt-cache madison "$package" | grep -qF "| $machine |"; then
            offered=$machine
        fi
        case $package in
        qemu-*) [ -z "$offered" ] || echo "$package=$offered" ;;
        *) [ -z "$offered" ] || echo "$package" ;;
        esac
    done
}

qemu_parts_of_other_versions() {
    local package offered
    { dpkg-query -W -f '${db:Status-Status} ${source:Package} ${Package}\n' 'qemu-*' 2>/dev/null || true; } |
        sed -n 's/^installed qemu //p' |
        while read -r package; do
            offered=$(offered_version "$package")
            if [ -n "$offered" ] && [ "$(installed_version "$package")" != "$offered" ]; then
                say "$package $(installed_version "$package") does not fit the release's QEMU: replacing it" >&2
                echo "$package"
            fi
        done
}

update_lists() {
    say "updating apt's lists"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Acquire::Retries=3 update ||
        say "apt-get update failed in part; going on with the lists that are there"
}

install_packages() {
    local missing wanted
    mapfile -t missing < <(missing_packages "$@")
    # Names that only another release has are missing everywhere else: what matters is what they bring.
    if [ "${#missing[@]}" = 0 ] || everything_works "$MODE"; then
        return
    fi
    update_lists
    if printf '%s\n' "${missing[@]}" | grep -qx qemu-system-x86; then
        mapfile -t -O "${#missing[@]}" missing < <(qemu_parts_of_other_versions)
    fi
    mapfile -t wanted < <(with_versions "${missing[@]}" | sort -u)
    [ "${#wanted[@]}" != 0 ] || die "apt offers none of: ${missing[*]} (see apt's sources, /etc/apt)"
    say "installing with apt: ${wanted[*]}"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends --allow-downgrades \
        -o Acquire::Retries=3 -o Dpkg::Options::=--force-confold install "${wanted[@]}"
    everything_works "$MODE" || die "apt installed what it has, but something is still missing; wanted: ${packages[*]}"
}

download_package() ( # package, folder
    cd "$2" && apt-get -q -o APT::Sandbox::User=root -o Acquire::Retries=3 download "$1"
)

# A server that tests write to. Its package would start it on this machine for good, so it is unpacked only.
unpack_server() { # package, program
    local dir=$TOOLS/servers/$1 download
    [ -x "$TOOLS/bin/$2" ] && return
    say "unpacking the package $1 into $dir (it is not installed, nothing is started)"
    download=$(mktemp -d)
    # The lists may be old, or not there yet.
    download_package "$1" "$download" || { update_lists && download_package "$1" "$download"; } ||
        die "apt has no package $1: it is in Debian, and in Ubuntu's universe"
    mkdir -p "$dir" "$TOOLS/bin"
    dpkg-deb -x "$download"/*.deb "$dir"
    rm -r "$download"
    ln -sf "../servers/$1/usr/bin/$2" "$TOOLS/bin/$2"
}

# The clients that the server is tried with, in a Python of their own.
install_clients() {
    local wanted=$1 clients=$TOOLS/clients
    cmp -s "$wanted" "$clients/requirements.txt" && return
    say "installing with pip into $clients: $(sed '/^#/d' "$wanted" | paste -sd ' ')"
    rm -rf "$clients"
    mkdir -p "$TOOLS"
    python3 -m venv "$clients"
    "$clients/bin/pip" install --quiet --disable-pip-version-check --no-input -r "$wanted"
    # Last: what was broken off is begun anew.
    cp "$wanted" "$clients/requirements.txt"
}

# What the packages are for. sbin may be missing from an ordinary user's PATH.
everything_works() {
    local command
    local commands=(gcc make ip qemu-system-x86_64 qemu-img virsh virtlogd pgrep)
    if [ "$1" = test ]; then
        commands+=(ssh ssh-keygen sshd nc openssl saslpasswd2 python3 node npm "$CHROMIUM")
        python3 -c 'import ensurepip, venv' 2>/dev/null || return 1
    fi
    for command in "${commands[@]}"; do
        PATH=$PATH:/usr/sbin:/sbin command -v "$command" >/dev/null || return 1
    done
    PATH=$PATH:/usr/sbin command -v libvirtd >/dev/null || PATH=$PATH:/usr/sbin command -v virtqemud >/dev/null || return 1
    [ -e /usr/include/stdio.h ] && compgen -G '/usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so' >/dev/null
}

# ---- Rust

install_rust() {
    PATH=$PATH:$HOME/.cargo/bin
    command -v cargo >/dev/null && return
    local missing
    mapfile -t missing < <(missing_packages curl ca-certificates)
    if [ "${#missing[@]}" != 0 ]; then
        say "installing with apt: ${missing[*]}"
        as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install "${missing[@]}"
    fi
    say "installing Rust with rustup into ~/.rustup and ~/.cargo"
    # The version is rust-toolchain.toml's; rustup fetches it at the first use.
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs |
        sh -s -- -y --profile minimal --default-toolchain none --no-modify-path
}

install_cargo_tool() { # name, version requirement
    PATH=$PATH:$HOME/.cargo/bin:$TOOLS/bin
    command -v "$1" >/dev/null && return
    say "compiling $1 $2 into $TOOLS (once, some minutes)"
    cargo install "$1" --version "$2" --locked --quiet --root "$TOOLS"
}

# ---- libvirt

libvirt_answers() {
    as_root env LC_ALL=C timeout 10 virsh -q -c "$URI" version >/dev/null 2>&1
}

# Asking as an ordinary user may be refused and still prove that somebody is there.
libvirt_listens() {
    LC_ALL=C timeout 10 virsh -q -r -c "$URI" version >/dev/null 2>&1
}

start_libvirt() {
    libvirt_listens && return
    local daemon deadline
    if [ -d /run/systemd/system ]; then
        for daemon in libvirtd virtqemud; do
            if systemctl cat "$daemon.service" >/dev/null 2>&1; then
                say "starting $daemon with systemctl"
                as_root systemctl start "$daemon.service"
                break
            fi
        done
    else
        for daemon in virtlogd libvirtd; do
            if ! pgrep -x "$daemon" >/dev/null; then
                say "starting $daemon (there is no systemd)"
                as_root "$(PATH=$PATH:/usr/sbin command -v "$daemon")" -d
            fi
        done
    fi
    deadline=$((SECONDS + LIBVIRT_SECONDS))
    until libvirt_listens || libvirt_answers; do
        [ "$SECONDS" -lt "$deadline" ] || die "libvirt does not answer at $URI; its own words: $(virsh -c "$URI" version 2>&1 | tail -n 1)"
        sleep 0.2
    done
    # A libvirtd with an old cache asks every QEMU for its abilities at the first domain's XML, and answers nobody for
    # seconds: better now than in the middle of a reading.
    as_root virsh -q -c "$URI" capabilities >/dev/null || die "libvirt does not tell its capabilities at $URI"
}

MODE=${1:-}
case $MODE in
demo) packages=("${DEMO_PACKAGES[@]}") ;;
test) packages=("${DEMO_PACKAGES[@]}" "${TEST_PACKAGES[@]}") ;;
*) die "say what for: install-deps.sh demo|test" ;;
esac

if command -v apt-get >/dev/null; then
    install_packages "${packages[@]}"
elif ! everything_works "$MODE"; then
    die "this machine has no apt: install by hand what stands for ${packages[*]}"
fi
install_rust
if [ "$MODE" = test ]; then
    node_major=$(node --version | sed 's/^v\([0-9]*\).*/\1/')
    [ "$node_major" -ge "$NODE_MAJOR" ] ||
        die "the dashboard needs Node $NODE_MAJOR, this is $(node --version): install a newer one (nodejs.org), then again"
    unpack_server influxdb influxd
    unpack_server victoria-metrics victoria-metrics
    install_clients "$(dirname "$0")/../crates/kvmetry/tests/served/requirements.txt"
    install_cargo_tool cargo-nextest '^0.9'
    install_cargo_tool cargo-deny '^0.20'
fi
start_libvirt
