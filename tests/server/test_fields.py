"""Every field that vLLM's requests take was looked at: it is a client's to set, or OURS.

Reads vLLM's sources without importing it. A new release that adds a field fails here until somebody has decided.
"""

import ast
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from server.asked import OURS
from server.engine.fake_schema import REQUESTS as FAKE_REQUESTS

REQUESTS = {
    "openai/chat_completion/protocol.py": ["ChatCompletionRequest"],
    "openai/completion/protocol.py": ["CompletionRequest"],
    "openai/responses/protocol.py": ["ResponsesRequest"],
    "anthropic/protocol.py": ["AnthropicMessagesRequest", "AnthropicCountTokensRequest"],
    "pooling/base/protocol.py": ["PoolingBasicRequestMixin", "CompletionRequestMixin", "ChatRequestOptionsMixin"],
}

CLIENTS_WORDS = """
    messages prompt input system instructions documents suffix echo model user metadata
    max_tokens max_completion_tokens max_output_tokens max_tool_calls min_tokens n stop stop_sequences stop_token_ids
    temperature top_p top_k min_p frequency_penalty presence_penalty repetition_penalty length_penalty seed logit_bias
    bad_words allowed_token_ids ignore_eos include_stop_str_in_output repetition_detection
    logprobs top_logprobs prompt_logprobs logprob_token_ids return_tokens_as_token_ids return_token_ids
    return_token_offsets return_prompt_text include
    stream stream_options skip_special_tokens spaces_between_special_tokens add_special_tokens add_generation_prompt
    continue_final_message truncate_prompt_tokens truncation_side truncation padding
    response_format structured_outputs output_config text tools tool_choice parallel_tool_calls
    reasoning reasoning_effort include_reasoning thinking thinking_token_budget service_tier prompt_cache_key
    encoding_format dimensions
"""
CLIENTS = set(CLIENTS_WORDS.split())


def vllm_folder() -> Path | None:
    """Where vLLM lies, found without importing it."""
    spec = find_spec("vllm")
    return Path(spec.origin).parent if spec and spec.origin else None


def fields_of(source: Path, classes: list[str]) -> Iterator[str]:
    """The annotated public fields of these classes."""
    for node in ast.parse(source.read_text()).body:
        if isinstance(node, ast.ClassDef) and node.name in classes:
            for line in node.body:
                if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                    yield line.target.id


@pytest.mark.skipif(vllm_folder() is None, reason="vLLM is not installed here")
@pytest.mark.parametrize("module", REQUESTS)
def test_no_field_of_vllms_requests_is_undecided(module: str) -> None:
    folder = vllm_folder()
    assert folder is not None
    fields = {name for name in fields_of(folder / "entrypoints" / module, REQUESTS[module]) if not name.startswith("_")}
    assert fields
    assert fields <= CLIENTS | OURS, fields - CLIENTS - OURS


def test_the_fake_takes_no_field_that_vllm_does_not() -> None:
    fields = {name for request in FAKE_REQUESTS.values() for name in request.model_fields}
    assert fields <= CLIENTS | OURS


def test_no_field_is_both_a_clients_and_ours() -> None:
    assert not CLIENTS & OURS
