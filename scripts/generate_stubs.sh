#!/usr/bin/env bash
# Generates andon/api from protos/. With --check: fails when the committed stubs differ.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

export PATH="$(dirname "$python"):$PATH"
find "$root/protos" -name '*.proto' -printf '%P\n' | sort | xargs "$python" -m grpc_tools.protoc \
  --proto_path="$root/protos" \
  --python_out="$out" --grpc_python_out="$out" --mypy_out="$out" --mypy_grpc_out="$out"
# Packages, so that the stubs import by path.
find "$out/andon/api" -type d -exec touch {}/__init__.py \;
printf '"""Generated protocol stubs; never edited by hand (make proto)."""\n' > "$out/andon/api/__init__.py"

if [ "${1:-}" = "--check" ]; then
  diff -r --exclude=__pycache__ "$out/andon/api" "$root/andon/api" \
    || { echo "andon/api differs from protos/: run 'make proto'" >&2; exit 1; }
else
  rm -rf "$root/andon/api"
  mkdir -p "$root/andon"
  cp -r "$out/andon/api" "$root/andon/api"
fi
