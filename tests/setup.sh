#!/bin/sh
# Make the virtual environment from the hash-locked requirements: with uv when it is there or can be had, else with pip.
set -eu
wanted=$1 venv=$2
fits() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }
python=""
for name in ${wanted:-python3 python3.14 python3.13 python3.12 python3.11}; do
    if fits "$name"; then
        python=$name
        break
    fi
done
if [ -z "$python" ]; then
    echo "setup: Python 3.11 or newer is needed, and ${wanted:-python3} is not; install one, or say where it is: make PYTHON=/path/to/python3.12 demo" >&2
    exit 1
fi
if [ -L "$venv" ]; then
    echo "setup: $venv is a link, and setting up would empty the folder that it points to; remove the link and run this again" >&2
    exit 1
fi
if ! "$python" -m venv --clear "$venv"; then
    echo "setup: $python cannot make a virtual environment; install its venv package (Debian: apt install python3-venv)" >&2
    exit 1
fi
echo "setup: installing the locked requirements into $venv with $("$python" --version) ..."
with_pip() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
uv=$(command -v uv || true)
if [ -z "$uv" ] && with_pip --require-hashes -r requirements-setup.txt; then
    uv="$venv/bin/uv"
fi
# uv reads none of pip's settings (a certificate, another index), so where it fails pip still may not.
if [ -z "$uv" ] || ! VIRTUAL_ENV="$PWD/$venv" UV_SYSTEM_CERTS=true "$uv" pip install --quiet --require-hashes --link-mode copy -r requirements.txt; then
    echo "setup: installing with pip instead, this takes a minute ..."
    with_pip --require-hashes -r requirements.txt
fi
touch "$venv/.ready"
