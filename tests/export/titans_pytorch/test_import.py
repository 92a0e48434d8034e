"""`titans import titans-pytorch`: from files to a verified bundle, and every way in which the files can be wrong."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file
from torch import Tensor, nn

import titans_runtime
from tests.export.titans_pytorch import cases
from titans_cli.main import cli
from titans_export.errors import VerificationError
from titans_export.titans_pytorch import config_from_model as live
from titans_export.titans_pytorch import installed as library
from titans_export.titans_pytorch import parity
from titans_export.titans_pytorch.arguments import ConfigError
from titans_export.titans_pytorch.importer import import_checkpoint
from titans_export.titans_pytorch.options import read_options
from titans_export.titans_pytorch.parameters import CheckpointError
from titans_export.titans_pytorch.steppable import TitansPytorchModel
from titans_export.verification import distance
from titans_runtime.arrays import Array
from titans_runtime.stream.driver import Driver

SMALL = cases.transformer({"num_residual_streams": 1, "num_tokens": 256})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint and its configuration."""
    folder = tmp_path_factory.mktemp("files")
    _, tensors = cases.perturbed(SMALL)
    torch.save(tensors, folder / "model.pt")
    (folder / "config.json").write_text(json.dumps(SMALL))
    return folder / "model.pt", folder / "config.json"


def titans(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["import", "titans-pytorch", *map(str, arguments)])


def test_the_command_leaves_a_verified_bundle_that_generates(files: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "model.titans"
    result = titans(files[0], "--config", files[1], "--out", out, "--verify-tokens", "100", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["verification"]["ok"] is True
    assert told["verification"]["reference"].startswith("titans-pytorch 0.5.5")
    assert told["verification"]["tokens"] == 100
    assert told["model"] == "titans-pytorch-mac"
    model = titans_runtime.load(out, provider="cpu")
    assert model.manifest.verification == told["verification"]
    assert model.manifest.model.config == SMALL
    run = CliRunner().invoke(cli, ["run", str(out), "--prompt", "abc", "--max-new-tokens", "20", "--json"])
    assert json.loads(run.stdout)["tokens"] == 20


def test_safetensors_and_a_tokenizer_make_the_same_model(files: tuple[Path, Path], tmp_path: Path) -> None:
    tensors = torch.load(files[0], weights_only=True)
    save_file(tensors, tmp_path / "model.safetensors")
    words(tmp_path / "tokenizer.json", 2)
    common = ("--config", files[1], "--verify-tokens", "0")
    one = titans(files[0], *common, "--out", tmp_path / "one")
    two = titans(tmp_path / "model.safetensors", *common, "--out", tmp_path / "two", "--tokenizer",
                 tmp_path / "tokenizer.json")  # fmt: skip
    assert (one.exit_code, two.exit_code) == (0, 0), one.output + two.output
    assert "not verified" in one.stderr
    first, second = (titans_runtime.load(tmp_path / name, provider="cpu") for name in ("one", "two"))
    assert first.manifest.weights.sha256 == second.manifest.weights.sha256
    assert (first.manifest.tokenizer.kind, second.manifest.tokenizer.kind) == ("byte", "tokenizers")


def words(path: Path, count: int) -> Path:
    """A tokenizer of so many words."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"[UNK]": 0, **{f"w{i}": i for i in range(1, count)}}, unk_token="[UNK]")
    )
    tokenizer.save(str(path))
    return path


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"any text", "is not a tokenizer.json"),
        (b'{"model": "\xff"}', "give the path of a tokenizer.json"),
        (None, "has 257 tokens and the model num_tokens 256; give the tokenizer that the model was trained with"),
    ],
)
def test_a_tokenizer_that_cannot_be_the_models_is_refused_before_the_checkpoint_is_read(
    files: tuple[Path, Path], tmp_path: Path, content: bytes | None, says: str
) -> None:
    path = tmp_path / "tokenizer.json"
    words(path, 257) if content is None else path.write_bytes(content)
    result = titans(tmp_path / "no.pt", "--config", files[1], "--out", tmp_path / "out", "--tokenizer", path)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert says in result.stderr
    assert list(tmp_path.iterdir()) == [path]


def test_a_tokenizer_of_exactly_the_models_vocabulary_is_taken(files: tuple[Path, Path], tmp_path: Path) -> None:
    path = words(tmp_path / "tokenizer.json", 256)
    manifest = import_checkpoint(*files, tmp_path / "out", tokenizer=path, verify_tokens=0)
    assert manifest.tokenizer is not None
    assert manifest.tokenizer.kind == "tokenizers"


def test_a_memory_alone_has_no_use_for_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(cases.memory({})))
    with pytest.raises(ConfigError, match="reads vectors"):
        import_checkpoint(
            tmp_path / "no.pt", tmp_path / "config.json", tmp_path / "out", tokenizer=words(tmp_path / "t.json", 2)
        )


def behind(prefix: str) -> Any:
    """What puts `prefix` before every name."""
    return lambda tensors: {prefix + name: value for name, value in tensors.items()}


def partly(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """One layer compiled by itself."""
    return {name.replace("layers.0.", "layers.0._orig_mod."): value for name, value in tensors.items()}


WRAPPERS = ("_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module.", "model.", "model._orig_mod.")
WRAPPED = {prefix: (prefix, behind(prefix)) for prefix in WRAPPERS}
WRAPPED["a compiled part"] = ("_orig_mod.", partly)
WRAPPED["beside an optimizer"] = ("'state_dict'", lambda tensors: {"state_dict": tensors, "lr": 0.1, "step": 3})


@pytest.mark.parametrize("name", WRAPPED)
def test_what_wrappers_put_before_names_is_taken_off_and_said(
    files: tuple[Path, Path], tmp_path: Path, name: str
) -> None:
    taken_off, wrap = WRAPPED[name]
    tensors = torch.load(files[0], weights_only=True)
    torch.save(wrap(tensors), tmp_path / "wrapped.pt")
    out = tmp_path / "out"
    result = titans(tmp_path / "wrapped.pt", "--config", files[1], "--out", out, "--verify-tokens", "20")
    assert result.exit_code == 0, result.output
    assert taken_off in result.stderr
    plain = import_checkpoint(*files, tmp_path / "plain", verify_tokens=0)
    found = titans_runtime.load(out, provider="cpu").manifest
    assert found.weights.sha256 == plain.weights.sha256
    assert taken_off in found.provenance["checkpoint.read"]
    assert "checkpoint.read" not in plain.provenance


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (lambda t: {f"generator.{n}": v for n, v in t.items()}, "take 'generator.' off all names"),
        (lambda t: {**{f"model.{n}": v for n, v in t.items()}, "loss.weight": torch.ones(1)}, "take 'model.' off all"),
        (lambda t: {"encoder.weight": torch.ones(2, 2)}, "the checkpoint of another model"),
        (lambda t: {**t, "loss.weight": torch.ones(1)}, "'loss.weight' .* save the state_dict of the model alone"),
        (lambda t: {**t, **{f"_orig_mod.{n}": v for n, v in t.items()}}, "twice, with and without"),
    ],
)
def test_the_likeliest_cause_is_named(files: tuple[Path, Path], tmp_path: Path, wrap: Any, words: str) -> None:
    torch.save(wrap(torch.load(files[0], weights_only=True)), tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=words):
        import_checkpoint(tmp_path / "other.pt", files[1], tmp_path / "out", verify_tokens=0)


def test_without_the_library_our_own_form_is_the_reference(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "version", lambda: None)
    manifest = import_checkpoint(*files, tmp_path / "out", verify_tokens=60)
    assert manifest.verification is not None
    assert manifest.verification["reference"] == "own PyTorch form"


def test_a_bundle_that_disagrees_does_not_appear(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = library.answers
    monkeypatch.setattr(library, "answers", lambda *given: answers(*given) + 0.01)
    result = titans(files[0], "--config", files[1], "--out", tmp_path / "out", "--verify-tokens", "40")
    assert result.exit_code == 1
    assert "does not compute what the model computes" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("spoil", ["update_1", "momentum_0", "chunk_key"])
def test_a_bundle_whose_state_alone_disagrees_does_not_appear(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    state = Driver.state

    def spoiled(self: Driver) -> dict[str, Array]:
        found = state(self)
        name = next(name for name in found if name.endswith(f".{spoil}"))
        found[name] = found[name] + np.float32(0.1) * max(1.0, float(np.abs(found[name]).max()))
        return found

    monkeypatch.setattr(Driver, "state", spoiled)
    result = titans(files[0], "--config", files[1], "--out", tmp_path / "out", "--verify-tokens", "41")
    assert result.exit_code == 1
    assert f"{spoil} from the own PyTorch form by 1.0e-01" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_are_finite_nowhere_excuse_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = cases.memory({})
    _, tensors = cases.perturbed(config)
    case = cases.imported(config, tmp_path)
    monkeypatch.setattr(distance, "difference", lambda a, b: float("inf"))  # the twin in fp64 among them
    with pytest.raises(VerificationError, match="differ from titans-pytorch"):
        parity.compare(case.path, TitansPytorchModel(config, tensors), tensors, tokens=16)


def test_a_model_that_explodes_in_the_library_too_is_not_called_a_disagreement(tmp_path: Path) -> None:
    config = cases.memory({"default_step_transform_max_lr": 1e4, "mem_model_norm_add_residual": False, "batch_size": 4})
    _, tensors = cases.perturbed(config)
    with pytest.raises(VerificationError, match="not finite from token"):
        parity.compare(cases.imported(config, tmp_path).path, TitansPytorchModel(config, tensors), tensors, tokens=400)


def edited(**changes: object) -> dict[str, Any]:
    """The small configuration with arguments changed; `kwargs__x` changes an argument of the memories."""
    args = dict(SMALL["args"])
    for name, value in changes.items():
        if name.startswith("kwargs__"):
            args["neural_memory_kwargs"] = {**args["neural_memory_kwargs"], name.removeprefix("kwargs__"): value}
        else:
            args[name] = value
    return {"class": SMALL["class"], "args": args}


WRONG: list[tuple[object, str]] = [
    ([], "the configuration"),
    ({"class": "Transformer"}, "Transformer"),
    ({"class": "NeuralMemory"}, "dim"),
    ({"class": "NeuralMemory", "args": []}, "arguments"),
    (edited(dim=None), "dim"),
    (edited(dim=True), "dim"),
    (edited(segment_length=8), "segment_length"),
    (edited(neural_memory_layers="all"), "neural_memory_layers"),
    (edited(sliding_window_attn=1), "sliding_window_attn"),
    (edited(token_emb={"class": "Embedding"}), "token_emb"),
    (edited(neural_memory_batch_size=12), "batch_size 12"),
    (edited(neural_memory_model={"class": "MemoryAttention", "args": {"dim": 16}}), "MemoryAttention"),
    (edited(neural_memory_model={"class": "MemoryMLP", "args": {"dim": 8, "depth": 2}}), "dim"),
    (edited(neural_memory_add_value_residual=2), "neural_memory_add_value_residual"),
    (edited(kwargs__gated_transition=True), "gated_transition"),
    (edited(kwargs__store_memory_loss_fn="mse"), "store_memory_loss_fn"),
    (edited(kwargs__adaptive_step_transform="tanh"), "adaptive_step_transform"),
    (edited(kwargs__activation={"class": "Softmax"}), "Softmax"),
    (edited(kwargs__chunk_size=4), "chunk_size"),
    (edited(kwargs__dim_head=8), "dim_head"),
    (edited(kwargs__default_step_transform_max_lr="big"), "default_step_transform_max_lr"),
    (edited(kwargs__learned_momentum_combine=True), "learned_momentum_combine"),
    (edited(kwargs__attn_pool_chunks=True, neural_memory_segment_len=1), "attn_pool_chunks"),
    (cases.memory({"chunk_size": [2, 4]}), "chunk_size"),
    (cases.memory({"chunk_size": [2, 4, 8]}), "chunk_size"),
    (cases.memory({"accept_weight_residual": True}), "accept_weight_residual"),
]


@pytest.mark.parametrize(("config", "named"), WRONG, ids=[named + str(n) for n, (_, named) in enumerate(WRONG)])
def test_what_cannot_be_carried_over_is_refused_by_name_before_any_work(
    config: object, named: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    result = titans(tmp_path / "no.pt", "--config", tmp_path / "config.json", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert named in result.stderr
    assert "no.pt" not in result.stderr  # the checkpoint was not looked at
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t.pop("layers.1.4.to_queries.weight"), ["no parameter 'layers.1.4.to_queries.weight'", "[16, 16]"]),
        (lambda t: t.update({"norm.weight": torch.ones(8)}), ["'norm.weight'", "[8]", "[16]"]),
        (lambda t: t.update({"norm.bias": torch.ones(16)}), ["'norm.bias'", "has not"]),
        (lambda t: t.update({"norm.weight": torch.full((16,), torch.nan)}), ["'norm.weight'", "not finite"]),
        (lambda t: t.update({"norm.weight": torch.ones(16, dtype=torch.int64)}), ["'norm.weight'", "floats"]),
    ],
)
def test_a_parameter_that_does_not_fit_is_named(edit: Any, words: list[str]) -> None:
    _, tensors = cases.perturbed(SMALL)
    edit(tensors)
    with pytest.raises(CheckpointError) as caught:
        TitansPytorchModel(SMALL, tensors)
    assert all(word in str(caught.value) for word in words)


class Payload:
    """What must never be unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (pytest.fail, ("unpickled",))


@pytest.mark.parametrize("content", [{"weight": Payload()}, ["list"], {"epoch": 3}])
def test_a_checkpoint_that_is_more_than_tensors_is_refused(
    content: object, files: tuple[Path, Path], tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "bad.pt", pickle_module=pickle)
    result = titans(tmp_path / "bad.pt", "--config", files[1], "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "bad.pt" in result.stderr
    assert "state_dict" in result.stderr


def test_files_that_are_missing_or_damaged_are_named(files: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"\0" * 64)
    (tmp_path / "bad.json").write_text("{")
    for arguments, word in (
        ((tmp_path / "missing.pt", files[1]), "missing.pt"),
        ((tmp_path / "bad.safetensors", files[1]), "bad.safetensors"),
        ((files[0], tmp_path / "missing.json"), "missing.json"),
        ((files[0], tmp_path / "bad.json"), "bad.json"),
    ):
        result = titans(arguments[0], "--config", arguments[1], "--out", tmp_path / "out")
        assert result.exit_code == 2, result.output
        assert word in result.stderr


LIVE = {
    "train-mac": cases.transformer(cases.TRAIN_MAC),
    "no-memory": cases.transformer({"neural_memory_layers": [], "ff_mult": 2}),
    "one-stream": cases.transformer({"num_residual_streams": 1}),
    **{f"memory-{name}": cases.memory(changes) for name, changes in cases.MEMORY_ALONE.items()},
}


@pytest.mark.parametrize("name", LIVE)
def test_the_configuration_of_a_live_model_is_found_again(name: str, tmp_path: Path) -> None:
    model = cases.blank(LIVE[name])
    live.write_config(model, tmp_path / "config.json")
    found = json.loads((tmp_path / "config.json").read_text())
    assert read_options(found) == read_options(LIVE[name])


def test_a_live_model_with_parts_of_its_own_is_refused_by_name() -> None:
    from titans_pytorch import MemoryAttention, NeuralMemory

    def own(prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target).abs().mean(dim=-1)

    for model, named in (
        (NeuralMemory(16, store_memory_loss_fn=own), "store_memory_loss_fn"),
        (NeuralMemory(16, adaptive_step_transform=torch.sigmoid), "adaptive_step_transform"),
        (NeuralMemory(16, gated_transition=True), "gated_transition"),
        (NeuralMemory(16, model=MemoryAttention(16)), "MemoryAttention"),
        (nn.Linear(2, 2), "Linear"),
    ):
        with pytest.raises(ConfigError, match=named):
            live.config_of(model)


def test_the_state_of_a_stream_has_one_size_however_long_it_is(tmp_path: Path) -> None:
    case = cases.imported(cases.transformer({"num_longterm_mem_tokens": 2, "sliding_window_attn": True}), tmp_path)
    driver = cases.driver_of(case)
    sizes = set()
    for _ in range(4):
        driver.feed(np.zeros((1, 400), np.int64))
        sizes.add(sum(value.nbytes for value in driver.state().values()))
    assert sizes == {driver.manifest.stream_bytes}
