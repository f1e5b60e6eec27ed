#!/bin/sh
# Run most database tests, and beside them the others and molecule, for neither keeps two cores busy; the lines of the second half come last.
set -eu
log=$(mktemp)
(python -m pytest -q --ignore=tests/database && python -m pytest -q tests/database/test_[st]*.py && sh tests/molecule.sh) >"$log" 2>&1 &
others=$!
trap 'kill "$others" 2>/dev/null || true; rm -f "$log"' EXIT
echo "tests: most of those of databases are shown first; all others and molecule run beside them, their lines come afterwards"
databases=0 rest=0
python -m pytest -q tests/database --ignore-glob='*/test_[st]*.py' || databases=$?
wait "$others" || rest=$?
trap 'rm -f "$log"' EXIT
cat "$log"
[ "$databases" -eq 0 ] && [ "$rest" -eq 0 ]
