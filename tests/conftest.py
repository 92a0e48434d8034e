"""A model small enough to train and export inside a test run, made once per process through the command line."""

from __future__ import annotations

import gc
import json
import os
import signal
from collections.abc import Iterator
from ctypes.util import find_library
from pathlib import Path

import jsonschema
import pytest
import torch
from click.testing import CliRunner

from titans_cli.main import cli
from titans_format.manifest import Manifest
from titans_format.schema import schema
from titans_runtime import native

# The models are tiny, and the tests run in one process per core. Processes that tests start inherit the setting: sums
# are only bitwise equal with as many threads.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

# A software device for WebGPU, where scripts/webgpu_packages.sh found or installed it and a Vulkan loader. Set here
# because the provider looks once per process; an environment that already names a driver is left alone.
SWIFTSHADER = Path("/usr/lib/chromium/vk_swiftshader_icd.json")
if SWIFTSHADER.exists() and find_library("vulkan") and "VK_DRIVER_FILES" not in os.environ:
    os.environ["VK_DRIVER_FILES"] = str(SWIFTSHADER)
    os.environ["ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER"] = "1"

# PyTorch's modules are a million objects. Looking through them again and again took a tenth of the suite's time.
gc.freeze()
gc.set_threshold(20_000, 20, 20)

# A script's background jobs, and what they start, ignore SIGINT. However the tests were started, it reaches this
# process and those that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

SMALL = {"dim": 32, "ffn_hidden": 32, "heads": 2, "chunk": 8, "window": 8, "persistent_tokens": 2}
RECALL = ("--keys", "4", "--pairs", "2")


TEXT = "def double(x):\n    return 2 * x\n\n" * 100


def titans(*arguments: str | Path) -> dict[str, object]:
    """Run a `titans` command that has to succeed, and return its JSON."""
    result = CliRunner().invoke(cli, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert isinstance(document, dict)
    return document


def train(folder: Path, *arguments: str | Path) -> Path:
    """Two training steps of the small model on a text of its own; returns the checkpoint."""
    text = folder / "text.py"
    text.write_text(TEXT, encoding="utf-8")
    shape = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
    common = ("--task", "text", "--data", text, "--steps", "2", "--batch", "2")
    titans("train", *common, *shape, *arguments, "--out", folder / "model")
    return folder / "model"


@pytest.fixture(scope="session", autouse=True)
def manifests_fit_the_schema() -> Iterator[None]:
    """Whatever bundle a test makes, its manifest fits the published schema."""
    validator, written = jsonschema.Draft202012Validator(schema()), Manifest.to_json

    def checked(manifest: Manifest) -> str:
        text = written(manifest)
        validator.validate(json.loads(text))
        return text

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Manifest, "to_json", checked)
        yield


@pytest.fixture(scope="session", autouse=True)
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for settings of the tests' own: the key that signs engines is made there, not in the user's."""
    folder = tmp_path_factory.mktemp("settings")
    os.environ["XDG_CONFIG_HOME"] = str(folder)
    return folder


@pytest.fixture
def portable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run what is loaded from here on without fused kernels, whose rounding differs from the portable graphs'."""
    monkeypatch.setenv(native.SWITCH, "off")


@pytest.fixture
def no_software_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that are started see no software device, of which ONNX Runtime's plugin warns on stderr."""
    monkeypatch.delenv("ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER", raising=False)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level MAC model after two training steps."""
    return train(tmp_path_factory.mktemp("bytes"))


@pytest.fixture(scope="session")
def tiny_checkpoint_with_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a word tokenizer of the tokenizers library."""
    import tokenizers

    folder = tmp_path_factory.mktemp("words")
    words = {word: i for i, word in enumerate(["[UNK]", *sorted(set(TEXT.split()))])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return train(folder, "--tokenizer", folder / "tokenizer.json")


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported bundle of `tiny_checkpoint`, verified on a short stream."""
    bundle = tmp_path_factory.mktemp("bundle") / "tiny.titans"
    titans("export", tiny_checkpoint, "--out", bundle, "--verify-tokens", "64")
    return bundle


@pytest.fixture(scope="session")
def recall_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recall model of 4 keys that has learned next to nothing."""
    out = tmp_path_factory.mktemp("recall") / "checkpoint"
    shape = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
    common = ("--task", "recall", *RECALL, "--gap", "8", "--eval-gap", "16", "--steps", "2", "--batch", "2")
    titans("train", *common, *shape, "--variant", "mac", "--out", out)
    return out


@pytest.fixture(scope="session")
def recall_bundle(recall_checkpoint: Path) -> Path:
    """Its bundle."""
    out = recall_checkpoint.parent / "recall.titans"
    titans("export", recall_checkpoint, "--out", out, "--verify-tokens", "0")
    return out
