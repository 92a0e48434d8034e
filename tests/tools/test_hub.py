"""A bundle goes to a hub with its card and comes back by name, also without the hub once it is there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from studies.serving.databases import free_port
from tests.runtime.toy import Toy, write_toy
from tests.standin.hub import Hub
from titans_cli.main import cli
from titans_format.card import card
from titans_runtime import BundleError, load


def titans(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub, and a cache of huggingface_hub's that nobody else has."""
    from huggingface_hub import constants

    running = Hub()
    monkeypatch.setenv("HF_ENDPOINT", running.url)
    monkeypatch.setenv("HF_TOKEN", "hf_a_token_of_nobody")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # as other tests of the process want it
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.chdir(tmp_path)
    yield running
    running.close()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_toy(tmp_path / "toy.titans", Toy())


def test_a_bundle_is_pushed_and_loaded_by_name_and_revision(
    hub: Hub, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bundle / "notes.txt").write_text("not of the bundle")
    result = titans("push", bundle, "me/toy", "--json")
    assert result.exit_code == 0, result.output
    files = hub.commits[json.loads(result.stdout)["commit"]]
    assert "notes.txt" not in files
    assert files["manifest.json"] == (bundle / "manifest.json").read_bytes()
    assert b"library_name: titans-deploy" in files["README.md"]
    expected = load(bundle, threads=1).session().feed([1, 2, 3]).tolist()
    assert load("me/toy", threads=1).session().feed([1, 2, 3]).tolist() == expected

    write_toy(bundle.with_name("other.titans"), Toy(letters=True))
    assert titans("push", bundle.with_name("other.titans"), "me/toy", "--revision", "letters").exit_code == 0
    assert load("me/toy@letters", threads=1).session().feed([1, 2, 3]).tolist() != expected
    assert load("me/toy@main", threads=1).session().feed([1, 2, 3]).tolist() == expected

    asked = len(hub.requests)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert load("me/toy", threads=1).session().feed([1, 2, 3]).tolist() == expected
    assert len(hub.requests) == asked


def test_what_the_hub_does_not_have_is_an_error_of_ours(
    hub: Hub, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BundleError, match="no folder nobody/nothing"):
        load("nobody/nothing")
    assert titans("push", bundle, "me/toy").exit_code == 0
    with pytest.raises(BundleError, match="give the path of a bundle"):
        load("me/toy@never")
    result = titans("push", bundle, "not a name")
    assert (result.exit_code, "ORG/NAME" in result.stderr) == (2, True)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")  # where nobody listens
    result = titans("push", bundle, "me/toy")
    assert result.exit_code == 2
    assert "could not be pushed" in result.stderr


def test_a_folder_is_a_folder_whatever_its_name(hub: Hub, bundle: Path) -> None:
    Path("me").mkdir()
    bundle.rename("me/toy")
    load("me/toy", threads=1)
    assert hub.requests == []


def test_a_damaged_bundle_is_not_pushed(hub: Hub, bundle: Path) -> None:
    weights = bundle / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert titans("push", bundle, "me/toy").exit_code == 2
    assert hub.requests == []


def test_a_card_says_what_the_manifest_says_and_is_not_markup(bundle: Path) -> None:
    from msgspec import structs

    manifest = load(bundle, threads=1).manifest
    text = card(manifest)
    assert f"| parameters | {manifest.model.parameters:,} |" in text
    assert "was not verified" in card(structs.replace(manifest, verification=None))
    assert "has not stated one" in text
    evil = structs.replace(
        manifest,
        provenance={"license": "mit", "<script>": "a|b\n# x"},
        verification={"max_abs_error": 1.25e-6, "ok": True},
    )
    text = card(evil)
    assert "license: mit" in text
    assert "| max_abs_error | 1.25e-06 |" in text
    assert "<script>" not in text
    assert "\n# x" not in text
    assert titans("inspect", bundle, "--card").stdout == card(manifest)
