"""What a client asks for: the JSON body of an inference call, read strictly.

Knows which fields are a client's to set, and nothing of what vLLM makes of the rest: those that their route knows pass
through untouched, and all others go no further. A field that means nothing is named in the answer, not refused: clients
send what other servers take.
"""

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from server.ceilings import check_ceilings, count_generations
from server.errors import BadRequestError, BodyTimeoutError, MediaTypeError
from server.strict_json import read_object

BODY_SECONDS = 30.0
"""In which a body has to come, whole: a request has one of its tenant's places, and a slow client would keep it."""

BYTES_PER_TOKEN = 4
"""Of English, roughly: what is charged for a prompt until the engine has counted it."""
MAX_TOKENS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
"""What the routes call it."""

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
"""Fields that are not a client's to set. Null, false, 0 and what is empty ask for nothing, and are dropped."""
READ_HERE = frozenset({"user", "safety_identifier", "metadata"})
"""Fields that mean something to this server, whatever the route makes of them."""
IGNORED_SHOWN = 20
IGNORED_LENGTH = 64
"""Of a field's name, in the header that lists those that were ignored."""
UNSHOWN = re.compile(r"[^\x21-\x2b\x2d-\x7e]")
"""What can't stand in a header's list."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One inference call, understood as far as the gateway must."""

    name: str | None
    """The adapter's name as the client wrote it; None asks the base."""
    fields: Mapping[str, Any]
    """The rest of the body, free of `adapter` and `model` and of what is not a client's to set."""
    sticky: str
    """Who asks, where an alias is split: the caller's `user`, or else this very request."""
    likely_prompt_tokens: int = 0
    """Before anybody has read it: a token for every BYTES_PER_TOKEN of the body."""
    names_base: bool = False
    """Whether it asks the base by its name: then its tenant's default adapter is not meant."""
    ignored: tuple[str, ...] = ()
    """The fields that it had besides, which its route does not know: they are not passed on. Sorted."""

    @property
    def sequences(self) -> int:
        """How many the engine makes of it: prompts times choices."""
        return count_generations(self.fields)

    @property
    def max_tokens(self) -> int | None:
        """Of each answer, if it says so."""
        said = (self.fields.get(name) for name in MAX_TOKENS)
        return next((tokens for tokens in said if type(tokens) is int and tokens > 0), None)

    @classmethod
    def parse(cls, body: bytes, *, base_name: str | None, known: frozenset[str] | None = None) -> "Asked":
        """Understand a request's body. `base_name`: if all may know it; `known`: its route's fields, None: all are.

        Raises:
            BadRequestError: not strictly JSON, contradictory, or asking for too much or for what is not a client's to
                set.
        """
        fields = read_object(body)
        adapter, model = (_name(fields.pop(param, None), param) for param in ("adapter", "model"))
        is_base = model is not None and model == base_name
        names_base = adapter is None and is_base
        model = None if is_base else model
        if adapter and model and adapter != model:
            raise BadRequestError(
                "adapter and model name different adapters: send one of them.", code="conflicting_names", param="model"
            )
        client_fields = _client_fields(fields)
        sticky = _user(client_fields) or sha256(body).hexdigest()
        unknown = client_fields.keys() - (client_fields.keys() if known is None else known)
        passed_on = {name: value for name, value in client_fields.items() if name not in unknown}
        check_ceilings(passed_on)
        ignored = tuple(sorted(unknown - READ_HERE))
        likely_tokens = len(body) // BYTES_PER_TOKEN
        return cls(adapter or model, passed_on, sticky, likely_tokens, names_base=names_base, ignored=ignored)

    @property
    def ignored_header(self) -> str:
        """`ignored` as a header says it: `foo,verbosity`; the first IGNORED_SHOWN, then `...` if there are more."""
        shown = [UNSHOWN.sub("?", name[:IGNORED_LENGTH]) for name in self.ignored[:IGNORED_SHOWN]]
        return ",".join([*shown, *(["..."] if len(self.ignored) > IGNORED_SHOWN else [])])

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
        if fields[name]:
            raise BadRequestError(f"{name} is not a client's to set.", code="unsupported_parameter", param=name)
        del fields[name]
    return fields
