#!/usr/bin/env bash
# Set up everything for development in .venv-test, then lint, type-check, build the API reference and run
# the quick tests.
# Arguments go to pytest: scripts/test.sh -m slow
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
[ -x .venv-test/bin/python ] || "$PYTHON" -m venv .venv-test
. .venv-test/bin/activate
# Pinned before the rest: any newer release would be fetched with gigabytes of CUDA libraries.
python -m pip install --quiet --disable-pip-version-check "torch==2.13.0"
# Strict: type checkers follow its links; a lenient one hides the package from them (docs/decisions/0007-the-packages.md).
python -m pip install --quiet --disable-pip-version-check -e '.[test]' --config-settings editable_mode=strict
# ONNX Runtime's GPU build in a folder of its own, for the tests on the stand-in for CUDA.
if [ "$(uname -sm)" = "Linux x86_64" ]; then python scripts/onnxruntime_gpu.py; fi
ruff check .
ruff format --check .
mypy
mypy tests setup.py
python scripts/api_docs.py build/api
# The quick tests run in two processes of one thread each. With arguments pytest does as it is told: slow tests measure.
if [ $# -eq 0 ]; then
  export OMP_NUM_THREADS=1
  set -- -n 2 --dist loadfile
fi
OMP_WAIT_POLICY=passive python -m pytest -q "$@"
