#!/usr/bin/env bash
# What the server's tests need beside Python: Redis, PostgreSQL, and Chromium with its driver. The tests start and stop
# the programs themselves, on loopback. Where packages cannot be installed their tests skip.
set -u
missing=()
command -v redis-server >/dev/null || missing+=(redis-server)
compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || missing+=(postgresql)
command -v chromium >/dev/null || missing+=(chromium)
command -v chromedriver >/dev/null || missing+=(chromium-driver)
if ((${#missing[@]} == 0)); then
  echo 'Serving: everything already here'
elif ! command -v apt-get >/dev/null || [[ $(id -u) != 0 ]]; then
  echo "Serving: no apt-get, or not root; tests that need ${missing[*]} will skip"
elif { apt-get update && DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y --no-install-recommends "${missing[@]}"; } >/dev/null 2>&1; then
  echo "Serving: ${missing[*]} installed"
else
  echo "Serving: ${missing[*]} cannot be installed here; their tests will skip"
fi
