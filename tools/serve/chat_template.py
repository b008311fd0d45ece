"""A chat template, the Jinja2 of transformers' chat_template.jinja: from messages to the text that a model reads."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox


class _GenerationBlock(jinja2.ext.Extension):
    """{% generation %}, which says what to train on, and means nothing to a reply."""

    tags = {"generation"}  # noqa: RUF012  Jinja2's own way

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class TemplateRefusal(Exception):
    """The template does not take these messages."""


class ChatTemplate:
    """A compiled template. It has `messages`, `add_generation_prompt`, `bos_token` (empty: a text begins with an empty
    state), `eos_token`, and `continues`, true where the messages are appended to a state that holds the turns before.

    Args:
        source: of the template.

    Raises:
        ValueError: it cannot be compiled; says where.
    """

    def __init__(self, source: str):
        self.source = source
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"]
        )
        environment.globals |= {"raise_exception": _refuse, "strftime_now": _strftime_now}
        environment.filters["tojson"] = _to_json
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateSyntaxError, SyntaxError) as error:  # the latter of the Python that it becomes
            told = error.message if isinstance(error, jinja2.TemplateSyntaxError) else error.msg
            raise ValueError(f"it is no Jinja2: line {error.lineno}: {told}") from error

    def render(
        self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True, continues: bool = False
    ) -> list[str | None]:
        """Pieces of text, with None wherever the template has the end-of-text token.

        A message that spells that token is text all the same: what marks it here, nobody can guess.

        Raises:
            TemplateRefusal: by the template, or by what it does with them.
        """
        mark = f"\ue000{secrets.token_hex(16)}\ue000"
        given: dict[str, Any] = {"messages": messages, "add_generation_prompt": add_generation_prompt}
        try:
            text = self._template.render(given, continues=continues, bos_token="", eos_token=mark)
        except TemplateRefusal:
            raise
        except Exception as error:  # a template is a program, and may fail in any way
            raise TemplateRefusal(f"the chat template fails on these messages: {error}") from error
        pieces: list[str | None] = []
        for at, piece in enumerate(text.split(mark)):
            pieces += [piece] if at == 0 else [None, piece]
        return [piece for piece in pieces if piece != ""]


def _refuse(message: object) -> NoReturn:
    raise TemplateRefusal(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(value: object, **options: Any) -> str:
    """Without the entities that Jinja2's own puts for HTML."""
    return json.dumps(value, ensure_ascii=False, **options)
