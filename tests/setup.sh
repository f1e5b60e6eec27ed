#!/bin/sh
# Make the virtual environment from the hash-locked requirements: with uv when it is there or can be had, else with pip.
set -eu
python=$1 venv=$2
if [ -z "$python" ] || ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "setup: Python 3.11 or newer is needed, found: ${python:-none}; install one or say which: make PYTHON=/path/to/python3.12 $*" >&2
    exit 1
fi
if ! "$python" -m venv --clear "$venv"; then
    echo "setup: $python cannot make a virtual environment; install its venv package (Debian: apt install python3-venv)" >&2
    exit 1
fi
echo "setup: installing the locked requirements into $venv ..."
if command -v uv >/dev/null 2>&1; then
    uv=$(command -v uv)
elif "$venv/bin/python" -m pip install --quiet --disable-pip-version-check uv; then
    uv="$venv/bin/uv"
else
    uv=""
fi
if [ -n "$uv" ]; then
    VIRTUAL_ENV="$PWD/$venv" "$uv" pip install --quiet --require-hashes --link-mode copy -r requirements.txt
else
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
fi
touch "$venv/.ready"
