#!/usr/bin/env bash
# Set up the runtime (no PyTorch) in .venv and restore a photograph with the embedded model.
set -euo pipefail
photo=${1:+$(realpath -- "$1")}
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "needs Python 3.11 or newer; set PYTHON=…" >&2; exit 1; }
[ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
echo "installing diffplugin and its runtime dependencies …"
.venv/bin/python -m pip install --quiet --disable-pip-version-check '.[cpu]'
.venv/bin/dp-infer "${photo:-docs/examples/moose-dark.jpg}" "${2:-brighten this dark photo}" --compare -o restored.png
echo "before and after, side by side: $PWD/restored-compare.png"
