"""A plugin of the `llm` command: bundles as its models, with a memory for each of its conversations.

    llm titans add tiny model.titans
    llm -m tiny "Remember this."
    llm -c "What was it?"

A conversation's memory lies as a state file in llm's own folder, so `llm -c` and `llm chat` send only what is new.
Knows llm and sessions. llm loads it by its entry point; nothing here imports it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import llm

from titans_cli.terminal import say
from titans_format.errors import TitansError
from titans_format.names import is_plain
from titans_runtime.atomic import replace_file

_open: dict[str, Any] = {}  # loaded models, by path: `llm chat` asks one again and again


def _folder() -> Path:
    folder = Path(llm.user_dir()) / "titans"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _bundles() -> dict[str, str]:
    """Names and places of the bundles that were added."""
    file = _folder() / "bundles.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except (OSError, ValueError):
        return {}
    return {str(name): str(place) for name, place in found.items()} if isinstance(found, dict) else {}


@llm.hookimpl
def register_models(register: Any) -> None:
    """One model for each bundle that was added."""
    for name, place in _bundles().items():
        register(TitansModel(name, place))


@llm.hookimpl
def register_commands(cli: click.Group) -> None:
    """`llm titans add` and `llm titans list`."""

    @cli.group()
    def titans() -> None:
        """Bundles of Titans models."""

    @titans.command()
    @click.argument("name")
    @click.argument("bundle")
    def add(name: str, bundle: str) -> None:
        """Use BUNDLE, a folder or ORG/NAME of a hub, as the model NAME."""
        from titans_runtime.hub import is_name

        if not is_plain(name):
            raise click.UsageError(f"{name!r} is not a plain name")
        place = bundle if is_name(bundle) else str(Path(bundle).resolve())
        document = json.dumps({**_bundles(), name: place}, indent=1)
        replace_file(_folder() / "bundles.json", document.encode(), durable=True, private=True)

    @titans.command(name="list")
    def list_() -> None:
        """The bundles that were added."""
        for name, place in _bundles().items():
            say(f"{name}: {place}")


class TitansModel(llm.Model):
    """A bundle."""

    can_stream = True

    class Options(llm.Options):
        """What `llm -o` takes."""

        max_tokens: int | None = None
        temperature: float | None = None
        seed: int | None = None

    def __init__(self, name: str, place: str) -> None:
        self.model_id, self._place = name, place

    def execute(self, prompt: Any, stream: bool, response: Any, conversation: Any) -> Iterator[str]:
        """Answer, and keep the memory of the conversation where there is one."""
        import titans_runtime

        try:
            model = _open.setdefault(self._place, None) or titans_runtime.load(self._place)
            _open[self._place] = model
            file = None if conversation is None else _folder() / f"{conversation.id}.state"
            session = model.restore(file) if file is not None and file.exists() else model.session()
            options = {"temperature": prompt.options.temperature, "seed": prompt.options.seed}
            if model.chat_template is not None:
                said = [{"role": "user", "content": prompt.prompt}]
                if prompt.system and not session.conversing:
                    said = [{"role": "system", "content": prompt.system}, *said]
                yield from session.chat(said, prompt.options.max_tokens, **options)
            else:
                text = prompt.prompt if not prompt.system or session.position else f"{prompt.system}\n{prompt.prompt}"
                yield from session.generate(text, prompt.options.max_tokens, **options)
            if file is not None:
                session.save(file)
        except TitansError as error:
            raise llm.ModelError(str(error)) from error

    def __str__(self) -> str:
        return f"Titans: {self.model_id}"
