"""What is fuzzed, how a case is made and what must hold for it.

A case is plain JSON data: what is attacked, the operations, and whether the checksums are computed anew afterwards.
Without new checksums, every change has to be noticed. With them, the file is somebody's on purpose: it is refused
with an error of ours, or it works. Anything else (another exception, a crash, a hang) is a defect.
Knows what must hold. Does not run cases by the thousand (`__main__`), or damage files itself (`mutation`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, TypeAlias

import onnx
from hypothesis import strategies as st

from studies.fuzz import calls, graphs, pretrained, streams
from studies.fuzz.bundles import GRAFTS
from studies.fuzz.mutation import byte_ops, damage, distort, json_ops
from studies.fuzz.victim import MANIFEST, Victim, use
from titans_format.seal import seal
from titans_runtime import TitansError, load, native

Case: TypeAlias = dict[str, Any]
Verdict = Literal["refused", "works", "unchanged"]
GRAPHS = ("prefill", "extend", "step", "commit")
_SEEDLESS = "0" * 64  # where a state file's digest stands while it is taken


class DefectError(AssertionError):
    """A case that was neither refused properly nor works."""


def _file_cases(files: list[str] | None = None, has_json: bool = True) -> st.SearchStrategy[Case]:
    """Damage to the bytes or to the JSON in a file, one of `files`; None: there is only one."""
    case: dict[str, st.SearchStrategy[Any]] = {"signed": st.booleans()}
    if files is not None:
        case["file"] = st.sampled_from(files)
    on_bytes = st.fixed_dictionaries({**case, "bytes": st.lists(byte_ops, min_size=1, max_size=4)})
    on_json = st.fixed_dictionaries({**case, "json": st.lists(json_ops, min_size=1, max_size=4)})
    return on_bytes | on_json if has_json else on_bytes


def _damage(files: list[str], weights: list[str]) -> dict[str, st.SearchStrategy[Case]]:
    """Everything that is done to a bundle's files and to a saved session."""
    return {
        "manifest": _file_cases(),
        "graph": _file_cases(files, has_json=False),
        **graphs.cases(files),
        "weights": _file_cases(weights),
        "state": _file_cases(),
    }


def _of_a_decoder(cases: dict[str, st.SearchStrategy[Case]]) -> st.SearchStrategy[Case]:
    """A case of any of these, with the name of its target."""
    return st.one_of([st.fixed_dictionaries({"target": st.just(name), "case": case}) for name, case in cases.items()])


FILES = [f"{graph}{form}.onnx" for graph in GRAPHS for form in ("", ".fused")]
WEIGHTS = ["weights.safetensors", "initial_state.safetensors"]
_CALLS: dict[str, st.SearchStrategy[Case]] = {
    "calls": calls.cases,
    "interrupts": streams.interrupts,
    "mixups": streams.mixups,
}
CASES: dict[str, st.SearchStrategy[Case]] = {
    **_damage(FILES, WEIGHTS),
    **_CALLS,
    "pretrained": pretrained.cases(),
    "stream": _of_a_decoder(_damage(FILES, WEIGHTS)),
    # A memory beside the decoder has no fused commit.
    "side": _of_a_decoder(_damage([name for name in FILES if name != "commit.fused.onnx"], WEIGHTS) | _CALLS),
}
# The bundle that a target is about (`bundles`).
SUBJECTS = dict.fromkeys(CASES, "tiny") | {name: name for name in GRAFTS}


def check(victim: Victim, target: str, case: Case) -> Verdict:
    """Run one case.

    Raises:
        DefectError: what must hold does not.
    """
    if target in GRAFTS:
        return check(victim, case["target"], case["case"])
    return _CHECKS[target](victim, case)


def _manifest(victim: Victim, case: Case) -> Verdict:
    if "json" in case:
        document = distort(victim.manifest, case["json"])
        content = json.dumps(seal(document) if case["signed"] else document).encode()
        same = _says(document) == _says(victim.manifest)
    else:
        content = damage(victim.files[MANIFEST], case["bytes"])
        same = _says(_json(content)) == _says(victim.manifest)
    return _bundle(victim, MANIFEST, content, same, case)


def _graph(victim: Victim, case: Case) -> Verdict:
    content = damage(victim.files[case["file"]], case["bytes"])
    return _run_graph(victim, case["file"], content, case["signed"])


def _types(victim: Victim, case: Case) -> Verdict:
    """No other type than the right one is taken, whoever signed it."""
    content = graphs.retyped(victim.files[case["file"]], case)
    verdict = _run_graph(victim, case["file"], content, signed=True)
    if verdict == "works" and case["place"] != "information":
        raise DefectError("a graph with another type than its weights, or the manifest, was accepted")
    return verdict


def _operators(victim: Victim, case: Case) -> Verdict:
    return _run_graph(victim, case["file"], graphs.rebuilt(victim.files[case["file"]], case["changes"]), signed=True)


def _external(victim: Victim, case: Case) -> Verdict:
    """No weight is read from anywhere else."""
    content = graphs.relocated(victim.files[case["file"]], case)
    remove = graphs.lay_traps(victim.folder)
    try:
        verdict = _run_graph(victim, case["file"], content, signed=True)
    finally:
        remove()
    if verdict == "works":
        raise DefectError("a graph that takes its weights from elsewhere was accepted")
    return verdict


def _pretrained(victim: Victim, case: Case) -> Verdict:
    """A pretrained model is opened and run, or refused."""
    try:
        return "works" if pretrained.attempt(case, victim.folder.parent) else "unchanged"
    except TitansError:
        return "refused"


def _run_graph(victim: Victim, name: str, content: bytes, signed: bool) -> Verdict:
    """Run a bundle with another graph."""
    with portable() if not name.endswith(".fused.onnx") else nullcontext():  # which of the two forms is run
        same = content == victim.files[name] or (signed and _written_alike(content, victim.files[name]))
        return _bundle(victim, name, content, same, {"signed": signed})


def _written_alike(content: bytes, sound: bytes) -> bool:
    """Whether a graph is a sound one as the onnx library writes it."""
    return content == bytes(onnx.load_from_string(sound).SerializeToString())


@contextmanager
def portable() -> Iterator[None]:
    """Without kernels, as on a machine that has none."""
    before = os.environ.get(native.SWITCH)
    os.environ[native.SWITCH] = "off"
    try:
        yield
    finally:
        if before is None:
            del os.environ[native.SWITCH]
        else:
            os.environ[native.SWITCH] = before


def _weights(victim: Victim, case: Case) -> Verdict:
    name = case["file"]
    content = damage(victim.files[name], case["bytes"]) if "bytes" in case else _header(victim.files[name], case)
    return _bundle(victim, name, content, content == victim.files[name], case)


def _bundle(victim: Victim, name: str, content: bytes, same: bool, case: Case) -> Verdict:
    with victim.with_file(name, content, signed=case["signed"]) as folder:

        def attempt() -> None:
            model = load(folder, provider="cpu", threads=1)
            use(model.session(), model)

        return _judge(attempt, same, must_refuse=not case["signed"])


def _state(victim: Victim, case: Case) -> Verdict:
    content = damage(victim.state, case["bytes"]) if "bytes" in case else _state_header(victim.state, case)
    if case["signed"]:
        content = _signed_state(content)

    def attempt() -> None:
        use(victim.model.restore_bytes(content), victim.model)

    return _judge(attempt, content == victim.state, must_refuse=not case["signed"])


def _calls(victim: Victim, case: Case) -> Verdict:
    return _held(lambda: calls.play(victim.model, case["calls"]))


def _interrupts(victim: Victim, case: Case) -> Verdict:
    return _held(lambda: streams.play_interrupts(victim.model, case["seed"], case["batch"]))


def _mixups(victim: Victim, case: Case) -> Verdict:
    return _held(lambda: streams.play_mixups(victim.model, case["seed"]))


def _held(play: Callable[[], None]) -> Verdict:
    """Whether what must hold held."""
    try:
        play()
    except Exception as error:
        raise DefectError(f"{type(error).__name__}: {error}") from error
    return "works"


_CHECKS: dict[str, Callable[[Victim, Case], Verdict]] = {
    "manifest": _manifest,
    "graph": _graph,
    "types": _types,
    "operators": _operators,
    "external": _external,
    "weights": _weights,
    "state": _state,
    "calls": _calls,
    "interrupts": _interrupts,
    "mixups": _mixups,
    "pretrained": _pretrained,
}


def _judge(attempt: Callable[[], None], same: bool, must_refuse: bool) -> Verdict:
    """Whether an attempt ended as it should."""
    try:
        attempt()
    except TitansError as error:
        if same:
            raise DefectError(f"a file that says the same was refused: {error}") from error
        if ";" not in str(error):
            raise DefectError(f"an error without a remedy: {error}") from error
        return "refused"
    except Exception as error:
        raise DefectError(f"{type(error).__name__} instead of an error of ours: {error}") from error
    if same:
        return "unchanged"
    if must_refuse:
        raise DefectError("a changed file was accepted")
    return "works"


def _json(content: bytes) -> object:
    """What a JSON document says; None for one that says two things under one name."""

    def single(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a name twice")
        return dict(pairs)

    try:
        return json.loads(content, object_pairs_hook=single)
    except ValueError:
        return None


def _says(document: object) -> str:
    """What a JSON document says, however it is laid out. Compared as text: to Python, true is 1 and 1.0 is too."""
    return json.dumps(document, sort_keys=True)


def _header(content: bytes, case: Case) -> bytes:
    """A safetensors file with a distorted header."""
    length = int.from_bytes(content[:8], "little")
    header = distort(json.loads(content[8 : 8 + length]), case["json"])
    return _with_header(json.dumps(header), content[8 + length :])


def _with_header(text: str, body: bytes) -> bytes:
    data = text.encode()
    return len(data).to_bytes(8, "little") + data + body


def _state_header(content: bytes, case: Case) -> bytes:
    """A state file with a distorted description of itself."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    described = distort(json.loads(header["__metadata__"]["titans"]), case["json"])
    header["__metadata__"]["titans"] = json.dumps(described)
    return _with_header(json.dumps(header), content[8 + length :])


def _signed_state(content: bytes) -> bytes:
    """The state file with the digest that its bytes have now, where it has a place for one."""
    length = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + length])
        described = json.loads(header["__metadata__"]["titans"])
        digest = described["sha256"].encode()
    except (ValueError, KeyError, TypeError, AttributeError):
        return content
    at = content.find(digest, 8, 8 + length)
    if len(digest) != 64 or at < 0:
        return content
    blank = content[:at] + _SEEDLESS.encode() + content[at + 64 :]
    return content[:at] + hashlib.sha256(blank).hexdigest().encode() + content[at + 64 :]
