"""`titans run`: a prompt in, text out, through the runtime alone.

Knows the options and what is printed. Never imports PyTorch or ONNX.
"""

from __future__ import annotations

import contextlib
import re
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from titans_cli.options import Sampling, bundle_argument, json_option, sampling_options, unescaped
from titans_cli.terminal import print_json, prompt_progress, say, write_text
from titans_format.files import read_given, read_piped

if TYPE_CHECKING:
    from titans_runtime import Model, SamplingOptions, Session

_SURROGATES = re.compile("[\ud800-\udfff]")


@click.command(
    epilog="""\b
Examples:
  titans run model.titans --prompt "def main():" --max-new-tokens 64
  titans run model.titans --prompt-file notes.txt --temperature 0 --json
  titans run model.titans --prompt "Remember this." --state-out me.state
  titans run model.titans --prompt "What was it?" --state-in me.state --state-out me.state"""
)
@bundle_argument
@click.option("--prompt", help="Text to continue.")
@click.option("--prompt-file", type=click.Path(path_type=Path), help="A file with the text to continue; - is stdin.")
@click.option("--max-new-tokens", type=click.IntRange(1), help="[default: the bundle's, or 64]")
@sampling_options
@click.option("--stop", multiple=True, help="End at this text, \\n a new line; may be given several times.")
@click.option("--ignore-eos", is_flag=True, help="Go on where the model ends a text.")
@click.option("--special", is_flag=True, help="Read special tokens in the prompt as tokens, and not as text.")
@click.option("--state-in", type=click.Path(path_type=Path), help="Go on from this saved session.")
@click.option("--state-out", type=click.Path(path_type=Path), help="Save the session here afterwards.")
@click.option("--force", is_flag=True, help="Let --state-out replace a file that is not the one of --state-in.")
@click.option(
    "--stream/--no-stream",
    default=None,
    help="Show text as it comes; with --json on stderr. [default: on, with --json off]",
)
@click.option("--provider", default="auto", show_default=True, help="Where to run; titans doctor lists what works.")
@click.option("--threads", type=int, help="CPU threads per graph. [default: one per core]")
@json_option
def run(
    bundle: Path,
    prompt: str | None,
    prompt_file: Path | None,
    max_new_tokens: int | None,
    sampling: Sampling,
    stop: tuple[str, ...],
    ignore_eos: bool,
    special: bool,
    state_in: Path | None,
    state_out: Path | None,
    force: bool,
    stream: bool | None,
    provider: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Generate text with a bundle.

    The text streams to stdout as it comes; with --json it is part of the one JSON document instead. With --state-in the
    memory of an earlier run goes on, and the prompt may be left out. If it is interrupted, --state-out has the memory
    of all that was read and written until then; if nothing was, the file is as it was. --state-out replaces the file
    that --state-in has read. It replaces any other file only with --force, so no memory is lost to a run that never
    read it, such as one that was saved in the meantime.
    """
    import titans_runtime
    from titans_runtime.atomic import check_writable
    from titans_runtime.text.sampling import chosen_options

    text = _prompt(prompt, prompt_file, optional=state_in is not None)
    sampling.check()
    if state_out is not None:
        check_writable(state_out)  # now, and not after all that is to be remembered
    model = titans_runtime.load(bundle, provider=provider, threads=threads)
    options = chosen_options(model.manifest.generation, **sampling.arguments(model.manifest.generation))
    session = model.session() if state_in is None else model.restore(state_in)
    if state_out is not None:
        session.check_save(state_out, force=force)
    begun = session.position
    show = not as_json if stream is None else stream
    answer: _Answer | None = None
    try:
        answer = _generate(
            model,
            session,
            text,
            max_new_tokens,
            options,
            tuple(map(unescaped, stop)),
            ignore_eos=ignore_eos,
            special=special,
            show=show,
            err=as_json,
        )
        if state_out is not None:
            session.save(state_out, force=force)
    except (KeyboardInterrupt, OSError):  # stopped from outside, or nobody reads the text any more
        if state_out is not None and session.position > begun:
            session.save(state_out, force=force)
        raise
    finally:  # what was said is not lost with a disk that is full
        if answer is not None and as_json:
            print_json({**answer.figures(), "position": session.position, **_provider(model)})
        elif answer is not None:
            write_text("\n" if show else f"{answer.text}\n")
            say(answer.summary(), err=True)


def _provider(model: Model) -> dict[str, object]:
    """Where it ran, and why "auto" took nothing better."""
    return {"provider": model.provider, "passed_over": model.passed_over}


def _prompt(prompt: str | None, file: Path | None, optional: bool) -> str | bytes | None:
    if optional and prompt is None and file is None:
        return None
    if (prompt is None) == (file is None):
        raise click.UsageError("give the text to continue with either --prompt or --prompt-file")
    if file == Path("-"):
        return read_piped(sys.stdin.buffer)
    if file is not None:
        return read_given(file)
    text = prompt or ""
    # Python reads bytes that the terminal's encoding does not have as half surrogates; here they are bytes again.
    with contextlib.suppress(UnicodeEncodeError):
        return text.encode("utf-8", "surrogateescape") if _SURROGATES.search(text) else text
    return text


@dataclass
class _Answer:
    """What came out, and how fast."""

    text: str = ""
    ended: str | None = None  # why; see `Session.ended`
    prompt_tokens: int = 0
    surprise: list[float] = field(default_factory=list)  # per generated token, mean over the memory layers
    arrived: list[float] = field(default_factory=list)  # seconds from the start, per generated token

    @property
    def tokens_per_second(self) -> float | None:
        """Speed after the first token, which waited for the prompt; None if there was only one."""
        span = self.arrived[-1] - self.arrived[0]
        return (len(self.arrived) - 1) / span if span > 0 else None

    def figures(self) -> dict[str, object]:
        """Everything, ready for JSON."""
        return {
            "text": self.text,
            "prompt_tokens": self.prompt_tokens,
            "tokens": len(self.arrived),
            "first_token_seconds": self.arrived[0],
            "tokens_per_second": self.tokens_per_second,
            "surprise_mean": sum(self.surprise) / len(self.surprise),
            "ended": self.ended,
        }

    def summary(self) -> str:
        """One line for people."""
        speed = "" if self.tokens_per_second is None else f", {self.tokens_per_second:,.0f} tokens/s"
        return f"{self.prompt_tokens:,} prompt tokens, {len(self.arrived):,} new ones{speed}, ended by {self.ended}"


def _generate(
    model: Model,
    session: Session,
    prompt: str | bytes | None,
    max_new_tokens: int | None,
    options: SamplingOptions,
    stop: tuple[str, ...],
    *,
    ignore_eos: bool,
    special: bool,
    show: bool,
    err: bool,
) -> _Answer:
    """Continue `prompt`; with `show`, write each piece of text to stdout, or stderr, as soon as it is certain."""
    from titans_runtime import TextError
    from titans_runtime.text.stopping import StopFilter, Transcript, check_stops

    if model.tokenizer is None:
        raise TextError("this model has no tokenizer, so it cannot continue text", "drive it from Python with feed()")
    stops = StopFilter(stop)
    check_stops(model.tokenizer, stops)
    written, ends, before = None, session.ends(ignore_eos=ignore_eos), session.position
    answer = _Answer()

    def emit(piece: str) -> None:
        answer.text += piece
        if show:
            write_text(piece, err=err)

    start = time.perf_counter()
    with prompt_progress() as progress:
        for token in session.generate_tokens(
            prompt, max_new_tokens, options, ignore_eos=ignore_eos, special=special, on_progress=progress
        ):
            answer.arrived.append(time.perf_counter() - start)
            answer.surprise.append(float(session.surprise[-1]))
            written = written or Transcript(model.tokenizer, stops, ends, session.recent, token)
            emit(written.push(token))
            if written.stopped:
                break
    if written is not None:
        emit(written.finish())
    answer.ended = "stop" if stops.stopped else session.ended
    answer.prompt_tokens = session.position - before - len(answer.arrived)
    return answer
