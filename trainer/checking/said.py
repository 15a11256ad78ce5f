"""What a row says, apart from how it is tokenized: its prompt, its answers, all of its text."""

from trainer.dataset import Completion, Conversation, PlainText, Preference, Row


def answers(row: Row) -> tuple[str, ...]:
    """The texts that are learned as answers; none of plain text. A call of a tool without text is none."""
    match row:
        case Conversation():
            said = tuple(
                message.content
                for message in row.messages
                if message.role == "assistant" and (message.content or message.tool_calls is None)
            )
            ends_in_call = row.messages[-1].tool_calls is not None and not row.messages[-1].content
            return said if not row.learns_last_only else () if ends_in_call else said[-1:]
        case Completion():
            return (row.completion,)
        case Preference():
            return (row.chosen,)
        case PlainText():
            return ()


def texts(row: Row) -> tuple[str, ...]:
    """Every text of the row."""
    match row:
        case Conversation():
            return tuple(message.content for message in row.messages)
        case Completion():
            return (row.prompt, row.completion)
        case Preference():
            return (*(message.content for message in row.prompt), row.chosen, row.rejected)
        case PlainText():
            return (row.text,)


def asked(row: Row) -> str:
    """What users ask in it, without the system message, which many rows share."""
    match row:
        case Conversation():
            return "\n".join(message.content for message in row.messages if message.role not in {"system", "assistant"})
        case Completion():
            return row.prompt
        case Preference():
            return "\n".join(message.content for message in row.prompt if message.role != "system")
        case PlainText():
            return ""


def told(row: Row) -> str:
    """What is answered in it; all of plain text."""
    match row:
        case Preference():
            return f"{row.chosen}\n{row.rejected}"
        case PlainText():
            return row.text
        case _:
            return "\n".join(answers(row))


def before_last_answer(row: Row) -> tuple[str, ...] | None:
    """All that the last answer answers; None for plain text."""
    match row:
        case Conversation():
            return tuple(
                f"{message.role} {message.content} {message.tool_calls or ''}" for message in row.messages[:-1]
            )
        case Completion():
            return (row.prompt,)
        case Preference():
            return tuple(f"{message.role} {message.content}" for message in row.prompt)
        case PlainText():
            return None


def normalized(text: str) -> str:
    """Without what makes no difference: case and white space."""
    return " ".join(text.casefold().split())
