"""`titans export`, `verify`, `inspect`, `run` and `doctor` on a real bundle: what they print, and bad input."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from titans_cli.main import COMMANDS, cli


def titans(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [*map(str, arguments)])


def is_one_line_error(result: Result, *words: str) -> bool:
    """Exit code 2, nothing on stdout, one `Error: …` line on stderr that contains `words`."""
    text = result.stderr
    one_line = text.startswith("Error: ") and text.count("\n") == 1
    return (result.exit_code, result.stdout) == (2, "") and one_line and all(word in text for word in words)


@pytest.fixture
def copied_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that a test may damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy.titans"))


# ---------------------------------------------------------------- run


def test_run_streams_exactly_the_text_that_json_reports(tiny_bundle: Path) -> None:
    arguments = ("run", tiny_bundle, "--prompt", "def ", "--max-new-tokens", "12", "--seed", "3")
    plain, as_json = titans(*arguments), titans(*arguments, "--json")
    assert (plain.exit_code, as_json.exit_code) == (0, 0), plain.output + as_json.output
    answer = json.loads(as_json.stdout)
    assert plain.stdout == answer["text"] + "\n"
    assert (answer["prompt_tokens"], answer["tokens"]) == (4, 12)
    assert answer["surprise_mean"] > 0
    assert answer["tokens_per_second"] > 0


def test_a_prompt_file_is_the_same_as_a_prompt(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_bytes("naïve ".encode())
    common = ("--max-new-tokens", "8", "--temperature", "0", "--json")
    from_file = titans("run", tiny_bundle, "--prompt-file", tmp_path / "prompt.txt", *common)
    from_text = titans("run", tiny_bundle, "--prompt", "naïve ", *common)
    assert json.loads(from_file.stdout)["text"] == json.loads(from_text.stdout)["text"]


def test_text_ends_before_a_stop_string(tiny_bundle: Path) -> None:
    greedy = ("run", tiny_bundle, "--prompt", "def ", "--temperature", "0", "--max-new-tokens", "16", "--json")
    whole = json.loads(titans(*greedy).stdout)["text"]
    stop = whole[4:6]
    cut = json.loads(titans(*greedy, "--stop", stop).stdout)
    assert cut["text"] == whole[: whole.index(stop)]
    assert cut["tokens"] <= 16


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--prompt"]),
        (["--prompt", "a", "--prompt-file", "b"], ["--prompt-file"]),
        (["--prompt", ""], ["empty"]),
        (["--prompt-file", "no-such-prompt.txt"], ["no-such-prompt.txt"]),
        (["--prompt", "a", "--provider", "abacus"], ["abacus", "cpu"]),
        (["--prompt", "a", "--threads", "0"], ["threads", "0"]),
        (["--prompt", "a", "--temperature", "-1"], ["temperature", "-1"]),
        (["--prompt", "a", "--top-p", "2"], ["top_p", "2"]),
        (["--prompt", "a", "--top-k", "-1"], ["top_k", "-1"]),
        (["--prompt", "a", "--min-p", "7"], ["min_p", "7"]),
        (["--prompt", "a", "--repetition-penalty", "0"], ["repetition_penalty", "0"]),
        (["--prompt", "a", "--seed", "-5"], ["seed", "-5"]),
        (["--prompt", "a", "--stop", ""], ["stop"]),
        (["--prompt", "a", "--max-new-tokens", "0"], ["--max-new-tokens", "0"]),
    ],
)
def test_bad_options_to_run_are_one_line(tiny_bundle: Path, arguments: list[str], words: list[str]) -> None:
    for extra in ([], ["--json"]):
        result = titans("run", tiny_bundle, *arguments, *extra)
        assert is_one_line_error(result, *words), result.output


def test_an_empty_prompt_file_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    assert is_one_line_error(titans("run", tiny_bundle, "--prompt-file", tmp_path / "empty.txt"), "empty")


def test_a_prompt_that_is_not_utf8_is_refused_by_a_text_tokenizer(
    tiny_checkpoint_with_tokenizer: Path, tmp_path: Path
) -> None:
    bundle, prompt = tmp_path / "text.titans", tmp_path / "latin1.txt"
    prompt.write_bytes("naïve".encode("latin-1"))
    assert titans("export", tiny_checkpoint_with_tokenizer, "--out", bundle, "--verify-tokens", "0").exit_code == 0
    assert titans("run", bundle, "--prompt", "double", "--max-new-tokens", "2").exit_code == 0
    assert is_one_line_error(titans("run", bundle, "--prompt-file", prompt), "UTF-8")


# ---------------------------------------------------------------- bundles that are not sound


@pytest.mark.parametrize("command", [["run", "--prompt", "a"], ["inspect"]], ids=["run", "inspect"])
def test_a_bundle_that_is_not_there_is_named(command: list[str], tmp_path: Path) -> None:
    result = titans(command[0], tmp_path / "nowhere.titans", *command[1:])
    assert is_one_line_error(result, "nowhere.titans", "titans export"), result.output


@pytest.mark.parametrize("command", [["run", "--prompt", "a"], ["inspect"]], ids=["run", "inspect"])
@pytest.mark.parametrize("file", ["step.onnx", "weights.safetensors", "initial_state.safetensors", "manifest.json"])
def test_a_missing_file_of_a_bundle_is_named(command: list[str], file: str, copied_bundle: Path) -> None:
    (copied_bundle / file).unlink()
    assert is_one_line_error(titans(command[0], copied_bundle, *command[1:]), file)


@pytest.mark.parametrize("command", [["run", "--prompt", "a"], ["inspect"]], ids=["run", "inspect"])
def test_a_flipped_byte_is_found_and_the_file_named(command: list[str], copied_bundle: Path) -> None:
    weights = copied_bundle / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert is_one_line_error(titans(command[0], copied_bundle, *command[1:]), "weights.safetensors")


def test_a_newer_format_is_refused(copied_bundle: Path) -> None:
    manifest = json.loads((copied_bundle / "manifest.json").read_text())
    (copied_bundle / "manifest.json").write_text(json.dumps({**manifest, "format_version": 99}))
    assert is_one_line_error(titans("inspect", copied_bundle), "99")


# ---------------------------------------------------------------- export and verify


def test_export_reports_the_verified_bundle_as_json(tiny_checkpoint: Path, tmp_path: Path) -> None:
    result = titans("export", tiny_checkpoint, "--out", tmp_path / "a.titans", "--verify-tokens", "64", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["verification"]["ok"] is True
    assert document["graphs"] == ["prefill", "extend", "step", "commit"]
    assert (tmp_path / "a.titans" / "manifest.json").is_file()


def test_export_refuses_what_is_not_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    for name in ("other", "nothing"):
        result = titans("export", tmp_path / name, "--out", tmp_path / "a.titans")
        assert is_one_line_error(result, name), result.output
    assert not (tmp_path / "a.titans").exists()


def test_export_leaves_a_bundle_that_is_there_alone(tiny_checkpoint: Path, copied_bundle: Path) -> None:
    before = (copied_bundle / "manifest.json").read_bytes()
    result = titans("export", tiny_checkpoint, "--out", copied_bundle)
    assert is_one_line_error(result, copied_bundle.name, "overwrite"), result.output
    assert (copied_bundle / "manifest.json").read_bytes() == before


def test_overwrite_replaces_a_bundle(tiny_checkpoint: Path, copied_bundle: Path) -> None:
    (copied_bundle / "step.onnx").unlink()
    result = titans("export", tiny_checkpoint, "--out", copied_bundle, "--overwrite", "--verify-tokens", "0")
    assert result.exit_code == 0, result.output
    assert titans("inspect", copied_bundle).exit_code == 0


def test_export_names_a_place_that_cannot_be_written(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    result = titans("export", tiny_checkpoint, "--out", tmp_path / "file" / "a.titans")
    assert is_one_line_error(result, "file"), result.output
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_verify_agrees_with_its_own_checkpoint(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    arguments = ("verify", tiny_bundle, "--checkpoint", tiny_checkpoint, "--tokens", "64")
    as_json, plain = titans(*arguments, "--json"), titans(*arguments)
    report = json.loads(as_json.stdout)
    assert (as_json.exit_code, plain.exit_code) == (0, 0)
    assert report["ok"] is True
    assert report["tokens"] == 64
    assert 0 <= report["max_abs_error"] < 1e-4
    assert report["states"]
    assert "64" in plain.stdout


def test_verify_exits_with_1_when_the_weights_are_others(
    tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    from titans_core.training.checkpoint import (
        Checkpoint,
        TrainingProgress,
        load_checkpoint,
        prepare_directory,
        save_checkpoint,
    )

    real = load_checkpoint(tiny_checkpoint)
    moved = {name: tensor + 0.01 for name, tensor in real.tensors.items()}
    prepare_directory(tmp_path / "other")
    save_checkpoint(tmp_path / "other", Checkpoint(real.config, moved, None, {}), TrainingProgress(1, {}))
    result = titans("verify", tiny_bundle, "--checkpoint", tmp_path / "other", "--tokens", "32", "--json")
    assert result.exit_code == 1, result.output
    assert json.loads(result.stdout)["ok"] is False


# ---------------------------------------------------------------- inspect and doctor


def test_inspect_shows_the_same_bundle_as_tables_and_as_json(tiny_bundle: Path) -> None:
    plain, as_json = titans("inspect", tiny_bundle), titans("inspect", tiny_bundle, "--json")
    assert (plain.exit_code, as_json.exit_code) == (0, 0), plain.output + as_json.output
    document = json.loads(as_json.stdout)
    assert f"{document['model']['parameters']:,} parameters" in plain.stdout
    assert document["state_bytes_per_stream"] == sum(document["state_bytes"].values())
    assert document["bundle_bytes"] == sum(document["file_bytes"].values())
    assert document["verification"]["ok"] is True
    assert "agrees with its checkpoint over 64 tokens" in plain.stdout


def test_doctor_finds_the_cpu_ready_and_names_real_packages() -> None:
    import tomllib

    pyproject = Path(__file__).resolve().parents[2] / "pyproject.toml"
    extras = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    document = json.loads(titans("doctor", "--json").stdout)
    providers = {provider["name"]: provider for provider in document["providers"]}
    assert providers["cpu"]["status"] == "ready"
    remedies = [entry["remedy"] for entry in (*document["commands"], *document["providers"])]
    named = {word for remedy in remedies if "pip install" in remedy for word in re.findall("'([^']+)'", remedy)}
    assert named <= {requirement for extra in extras.values() for requirement in extra}


def test_doctor_speaks_of_every_command_and_both_tensorrts() -> None:
    names = [entry["name"] for entry in json.loads(titans("doctor", "--json").stdout)["commands"]]
    words = {word.strip(",") for name in names for word in name.split()}
    assert set(COMMANDS) - {"doctor"} <= words
    assert {"tensorrt", "tensorrt-rtx"} <= words


def test_commands_that_need_only_the_base_dependencies_are_always_ready() -> None:
    program = (
        "import sys; sys.modules |= dict.fromkeys(['torch', 'onnx', 'onnxruntime', 'matplotlib'])\n"
        "import titans_cli.inspect, titans_cli.state, titans_runtime.bundle, titans_runtime.stream.state_file\n"
    )
    subprocess.run([sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{program}"], check=True)
    commands = {entry["name"]: entry for entry in json.loads(titans("doctor", "--json").stdout)["commands"]}
    assert commands["titans inspect, state, push"]["status"] == "ready"


def test_doctor_for_people_lists_every_provider_and_breaks_no_command() -> None:
    result = titans("doctor")
    assert result.exit_code == 0
    lines = [line.strip() for line in result.stdout.splitlines()]
    for provider in json.loads(titans("doctor", "--json").stdout)["providers"]:
        assert f"{provider['name']}: {provider['status']}" in lines
        assert provider["remedy"] in ["", *lines]


def test_an_export_that_disagrees_with_its_model_exits_with_1(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from titans_export.bundle import writer as bundle_writer
    from titans_export.bundle.weights import write_tensors

    def spoiled(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, int]]:
        return write_tensors(path, {name: tensor * 1.01 for name, tensor in tensors.items()})

    monkeypatch.setattr(bundle_writer, "write_tensors", spoiled)
    result = CliRunner().invoke(
        cli, ["export", str(tiny_checkpoint), "--out", str(tmp_path / "bad.titans"), "--verify-tokens", "64"]
    )
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: outputs differ")
    assert not (tmp_path / "bad.titans").exists()


def test_build_says_what_it_built_in_json(copied_bundle: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs titans-deploy[tensorrt-rtx]", exc_type=ImportError)
    result = titans("build", copied_bundle, "--backend", "tensorrt-rtx", "--batch", "1", "1", "2", "--json")
    assert result.exit_code == 0, result.stderr
    engines = json.loads(result.stdout)["engines"]
    assert [engine["graph"] for engine in engines] == ["prefill", "extend", "step", "commit", "choose"]
    assert all((copied_bundle / engine["file"]).stat().st_size == engine["bytes"] for engine in engines)


def test_every_option_of_build_reaches_the_builder(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from titans_export.tensorrt.engines import Engine
    from titans_export.tensorrt.options import BuildOptions

    asked: list[tuple[str, BuildOptions, bool]] = []

    def record(
        bundle: Path, *, backend: str, options: BuildOptions, ignore_memory: bool, progress: object
    ) -> list[Engine]:
        asked.append((backend, options, ignore_memory))
        return []

    monkeypatch.setattr("titans_export.tensorrt.engines.build_engines", record)
    wishes = ["--sm", 86, "--sm", 89, "--batch", 2, 3, 5, "--workspace", 7, "--level", 4, "--timing-cache", "t.bin"]
    flags = ["--version-compatible", "--hardware-compatible", "--refit", "--strip-weights", "--ignore-memory"]
    for flag in (None, *flags):
        arguments = map(str, wishes if flag is None else [flag])
        assert titans("build", tiny_bundle, "--backend", "tensorrt", *arguments).exit_code == 0
    everything = BuildOptions(batch=(2, 3, 5), sm=(86, 89), workspace_mib=7, level=4, timing_cache=Path("t.bin"))
    assert asked[0] == ("tensorrt", everything, False)
    names = [flag[2:].replace("-", "_") for flag in flags[:4]]
    assert asked[1:5] == [("tensorrt", BuildOptions(**{name: True}), False) for name in names]  # type: ignore[arg-type]
    assert asked[5] == ("tensorrt", BuildOptions(), True)


def test_build_refuses_what_it_cannot_do(tiny_bundle: Path, tmp_path: Path) -> None:
    assert is_one_line_error(titans("build", tmp_path, "--backend", "tensorrt-rtx"), "manifest.json")
    disorder = titans("build", tiny_bundle, "--backend", "tensorrt-rtx", "--batch", "4", "2", "8")
    assert is_one_line_error(disorder, "min <= opt <= max")
