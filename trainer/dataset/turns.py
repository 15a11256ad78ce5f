"""Messages, as OpenAI and ShareGPT write them. A key that is null is one that is not there."""

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from trainer.dataset.problems import BrokenRow
from trainer.dataset.values import Message

ROLES: Final = frozenset({"system", "user", "assistant", "tool"})
KEYS: Final = frozenset({"role", "content", "tool_calls", "name", "tool_call_id"})
SURROGATE: Final = re.compile("[\ud800-\udfff]")
SHAREGPT_ROLES: Final[Mapping[str, str]] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
}


def conversation_of(turns: Any) -> tuple[Message, ...]:  # noqa: ANN401  — whatever the JSON says
    """A whole conversation, which ends with an answer to a user. Raises BrokenRow."""
    messages = messages_of(turns)
    roles = [message.role for message in messages]
    if not roles or roles[-1] != "assistant":
        raise BrokenRow("wrong_role", "the last message must be the assistant's: it is what is learned")
    if "user" not in roles[: roles.index("assistant")]:
        raise BrokenRow("wrong_role", "there is no user message before the assistant's")
    return messages


def prompt_of(turns: Any) -> tuple[Message, ...]:  # noqa: ANN401  — whatever the JSON says
    """What comes before an answer. Raises BrokenRow."""
    messages = messages_of(turns)
    if "user" not in {message.role for message in messages} or messages[-1].role == "assistant":
        raise BrokenRow("wrong_role", "a prompt has a user's message, and does not end with the assistant's")
    return messages


def messages_of(turns: Any) -> tuple[Message, ...]:  # noqa: ANN401  — whatever the JSON says
    """Messages in any order that can be rendered. Raises BrokenRow."""
    if not isinstance(turns, list):
        raise BrokenRow("wrong_shape", 'messages are a list: [{"role": …, "content": …}, …]')
    messages = tuple(_message(turn, f"message {number}") for number, turn in enumerate(turns, 1))
    if any(message.role == "system" for message in messages[1:]):
        raise BrokenRow("wrong_role", "a system message can only be the first")
    return messages


def from_sharegpt(turns: Any) -> list[Any]:  # noqa: ANN401  — whatever the JSON says
    """ShareGPT's turns as messages. Raises BrokenRow."""
    if not isinstance(turns, list):
        raise BrokenRow("wrong_shape", 'conversations are a list: [{"from": …, "value": …}, …]')
    return [_from_sharegpt(turn, f"message {number}") for number, turn in enumerate(turns, 1)]


def tools_of(tools: Any) -> str | None:  # noqa: ANN401  — whatever the JSON says
    """The tools that a row offers, as JSON text. Raises BrokenRow."""
    if isinstance(tools, str):  # as some write it, so that a table can hold it
        tools = _json_of(tools, "tools")
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) and _function_of(tool) for tool in tools):
        raise BrokenRow("wrong_shape", 'tools are a list: [{"type": "function", "function": {"name": …}}, …]')
    return text_of(json.dumps([_without_nulls(tool) for tool in tools], ensure_ascii=False), "tools")


def text_of(value: Any, where: str, *, may_be_empty: bool = False) -> str:  # noqa: ANN401  — whatever the JSON says
    """Text that a tokenizer takes. Raises BrokenRow."""
    if not isinstance(value, str) or not (may_be_empty or value.strip()):
        raise BrokenRow("broken_message", f"{where} is empty or not text")
    if SURROGATE.search(value):
        raise BrokenRow("broken_message", f"{where} holds half of a surrogate pair, which is no character")
    return value


def _message(turn: Any, where: str) -> Message:  # noqa: ANN401  — whatever the JSON says
    if not isinstance(turn, dict):
        raise BrokenRow("broken_message", f'{where}: a message is {{"role": …, "content": …}}')
    given = {key: value for key, value in turn.items() if value is not None}
    role = given.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise BrokenRow("wrong_role", f"{where}: unknown role {json.dumps(role)[:40]}")
    if given.keys() - KEYS:
        unknown = ", ".join(sorted(given.keys() - KEYS))
        raise BrokenRow("broken_message", f"{where}: unknown key {unknown}; it has role and content")
    calls = _calls_of(given["tool_calls"], where) if given.get("tool_calls") else None
    if calls and role != "assistant":
        raise BrokenRow("broken_message", f"{where}: only the assistant calls tools")
    return Message(
        role=role,
        content=text_of(
            _joined(given.get("content", "" if calls else None)),
            f"{where}: the {role}'s content",
            may_be_empty=role in {"system", "assistant", "tool"},  # an empty answer is for the checks to judge
        ),
        tool_calls=calls,
        name=text_of(given["name"], f"{where}: the name") if "name" in given else None,
        tool_call_id=text_of(given["tool_call_id"], f"{where}: tool_call_id") if "tool_call_id" in given else None,
    )


def _joined(content: Any) -> Any:  # noqa: ANN401  — whatever the JSON says
    """Parts of text as one text, as the server joins them; anything else as it is."""
    is_parts = isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in content
    )
    return "\n".join(part["text"] for part in content) if is_parts else content


def _calls_of(calls: Any, where: str) -> str:  # noqa: ANN401  — whatever the JSON says
    """Calls as templates take them: the arguments as an object, not as the text of one, as the server also does it."""
    if not isinstance(calls, list) or not all(isinstance(call, dict) and _function_of(call) for call in calls):
        raise BrokenRow("broken_message", f'{where}: tool_calls are [{{"function": {{"name": …, "arguments": …}}}}, …]')
    written = json.dumps([_call(_without_nulls(call), where) for call in calls], ensure_ascii=False)
    return text_of(written, f"{where}: tool_calls")


def _call(call: dict[str, Any], where: str) -> dict[str, Any]:
    function = dict(_function_of(call))
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _json_of(arguments, f"{where}: the arguments of {function['name']}")
    if not isinstance(arguments, dict):
        raise BrokenRow("broken_message", f"{where}: the arguments of {function['name']} are not an object")
    return {"type": "function"} | call | {"function": function | {"arguments": arguments}}


def _function_of(outer: dict[str, Any]) -> dict[str, Any]:
    """The function of a tool or of a call; empty if it has none with a name."""
    function = outer.get("function")
    return function if isinstance(function, dict) and isinstance(function.get("name"), str) else {}


def _json_of(text: str, where: str) -> Any:  # noqa: ANN401  — whatever the JSON says
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BrokenRow("broken_message", f"{where} are not JSON: {error}") from error


def _without_nulls(value: Any) -> Any:  # noqa: ANN401  — whatever the JSON says
    """Tables give every row every key that one row has."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _from_sharegpt(turn: Any, where: str) -> Any:  # noqa: ANN401  — whatever the JSON says
    given = {key: value for key, value in turn.items() if value is not None} if isinstance(turn, dict) else {}
    if given.keys() == {"role", "content"}:
        return given
    if given.keys() != {"from", "value"}:
        raise BrokenRow("broken_message", f'{where}: a turn is {{"from": …, "value": …}} and no other key')
    role = SHAREGPT_ROLES.get(given["from"]) if isinstance(given["from"], str) else None
    if role is None:
        told = json.dumps(given["from"])[:40]
        raise BrokenRow("wrong_role", f"{where}: unknown role {told}; tools are written as chat messages")
    return {"role": role, "content": given["value"]}
