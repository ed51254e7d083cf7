#!/usr/bin/env bash
# lean_clone.sh OUT: a clone of the committed state without its heavy files, for a GPU machine without network that takes
# 64 MiB at a time. What is left out there is replaced by prepared parts (scripts/gpu_parts.py, docs/onnxruntime-cuda.md).
# lean_clone.sh --here: the same as the branch "lean" of this clone, where this very folder is what travels; back with
# git switch - && git branch -D lean
#
#   core/embedded                 the embedded model's bundle: prepared/embedded has its graphs for GPUs
#   plugins/embedded_checkpoint   its checkpoint, which only dp-export reads
#   tests/data                    the oracle: prepared/oracle and prepared/goldens
#   docs/examples, bench/results  pictures and numbers
set -euo pipefail
heavy=(core/embedded plugins/embedded_checkpoint tests/data docs/examples bench/results)
out=${1:?usage: lean_clone.sh OUT, or lean_clone.sh --here}
cd "$(dirname "$0")/.."
if [ "$out" = --here ]; then
    [ -z "$(git status --porcelain)" ] || { echo "lean_clone.sh: $PWD: has changes; commit them first" >&2; exit 1; }
    git switch --quiet --create lean
else
    from=$PWD
    cd "$OLDPWD"
    git clone --quiet --depth 1 "file://$from" "$out"
    cd "$out"
fi
git rm -r --quiet "${heavy[@]}"
git -c user.name=lean -c user.email=lean@localhost -c commit.gpgsign=false commit --quiet -m "Without heavy files"
git ls-files -z | xargs -0 cat | wc -c | awk '{printf "tracked: %.1f MiB\n", $1 / 1048576}'
