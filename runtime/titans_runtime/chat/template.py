"""A model's chat template: messages in, the text of the conversation out, as transformers would write it.

The template may come from a stranger: it is rendered in a sandbox, with bounded work (`sandbox`, `meter`). What a user
wrote is marked in the text (`user_text`), so that it can be read as text whatever it spells. Roles are the template's
own words, since some templates make control tokens of them.

Knows messages and what is said when a template fails. Does not know tokens or streams. Imports jinja2 when a template
is first rendered.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from titans_format.errors import BundleError
from titans_runtime.arguments import shown
from titans_runtime.chat.meter import MAX_DEPTH, LimitError, Meter, size_of
from titans_runtime.chat.user_text import marked
from titans_runtime.errors import InputError, ProviderError, TextError

if TYPE_CHECKING:
    from jinja2 import Template

MAX_CHARACTERS = 1 << 18  # of a template; those in use have up to 30,000
# Roles in use. One of these is a word of the template; any other one is text of the user.
_ROLES = frozenset(
    ["system", "user", "assistant", "tool", "developer", "function", "ipython", "model", "environment", "observation"]
)
_OTHER_ROLE = re.compile("[A-Za-z][A-Za-z0-9_-]{0,39}")
_EXAMPLE = '[{"role": "user", "content": "Hello"}]'
_LONGEST_MESSAGE = 200  # characters of what a template says

Message: TypeAlias = Mapping[str, object]
Messages: TypeAlias = str | Message | Sequence[Message]


class ChatTemplate:
    """A template, compiled when it is first rendered. Threads may share it.

    Args:
        source: the template.
        tokens: what it knows as `bos_token`, `eos_token` and the like.
        name: what to call it in errors.
    """

    def __init__(self, source: str, tokens: Mapping[str, str], name: str = "the chat template") -> None:
        self.source, self.tokens, self.name = source, dict(tokens), name
        self._compiled: Template | None = None
        self._lock = threading.Lock()

    def check(self) -> None:
        """Raise `BundleError` for a template that cannot be compiled, or asks for what no conversation needs."""
        self._template()

    def render(self, messages: Messages, add_generation_prompt: bool = True) -> str:
        """The text of a conversation; what a user wrote in it is marked.

        Args:
            messages: a user's message, or messages with `role` and `content`, as transformers takes them.
            add_generation_prompt: end with what an answer begins with.

        Raises:
            InputError: messages of another shape.
            TextError: the template refuses them, or fails, or takes too much work.
            BundleError: it is not a template.
        """
        conversation = checked_messages(messages)
        return self._render(conversation, add_generation_prompt)

    def _render(self, conversation: list[dict[str, object]], add_generation_prompt: bool) -> str:
        template = self._template()
        from jinja2 import TemplateError, UndefinedError

        from titans_runtime.chat.sandbox import MeteredContext, RefusalError, Sandbox

        variables: dict[str, Any] = {
            **self.tokens,
            "messages": [_marked(message) for message in conversation],
            "tools": None,
            "documents": None,
            "add_generation_prompt": bool(add_generation_prompt),
        }
        context = template.new_context(variables)
        if not isinstance(context, MeteredContext):
            raise TypeError("the template was not compiled in the sandbox")
        context.meter = Meter(*size_of(variables["messages"]))
        try:
            return Sandbox.concat(template.root_render_func(context))
        except RefusalError as error:
            self._fail(f"does not take these messages: {_clipped(str(error) or 'it gives no reason')!r}", "change them")
        except UndefinedError as error:
            self._fail(f"misses something in these messages ({_clipped(str(error))})", "add it to them")
        except RecursionError:
            self._fail("calls itself too often", "export the bundle with another one")
        except MemoryError:
            self._fail("needs more memory than there is", "export the bundle with another one")
        except LimitError as error:
            self._fail(f"asks for too much: {error}", "export the bundle with another one")
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
            self._fail(
                f"failed ({type(error).__name__}: {_clipped(str(error))})",
                f"pass messages such as {_EXAMPLE}, or export the bundle with another template",
            )

    def _template(self) -> Template:
        with self._lock:
            if self._compiled is None:
                self._compiled = self._compile()
            return self._compiled

    def _compile(self) -> Template:
        try:
            from jinja2 import TemplateError, TemplateSyntaxError
        except ImportError as error:
            raise ProviderError(
                f"a chat template needs the jinja2 library ({error})", "install it with `pip install jinja2`"
            ) from None
        from titans_runtime.chat.sandbox import Sandbox

        if len(self.source) > MAX_CHARACTERS:
            self._refuse(f"has {len(self.source):,} characters, and {MAX_CHARACTERS:,} are the limit")
        try:
            return Sandbox().from_string(self.source)
        except LimitError as error:
            self._refuse(f"is refused: {error}")
        except TemplateSyntaxError as error:
            self._refuse(f"is not a template that can be used (line {error.lineno}: {_clipped(error.message or '')})")
        except (RecursionError, MemoryError):
            self._refuse("is nested too deeply")
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, SyntaxError) as error:
            self._refuse(f"cannot be compiled ({type(error).__name__}: {_clipped(str(error))})")

    def _fail(self, what: str, remedy: str) -> NoReturn:
        raise TextError(f"{self.name} {what}", remedy) from None

    def _refuse(self, what: str) -> NoReturn:
        raise BundleError(f"{self.name} {what}", "export the bundle with another one") from None


def checked_messages(messages: Messages) -> list[dict[str, object]]:
    """Messages as a list of mappings, fields that are None left out. Raises `InputError`."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if isinstance(messages, Mapping):
        messages = [messages]
    if not isinstance(messages, list | tuple):
        raise InputError(f"messages are {shown(messages)}", f"pass a text, or messages such as {_EXAMPLE}")
    if not messages:
        raise InputError("there are no messages", f"pass a text, or messages such as {_EXAMPLE}")
    return [_checked_message(message, number) for number, message in enumerate(messages)]


def _checked_message(message: object, number: int) -> dict[str, object]:
    where = f"message {number}"
    if not isinstance(message, Mapping):
        raise InputError(f"{where} is {shown(message)}", f"pass messages such as {_EXAMPLE}")
    found = _data(message, where, 0)
    if not isinstance(found, dict):
        raise TypeError(where)
    kept = {name: value for name, value in found.items() if value is not None}
    role = kept.get("role")
    if not isinstance(role, str) or not _OTHER_ROLE.fullmatch(role):
        raise InputError(f"{where} has the role {shown(role)}", 'use a word, such as "user", "assistant" or "system"')
    if not isinstance(kept.get("content", ""), str | list):
        raise InputError(f"{where} has the content {shown(kept['content'])}", "use a text, or a list of parts")
    return kept


def _data(value: object, where: str, depth: int) -> object:
    """Data as JSON has it, copied. Raises `InputError`."""
    if value is None or isinstance(value, bool):
        return value
    if depth < MAX_DEPTH:
        if isinstance(value, str):
            return _text(value, where)
        if isinstance(value, int):
            return int(value)
        if isinstance(value, float):
            return float(value)
        if isinstance(value, list | tuple):
            return [_data(each, where, depth + 1) for each in value]
        if isinstance(value, Mapping):
            return {_key(key, where): _data(each, where, depth + 1) for key, each in value.items()}
    what = f"more than {MAX_DEPTH} lists in lists" if depth >= MAX_DEPTH else shown(value)
    raise InputError(f"{where} has {what} in it", "use texts, numbers, lists and mappings")


def _text(text: str, where: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TextError(
            f"{where} has a character that UTF-8 cannot express (U+{ord(text[error.start]):04X})", "remove it"
        ) from None
    return str.__str__(text)


def _key(key: object, where: str) -> str:
    if not isinstance(key, str):
        raise InputError(f"{where} has a field named {shown(key)}", "use texts as names")
    return _text(key, where)


def _marked(message: dict[str, object]) -> dict[str, object]:
    """A message as the template sees it: known roles are the template's words, and names of fields everybody's."""
    made: dict[str, object] = {name: marked(value) for name, value in message.items()}
    if message["role"] in _ROLES:
        made["role"] = message["role"]
    return made


def _clipped(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_MESSAGE else text[: _LONGEST_MESSAGE - 3] + "..."
