#!/bin/sh
# Share the test files out to two processes, and run molecule beside them, for none of the three keeps a core busy; molecule's lines come last.
set -eu
log=$(mktemp)
sh tests/molecule.sh >"$log" 2>&1 &
molecule=$!
trap 'kill "$molecule" 2>/dev/null || true; rm -f "$log"' EXIT
echo "tests: unit and database tests are shown first; molecule runs beside them, its lines come afterwards"
tests=0 scenarios=0
python -m pytest -q -n 2 --dist loadfile || tests=$?
wait "$molecule" || scenarios=$?
trap 'rm -f "$log"' EXIT
cat "$log"
[ "$tests" -eq 0 ] && [ "$scenarios" -eq 0 ]
