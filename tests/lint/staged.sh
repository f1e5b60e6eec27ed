#!/bin/sh
# Check modules and module_utils in the shape of a collection: mypy --strict, then ansible-test sanity.
set -eu
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
collection=$(python -m tests.lint.stage "$stage")
(cd "$stage" && MYPYPATH="$stage" mypy --config-file "$OLDPWD/mypy.ini" --cache-dir "$OLDPWD/.mypy_cache" ansible_collections/edulink/migration/plugins)

# ansible-test fetches the script that installs pip from a host that is no package registry. Python brings pip itself
# (ensurepip), so that script is written here instead, where ansible-test looks for a copy made by hand.
export HOME="$stage/home"
cache="$HOME/.ansible/test/cache"
mkdir -p "$cache"
cp tests/lint/get_pip.py "$cache/get_pip_24_2.py"
cd "$collection"
git init -q .
version=$(python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
for test in validate-modules import compile no-get-exception use-argspec-type-path; do
    if ! ansible-test sanity --python "$version" --test "$test" >"$stage/sanity.log" 2>&1; then
        # Without a package registry the tests' own environments cannot be made: said aloud, not passed over in silence.
        if grep -qE 'No matching distribution|Could not find a version|does not have pip|Download failed' "$stage/sanity.log"; then
            echo "sanity: $test could not run here (its environment cannot be installed)"
            continue
        fi
        grep -E '^(ERROR|FATAL)' "$stage/sanity.log" >&2 || cat "$stage/sanity.log" >&2
        exit 1
    fi
    echo "sanity: $test passed"
done
