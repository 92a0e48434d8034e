#!/usr/bin/env bash
# NVIDIA Triton with its Python backend, for its tests: the server inside of nvidia-pytriton's wheel, and nothing that the
# wheel depends on. Where it cannot be had the tests skip.
set -u
cd "$(dirname "$0")/.." || exit 1
target=build/triton
if [[ -x $target/pytriton/tritonserver/bin/tritonserver ]]; then
  echo 'Triton: already here'
elif python3 -m pip install --quiet --no-deps --target "$target" nvidia-pytriton==0.7.0 >/dev/null 2>&1; then
  echo 'Triton: installed in build/triton'
else
  echo 'Triton: nvidia-pytriton cannot be installed here; its tests will skip'
fi
