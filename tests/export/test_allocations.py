"""Memory refused to the kernels at every place in turn: an error of ours, the session as it was, and it goes on."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from hatch_build import build as compile_kernels
from tests.titans_core.decoder.grafts import GRAFTS, grafted
from titans_core.config import TitansConfig
from titans_core.model import TitansModel
from titans_export.export import export_model
from titans_runtime import ExecutionError, Model, load, native

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(native.kernels() is None, reason=native.described()),
]

# At least so many of each, every operator and head among them: 1,266 were counted.
PLACES = {"lmm": 80, "mal": 120, "mag": 120, "mac": 180, "before": 500, "side": 120}
TOKENS = [[1] * 23, [2], [3] * 3, *[[4]] * 6]  # chunks, a part of one, single tokens over a chunk's end


@pytest.fixture(scope="module")
def refuse(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], int]:
    """Kernels whose n-th request for memory from now on is refused; 0: none. Returns how many there have been."""
    library = tmp_path_factory.mktemp("kernels") / "titans_kernels.so"
    assert compile_kernels(native.LIBRARY.parent, library, "-DTITANS_FAIL_ALLOC", "-O1") is None
    found = ctypes.CDLL(str(library))
    found.titans_refuse.argtypes, found.titans_refuse.restype = [ctypes.c_long], ctypes.c_long
    found.titans_isa.restype = ctypes.c_char_p
    found.titans_finite.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    kernels = native.Kernels(library, found.titans_isa().decode(), found.titans_finite)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(native, "found", lambda: (kernels, ""))
        yield lambda n: int(found.titans_refuse(n))  # type: ignore[misc]


def a_model(variant: str, folder: Path, threads: int) -> Model:
    torch.manual_seed(3)
    if variant in GRAFTS:
        decoder, dtype = grafted(variant), "int8" if variant == "before" else "fp32"
        export_model(decoder, folder / "m.titans", dtype=dtype, verify_tokens=0)
        return load(folder / "m.titans", provider="cpu", threads=threads)
    shape = {"variant": variant, "dim": 36, "layers": 2, "heads": 3, "chunk": 10, "window": 14, "ffn_hidden": 50}
    persistent = 0 if variant == "lmm" else 3
    config = TitansConfig.from_dict(shape | {"vocab_size": 50, "persistent_tokens": persistent, "memory": {"heads": 3}})
    model = TitansModel(config)
    export_model(model, folder / "m.titans", verify_tokens=0)
    return load(folder / "m.titans", provider="cpu", threads=threads)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("variant", ["lmm", "mal", "mag", "mac", "before", "side"])
def test_memory_refused_at_any_place_is_an_error_and_nothing_has_changed(
    refuse: Callable[[int], int], variant: str, threads: int, tmp_path: Path
) -> None:
    model = a_model(variant, tmp_path, threads)
    places = 0
    session, twin, first = model.session(), model.session(), model.session()
    for tokens in TOKENS:
        first.feed(tokens)  # loading graphs asks for memory too, once
    refuse(0)
    for tokens in TOKENS:
        twin.feed(tokens)
        count = refuse(0)
        assert count > 0
        places += count
        for n in range(1, count + 1):
            before = session.mark()
            refuse(n)
            with pytest.raises(ExecutionError, match=r"refused the working memory.*;"):
                session.feed(tokens)
            refuse(0)
            assert session.position == before.position
        session.feed(tokens)
        refuse(0)
        assert session.to_bytes() == twin.to_bytes()
    assert places >= PLACES[variant]


def test_graphs_that_are_loaded_without_memory_are_refused_and_load_later(
    refuse: Callable[[int], int], tmp_path: Path
) -> None:
    from titans_runtime import BundleError

    model = a_model("mac", tmp_path, 1)
    refused = 0
    for n in range(1, 200):
        refuse(n)
        try:
            model.session().feed([1])
        except (BundleError, ExecutionError):
            refused += 1
            continue
        finally:
            refuse(0)
        break
    assert refused > 3
    np.testing.assert_array_equal(model.session().feed([1]), model.session().feed([1]))
