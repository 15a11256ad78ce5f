"""What a client asks for: the JSON body of an inference call, read strictly.

Knows which fields are a client's to set, and nothing of what vLLM makes of the rest: those pass through untouched.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from server.ceilings import check_ceilings
from server.errors import BadRequestError, BodyTimeoutError, MediaTypeError
from server.strict_json import read_object

BODY_SECONDS = 30.0
"""In which a body has to come, whole: a request has one of its tenant's places, and a slow client would keep it."""

OURS = frozenset(
    {
        # what other tenants' requests meet: the cache, the queue, ids
        "cache_salt",
        "priority",
        "request_id",
        "session_id",
        "data_parallel_rank",
        # the engine's inside
        "lora_request",
        "kv_transfer_params",
        "ec_transfer_params",
        "vllm_xargs",
        "prompt_embeds",
        "mm_payload",
        "mm_processor_kwargs",
        "media_io_kwargs",
        "return_mm_kwargs",
        "routed_experts_prompt_start",
        "stream_interval",
        "watermarking",
        # a request to the engine for each beam and token, made inside the event loop
        "use_beam_search",
        # programs: a template runs in the server, and the digest that an adapter was trained with must hold
        "chat_template",
        "chat_template_kwargs",
        # state kept between requests, in one store for all tenants
        "previous_response_id",
        "previous_input_messages",
        "enable_response_messages",
        "store",
        "background",
    }
)
"""Fields that are not a client's to set. Null and false ask for nothing, and are dropped."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One inference call, understood as far as the gateway must."""

    name: str | None
    """The adapter's name as the client wrote it; None asks the base."""
    fields: Mapping[str, Any]
    """The rest of the body, free of `adapter` and `model` and of what is not a client's to set."""
    sticky: str
    """Who asks, where an alias is split: the caller's `user`, or else this very request."""

    @classmethod
    def parse(cls, body: bytes, *, base_name: str) -> "Asked":
        """Understand a request's body.

        Raises:
            BadRequestError: not strictly JSON, contradictory, or asking for too much or for what is not a client's to
                set.
        """
        fields = read_object(body)
        adapter, model = (_name(fields.pop(param, None), param) for param in ("adapter", "model"))
        model = None if model == base_name else model
        if adapter and model and adapter != model:
            raise BadRequestError(
                "adapter and model name different adapters: send one of them.", code="conflicting_names", param="model"
            )
        client_fields = _client_fields(fields)
        return cls(adapter or model, client_fields, _user(client_fields) or sha256(body).hexdigest())

    def body(self, **ours: str | bool) -> bytes:
        """The body for the engine's app: the client's fields and ours."""
        return json.dumps({**self.fields, **ours}, ensure_ascii=False, separators=(",", ":")).encode()


async def read_body(receive: Receive, headers: Headers) -> bytes:
    """All of a JSON body; its size is capped by the middleware.

    Raises:
        MediaTypeError: it says that it is something else, or compressed.
        BodyTimeoutError: it did not come within BODY_SECONDS.
        ClientDisconnect: the client hung up before its end.
    """
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise MediaTypeError("The body must be sent as content-type application/json.")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise MediaTypeError("The body must be sent without a content-encoding.")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await _received(receive)
    except TimeoutError as error:
        raise BodyTimeoutError(f"The body did not come within {BODY_SECONDS:g} seconds: send it faster.") from error


async def _received(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(body)


def _name(value: object, param: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        raise BadRequestError(
            f'{param} must be a name such as "support" or "support@3".', code="invalid_adapter_name", param=param
        )
    return value


def _user(fields: Mapping[str, Any]) -> str | None:
    metadata = fields.get("metadata")
    user_id = metadata.get("user_id") if isinstance(metadata, Mapping) else None  # as Anthropic's clients send it
    said = (fields.get("user"), fields.get("safety_identifier"), user_id)
    return next((user for user in said if isinstance(user, str) and user), None)


def _client_fields(fields: dict[str, Any]) -> dict[str, Any]:
    for name in OURS & fields.keys():
        if fields[name] is not None and fields[name] is not False:
            raise BadRequestError(f"{name} is not a client's to set.", code="unsupported_parameter", param=name)
        del fields[name]
    check_ceilings(fields)
    return fields
