"""How messages become the tokens that a stream reads: by the model's own chat template, or as plain lines.

Only what is new of a conversation is rendered; the stream holds the rest. Knows texts and tokens. Does not know
memories or HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from titans_runtime import Model, Session
from titans_serve.errors import bad_request


@dataclass(frozen=True)
class Said:
    """One message: who said it, and its text."""

    role: str
    content: str


class Dialogue:
    """The conversations of one model."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def opening(self, messages: Sequence[Said], session: Session) -> list[int]:
        """The tokens of a conversation that the stream has not read, up to where the model answers.

        Raises:
            RefusalError: there are no messages.
            InputError: the model's chat template does not take them.
        """
        return self._by_template(messages, session, begin=True) if self.has_template else self._plain(messages)

    def continuing(self, messages: Sequence[Said], session: Session) -> list[int]:
        """The tokens of messages that follow an answer of the model. Raises as `opening`."""
        if self.has_template:
            return self._by_template(messages, session, begin=False)
        return self._model.encode("\n") + self._plain(messages)

    @property
    def has_template(self) -> bool:
        """Whether the model says itself how conversations are written."""
        return self._model.chat_template is not None

    def _by_template(self, messages: Sequence[Said], session: Session, begin: bool) -> list[int]:
        """What a user wrote is text here, whatever it spells."""
        _check(messages)
        return session.chat_prompt([{"role": each.role, "content": each.content} for each in messages], begin)

    def _plain(self, messages: Sequence[Said]) -> list[int]:
        """A line for each message, and the beginning of the answer's."""
        _check(messages)
        # An answer follows its prompt at once, so it is read again without the space that other messages have.
        spaces = ("" if message.role == "assistant" else " " for message in messages)
        lines = [f"{message.role}:{space}{message.content}\n" for message, space in zip(messages, spaces, strict=True)]
        return self._model.encode("".join(lines) + "assistant:")


def _check(messages: Sequence[Said]) -> None:
    """Raise `RefusalError` where there is nothing to answer."""
    if not messages:
        raise bad_request("there is no new message to answer; add one", "messages")
