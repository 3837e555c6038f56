#!/usr/bin/env bash
# The commands of docs/artifacts.md from one machine over a remote to another, with made-up files in the places of Table 1's
# runs. `tests/dvc/round_trip.sh ssh` starts an sshd with keys of its own on a free port of this machine; `folder` uses a
# folder as the remote. Everything is in a temporary folder, which is removed at the end.
set -euo pipefail
kind=${1:?ssh or folder}
root=$(cd "$(dirname "$0")/../.." && pwd)
place=$(mktemp -d)
trap '[[ -f $place/sshd.pid ]] && kill "$(cat "$place/sshd.pid")"; rm -rf "$place"' EXIT
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
hide="s#$place#…#g; s#$(id -un)@#me@#g"
narrowed=(--config 'datasets=[cifar100]' controls=none)

run() {
    printf '\n$ %s\n' "$*" | sed "$hide"
    "$@" 2>&1 | sed "$hide"
}

serve() {
    port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    ssh-keygen -q -t ed25519 -N '' -f "$place/host"
    ssh-keygen -q -t ed25519 -N '' -f "$place/key"
    cp "$place/key.pub" "$place/authorized"
    mkdir -p /run/sshd 2>/dev/null || true
    "$(command -v sshd || echo /usr/sbin/sshd)" -f /dev/null -p "$port" -h "$place/host" -E "$place/sshd.log" \
        -o ListenAddress=127.0.0.1 -o AuthorizedKeysFile="$place/authorized" -o PidFile="$place/sshd.pid" \
        -o StrictModes=no -o PasswordAuthentication=no -o "Subsystem=sftp internal-sftp"
}

remote() {
    if [[ $kind == ssh ]]; then
        run dvc remote add --local --default box "ssh://$(id -un)@127.0.0.1:$port$place/remote"
        run dvc remote modify --local box keyfile "$place/key"
    else
        run dvc remote add --local --default box "$place/remote"
    fi
}

make_up() { # stage data-set run
    local folder=artifacts/$1/$2/$3 part
    mkdir -p "$folder"
    case $1 in
    squeeze) head -c 200000 /dev/urandom >"$folder/model.safetensors" && echo '{}' >"$folder/squeeze.json" ;;
    recover) for part in 0 1 2 3 4; do
        mkdir "$folder/part-$part" && head -c 100000 /dev/urandom >"$folder/part-$part/ipc-0${part}0.tar"
    done ;;
    relabel) mkdir "$folder/labels" && head -c 300000 /dev/urandom >"$folder/labels/epochs.bin" ;;
    esac
}

[[ $kind == ssh ]] && serve
mkdir "$place/remote"
git clone -q "$root" "$place/here"
cd "$place/here"
cda list table1 "${narrowed[@]}" | while read -r stage dataset id _; do make_up "$stage" "$dataset" "$id"; done
printf -- '--- on the machine that has run Table 1\n'
remote
run cda track results/table1.csv "${narrowed[@]}"
run dvc push
run git add artifacts
run git commit -q -m "Runs of Table 1"
run dvc push
printf '\n--- on another machine\n'
run git clone -q "$place/here" "$place/there"
cd "$place/there"
remote
run cda pull results/table1.csv --dry-run "${narrowed[@]}"
run cda pull results/table1.csv "${narrowed[@]}"
printf '\n$ %s\n' "snakemake -n results/table1.csv ${narrowed[*]}"
snakemake -n results/table1.csv "${narrowed[@]}" 2>&1 | awk '/^Job stats/ && !seen++ {on = 1} on; /^total/ {on = 0}'
run cda pull results/table1.csv "${narrowed[@]}"
run dvc gc --workspace --all-branches --all-tags --force
