#!/bin/sh
# What the container holds, in a fresh folder: sh deploy/build-root.sh SOURCE ROOT EXTRAS
# The Dockerfile calls it; so does a test, where no container engine runs.
set -eu
source=$1 root=$2 extras=${3:-serve}
python=${PYTHON:-python3}
"$python" -m venv --without-pip "$root"
"$python" -m venv "$root.tools"
"$root.tools/bin/python" -m pip --python "$root/bin/python" install --quiet --no-cache-dir --no-compile \
    --disable-pip-version-check "$source[$extras]"
rm -rf "$root.tools"
# What a server never opens: tests, headers, bytecode, and libraries that only development needs.
find "$root" -depth -type d \( -name __pycache__ -o -name tests -o -name include \) -exec rm -rf {} +
find "$root" -name '*.pyi' -delete
du -sm "$root" | cut -f1
