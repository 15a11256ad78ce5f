"""A request on its way through vLLM: the adapter it carries, what it uses, and when it has really left.

Extends vLLM's own engine client and metrics logger. Knows requests; `server/engine/vllm.py` knows the engine's life.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from copy import copy
from typing import Any

from prometheus_client import REGISTRY
from vllm.exceptions import VLLMValidationError
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.metrics.loggers import PrometheusStatLogger

from server.engine.protocol import REQUEST, LoadedAdapter, RequestContext, Usage


class AdapterLLM(AsyncLLM):  # type: ignore[misc]  # vLLM ships no types that strict mode accepts
    """vLLM's engine client, whose requests carry the adapter that REQUEST names and report their usage to it.

    Made with `stat_loggers=[StepLogger]`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._running: Counter[int] = Counter()  # requests in hand by adapter id; the base's under 0
        self._when_unused: dict[int, asyncio.Event] = {}
        (self._steps,) = (logger for logger in self.logger_manager.stat_loggers if isinstance(logger, StepLogger))

    @property
    def has_work(self) -> bool:
        """Whether the engine has requests that are not finished. What a client has not read yet is none."""
        return bool(self.output_processor.has_unfinished_requests())

    @property
    def stepped_at(self) -> float:
        """When the engine last made a step; 0 before the first."""
        return self._steps.stepped_at

    async def until_unused(self, adapter: LoadedAdapter) -> None:
        """Wait until no request with this adapter is in hand.

        When a client hangs up, vLLM's handler returns before the request it cancelled has left the engine; removing
        the adapter in between would have the next step read it from the disk again.
        """
        if self._running[adapter.int_id]:
            await self._when_unused.setdefault(adapter.int_id, asyncio.Event()).wait()

    def generate(self, prompt: Any, sampling_params: Any, request_id: str, **kwargs: Any) -> AsyncGenerator[Any, None]:
        """vLLM's `generate`; REQUEST is read here, at the call, in the request's own context.

        What vLLM refuses, it would refuse when the first output is waited for: a stream has begun by then.
        """
        self.verify(sampling_params)
        return self._generate(REQUEST.get(), prompt, sampling_params, request_id, kwargs)

    def verify(self, params: Any) -> None:
        """Raises VLLMValidationError in words for the client: a schema that can't be compiled, a token that is none."""
        config = self.vllm_config
        of_structure = config.structured_outputs_config
        params.verify(self.model_config, config.speculative_config, of_structure, self.renderer.tokenizer)

    async def _generate(
        self, context: RequestContext | None, prompt: Any, params: Any, request_id: str, kwargs: dict[str, Any]
    ) -> AsyncGenerator[Any, None]:
        # An answer that is wanted whole is followed token by token all the same: so that it is counted as it is made,
        # whether or not the client stays, and its first token is seen when it comes.
        is_whole = params.output_kind == RequestOutputKind.FINAL_ONLY
        if is_whole:
            params = copy(params)
            params.output_kind = RequestOutputKind.CUMULATIVE
        whole: dict[int, Any] = {}
        meter = _UsageMeter(context, request_id, is_delta=params.output_kind == RequestOutputKind.DELTA)
        with self._in_hand(context):
            async with aclosing(
                super().generate(prompt, params, request_id, **kwargs | _privileges(context))
            ) as outputs:
                async for output in outputs:  # closing it aborts in the engine what the client no longer waits for
                    _require_grammar(params, output)
                    meter.record(output)
                    if is_whole:
                        whole |= {completion.index: completion for completion in output.outputs}
                        if not output.finished:
                            continue
                        output.outputs = [whole[index] for index in sorted(whole)]
                    yield output

    @contextmanager
    def _in_hand(self, context: RequestContext | None) -> Iterator[None]:
        int_id = context.adapter.int_id if context and context.adapter else 0
        self._running[int_id] += 1
        try:
            yield
        finally:
            self._running[int_id] -= 1
            if not self._running[int_id]:
                del self._running[int_id]
                if unused := self._when_unused.pop(int_id, None):
                    unused.set()

    async def encode(
        self,
        prompt: Any,
        pooling_params: Any,
        request_id: str,
        **kwargs: Any,
    ) -> AsyncGenerator[Any, None]:
        """vLLM's `encode` (embeddings), with the request's adapter."""
        context = REQUEST.get()
        privileges = {key: value for key, value in _privileges(context).items() if key != "data_parallel_rank"}
        async with aclosing(super().encode(prompt, pooling_params, request_id, **kwargs | privileges)) as outputs:
            async for output in outputs:
                if context is not None:
                    context.on_usage(request_id, Usage(len(output.prompt_token_ids), 0))
                yield output


class _UsageMeter:
    """Adds up one `generate` call's tokens, over its `n` completions."""

    def __init__(self, context: RequestContext | None, call_id: str, *, is_delta: bool) -> None:
        self._context, self._call_id, self._is_delta = context, call_id, is_delta
        self._completion_tokens: dict[int, int] = {}
        self._cached_tokens: int | None = None

    def record(self, output: Any) -> None:
        if self._context is None:
            return
        for completion in output.outputs:
            before = self._completion_tokens.get(completion.index, 0) if self._is_delta else 0
            self._completion_tokens[completion.index] = before + len(completion.token_ids)
        if self._cached_tokens is None:
            # The prompt counts once. Its other choices have from the cache what the first has put there.
            self._cached_tokens = output.num_cached_tokens or 0
        usage = Usage(
            prompt_tokens=len(output.prompt_token_ids or ()),
            completion_tokens=sum(self._completion_tokens.values()),
            cached_tokens=self._cached_tokens,
        )
        self._context.on_usage(self._call_id, usage)


class StepLogger(PrometheusStatLogger):  # type: ignore[misc]  # vLLM ships no types that strict mode accepts
    """vLLM's metrics, and when the engine last made a step (it reports every one, also those without a token).

    Without `vllm:lora_requests_info`: one series a combination of adapter names, never removed.
    """

    gauge_lora_info: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stepped_at = 0.0
        gauge = self.gauge_lora_info
        if gauge is not None:
            REGISTRY.unregister(gauge)
            self.gauge_lora_info = None

    def record(self, *args: Any, **kwargs: Any) -> None:
        """Called by vLLM with what each step reports."""
        self.stepped_at = time.monotonic()
        super().record(*args, **kwargs)


def refuse_early(llm: AdapterLLM, generate: Callable[..., Any], **asked: Any) -> Any:
    """Around what makes the answer of `/v1/responses`, which calls the engine only once its stream has begun."""
    llm.verify(asked["sampling_params"])
    return generate(**asked)


def _require_grammar(params: Any, output: Any) -> None:
    """The engine gives up what it can't compile, or can't follow to an end, and says no more than that it failed."""
    if params.structured_outputs is not None and any(each.finish_reason == "error" for each in output.outputs):
        raise VLLMValidationError("The schema, regex or grammar of the structured output can't be followed.")


def _privileges(context: RequestContext | None) -> dict[str, Any]:
    """What our side decides and no client may: nothing for calls that vLLM makes by itself, such as its warm-up."""
    if context is None:
        return {}
    adapter = context.adapter
    return {
        "lora_request": lora_request_of(adapter) if adapter else None,
        "priority": context.priority,
        "data_parallel_rank": None,
    }


def answering_name(name_of_base: Callable[[], str], _adapter: LoRARequest | None = None) -> str:
    """In place of `model_name` of vLLM's models, which every answer's `model` comes from: what really answers."""
    context = REQUEST.get()
    return context.label if context and context.label else name_of_base()


def lora_request_of(adapter: LoadedAdapter) -> LoRARequest:
    """vLLM's word for an adapter. Its name and path key the prefix cache, its id the slots."""
    return LoRARequest(lora_name=adapter.name, lora_int_id=adapter.int_id, lora_path=str(adapter.path))
