"""libtitans computes what Python's runtime computes: the same bits, in any pieces, and from each other's states."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import titans_runtime
from tests.libtitans.binding import CModel, CSession, Library
from tests.libtitans.conftest import Case
from titans_runtime import SamplingOptions, Session, native

TOKENS = 2000
PIECES = (1, 1, 1, 2, 3, 7, 16, 17, 33, 100)
FUSED = ("mac-tokens", "mag-tokens", "mal-tokens", "lmm-tokens", "decoder-tokens", "mag-int8")
STORED = ("mac-tokens", "decoder-tokens", "mac-continuous", "imported", "mac-bf16")
CLOSE = 5e-6  # of a logit of size 1: fused kernels sum in another order


def stream(model: CModel, count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    random = np.random.default_rng(seed)
    info = model.info
    if info.features:
        return random.standard_normal((count, info.features)).astype(np.float32)
    return random.integers(0, info.vocab_size, count)


def fed_in_pieces(ours: CSession, theirs: Session, inputs: np.ndarray[Any, Any]) -> float:
    """The largest difference, of logits relative to their size where that is above 1, and of surprise."""
    random, at, worst = np.random.default_rng(1), 0, 0.0
    while at < len(inputs):
        piece = inputs[at : at + int(random.choice(PIECES))]
        every, surprise, last = ours.feed(piece)
        want = theirs.feed(piece, all_logits=True)
        assert np.array_equal(last, every[-1])
        worst = max(worst, float((np.abs(every - want) / np.maximum(1, np.abs(want))).max()))
        layers = theirs.surprise_by_layer
        worst = max(worst, float((np.abs(surprise - layers) / np.maximum(1, np.abs(layers))).max(initial=0)))
        at += len(piece)
    assert ours.position == theirs.position == len(inputs)
    return worst


@pytest.mark.usefixtures("portable")
def test_random_pieces_give_the_same_bits_as_in_python(case: Case, library: Library, onnxruntime_library: Path) -> None:
    model = CModel(library, case.path, onnxruntime_library)
    python = titans_runtime.load(case.path, provider="cpu", threads=1)
    assert not model.info.fused
    assert model.info.state_bytes == python.state_bytes
    assert fed_in_pieces(model.session(), python.session(), stream(model, TOKENS)) == 0


@pytest.mark.parametrize("case", FUSED, indirect=True)
def test_with_fused_kernels_it_stays_close(
    case: Case, library: Library, onnxruntime_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = native.kernels()
    if kernels is None:
        pytest.skip(f"this installation is {native.described()}")
    # Python's ONNX Runtime is another copy of it in this process, and each needs a copy of the kernels of its own.
    own = Path(shutil.copy(kernels.path, tmp_path / "titans_kernels.so"))
    model = CModel(library, case.path, onnxruntime_library, own)
    inputs = stream(model, 400)
    python = titans_runtime.load(case.path, provider="cpu", threads=1)
    assert fed_in_pieces(model.session(), python.session(), inputs) == 0
    monkeypatch.setenv(native.SWITCH, "off")
    portable = titans_runtime.load(case.path, provider="cpu", threads=1)
    if case.name != "mag-int8":  # codes of weights are rounded in another place
        assert fed_in_pieces(model.session(), portable.session(), inputs) <= CLOSE


@pytest.mark.usefixtures("portable")
@pytest.mark.parametrize("case", STORED, indirect=True)
def test_a_saved_session_goes_on_in_the_other_language(
    case: Case, library: Library, onnxruntime_library: Path, tmp_path: Path
) -> None:
    model = CModel(library, case.path, onnxruntime_library)
    python = titans_runtime.load(case.path, provider="cpu", threads=1)
    inputs = stream(model, 120)
    ours, theirs = model.session(), python.session()
    ours.feed(inputs[:53])
    theirs.feed(inputs[:53])
    ours.save(tmp_path / "c.state")
    theirs.save(tmp_path / "python.state")
    theirs.save(tmp_path / "small.state", compress=True)
    in_python = python.restore(tmp_path / "c.state")
    stats, known = in_python.stats, theirs.stats
    assert (stats.position, stats.commits, in_python.recent) == (known.position, known.commits, theirs.recent)
    assert stats.surprise_mean == pytest.approx(known.surprise_mean, rel=1e-12)
    assert stats.surprise_deviation == pytest.approx(known.surprise_deviation, rel=1e-6, abs=1e-12)
    want = theirs.feed(inputs[53:], all_logits=True)
    assert np.array_equal(in_python.feed(inputs[53:], all_logits=True), want)
    for name in ("python.state", "small.state", "c.state"):
        again = model.restore(tmp_path / name)
        assert np.array_equal(again.feed(inputs[53:])[0], want)
        assert python.restore_bytes(again.to_bytes()).position == len(inputs)


CHOICES: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.5},
    {"temperature": 1.0, "seed": 0},
    {"temperature": 0.7, "seed": 2**33 + 5, "top_k": 9, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2},
    {"temperature": 3.0, "seed": 7, "top_p": 0.5},
)


@pytest.mark.usefixtures("portable")
@pytest.mark.parametrize("case", ["mac-tokens", "decoder-tokens"], indirect=True)
def test_generation_chooses_the_tokens_that_python_chooses(
    case: Case, library: Library, onnxruntime_library: Path
) -> None:
    model = CModel(library, case.path, onnxruntime_library)
    python = titans_runtime.load(case.path, provider="cpu", threads=1)
    prompt = list(range(40))
    for choice in CHOICES:
        ours, theirs = model.session(), python.session()
        found = ours.generate(prompt, model.sampling(max_new_tokens=100, **choice))
        want = list(theirs.generate_tokens(prompt, 100, SamplingOptions(**choice)))
        assert found == (want, "length"), choice
        stop = want[5]
        ids = (np.ctypeslib.ctypes.c_int64 * 1)(stop)
        again = model.sampling(max_new_tokens=9, stop_ids=ids, stop_count=1, **choice)
        assert ours.generate(None, again) == (
            list(theirs.generate_tokens(None, 9, SamplingOptions(**choice), stop_ids=[stop])),
            theirs.ended,
        )
        assert ours.position == theirs.position


@pytest.mark.usefixtures("portable")
@pytest.mark.parametrize("case", ["mag-tokens", "mal-tokens", "imported"], indirect=True)
def test_any_order_of_calls_leaves_the_same_bits_as_in_python(
    case: Case, library: Library, onnxruntime_library: Path
) -> None:
    model = CModel(library, case.path, onnxruntime_library)
    python = titans_runtime.load(case.path, provider="cpu", threads=1)
    random = np.random.default_rng(3)
    pairs: list[tuple[CSession, Session]] = [(model.session(), python.session())]
    marks = [(pairs[0][0].mark(), pairs[0][1].mark())]
    for turn in range(150):
        ours, theirs = pairs[random.integers(len(pairs))]
        match random.integers(8):
            case 0:
                pairs.append((ours.fork(), theirs.fork()))
                del pairs[: max(0, len(pairs) - 4)]
            case 1:
                marks.append((ours.mark(), theirs.mark()))
            case 2:
                mine, other = marks[random.integers(len(marks))]
                ours.rewind(mine)
                theirs.rewind(other)
            case 3:
                pairs.append((model.restore_bytes(theirs.to_bytes()), python.restore_bytes(ours.to_bytes())))
            case 4 if turn % 3 == 0:
                ours.reset()
                theirs.reset()
            case _:
                piece = stream(model, int(random.choice(PIECES)), turn)
                assert np.array_equal(ours.feed(piece)[0], theirs.feed(piece, all_logits=True))
        assert ours.position == theirs.position
