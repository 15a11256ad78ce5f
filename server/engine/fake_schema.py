"""What the fake engine's routes take: a request's fields, and how far its values may go, as vLLM would have it.

The fields are those that the official clients send, and some that no client may: the server in front must know them.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.json_schema import models_json_schema

Tokens = Annotated[int, Field(ge=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]
Parts = Annotated[list[dict[str, Any]], Field(min_length=1)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class Fields(BaseModel):
    """A request, or a part of one. What it does not know, it passes over, as vLLM does."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)


class StreamOptions(Fields):
    """What else a stream says."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class ResponseFormat(Fields):
    """The form that an answer must have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _require_schema(self) -> "ResponseFormat":
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("json_schema is missing")
        return self


class Sampled(Fields):
    """What all routes share that make text."""

    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    stream: bool | None = None
    # not a client's to set
    cache_salt: str | None = None
    priority: int = 0
    request_id: str | None = None
    kv_transfer_params: dict[str, Any] | None = None


class Completed(Sampled):
    """What OpenAI's older routes share."""

    max_tokens: Tokens | None = None
    n: Tokens | None = None
    min_p: Share | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    logit_bias: dict[str, float] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | Annotated[list[Text], Field(max_length=4)] | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: dict[str, Any] | None = None
    user: str | None = None

    @model_validator(mode="after")
    def _require_stream(self) -> "Completed":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options need stream")
        return self


class ChatMessage(Fields):
    """Of OpenAI's chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Parts | None = None

    @model_validator(mode="after")
    def _require_content(self) -> "ChatMessage":
        if self.content is None and self.role != "assistant":
            raise ValueError("content is missing")
        return self


class ChatRequest(Completed):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionRequest(Completed):
    """POST /v1/completions."""

    prompt: Text | TokenIds | Annotated[list[Text], Field(min_length=1)]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    suffix: str | None = None


class ResponsesRequest(Sampled):
    """POST /v1/responses."""

    input: Text | Parts
    instructions: str | None = None
    max_output_tokens: Tokens | None = None
    metadata: dict[str, str] | None = None
    text: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    user: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None


class Message(Fields):
    """Of Anthropic's."""

    role: Literal["user", "assistant", "system"]
    content: str | Parts


class CountTokensRequest(Fields):
    """POST /v1/messages/count_tokens."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    system: str | Parts | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None


class MessagesRequest(Sampled):
    """POST /v1/messages."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Tokens
    system: str | Parts | None = None
    metadata: dict[str, Any] | None = None
    stop_sequences: list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None


class EmbeddingRequest(Fields):
    """POST /v1/embeddings."""

    model: str | None = None
    input: Text | TokenIds | Annotated[list[Text], Field(min_length=1)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Tokens | None = None
    user: str | None = None
    cache_salt: str | None = None


REQUESTS: Final[Mapping[str, type[Fields]]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/responses": ResponsesRequest,
    "/v1/messages": MessagesRequest,
    "/v1/messages/count_tokens": CountTokensRequest,
    "/v1/embeddings": EmbeddingRequest,
}
"""path → what it takes."""


def openapi() -> dict[str, Any]:
    """The routes, as FastAPI would describe them."""
    _, shared = models_json_schema(
        [(kind, "validation") for kind in REQUESTS.values()], ref_template="#/components/schemas/{model}"
    )
    paths = {path: {"post": _operation(kind)} for path, kind in REQUESTS.items()}
    return {"openapi": "3.1.0", "paths": paths, "components": {"schemas": shared["$defs"]}}


def _operation(kind: type[Fields]) -> dict[str, Any]:
    taken = {"application/json": {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}}
    given: dict[str, Any] = {"application/json": {"schema": {}}}
    if "stream" in kind.model_fields:
        given["text/event-stream"] = {}
    return {
        "summary": kind.__name__.removesuffix("Request"),
        "requestBody": {"content": taken, "required": True},
        "responses": {"200": {"description": "Successful Response", "content": given}},
    }
