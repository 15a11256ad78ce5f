"""How much one inference call may ask for: choices, prompts, messages, and schemas that the engine has to compile.

A prompt and its choices become engine requests inside the event loop. Messages are validated in it: MAX_MESSAGES of
them, or MAX_MESSAGE_PARTS, take up to 40 ms; an item of a response's `input` takes 0.1 ms, and 3 ms if it is none. A
schema is compiled in one thread that all tenants share, in a time that grows with the square of its properties and
faster with their depth: 1,000 keys take 0.4 s, 4,000 take 5 s, and 1,000 levels take a minute.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from server.errors import BadRequestError
from server.strict_json import depth_of

MAX_CHOICES: Final = 8
"""`n`: each choice is a whole generation, cloned inside the event loop."""
MAX_GENERATIONS: Final = 64
"""Prompts times choices."""
MAX_INPUTS: Final = 256
"""Texts to embed, or items to respond to."""
MAX_MESSAGES: Final = 2048
MAX_MESSAGE_PARTS: Final = 4096
"""Of all messages together: they themselves, their parts of content, calls of tools, and whatever is in those."""
MESSAGES: Final = ("messages", "input", "system", "documents")
MAX_SCHEMA_BYTES: Final = 32 << 10
MAX_SCHEMA_KEYS: Final = 1000
MAX_SCHEMA_DEPTH: Final = 64
SCHEMAS: Final = ("response_format", "structured_outputs", "tools", "text", "output_config")
"""The fields that hold what is compiled."""


def check_ceilings(fields: Mapping[str, Any]) -> None:
    """Look at every field that decides how much work a call is. What else is wrong with one, vLLM says.

    Raises:
        BadRequestError: `invalid_value` or `schema_too_large`, with the field.
    """
    if count_generations(fields) > MAX_GENERATIONS:
        raise BadRequestError(
            f"prompt may hold {MAX_GENERATIONS} prompts at most, each counted n times.",
            code="invalid_value",
            param="prompt",
        )
    _check_input(fields.get("input"))
    for name in MESSAGES:
        _check_messages(name, fields.get(name))
    for name in SCHEMAS:
        if fields.get(name) is not None:
            _check_schema(name, fields[name])


def count_generations(fields: Mapping[str, Any]) -> int:
    """Prompts times choices. Raises BadRequestError: a number of choices is none, or too high."""
    return _count_prompts(fields.get("prompt")) * max(_choices(fields, name) for name in ("n", "best_of"))


def _choices(fields: Mapping[str, Any], name: str) -> int:
    choices = fields.get(name)
    if choices is None:
        return 1
    if type(choices) is not int or not 1 <= choices <= MAX_CHOICES:
        raise BadRequestError(
            f"{name} must be a whole number from 1 to {MAX_CHOICES}.", code="invalid_value", param=name
        )
    return choices


def _count_prompts(prompt: object) -> int:
    """Texts and lists of token ids. A list of ids is itself one prompt; the messages of a conversation are none."""
    if not isinstance(prompt, list):
        return 1
    return max(1, sum(isinstance(item, str | list) for item in prompt))


def _check_input(texts: object) -> None:
    if isinstance(texts, list) and sum(isinstance(item, str | list | dict) for item in texts) > MAX_INPUTS:
        raise BadRequestError(
            f"input may hold {MAX_INPUTS} texts or items at most.", code="invalid_value", param="input"
        )


def _check_messages(name: str, messages: object) -> None:
    if not isinstance(messages, list):
        return
    if name != "input" and len(messages) > MAX_MESSAGES:
        raise BadRequestError(f"{name} may hold {MAX_MESSAGES} at most.", code="invalid_value", param=name)
    if _count_objects(messages) > MAX_MESSAGE_PARTS:
        raise BadRequestError(
            f"{name} may have {MAX_MESSAGE_PARTS} messages and parts of content in all.",
            code="invalid_value",
            param=name,
        )


def _count_objects(value: object) -> int:
    """Those inside, too."""
    if isinstance(value, list):
        return sum(map(_count_objects, value))
    return 1 + sum(map(_count_objects, value.values())) if isinstance(value, dict) else 0


def _check_schema(name: str, schema: object) -> None:
    if name == "structured_outputs" and not isinstance(schema, Mapping):  # vLLM fails at it, with no word
        raise BadRequestError(f"{name} must be an object.", code="invalid_value", param=name)
    # Strings count like all else: a schema or a grammar may stand in one, as text.
    text = json.dumps(schema, ensure_ascii=False, separators=(",", ":")).encode()
    if len(text) > MAX_SCHEMA_BYTES or text.count(b":") > MAX_SCHEMA_KEYS or depth_of(text) > MAX_SCHEMA_DEPTH:
        raise BadRequestError(
            f"{name} may have {MAX_SCHEMA_BYTES} bytes of JSON, {MAX_SCHEMA_KEYS} keys and {MAX_SCHEMA_DEPTH} levels.",
            code="schema_too_large",
            param=name,
        )
