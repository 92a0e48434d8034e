"""One weight file for all graphs: safetensors on the outside, ONNX external data on the inside.

The header is padded and the tensors are ordered so that every tensor starts on a 64-byte boundary wherever sizes
allow it; the safetensors format has no padding between tensors. Knows no graph.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from titans_export.dtypes import element_type

ALIGNMENT = 64  # bytes: a cache line, and what vector loads like best


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """Write a safetensors file.

    Args:
        path: the file to make.
        tensors: by name; stored contiguous, one after the other.

    Returns:
        Byte offset in the file and length, by name.

    Raises:
        OSError: it cannot be written.
    """
    order = sorted(tensors, key=lambda name: (tensors[name].nbytes % ALIGNMENT != 0, name))
    entries, places, end = {}, {}, 0
    for name in order:
        tensor = tensors[name]
        size = tensor.nbytes
        entries[name] = {
            "dtype": element_type(tensor.dtype).safetensors,
            "shape": list(tensor.shape),
            "data_offsets": [end, end + size],
        }
        places[name] = (end, size)
        end += size
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in order:
            raw = tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            file.write(raw.data)
    start = 8 + len(header)
    return {name: (start + offset, size) for name, (offset, size) in places.items()}
