#!/usr/bin/env bash
# The promise of the wheel: `titans-deploy[cpu]` in an empty environment, without torch and onnx, runs a bundle.
# Needs the development venv (to train and export a tiny bundle) and the wheel in dist/; `make wheel-check` makes both.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
dev=$root/.venv/bin
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

echo '-- a tiny bundle, from the development environment'
"$dev/titans" train --task text --data titans_core/*.py --variant mac --preset tiny --steps 2 --out "$work/checkpoint"
"$dev/titans" export "$work/checkpoint" --out "$work/tiny.titans"

echo '-- the wheel with the [cpu] extra in an empty environment'
python=${PYTHON:-python3}
"$python" -m venv "$work/venv" 2>/dev/null || {
  rm -rf "$work/venv"
  "$python" -m venv --without-pip "$work/venv"
  "$python" -m pip --python "$work/venv/bin/python" install --quiet pip
}
"$work/venv/bin/python" -m pip install --quiet -c constraints.txt "$(echo "$root"/dist/titans_deploy-*.whl)[cpu]"

cd "$work" # away from the source tree: what runs now came out of the wheel
"$work/venv/bin/python" - "$root" <<'PYTHON'
import importlib.util, sys, titans_runtime

for name in ("torch", "onnx", "onnxscript"):
    if importlib.util.find_spec(name):
        sys.exit(f"{name} came along with titans-deploy[cpu]; a dependency in pyproject.toml is too wide")
if titans_runtime.__file__.startswith(sys.argv[1]):
    sys.exit(f"titans_runtime was imported from the source tree: {titans_runtime.__file__}")
print("torch, onnx and onnxscript are absent")
from shutil import which
from titans_runtime import native

if (which("g++") or which("clang++")) and native.kernels() is None:
    sys.exit(f"there is a compiler, and the wheel came {native.described()}")
print(native.described())
PYTHON

echo '-- the bundle runs there'
"$work/venv/bin/titans" --version
"$work/venv/bin/titans" inspect "$work/tiny.titans" --json >"$work/inspect.json"
"$work/venv/bin/titans" run "$work/tiny.titans" --prompt 'def main():' --max-new-tokens 16 --seed 0 --json >"$work/run.json"
"$work/venv/bin/python" - "$work" <<'PYTHON'
import json, pathlib, sys

work = pathlib.Path(sys.argv[1])
json.loads((work / "inspect.json").read_text())
answer = json.loads((work / "run.json").read_text())
if answer["tokens"] != 16:
    sys.exit(f"asked for 16 tokens, got {answer}")
print(f"16 tokens generated without torch, {answer['tokens_per_second']:.0f} tokens/s")
PYTHON
echo '-- and what needs torch says so'
code=0
message=$("$work/venv/bin/titans" export "$work/checkpoint" --out "$work/again.titans" 2>&1) || code=$?
echo "$message"
[[ $code == 2 && $message == Error:*"pip install "*"'onnx>="* && $message != *Traceback* ]]
echo 'wheel check passed'
