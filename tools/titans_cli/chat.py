"""`titans chat`: lines in, answers out, and a memory in a file that is there again next time.

Knows the conversation's commands and when the memory is saved. Does not know how text is generated.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from titans_cli.options import bundle_argument, json_option, unescaped
from titans_cli.terminal import print_json, prompt_progress, say, write_text

if TYPE_CHECKING:
    from titans_runtime import Mark, SamplingOptions, Session

_HELP = """\
/undo   forget the last message and its answer
/reset  forget everything
/stats  figures of the memory
/save   write the memory now (it is written after every answer anyway)
/quit   leave; so does the end of input
//...   a message that begins with one /
"""


@click.command(
    epilog="""\b
Examples:
  titans chat model.titans --memory me.state
  titans chat model.titans --template "User: {message}\\nBot:" --stop "User:"
  echo "def main():" | titans chat model.titans --memory me.state --temperature 0"""
)
@bundle_argument
@click.option("--memory", type=click.Path(path_type=Path), help="Where the memory lives; made if it is not there.")
@click.option("--force", is_flag=True, help="Write the memory over what another process wrote in the meantime.")
@click.option(
    "--template",
    default="{message}\\n",
    show_default=True,
    help="How a message is put to the model; \\n is a new line, \\t a tab, \\\\ a backslash, a special token a token.",
)
@click.option("--max-new-tokens", type=click.IntRange(1), default=128, show_default=True, help="Per answer.")
@click.option("--stop", multiple=True, help="An answer ends at this text, \\n as in --template; repeatable.")
@click.option("--temperature", type=float, default=0.8, show_default=True, help="0 takes the most likely token.")
@click.option("--top-p", type=float, help="Choose among the likely tokens that make up this probability.")
@click.option("--seed", type=int, help="Makes the choice of tokens repeatable.")
@click.option("--provider", default="auto", show_default=True, help="Where to run; titans doctor lists what works.")
@click.option("--threads", type=int, help="CPU threads per graph. [default: one per core]")
@json_option
def chat(
    bundle: Path,
    memory: Path | None,
    force: bool,
    template: str,
    max_new_tokens: int,
    stop: tuple[str, ...],
    temperature: float,
    top_p: float | None,
    seed: int | None,
    provider: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Talk to a bundle whose memory outlives the process.

    Every line is put to the model and answered; the model learns from both. With --memory the memory is written after
    every answer, all of it or nothing, and is there again next time. Ctrl-C ends an answer, /help lists commands. A
    line that the model cannot take, or that makes its memory diverge, is told on stderr, and it is as if it had not
    been; so is a command that there is not. With --json the whole conversation is one document at its end; such a line
    is in it with its error, and what /undo took back with "undone": true.
    """
    import titans_runtime
    from titans_runtime.atomic import check_writable
    from titans_runtime.text.stopping import StopFilter, check_stops
    from titans_runtime.text.tokenizer import fill_template

    if "{message}" not in template:
        raise click.UsageError('--template must contain {message}, for example --template "User: {message}\\nBot:"')
    options = titans_runtime.SamplingOptions(temperature=temperature, top_p=top_p, seed=seed)
    if memory is not None:
        check_writable(memory)
    model = titans_runtime.load(bundle, provider=provider, threads=threads)
    if model.tokenizer is None:
        raise titans_runtime.TextError(
            f"{bundle} has no tokenizer to talk with", "export a model that has one, or feed ids with titans_runtime"
        )
    if memory is not None and memory.exists():
        session = model.restore(memory)
        say(f"the memory of {memory} goes on after {session.position:,} tokens", err=True)
    else:
        session = model.session()
    stops = tuple(map(unescaped, stop))
    check_stops(model.tokenizer, StopFilter(stops))
    fill = partial(fill_template, model.tokenizer, unescaped(template))
    conversation = _Conversation(session, memory, force, fill, max_new_tokens, stops, options, show=not as_json)
    try:
        conversation.run()
    finally:  # what was said is not lost with a memory that cannot be written
        if as_json:
            print_json({"exchanges": conversation.exchanges, "position": session.position, "provider": model.provider})


class _Conversation:
    """The loop of one process."""

    def __init__(
        self,
        session: Session,
        memory: Path | None,
        force: bool,
        fill: Callable[[bytes], bytes | list[int]],
        max_new_tokens: int,
        stop: tuple[str, ...],
        options: SamplingOptions,
        show: bool,
    ) -> None:
        self.exchanges: list[dict[str, str | bool]] = []
        self._show = show
        self._session, self._memory, self._force, self._fill = session, memory, force, fill
        self._limit, self._stop, self._options = max_new_tokens, stop, options
        self._marks: list[tuple[Mark, dict[str, str | bool]]] = []  # before what, for /undo

    def run(self) -> None:
        """Until /quit or the end of input."""
        if sys.stdin.isatty():
            say("/help lists commands", err=True)
        try:
            while (line := _read()) is not None and line != b"/quit":
                before = self._session.position
                if line.startswith(b"/") and not line.startswith(b"//"):
                    self._command(line.decode("utf-8", "replace"))
                elif line:
                    self._answer(line[1:] if line.startswith(b"//") else line)
                    if self._session.position != before:  # what has read nothing replaces nothing
                        self._save()
        except (KeyboardInterrupt, OSError):  # between an answer and its save, or nobody reads the text any more
            self._save()
            raise

    def _command(self, line: str) -> None:
        if line == "/undo" and self._marks:
            mark, undone = self._marks.pop()
            self._session.rewind(mark)
            undone["undone"] = True
            self._save()
            say(f"back at {self._session.position:,} tokens", err=True)
        elif line == "/undo":
            say("there is nothing to undo in this conversation", err=True)
        elif line == "/reset":
            self._marks.append((self._session.mark(), {}))  # a reset is no exchange
            self._session.reset()
            self._save()
            say("everything is forgotten; /undo brings it back", err=True)
        elif line == "/stats":
            stats = self._session.stats
            say(
                f"{stats.position:,} tokens, {stats.commits:,} commits, {stats.tokens_per_second:,.0f} tokens/s,"
                f" surprise {stats.surprise_mean:.4g} on average, {stats.surprise_highest:.4g} at most",
                err=True,
            )
        elif line == "/save" and self._memory is not None:
            self._save()
            say(f"written to {self._memory}", err=True)
        elif line == "/save":
            say("start with --memory FILE to have a place to save to", err=True)
        elif line == "/help":
            say(*_HELP.splitlines(), err=True)
        else:
            error = f"there is no command {line.split()[0]}; /help lists them, and // begins a message with one /"
            self.exchanges.append({"message": line, "answer": "", "error": error})
            say(error, err=True)

    def _answer(self, line: bytes) -> None:
        from titans_runtime import InputError, NonFiniteError

        mark = self._session.mark()
        exchange: dict[str, str | bool] = {"message": line.decode("utf-8", "replace"), "answer": ""}
        self.exchanges.append(exchange)
        answer = ""
        try:
            message = self._fill(line)  # bytes, because the tokenizer knows what is text
            with prompt_progress() as progress:
                for piece in self._session.generate(
                    message,
                    self._limit,
                    temperature=self._options.temperature,
                    top_p=self._options.top_p,
                    seed=self._options.seed,
                    stop=self._stop,
                    on_progress=progress,
                ):
                    answer += piece
                    exchange["answer"] = answer
                    if self._show:
                        write_text(piece)
        except KeyboardInterrupt:
            say("", "(interrupted)", err=True)
        except (InputError, NonFiniteError) as error:
            self._session.rewind(mark)
            exchange["error"] = str(error)
            if self._show and answer:
                say()
            say(f"this message is forgotten, back at {self._session.position:,} tokens: {error}", err=True)
            return
        if self._session.ended is not None:
            exchange["ended"] = self._session.ended
        if self._show:
            say()
        self._marks = [*self._marks[-31:], (mark, exchange)]  # each holds a state; so far back is enough

    def _save(self) -> None:
        if self._memory is not None:
            self._session.save(self._memory, force=self._force)


def _read() -> bytes | None:
    """The next line, whatever its bytes, or None at the end of input."""
    if sys.stdin.isatty():
        write_text("> ", err=True)
    try:
        line = sys.stdin.buffer.readline()
    except KeyboardInterrupt:
        say(err=True)
        return None
    return line.rstrip(b"\r\n") if line else None
