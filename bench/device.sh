#!/usr/bin/env bash
# Every check and timing of one device in ten minutes, for a machine that is lent for a quarter of an hour:
#
#     bench/device.sh [FOLDER]        (bench-results/device if not given)
#
# Writes JSON, tables, plots and logs of all parts into FOLDER and FOLDER.tar.gz, goes on where a part fails or runs out
# of time, and ends with a line for each part. It needs an environment with JAX for the device and the extra `test`, and
# no network; from a folder of wheels: pip install --no-index --find-links WHEELS "jax[cuda13]" ".[test]".
#
# PARTS names the parts and their seconds, TESTS the files of tests, QUICK=1 makes them small (to try the script on a
# CPU), WORKERS is the number of processes of the tests, PYTHON the interpreter.
set -uo pipefail

out=${1:-"$(dirname "$0")/../bench-results/device"}
mkdir -p "$out" || exit 1
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python}
quick=${QUICK:-}
export PYTHONUNBUFFERED=1 MPLBACKEND=Agg
# The tests are several processes on one device; the layers of models take most of 80 GB.
export XLA_PYTHON_CLIENT_PREALLOCATE=false XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}

{
    date -u
    uname -a
    git log -1 --format='commit %H' || true
    "$python" --version
    "$python" -m pip list
    if command -v nvidia-smi; then nvidia-smi; fi
} >"$out/environment.txt" 2>&1

platform=$(timeout 120 "$python" -c 'import jax; print(jax.devices()[0].platform)' 2>"$out/platform.log") ||
    { cat "$out/platform.log" >&2; echo "JAX does not start" >&2; exit 1; }
if [ "$platform" = cpu ] && command -v nvidia-smi >/dev/null; then
    echo "warning: there is a GPU, but JAX has found a cpu: see $out/platform.log" >&2
fi

check=("$python" -m jaxloss --json "$out/check.json")
alone=("$python" -m bench --only alone --device "$platform" --out "$out")
linear=("$python" -m bench --only linear --full --device "$platform" --out "$out") # on accelerators, layers of models
tests=("$python" -m pytest -q --tb=short -rf -n "${WORKERS:-4}" --dist worksteal -p no:cacheprovider -p no:benchmark
    ${TESTS:-tests/test_accuracy.py tests/test_edges.py} --junitxml "$out/tests.xml")
if [ -n "$quick" ]; then
    check+=(--no-speed)
    alone=("$python" -m bench --only dense --device "$platform" --out "$out")
    linear=("$python" -m bench --only linear --device "$platform" --out "$out")
    tests+=(-k "cross_entropy and float32")
fi

summary=$out/summary.txt
echo "$platform, $(date -u +%FT%TZ)" | tee "$summary"
failures=0
for part in ${PARTS:-check:120 alone:180 linear:150 tests:140}; do
    name=${part%:*} seconds=${part#*:}
    case $name in
    check) command=("${check[@]}") ;;
    alone) command=("${alone[@]}") ;;
    linear) command=("${linear[@]}") ;;
    tests) command=("${tests[@]}") ;;
    *) echo "no part named $name" >&2; exit 2 ;;
    esac
    start=$SECONDS
    # An interrupt lets bench and pytest write what they have so far.
    timeout --signal INT --kill-after 10 "$seconds" "${command[@]}" >"$out/$name.log" 2>&1
    case $? in
    0) result=ok ;;
    124 | 137) result="timed out" ;;
    *) result=failed ;;
    esac
    [ "$result" = ok ] || failures=$((failures + 1))
    printf '%-8s %-10s %4d s of %4d   %s\n' "$name" "$result" $((SECONDS - start)) "$seconds" \
        "$(grep . "$out/$name.log" | tail -n 1 | cut -c 1-100)" | tee -a "$summary"
done
tar -czf "$out.tar.gz" -C "$(dirname "$out")" "$(basename "$out")"
[ "$failures" -eq 0 ]
