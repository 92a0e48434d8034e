"""`titans push`: a bundle and its card to a model hub.

Knows the options. Needs huggingface_hub, which comes with the tokenizers.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import click

from titans_cli.options import bundle_argument, json_option
from titans_cli.terminal import print_json, say


@click.command(
    epilog="""\b
Examples:
  titans push model.titans me/model --private
  titans push model.titans me/model --revision int8 --message "With 8-bit weights" --json"""
)
@bundle_argument
@click.argument("name")
@click.option("--revision", default="main", show_default=True, help="Branch to push to; made where it is missing.")
@click.option("--message", default="Add a bundle", show_default=True, help="Of the commit.")
@click.option("--private", is_flag=True, help="Make a new repository private.")
@json_option
def push(bundle: Path, name: str, revision: str, message: str, private: bool, as_json: bool) -> None:
    """Push a bundle and its card to a model hub.

    NAME is ORG/NAME.

    The bundle is checked first: every hash, and that it is sound. Its files and its model card are pushed, and nothing
    else that lies in the folder. A card is made of the manifest where there is none. The hub is that of HF_ENDPOINT;
    log in with `hf auth login`, or set HF_TOKEN.
    """
    from huggingface_hub import HfApi

    from titans_format.card import CARD_FILE, card
    from titans_format.document import MANIFEST_FILE
    from titans_format.errors import TitansError
    from titans_runtime.bundle import open_bundle
    from titans_runtime.hub import is_name

    if not is_name(name) or "@" in name:
        raise click.UsageError(f"{name!r} is not ORG/NAME")
    manifest = open_bundle(bundle).manifest
    files = [MANIFEST_FILE, *(file.file for file in manifest.files())]
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    try:
        with tempfile.TemporaryDirectory() as folder:
            # Links, so that what is pushed is exactly what belongs to the bundle.
            for file in files:
                link = Path(folder, file)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to((bundle / file).resolve())
            written = bundle / CARD_FILE
            text = written.read_text(encoding="utf-8") if written.is_file() else card(manifest)
            Path(folder, CARD_FILE).write_text(text, encoding="utf-8")
            api.create_repo(name, private=private, exist_ok=True)
            if revision != "main":
                api.create_branch(name, branch=revision, exist_ok=True)
            commit = api.upload_folder(repo_id=name, folder_path=folder, revision=revision, commit_message=message)
    except Exception as error:  # of the hub's client, of its HTTP library and of the system
        reason = " ".join(str(error).split())[:300]
        raise TitansError(
            f"{name} could not be pushed ({reason})", "check the name, the network and that you may write there"
        ) from error
    if as_json:
        print_json({"name": name, "revision": revision, "commit": commit.oid, "files": [*files, CARD_FILE]})
    else:
        say(f"pushed {len(files) + 1} files to {name} ({revision}); load it with titans_runtime.load({name!r})")
