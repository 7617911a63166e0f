#!/usr/bin/env bash
# `make demo`: installs what is missing, builds, and shows the telemetry of live VMs: those that libvirt has, else of
# three that it starts and removes again. The dashboard is there too, where Node can build its pages.
#
#   DEMO_SECONDS=30    ends by itself; without it, Ctrl-C ends it
#   DEMO_ARGS='…'      more arguments for `kvmetry run`
set -euo pipefail
cd "$(dirname "$0")/.."

readonly URI=qemu:///system
# A prefix of its own, so that only VMs which a demo started are removed.
readonly PREFIX=kvmetry-demo
readonly VMS=3
# `kvmetry run` ends within 2 s of being asked to.
readonly GRACE_SECONDS=10
# What the pages are built with, as in scripts/install-deps.sh.
readonly NODE_MAJOR=20

say() { printf '\ndemo: %s\n' "$*"; }

scripts/install-deps.sh demo
PATH=$PATH:$HOME/.cargo/bin
sudo=()
[ "$(id -u)" = 0 ] || sudo=(sudo --)

# A failure costs the pages only: npm wants the network where it has never run here.
node_major=$({ node --version 2>/dev/null || true; } | sed 's/^v\([0-9]*\).*/\1/')
dashboard=1
if [ "${node_major:-0}" -lt "$NODE_MAJOR" ] || ! command -v npm >/dev/null; then
    dashboard=
    say "the dashboard is left out: install Node $NODE_MAJOR or newer with npm (Debian 13: nodejs and npm; else nodejs.org)"
elif say "building the dashboard's pages" && ! make --no-print-directory web; then
    dashboard=
    say "the dashboard is left out: its pages could not be built, npm says why above"
fi

say "building"
cargo build --locked --profile demo -p kvmetry -p xtask
target=$(cargo metadata --locked --no-deps --format-version 1 | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
kvmetry=$target/demo/kvmetry
xtask=$target/demo/xtask

started=
data=
clean_up() {
    trap '' INT TERM
    [ -z "$data" ] || rm -rf "$data"
    if [ -n "$started" ]; then
        say "removing the demo's VMs"
        "${sudo[@]}" "$xtask" lab down --prefix "$PREFIX"
    fi
}
trap clean_up EXIT
# Ctrl-C reaches the program in the foreground too; this shell only goes on to clean_up.
interrupted=
trap 'interrupted=1' INT
trap 'exit 143' TERM

if [ -z "$("${sudo[@]}" virsh -q -c "$URI" list --name)" ]; then
    say "libvirt has no live VM: starting $VMS small ones"
    started=1
    "${sudo[@]}" "$xtask" lab up "$VMS" --prefix "$PREFIX" --period 1 || { [ -n "$interrupted" ] && exit 130; exit 1; }
fi
[ -z "$interrupted" ] || exit 130

say "kvmetry once --format table"
"$kvmetry" once --format table

data=$(mktemp -d)
# Above a configuration file, below DEMO_ARGS.
export KVMETRY_HTTP_LISTEN=${KVMETRY_HTTP_LISTEN:-127.0.0.1:8177}
listen=$KVMETRY_HTTP_LISTEN
[[ " ${DEMO_ARGS:-} " =~ \ --listen[=\ ]([^\ ]+) ]] && listen=${BASH_REMATCH[1]}
[ "$listen" != off ] || dashboard=
say "kvmetry run --output - (line protocol; Ctrl-C ends it). Meanwhile, in another terminal:"
say "  $kvmetry query --data-dir $data 'SELECT time, name, memrss FROM vm_totals ORDER BY time DESC LIMIT 6'"
[ -z "$dashboard" ] || say "  and in a browser, the dashboard: http://${listen/#0.0.0.0:/127.0.0.1:}/"
# Words of DEMO_ARGS are arguments.
read -r -a args <<<"${DEMO_ARGS:-}"
command=("$kvmetry" run --output - --data-dir "$data" "${args[@]}")
if [ -n "${DEMO_SECONDS:-}" ]; then
    command=(timeout --foreground --preserve-status --signal=INT --kill-after="$GRACE_SECONDS" "$DEMO_SECONDS" "${command[@]}")
fi
status=0
"${command[@]}" || status=$?
# Ctrl-C is a good end.
[ -n "$interrupted" ] && [ "$status" = 130 ] && status=0
exit "$status"
