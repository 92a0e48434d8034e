"""`titans chat`: lines in, answers out, and a memory in a file that is there again next time.

Knows the conversation's commands and when the memory is saved. Does not know how text is generated.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from titans_cli.options import Sampling, bundle_argument, json_option, sampling_options, unescaped
from titans_cli.terminal import print_json, prompt_progress, say, write_text

if TYPE_CHECKING:
    from titans_runtime import Mark, Model, Session

_TEMPLATE = "{message}\\n"
_NEW_TOKENS = 128  # of an answer, where neither the command line nor the bundle says

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
  titans chat model.titans --system "Answer in one sentence." --greedy
  titans chat model.titans --template "User: {message}\\nBot:" --stop "User:"
  echo "What was my name?" | titans chat model.titans --memory me.state --temperature 0"""
)
@bundle_argument
@click.option("--memory", type=click.Path(path_type=Path), help="Where the memory lives; made if it is not there.")
@click.option("--force", is_flag=True, help="Write the memory over what another process wrote in the meantime.")
@click.option("--system", metavar="TEXT", help="What the model is told before the first message; with a chat template.")
@click.option(
    "--template",
    help="How a message is put to the model, such as '{message}\\n'; \\n is a new line, \\t a tab, \\\\ a backslash, a"
    " special token a token. [default: the bundle's chat template, or {message}\\n]",
)
@click.option("--max-new-tokens", type=click.IntRange(1), help="Per answer. [default: the bundle's, or 128]")
@click.option("--stop", multiple=True, help="An answer ends at this text, \\n as in --template; repeatable.")
@sampling_options
@click.option("--provider", default="auto", show_default=True, help="Where to run; titans doctor lists what works.")
@click.option("--threads", type=int, help="CPU threads per graph. [default: one per core]")
@json_option
def chat(
    bundle: Path,
    memory: Path | None,
    force: bool,
    system: str | None,
    template: str | None,
    max_new_tokens: int | None,
    stop: tuple[str, ...],
    sampling: Sampling,
    provider: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Talk to a bundle whose memory outlives the process.

    Every line of stdin is a message, and the answer goes to stdout. The model learns from both. Messages are put to the
    model by the bundle's chat template, if it has one. What a message says is text, also where it spells a special
    token. After each answer stderr says why it ended.

    With --memory the memory is written after every answer, all of it or nothing, and is there again next time. Ctrl-C
    ends an answer, /help lists commands. If a message is rejected or makes the memory diverge, the error goes to stderr
    and the message is discarded. Unknown commands are reported the same way. With --json the whole conversation is one
    document at its end. A rejected message is in it with its error, and what /undo took back with "undone": true.
    """
    import titans_runtime
    from titans_runtime.atomic import check_writable
    from titans_runtime.text.stopping import StopFilter, check_stops

    if template is not None and "{message}" not in template:
        raise click.UsageError('--template must contain {message}, for example --template "User: {message}\\nBot:"')
    if template is not None and system is not None:
        raise click.UsageError("--system is for the bundle's chat template; write the text into --template instead")
    sampling.check()
    if memory is not None:
        check_writable(memory)
    model = titans_runtime.load(bundle, provider=provider, threads=threads)
    if model.tokenizer is None:
        raise titans_runtime.TextError(
            f"{bundle} has no tokenizer to talk with",
            "export a model that has one, or feed ids with titans_runtime",
        )
    spoken = model.chat_template if template is None else None
    if spoken is not None:
        spoken.check()
    elif system is not None:
        raise click.UsageError(f"--system needs a chat template, and {bundle} has none; use --template instead")
    if memory is not None and memory.exists():
        session = model.restore(memory)
        say(f"the memory of {memory} goes on after {session.position:,} tokens", err=True)
        if system is not None and session.conversing:
            say("its conversation has begun already, so --system is not read again; /reset begins anew", err=True)
    else:
        session = model.session()
    stops = tuple(map(unescaped, stop))
    check_stops(model.tokenizer, StopFilter(stops))
    defaults = model.manifest.generation
    ask = partial(
        _asked_by_template if spoken is not None else partial(_asked_as_text, unescaped(template or _TEMPLATE)),
        model,
        session,
        system,
        max_new_tokens=max_new_tokens or defaults.max_new_tokens or _NEW_TOKENS,
        stop=stops,
        **sampling.arguments(defaults),
    )
    conversation = _Conversation(session, memory, force, ask, show=not as_json)
    try:
        conversation.run()
    finally:  # what was said is not lost with a memory that cannot be written
        if as_json:
            print_json({"exchanges": conversation.exchanges, "position": session.position, "provider": model.provider})


def _asked_by_template(
    model: Model, session: Session, system: str | None, line: bytes, **options: Any
) -> Iterator[str]:
    """The answer to a message that the bundle's chat template puts to the model."""
    from titans_runtime.text.tokenizer import decoded

    messages = [{"role": "user", "content": decoded(line)}]
    if system is not None and not session.conversing:
        messages.insert(0, {"role": "system", "content": system})
    return session.chat(messages, **options)


def _asked_as_text(
    template: str, model: Model, session: Session, system: str | None, line: bytes, **options: Any
) -> Iterator[str]:
    """The answer to a message that takes its place in a line of text."""
    from titans_runtime.text.tokenizer import fill_template

    if model.tokenizer is None:
        raise TypeError("a model without a tokenizer")
    return session.generate(fill_template(model.tokenizer, template, line), **options)


class _Conversation:
    """The loop of one process."""

    def __init__(
        self,
        session: Session,
        memory: Path | None,
        force: bool,
        ask: Callable[..., Iterator[str]],
        show: bool,
    ) -> None:
        self.exchanges: list[dict[str, str | bool | int]] = []
        self._show = show
        self._session, self._memory, self._force, self._ask = session, memory, force, ask
        self._marks: list[tuple[Mark, dict[str, str | bool | int]]] = []  # before what, for /undo

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
        exchange: dict[str, str | bool | int] = {"message": line.decode("utf-8", "replace"), "answer": ""}
        self.exchanges.append(exchange)
        answer, read = "", 0

        def report(done: int, total: int) -> None:
            nonlocal read
            read = total
            progress(done, total)

        try:
            with prompt_progress() as progress:
                for piece in self._ask(line, on_progress=report):  # bytes, because the tokenizer knows what is text
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
        if self._show:
            say()
        if self._session.ended is not None:
            tokens = self._session.position - mark.position - read
            exchange |= {"ended": self._session.ended, "tokens": tokens}
            if self._show:
                say(f"({tokens:,} token{'' if tokens == 1 else 's'}, ended by {self._session.ended})", err=True)
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
