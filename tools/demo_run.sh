#!/usr/bin/env bash
# Runs the demo's fine-tune and says what came of it. Fails when anything that it promises did not happen: it is a test, too.
# Needs the program, demo/model and demo/data (tools/demo.sh makes them). Further arguments go to `plimsoll launch`, which PLIMSOLL names.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

program=${PLIMSOLL:-build/plimsoll}
run=demo/run
log=demo/console.log

rm -rf "$run"
began=$SECONDS
"$program" launch -n 2 --config configs/demo.toml "$@" 2>&1 | tee "$log"
took=$((SECONDS - began))

failed=0
# check TEXT COMMAND...: says whether the promise of that text was kept.
check() {
  local text=$1
  shift
  if "$@"; then
    echo "  yes  $text"
  else
    echo "  NO   $text"
    failed=1
  fi
}

# count FILE PATTERN: lines that match.
count() { grep -Ec "$2" "$1" || true; }
less() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a != "" && b != "" && a + 0 < b + 0) }'; }

growths() { grep -Ec 'micro-batch [0-9]+ -> [0-9]+, since .* is available' "$run/decisions.jsonl" || true; }
error_at() { sed -nE "s/^held-out action error at the $1: ([0-9.]+) .*/\1/p" "$log" | tail -1; }
constant=$(sed -nE 's/^held-out action error at the end: .*best constant action ([0-9.]+).*/\1/p' "$log" | tail -1)
start=$(error_at start)
end=$(error_at end)
retries=$(grep -Eo '"retries":[1-9][0-9]*' "$run/metrics.jsonl" | wc -l)
unfit=$(count "$run/decisions.jsonl" 'did not fit on rank')
drops=$(count "$log" 'budget changes from .* after [1-9][0-9]* allocations')
recovered=$(count "$log" 'out of memory.*, .* wanted; drained and replayed')
steps=$(count "$run/metrics.jsonl" '"skipped":false')
asked=$(sed -nE 's/^max_steps = ([0-9]+).*/\1/p' "$run/config.toml")
# Budgets of the two ranks as the first step reported them.
budgets=$(sed -n 1p "$run/metrics.jsonl" | grep -Eo '"budget":[0-9]+' | cut -d: -f2 | sort -u | wc -l)
decisions=$(count "$run/decisions.jsonl" '^')
checkpoint=$(sed -nE 's/^ *"checkpoint": "(.*)",?/\1/p' "$run/exit.json")

echo
echo "The demo, ${took} s:"
check "the plan and what its peak is made of, before the first step" grep -Eq '^predicted peak of the heaviest' "$log"
check "a status line a window and progress lines" test "$(count "$log" '^\[memory\] window')" -ge 10 -a "$(count "$log" 'step [0-9]+/[0-9]+ .* samples/s')" -ge 10
check "two ranks with unequal budgets took $decisions decisions together ($run/decisions.jsonl)" test "$budgets" -eq 2 -a "$decisions" -gt 0
check "the plan grew $(growths) time(s)" test "$(growths)" -ge 1
check "out of memory after a budget was lowered in mid-step, $recovered time(s), recovered by replaying" test "$recovered" -ge 1 -a "$drops" -ge 1
check "out of memory in no other step, heavy samples or not" test "$retries" -eq 1 -a "$unfit" -eq 0
check "no step was lost: $steps of $asked" test "$steps" -eq "${asked:-0}"
check "held-out action error: $start at the start, $end at the end" less "$end" "$start"
check "which beats the best constant action, $constant" less "$end" "$constant"
check "the adapter, in PEFT's format: $checkpoint/adapter" test -s "$checkpoint/adapter/adapter_model.safetensors"
exit "$failed"
