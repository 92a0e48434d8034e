#!/usr/bin/env bash
# What titans-runtime, the package for JavaScript, is compiled and tested with: Node from Debian, and the packages that
# its lock file names. Their install scripts do not run. Where packages cannot be installed its tests skip.
set -u
cd "$(dirname "$0")/../runtime/npm" || exit 1
missing=()
command -v node >/dev/null || missing+=(nodejs)
command -v npm >/dev/null || missing+=(npm)
if ((${#missing[@]})); then
  if ! command -v apt-get >/dev/null || [[ $(id -u) != 0 ]]; then
    echo "npm: no apt-get, or not root; install ${missing[*]}, or its tests will skip"
    exit 0
  elif ! { apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; } >/dev/null 2>&1; then
    echo "npm: ${missing[*]} cannot be installed here; its tests will skip"
    exit 0
  fi
fi
if [[ -d node_modules/onnxruntime-node && node_modules/.package-lock.json -nt package-lock.json ]]; then
  echo 'npm: everything already here'
elif npm ci --no-audit --no-fund >/dev/null 2>&1; then
  echo 'npm: installed what runtime/npm/package-lock.json names'
else
  echo 'npm: the packages cannot be installed here; its tests will skip'
fi
