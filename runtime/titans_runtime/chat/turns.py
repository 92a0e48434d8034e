"""What of a conversation a stream still has to read.

A stream remembers, so it reads every message once. Its first messages are the template's text of them. Later ones are
what the template writes behind an answer: what closes the answer, then the messages, then what the next answer begins
with. That text is taken from a rendering of a question, an answer and the new messages, cut behind the answer. So a
system prompt is read once, where the conversation begins, and what a template does to earlier turns (it may cut out
their thoughts) is done to a text that the stream has read already, and changes nothing.

Knows templates, texts, and how a tokenizer reads them. Does not know sessions.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from titans_runtime.chat.template import ChatTemplate, Messages, checked_messages
from titans_runtime.chat.user_text import joined, marks, piece
from titans_runtime.errors import TextError
from titans_runtime.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Turn:
    """What a stream reads before the next answer.

    text: with marks for what a user wrote.
    closing: so many of its characters close the answer before.
    """

    text: str
    closing: int = 0

    def after(self, end: str) -> str:
        """The text without what the stream has read already: the answer's `end`, if that is how answers are closed."""
        at = self.text[: self.closing].find(end) if end else -1
        return piece(self.text, at + len(end), len(self.text)) if at >= 0 else self.text


def first_turn(template: ChatTemplate, messages: Messages, begun: bool) -> Turn:
    """The beginning of a conversation.

    Args:
        template: the model's.
        messages: the first ones.
        begun: whether the stream has read something else before; it does not begin a second time then.

    Raises:
        InputError, TextError, BundleError: as `ChatTemplate.render`.
    """
    text = template.render(messages)
    bos = template.tokens.get("bos_token", "")
    return Turn(piece(text, len(bos), len(text)) if begun and bos and text.startswith(bos) else text)


def next_turn(template: ChatTemplate, messages: Messages) -> Turn:
    """New messages behind an answer. Raises as `first_turn`, and `TextError` for a template that forgets answers."""
    new = checked_messages(messages)
    question, answer = _words(template.source + repr(new))
    before = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    text = _behind(template, template.render([*before, *new]), answer)
    closed = _behind(template, template.render(before, add_generation_prompt=False), answer)
    common = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(text, closed, strict=False))
    return Turn(text, sum(1 for _ in common))


def turn_ids(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    messages: Messages,
    turn: int | None,
    position: int,
    begin: bool = False,
) -> list[int]:
    """The ids that a stream reads before its next answer.

    Args:
        template, tokenizer: the model's.
        messages: what is new of the conversation.
        turn: where the conversation stands, as `Moment.turn` has it.
        position: tokens that the stream has read.
        begin: whether another conversation begins, behind the one before.

    Raises:
        InputError, TextError, BundleError: as `first_turn` and `next_turn`.
    """
    end = "" if turn is None or turn < 0 else tokenizer.written(turn) or tokenizer.decode([turn])
    if turn is None:
        text = first_turn(template, messages, begun=position > 0).text
    elif begin:
        closing = closing_text(template)
        text = joined([Turn(closing, len(closing)).after(end), first_turn(template, messages, begun=True).text])
    else:
        text = next_turn(template, messages).after(end)
    if not text:
        raise TextError(f"{template.name} writes nothing for these messages", "export the bundle with another one")
    return tokenizer.encode_marked(text, marks(text))


def closing_text(template: ChatTemplate) -> str:
    """What the template writes behind an answer that another message follows. Raises as `next_turn`."""
    turn = next_turn(template, "x")
    return piece(turn.text, 0, turn.closing)


def _words(text: str) -> tuple[str, str]:
    """Two words that a text does not have."""
    unused = (word for number in itertools.count() if (word := f"word{number}") not in text)
    return next(unused), next(unused)


def _behind(template: ChatTemplate, text: str, answer: str) -> str:
    at = text.rfind(answer)
    if at < 0:
        raise TextError(
            f"{template.name} does not write earlier answers, so no conversation can go on with it",
            "begin a new session for every message, or export the bundle with another template",
        )
    return piece(text, at + len(answer), len(text))
