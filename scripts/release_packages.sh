#!/usr/bin/env bash
# What a release is tried with beside Python's packages: qemu's user mode, from Debian, which runs programs for ARM. Where
# it cannot be installed, `make release` says that the wheel for ARM was not run.
set -u
if command -v qemu-aarch64-static >/dev/null; then
  echo 'release: everything already here'
elif ! command -v apt-get >/dev/null || [[ $(id -u) != 0 ]]; then
  echo 'release: no apt-get, or not root; install qemu-user-static, or the wheel for ARM will not run'
elif { apt-get update && apt-get install -y --no-install-recommends qemu-user-static; } >/dev/null 2>&1; then
  echo 'release: installed qemu-user-static'
else
  echo 'release: qemu-user-static cannot be installed here; the wheel for ARM will not run'
fi
