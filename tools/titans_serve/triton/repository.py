"""Write a Triton model repository of a bundle: its configuration, three lines of Python, and the bundle itself.

Knows Triton's `config.pbtxt`. Does not import Triton.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

from titans_format.errors import TitansError
from titans_format.fields import TokenInputs
from titans_format.folders import replace_folder
from titans_format.manifest import Manifest
from titans_format.names import PLAIN, is_plain
from titans_runtime import InputError
from titans_runtime.bundle import open_bundle
from titans_runtime.errors import os_remedy
from titans_serve.triton.sequences import Limits

VERSION = "1"
BUNDLE = "model.titans"
_MODEL = '''"""Written by `titans triton`: a bundle as a model of Triton's Python backend."""

import json
import sys

import triton_python_backend_utils as utils


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        sys.path[:0] = json.loads(parameters["python_path"]["string_value"])
        from titans_serve.triton.backend import TitansPythonModel

        self._model = TitansPythonModel(utils, args)

    def execute(self, requests):
        return self._model.execute(requests)

    def finalize(self):
        self._model.finalize()
'''


def write_repository(
    bundle: Path,
    out: Path,
    *,
    name: str | None = None,
    limits: Limits | None = None,
    sequences: int = 64,
    store: str | None = None,
    provider: str = "auto",
    threads: int | None = None,
    python_path: tuple[str, ...] = (),
    overwrite: bool = False,
) -> Path:
    """Add a bundle to a model repository, as a model that Triton loads.

    Args:
        bundle: its folder; it is checked, then copied.
        out: the repository; made where it is missing. Other models in it stay as they are.
        name: of the model; None is that of the bundle's folder.
        limits: see `Limits`.
        sequences: that Triton keeps open at most.
        store: address of the store of memories; None keeps none.
        provider, threads: as in `titans_runtime.load`.
        python_path: folders of packages that Triton's own Python does not have.
        overwrite: replace a model of that name.

    Returns:
        The model's folder.

    Raises:
        BundleError: the bundle is damaged.
        InputError: a name that Triton cannot take, or one that is taken.
        TitansError: nothing could be written; what was there is as it was.
    """
    manifest = open_bundle(bundle).manifest
    name = name or bundle.name.removesuffix(".titans")
    if not is_plain(name):
        raise InputError(f"the model's name {name[:80]!r} is not {PLAIN}", "give another one with --name")
    target = out / name
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists already", "give --overwrite, or another --name")
    parameters = {
        "bundle": BUNDLE,
        "store": store or "",
        "provider": provider,
        "threads": str(threads or 0),
        "limits": json.dumps(asdict(limits or Limits())),
        "python_path": json.dumps(list(python_path)),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".titans-") as scratch:
            made = Path(scratch, name)
            (made / VERSION).mkdir(parents=True)
            shutil.copytree(bundle, made / VERSION / BUNDLE)
            (made / VERSION / "model.py").write_text(_MODEL, encoding="utf-8")
            config = configuration(manifest, name, limits or Limits(), sequences, parameters)
            (made / "config.pbtxt").write_text(config, encoding="utf-8")
            made.chmod(0o755)
            replace_folder(made, target)
    except OSError as error:
        raise TitansError(f"{target} could not be written ({error.strerror or error})", os_remedy(error)) from error
    return target


def configuration(manifest: Manifest, name: str, limits: Limits, sequences: int, parameters: dict[str, str]) -> str:
    """The text of `config.pbtxt`: a sequence batcher that gathers requests of all lengths."""
    kind = manifest.inputs
    if isinstance(kind, TokenInputs):
        inputs, output = _tensor("ids", "INT64", [-1]), "logits"
    else:
        inputs, output = _tensor("inputs", "FP32", [-1, kind.features]), "outputs"
    outputs = [
        _tensor(output, "FP32", [kind.outputs]),
        _tensor("generated", "INT64", [-1]),
        _tensor("surprise", "FP32", [-1]),
        _tensor("position", "INT64", [1]),
    ]
    # Triton lets a sequence go a little after we have: a request in between is answered with what to do.
    idle = round(limits.idle_seconds * 1.5e6)
    lines = [
        f"name: {json.dumps(name)}",
        'backend: "python"',
        f"max_batch_size: {limits.threads}",
        f"input [ {inputs.removesuffix(' }')} allow_ragged_batch: true }} ]",
        f"output [ {', '.join(outputs)} ]",
        "sequence_batching {",
        f"  max_sequence_idle_microseconds: {idle}",
        f"  oldest {{ max_candidate_sequences: {sequences} max_queue_delay_microseconds: 0 }}",
        "}",
        "instance_group [ { kind: KIND_CPU count: 1 } ]",
        *(
            f"parameters {{ key: {json.dumps(key)} value {{ string_value: {json.dumps(value)} }} }}"
            for key, value in parameters.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def _tensor(name: str, dtype: str, dims: list[int]) -> str:
    return f'{{ name: "{name}" data_type: TYPE_{dtype} dims: {dims} }}'
