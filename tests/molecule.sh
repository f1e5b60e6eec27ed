#!/bin/sh
# Run the molecule scenarios in their order on one lab of their own; the lab is deleted whatever happens.
set -eu
export ANSIBLE_NOCOLOR=1 PY_COLORS=0 ANSIBLE_FORCE_COLOR=0
destroy() { molecule destroy -s default >/dev/null 2>&1 || true; }
trap destroy EXIT
rm -rf artifacts/molecule
molecule create -s default
for scenario in check migrate rollback; do
    [ "$scenario" = rollback ] || true
    molecule test -s "$scenario"
done
molecule test -s default
echo "molecule: every scenario passed"
