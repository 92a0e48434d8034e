#!/usr/bin/env bash
# What libtitans is compiled with, from Debian: cmake, nlohmann/json, OpenSSL's libcrypto and zlib. Where packages cannot
# be installed its tests skip.
set -u
missing=()
command -v cmake >/dev/null || missing+=(cmake make)
command -v g++ >/dev/null || missing+=(g++)
command -v pkg-config >/dev/null || missing+=(pkg-config)
[[ -f /usr/include/nlohmann/json.hpp ]] || missing+=(nlohmann-json3-dev)
[[ -f /usr/include/openssl/evp.h ]] || missing+=(libssl-dev)
[[ -f /usr/include/zlib.h ]] || missing+=(zlib1g-dev)
if ((${#missing[@]} == 0)); then
  echo 'libtitans: everything it is compiled with is here'
elif ! command -v apt-get >/dev/null || [[ $(id -u) != 0 ]]; then
  echo "libtitans: no apt-get, or not root; install ${missing[*]}, or its tests will skip"
elif { apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; } >/dev/null 2>&1; then
  echo "libtitans: installed ${missing[*]}"
else
  echo "libtitans: ${missing[*]} cannot be installed here; its tests will skip"
fi
