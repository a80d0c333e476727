#!/usr/bin/env bash
# The long run of tests/oracle.rs: fresh seeds on every processor until so many pairs of policy and packet are judged alike by simulate,
# by the compiled rules and by the kernel. NODEWALL_PAIRS says how many (1000000), NODEWALL_SEED where the seeds begin, NODEWALL_JOBS on
# how many processors (all). The exit status is 1 if they disagree anywhere; the seed that repeats it is printed.
set -euo pipefail
cd "$(dirname "$0")/.."

pairs=${NODEWALL_PAIRS:-1000000}
[ "$(id -u)" -eq 0 ] || { echo "oracle: needs root, for network namespaces" >&2; exit 1; }
mapfile -t processors < <(python3 -c 'import os; print(*sorted(os.sched_getaffinity(0)), sep="\n")')
jobs=${NODEWALL_JOBS:-${#processors[@]}}
[ "$jobs" -le "${#processors[@]}" ] || jobs=${#processors[@]}

built=$(cargo test --profile oracle --test oracle --no-run --message-format json)
binary=$(python3 -c '
import json, sys
built = map(json.loads, sys.stdin)
print(next(one["executable"] for one in built if one.get("target", {}).get("name") == "oracle" and one.get("executable")))
' <<<"$built")
logs=$(mktemp -d "${TMPDIR:-/tmp}/nodewall-oracle.XXXXXX")
echo "oracle: $pairs pairs by $jobs processes; everything they say is in $logs"

pids=()
trap '[ ${#pids[@]} -eq 0 ] || kill "${pids[@]}" 2>/dev/null || true' EXIT
start=$SECONDS
for ((job = 0; job < jobs; job++)); do
    # Seeds of one process are a million away from those of the next.
    seed=${NODEWALL_SEED:+$((NODEWALL_SEED + job * 1000000))}
    env NODEWALL_PAIRS=$(((pairs + jobs - 1) / jobs)) ${seed:+NODEWALL_SEED=$seed} \
        taskset -c "${processors[job]}" "$binary" --exact policy_rules_and_kernel_agree --nocapture \
        > >(tee "$logs/$job" | grep --line-buffered '^oracle: seed') 2>&1 &
    pids+=($!)
done

failed=0
for pid in "${pids[@]}"; do wait "$pid" || failed=$((failed + 1)); done
pids=()
# What was judged, also by those that came to a disagreement.
python3 - "$failed" $((SECONDS - start)) "$logs"/* <<'SUM'
import re, sys

failed, seconds, logs = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
pairs = policies = 0
seeds = []
for log in logs:
    said = re.findall(r"^oracle: seed (\d+) agrees; (\d+) of \d+ pairs, (\d+) policies", open(log).read(), re.M)
    if said:
        pairs, policies = pairs + int(said[-1][1]), policies + int(said[-1][2])
        seeds.append(f"{said[0][0]} to {said[-1][0]}")
print(f"oracle: {pairs} pairs, {policies} policies, seeds {', '.join(seeds) or 'none'}, {failed} disagreements, {seconds} s")
SUM
if [ "$failed" -gt 0 ]; then
    for log in "$logs"/*; do
        grep -q '^oracle: .* 0 disagreements' "$log" || sed -n '/panicked at/,$p' "$log"
    done
    exit 1
fi
