"""titans-runtime in Node computes what Python's runtime computes: the same bits, in any pieces, and from its states."""

from __future__ import annotations

import base64
import json
import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import titans_runtime
from tests.export.conftest import build
from tests.npm.conftest import Node, RefusalError, floats, spelt
from titans_export.export import export_model
from titans_runtime import Model, SamplingOptions
from titans_runtime.stream.state_file import read_header

TOKENS = 600
PIECES = (1, 1, 1, 2, 3, 7, 16, 17, 33, 100)
OURS = ("mac-tokens", "mag-tokens", "mal-tokens", "lmm-tokens", "decoder-tokens", "mac-continuous")
KINDS = (*OURS, "bf16")


def exported(kind: str, folder: Path) -> Path:
    """A bundle of every variant, of a decoder with a memory, or in half precision."""
    path = folder / f"{kind}.titans"
    dtype = kind if kind == "bf16" else "fp32"
    export_model(build(kind if dtype == "fp32" else "mag-tokens"), path, dtype=dtype, verify_tokens=0)
    return path


@pytest.fixture(scope="module", params=KINDS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of each kind."""
    return exported(request.param, tmp_path_factory.mktemp("npm"))


@pytest.fixture(scope="module")
def mac(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the tests that need but one."""
    return exported("mac-tokens", tmp_path_factory.mktemp("npm"))


@pytest.fixture(autouse=True)
def portable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's portable graphs are what Node runs."""
    monkeypatch.setenv("TITANS_KERNELS", "off")


def loaded(node: Node, bundle: Path, name: str = "m") -> Model:
    """The bundle in both."""
    node("load", model=name, bundle=str(bundle), options={"threads": 1})
    return titans_runtime.load(bundle, provider="cpu", threads=1)


def stream(model: Model, count: int = TOKENS, seed: int = 0) -> np.ndarray[Any, Any]:
    random, features = np.random.default_rng(seed), getattr(model.manifest.inputs, "features", 0)
    if features:
        return random.standard_normal((count, features)).astype(np.float32)
    return random.integers(0, model.manifest.inputs.outputs, count)


def cut(inputs: np.ndarray[Any, Any], seed: int = 1) -> list[np.ndarray[Any, Any]]:
    """A stream in random pieces."""
    random, pieces, at = np.random.default_rng(seed), [], 0
    while at < len(inputs):
        pieces.append(inputs[at : at + int(random.choice(PIECES))])
        at += len(pieces[-1])
    return pieces


def fed(node: Node, session: str, pieces: list[np.ndarray[Any, Any]], width: int) -> tuple[Any, Any]:
    """What comes out in Node: of every token, and surprise."""
    vectors = pieces[0].ndim == 2
    spelled = [spelt(piece) if vectors else piece.tolist() for piece in pieces]
    found = node("feed", session=session, pieces=spelled, vectors=vectors)
    every = floats(found["all"]).reshape(-1, width)
    assert np.array_equal(floats(found["last"]), every[-1])
    return every, floats(found["surprise"])


def test_random_pieces_give_the_same_bits_as_in_python(bundle: Path, node: Node) -> None:
    python = loaded(node, bundle)
    node("open", model="m", session="s")
    inputs, session = stream(python), python.session()
    pieces = cut(inputs)
    every, surprise = fed(node, "s", pieces, python.manifest.inputs.outputs)
    wanted = [(session.feed(piece, all_logits=True), session.surprise_by_layer) for piece in pieces]
    assert np.array_equal(every, np.concatenate([logits for logits, _ in wanted]))
    assert np.array_equal(surprise, np.concatenate([layers.ravel() for _, layers in wanted]))


def test_states_go_from_python_to_node_and_back(bundle: Path, node: Node, tmp_path: Path) -> None:
    python = loaded(node, bundle)
    inputs = stream(python, 130)
    session, width = python.session(), python.manifest.inputs.outputs
    session.feed(inputs[:57])
    session.save(tmp_path / "python.state", compress=True)
    assert node("restore", model="m", session="s", path=str(tmp_path / "python.state")) == 57
    pieces = cut(inputs[57:91])
    every, _ = fed(node, "s", pieces, width)
    assert np.array_equal(every, np.concatenate([session.feed(piece, all_logits=True) for piece in pieces]))
    node("save", session="s", path=str(tmp_path / "node.state"))
    data = (tmp_path / "node.state").read_bytes()
    header, wanted = read_header(data, "ours"), read_header(session.to_bytes(), "theirs")
    assert asdict(header.totals) == pytest.approx(asdict(wanted.totals), rel=1e-12)
    assert replace(header, totals=wanted.totals) == wanted
    back = python.restore(tmp_path / "node.state")
    assert np.array_equal(back.feed(inputs[91:], all_logits=True), session.feed(inputs[91:], all_logits=True))


def test_forks_marks_and_resets_stand_where_they_should(node: Node, mac: Path) -> None:
    python = loaded(node, mac)
    inputs, width = stream(python, 120), python.manifest.inputs.outputs
    session = python.session()
    node("open", model="m", session="s")
    first, _ = fed(node, "s", [inputs[:37]], width)
    node("fork", session="s", to="f")
    node("mark", session="s", mark="here")
    one, _ = fed(node, "s", [inputs[37:90]], width)
    other, _ = fed(node, "f", [inputs[37:90]], width)
    assert node("rewind", session="s", mark="here") == 37
    again, _ = fed(node, "s", [inputs[37:90]], width)
    node("reset", session="s")
    anew, _ = fed(node, "s", [inputs[:37]], width)
    assert np.array_equal(first, session.feed(inputs[:37], all_logits=True))
    wanted = session.feed(inputs[37:90], all_logits=True)
    for found in (one, other, again):
        assert np.array_equal(found, wanted)
    assert np.array_equal(anew, first)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": 0.9, "seed": 7},
        {"temperature": 1.3, "seed": 2**53 - 1, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2},
    ],
)
def test_generated_tokens_are_those_of_python(node: Node, mac: Path, options: dict[str, Any]) -> None:
    python = loaded(node, mac)
    prompt = stream(python, 21).tolist()
    session = python.session()
    wanted = list(session.generate_tokens(prompt, 40, SamplingOptions(**options)))
    names = {"top_k": "topK", "top_p": "topP", "min_p": "minP", "repetition_penalty": "repetitionPenalty"}
    node("open", model="m", session="s")
    ours = {names.get(name, name): value for name, value in options.items()}
    found = node("generate", session="s", prompt=prompt, options={"maxNewTokens": 40, **ours})
    assert found["tokens"] == wanted
    assert found["ended"] == "length"
    stop = found["tokens"][5]
    node("reset", session="s")
    ended = node("generate", session="s", prompt=prompt, options={"maxNewTokens": 40, "stopIds": [stop], **ours})
    assert ended["tokens"] == found["tokens"][: found["tokens"].index(stop) + 1]
    assert ended["ended"] == "stop"


def test_wrong_calls_change_nothing_and_say_what_to_do(node: Node, mac: Path) -> None:
    loaded(node, mac)
    node("open", model="m", session="s")
    node("feed", session="s", pieces=[[1, 2, 3]])
    before = node("bytes", session="s")
    for do, arguments, code in (
        ("feed", {"pieces": [[]]}, "input"),
        ("feed", {"pieces": [[50]]}, "input"),
        ("feed", {"pieces": [[1.5]]}, "input"),
        ("feed", {"pieces": ["AAAAAA=="], "vectors": True}, "input"),
        ("generate", {"prompt": [1], "options": {"temperature": -1}}, "input"),
        ("generate", {"prompt": [1], "options": {"stopIds": [99]}}, "input"),
    ):
        with pytest.raises(RefusalError, match=r";|,") as caught:
            node(do, session="s", **arguments)
        assert caught.value.code == code
    assert node("bytes", session="s") == before
    assert node("together", session="s", ids=[4, 5]) == ["ok", "busy"]


def every_graph(node: Node, bundle: Path) -> None:
    """Load a bundle and use all that is in it."""
    node("load", model="d", bundle=str(bundle), options={})
    node("open", model="d", session="d")
    node("feed", session="d", pieces=[list(range(20)), *([1] for _ in range(30))])


def test_damaged_and_foreign_states_and_bundles_are_refused(node: Node, mac: Path, tmp_path: Path) -> None:
    loaded(node, mac)
    node("open", model="m", session="s")
    node("feed", session="s", pieces=[[1, 2, 3]])
    data = bytearray(base64.b64decode(node("bytes", session="s")))
    random = np.random.default_rng(0)
    for at in [*random.integers(0, len(data), 60).tolist(), 0, 9, len(data) - 1]:
        damaged = bytearray(data)
        damaged[at] ^= 1 << int(random.integers(8))
        with pytest.raises(RefusalError) as caught:
            node("restore", model="m", session="d", bytes=base64.b64encode(damaged).decode())
        assert caught.value.code == "state", at
    for end in (0, 7, 8, 100, len(data) - 1):
        with pytest.raises(RefusalError) as caught:
            node("restore", model="m", session="d", bytes=base64.b64encode(data[:end]).decode())
        assert caught.value.code == "state"
    wanted = json.loads((mac / "manifest.json").read_text())
    graphs = [graph["file"] for graph in wanted["graphs"]]
    for file in ("manifest.json", wanted["weights"]["file"], wanted["initial_state"]["file"], *graphs):
        copy = tmp_path / "copy.titans"
        subprocess.run(["rm", "-rf", str(copy)], check=True)
        subprocess.run(["cp", "-r", str(mac), str(copy)], check=True)
        content = bytearray((copy / file).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / file).write_bytes(content)
        with pytest.raises(RefusalError) as caught:
            every_graph(node, copy)
        assert caught.value.code == "bundle", file


def test_the_package_is_small_and_has_no_onnx_runtime(package: Path) -> None:
    command = ["npm", "pack", "--dry-run", "--json", "--ignore-scripts"]
    done = subprocess.run(command, cwd=package, capture_output=True, text=True, check=True)
    (packed,) = json.loads(done.stdout)
    assert packed["size"] <= 300_000
    names = {file["path"] for file in packed["files"]}
    assert {"dist/index.js", "dist/index.d.ts", "dist/browser.js", "README.md"} <= names
    assert not [name for name in names if name.endswith((".wasm", ".node")) or "node_modules" in name]
