#!/usr/bin/env bash
# A consortium on this machine, from nothing to a trained model: provision, start every part as a process, submit a job, download what it made.
# Needs nginx. Usage: examples/deployment/run.sh [FOLDER]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-deployment}
command -v cloister > /dev/null || PATH="$here/../../.venv/bin:$PATH"
command -v nginx > /dev/null || { echo "nginx is not installed: it is the door of the consortium" >&2; exit 2; }
if [ -e "$folder" ]; then echo "'$folder' exists: name another folder, or remove it" >&2; exit 2; fi
sites="cleveland hungarian long-beach-va"

cloister provision "$here/consortium.toml" --out "$folder"
kits=$(cd "$folder/kits" && pwd)
mkdir "$folder/logs"

started=()
trap 'kill "${started[@]}" 2> /dev/null || true; wait' EXIT
start() { "${@:2}" > "$folder/logs/$1.log" 2>&1 & started+=($!); }

mkdir -p "$kits/server/run"
start server cloister server run "$kits/server"
start nginx nginx -e stderr -p "$kits/server" -c nginx.conf -g 'daemon off;'
port=9464
for site in $sites; do
    cp "$here/policy.toml" "$kits/sites/$site/policy.toml"
    sed -i.old "s/127.0.0.1:9464/127.0.0.1:$port/" "$kits/sites/$site/site.toml"; port=$((port + 10))
    start "$site" cloister site run "$kits/sites/$site"
done
echo "waiting for the parts to find each other; their logs are in $folder/logs"
for site in $sites; do
    for _ in $(seq 120); do grep -q "connected to" "$folder/logs/$site.log" && break; sleep 1; done
    grep -q "connected to" "$folder/logs/$site.log" || { echo "site $site did not connect: $folder/logs" >&2; exit 6; }
done

export CLOISTER_KIT="$kits/users/ada"
job=$(cloister job submit "$here/heart.toml" --purpose "to try the example" --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["run"])')
cloister job watch "$job"
cloister job download "$job" --to "$folder/result"
for site in $sites; do cloister site log "$kits/sites/$site" --verify | tail -1; done
echo "the report: $folder/result/report.html"
echo "what left cleveland, and what it cost: cloister site log $kits/sites/cleveland; cloister ledger show $kits/sites/cleveland/state/ledgers/heart.sqlite"
