#!/usr/bin/env bash
# A Vulkan device without a GPU, for the WebGPU tests: Debian's Vulkan loader, and SwiftShader as its chromium-common
# ships it (Mesa's llvmpipe is refused by the WebGPU provider). Where packages cannot be installed the tests skip.
set -u
icd=/usr/lib/chromium/vk_swiftshader_icd.json
if [[ -f $icd ]] && ldconfig -p | grep -q 'libvulkan\.so\.1'; then
  echo "WebGPU: software device already here"
elif ! command -v apt-get >/dev/null || [[ $(id -u) != 0 ]]; then
  echo 'WebGPU: no apt-get, or not root; its tests will skip'
elif { apt-get update && apt-get install -y --no-install-recommends libvulkan1 chromium-common; } >/dev/null 2>&1; then
  echo 'WebGPU: software device installed'
else
  echo 'WebGPU: libvulkan1 and chromium-common cannot be installed here; its tests will skip'
fi
