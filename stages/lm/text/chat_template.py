"""Renders chat templates: small programs in Jinja that turn messages into one text.

They come with models from anywhere. So each render has a limit of steps and of characters, and
reaches nothing but the messages. Variables and filters are those of transformers'
`apply_chat_template`, without the date: tomorrow's tokens must be today's.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

Message = tuple[str, str]
"""A role (`system`, `user` or `assistant`) and what it says."""

MAX_SOURCE = 200_000
"""Characters of a template; the longest published ones have about 20,000."""
STEPS, STEPS_PER_MESSAGE = 20_000, 200
"""Rounds of loops and calls of functions in a render."""
LENGTH, LENGTH_PER_CHARACTER = 200_000, 4
"""Longest text or list, beyond the messages' own characters."""
MAX_RANGE = 1000

TEXT_METHODS = {
    *("startswith", "endswith", "strip", "lstrip", "rstrip", "split", "rsplit", "splitlines"),
    *("lower", "upper", "title", "capitalize", "find", "rfind", "count", "isdigit", "replace"),
}
FILTERS = {
    *("trim", "length", "count", "lower", "upper", "title", "capitalize", "first", "last", "list"),
    *("string", "int", "default", "d", "safe", "items", "select", "selectattr", "reject"),
    *("rejectattr", "map", "reverse", "unique", "dictsort", "abs"),
}

_left: ContextVar[tuple[list[int], int]] = ContextVar("limits of the render that runs")


def _step() -> None:
    steps, _ = _left.get()
    steps[0] -= 1
    if steps[0] < 0:
        raise SecurityError("it takes too many steps")


def _bounded(value: Any, more: int = 0) -> Any:
    """`value`, if it is not too long a text or list, and would not be with `more` parts."""
    size = len(value) if isinstance(value, str | list | tuple) else 0
    if size + more > _left.get()[1]:
        raise SecurityError("it makes too long a text")
    return value


def _counted(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _step()
        yield item


def _range(*numbers: int) -> range:
    found = range(*numbers)
    if len(found) > MAX_RANGE:
        raise SecurityError(f"it counts to more than {MAX_RANGE}")
    return found


def _concat(parts: Iterable[str]) -> str:
    joined = []
    for part in parts:
        joined.append(part)
        _bounded(part, len(joined))
    return str(_bounded("".join(joined)))


def _replace(text: str, old: str, new: str, count: int = -1) -> str:
    _bounded(text, str(text).count(str(old)) * len(str(new)))
    return str(text).replace(str(old), str(new), count)


def _join(items: Iterable[Any], between: str = "") -> str:
    parts = [str(_bounded(item)) for item in _counted(items)]
    _bounded("", sum(map(len, parts)) + len(parts) * len(between))
    return between.join(parts)


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent and min(indent, 8))


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


class _Generation(Extension):
    """Reads `{% generation %}`, which marks answers for transformers, as if it were not there."""

    tags = {"generation"}  # noqa: RUF012 - as in jinja2

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Limits(NodeTransformer):
    """Makes loops count their rounds, and `~` a sum; refuses names that begin with `_`."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, "counted", [], [], None, None)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        total: nodes.Expr = nodes.Const("")
        for part in node.nodes:
            total = nodes.Add(total, nodes.Filter(part, "string", [], [], None, None))
        return total

    def visit_Getattr(self, node: nodes.Getattr) -> nodes.Node:
        return self._named(node, node.attr)

    def visit_NSRef(self, node: nodes.NSRef) -> nodes.Node:
        return self._named(node, node.attr)

    def visit_Keyword(self, node: nodes.Keyword) -> nodes.Node:
        return self._named(node, node.key)

    def _named(self, node: nodes.Node, name: str) -> nodes.Node:
        if name.startswith("_"):
            raise SecurityError(f"it reaches for {name}")
        return self.generic_visit(node)


class _Sandbox(ImmutableSandboxedEnvironment):
    """An environment with limits, and without what makes long texts of short ones."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])
    concat = staticmethod(_concat)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        own = {"counted": _counted, "join": _join, "replace": _replace, "tojson": _to_json}
        self.filters = {name: self.filters[name] for name in FILTERS} | own
        self.globals = {
            "range": _range,
            "namespace": jinja2.utils.Namespace,
            "raise_exception": _raise,
        }

    def _parse(self, *source: Any) -> nodes.Template:
        tree: nodes.Template = _Limits().visit(super()._parse(*source))
        return tree

    def wrap_str_format(self, value: Any) -> None:
        """Is asked of every attribute: refuses the methods that format a text."""
        if isinstance(getattr(value, "__self__", None), str) and "format" in value.__name__:
            raise SecurityError("it formats a text")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The result of an operator; all but `+` are for numbers alone."""
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator == "**" or (operator != "+" and not numbers):
            raise SecurityError(f"it computes with {operator}")
        if isinstance(left, int) and isinstance(right, int):
            _bounded("", left.bit_length() + right.bit_length())
        return _bounded(super().call_binop(context, operator, left, right))

    def call(self, context: Context, function: Any, /, *arguments: Any, **named: Any) -> Any:
        """What a function, macro or method gives."""
        _step()
        owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        if isinstance(owner, str):
            if name not in TEXT_METHODS:
                raise SecurityError(f"it calls {name} of a text")
            if name == "replace":
                return _replace(owner, *arguments)
        return _bounded(super().call(context, function, *arguments, **named))


@lru_cache(maxsize=8)
def _compiled(source: str) -> jinja2.Template:
    return _Sandbox().from_string(source)


def render_chat(source: str, messages: Sequence[Message], answer: bool, **names: str) -> str:
    """The text that a template makes of messages; with `answer`, an answer of the model follows.

    `names` are further variables: `bos_token` and `eos_token`.

    Raises:
        ValueError: the template is no template, refuses the messages, or does what it must not; the
            message ends a sentence.
    """
    if len(source) > MAX_SOURCE:
        raise ValueError(f"it has {len(source):,} characters, more than {MAX_SOURCE:,}")
    said = sum(len(content) for _, content in messages)
    limits = [STEPS + STEPS_PER_MESSAGE * len(messages)], LENGTH + LENGTH_PER_CHARACTER * said
    token = _left.set(limits)
    try:
        turns = [{"role": role, "content": content} for role, content in messages]
        return _compiled(source).render(messages=turns, add_generation_prompt=answer, **names)
    except Exception as error:  # a template can raise anything
        raise ValueError(f"{type(error).__name__}: {error}") from None
    finally:
        _left.reset(token)
