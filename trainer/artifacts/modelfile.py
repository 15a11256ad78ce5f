"""Ollama's Modelfile beside a GGUF file: where it is, how a prompt is made, where an answer stops.

Ollama renders Go templates, GGUF holds a Jinja one. What is ChatML is known by what the template renders, not by its
text, and gets ChatML's Go template; of any other, Ollama makes what it can from the GGUF file itself.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from jinja2 import TemplateError
from transformers import AutoTokenizer

from trainer.artifacts.gguf_tokenizer import stop_ids
from trainer.checkpoint import LOCAL

CHATML: Final = """{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""
CONVERSATION: Final = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Good day"},
    {"role": "user", "content": "Where is it?"},
)
DEFAULT_SYSTEM: Final = re.compile(r"<\|im_start\|>system\n(.*?)<\|im_end\|>\n", re.DOTALL)


def modelfile(folder: Path, gguf_name: str) -> str:
    """For the checkpoint in `folder`, which was written to `gguf_name`."""
    tokenizer = AutoTokenizer.from_pretrained(folder, **LOCAL)
    lines = [f"FROM ./{gguf_name}"]
    if tokenizer.chat_template and _render(tokenizer, CONVERSATION) == _chatml(CONVERSATION):
        lines.append(f'TEMPLATE """{CHATML}"""')
        # Some templates say something of their own where there is no system message.
        default = DEFAULT_SYSTEM.match(_render(tokenizer, CONVERSATION[1:2]) or "")
        if default and '"""' not in f'{default[1]}"':
            lines.append(f'SYSTEM """{default[1]}"""')
    stops = {tokenizer.eos_token, *(tokenizer.convert_ids_to_tokens(number) for number in stop_ids(folder))}
    lines += [f'PARAMETER stop "{stop}"' for stop in sorted(stop for stop in stops if stop and _is_plain(stop))]
    return "\n".join(lines) + "\n"


def _is_plain(stop: str) -> bool:
    """Whether it stays within its quotes: a model's token is a stranger's text, and must not end up as a directive."""
    return stop.isprintable() and not {'"', "\\"} & set(stop)


def _render(tokenizer: Any, messages: Sequence[dict[str, str]]) -> str | None:  # noqa: ANN401  — transformers'
    """None: the template refuses such messages; some take no system message."""
    try:
        text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    except (TemplateError, TypeError, ValueError, KeyError):  # whatever a template trips over
        return None
    return text


def _chatml(messages: Sequence[dict[str, str]]) -> str:
    turns = "".join(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in messages)
    return turns + "<|im_start|>assistant\n"
