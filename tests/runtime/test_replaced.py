"""The bytes that were hashed are the bytes that run: a bundle that is replaced under a model changes nothing for it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.forge import sign
from titans_runtime import BundleError, load, native
from titans_runtime.devices import ort_sessions

TOKENS = list(b"more than a chunk of thirty-two tokens, so that every graph is needed")


def other(bundle: Path, folder: Path) -> Path:
    """The bundle with other weights, and a signature that vouches for them."""
    shutil.copytree(bundle, folder)
    file = folder / "weights.safetensors"
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    numbers = np.frombuffer(content[start:], np.float32) * np.float32(1.5)
    file.unlink()
    file.write_bytes(content[:start] + numbers.tobytes())
    sign(folder, json.loads((folder / "manifest.json").read_text(encoding="utf-8")))
    return folder


def swap(live: Path, new: Path) -> None:
    """Put another bundle in the place of one, as an export that overwrites does."""
    shutil.copytree(new, live.with_name("new"))
    shutil.rmtree(live)
    live.with_name("new").rename(live)


@pytest.fixture(params=["fused", "portable"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With kernels, and without."""
    if request.param == "portable":
        monkeypatch.setenv(native.SWITCH, "off")
    return str(request.param)


@pytest.mark.parametrize("fed", [0, 1, len(TOKENS)])
def test_a_model_goes_on_as_it_was_loaded(tiny_bundle: Path, tmp_path: Path, form: str, fed: int) -> None:
    live = tmp_path / "live.titans"
    shutil.copytree(tiny_bundle, live)
    new = other(tiny_bundle, tmp_path / "other.titans")
    expected = load(tiny_bundle, provider="cpu", threads=1).session()
    strange = load(new, provider="cpu", threads=1).session()
    model = load(live, provider="cpu", threads=1)
    session = model.session()
    if fed:
        session.feed(TOKENS[:fed])
        expected.feed(TOKENS[:fed])
        strange.feed(TOKENS[:fed])
    swap(live, new)
    told = session.feed(TOKENS)
    np.testing.assert_array_equal(told, expected.feed(TOKENS))
    assert not np.allclose(told, strange.feed(TOKENS), atol=1e-3)
    np.testing.assert_array_equal(
        model.session().feed(TOKENS), load(tiny_bundle, provider="cpu", threads=1).session().feed(TOKENS)
    )


def test_a_bundle_that_is_gone_goes_on_too(tiny_bundle: Path, tmp_path: Path, form: str) -> None:
    live = tmp_path / "live.titans"
    shutil.copytree(tiny_bundle, live)
    session = load(live, provider="cpu", threads=1).session()
    shutil.rmtree(live)
    expected = load(tiny_bundle, provider="cpu", threads=1).session().feed(TOKENS)
    np.testing.assert_array_equal(session.feed(TOKENS), expected)


def test_a_replacement_in_the_middle_of_making_a_session_is_noticed(
    tiny_bundle: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = tmp_path / "live.titans"
    shutil.copytree(tiny_bundle, live)
    new = other(tiny_bundle, tmp_path / "other.titans")
    model = load(live, provider="cpu", threads=1)
    module = ort_sessions.import_onnxruntime()
    real = module.InferenceSession
    swapped: list[bool] = []

    def late(*args: object, **choices: object) -> object:
        if not swapped:
            swapped.append(True)
            swap(live, new)
        return real(*args, **choices)

    monkeypatch.setattr(module, "InferenceSession", late)
    told = model.session().feed(TOKENS)
    monkeypatch.undo()
    if form == "portable":
        monkeypatch.setenv(native.SWITCH, "off")
    assert swapped
    np.testing.assert_array_equal(told, load(tiny_bundle, provider="cpu", threads=1).session().feed(TOKENS))


def test_weights_that_are_written_over_in_place_are_an_error(tiny_bundle: Path, tmp_path: Path, form: str) -> None:
    live = tmp_path / "live.titans"
    shutil.copytree(tiny_bundle, live)
    session = load(live, provider="cpu", threads=1).session()
    file = live / "weights.safetensors"
    os.utime(file, ns=(1, 1))
    with pytest.raises(BundleError, match="was changed while it was loaded; load the bundle again"):
        session.feed(TOKENS)


def test_a_tokenizer_that_is_replaced_before_it_is_opened_is_an_error(
    tiny_checkpoint_with_tokenizer: Path, tmp_path: Path
) -> None:
    from tests.conftest import titans

    live = tmp_path / "live.titans"
    titans("export", tiny_checkpoint_with_tokenizer, "--out", live, "--verify-tokens", "0")
    model, kept = load(live, provider="cpu"), load(live, provider="cpu")
    expected = kept.encode("return x")
    text = (live / "tokenizer.json").read_text(encoding="utf-8")
    (live / "tokenizer.json").unlink()
    (live / "tokenizer.json").write_text(text.replace('"return"', '"retort"'), encoding="utf-8")
    with pytest.raises(BundleError, match=r"tokenizer\.json is not the file that was exported"):
        model.encode("return x")
    assert kept.encode("return x") == expected
