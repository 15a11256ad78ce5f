"""vLLM behind the `Engine` protocol: its own AsyncLLM and its own OpenAI app, with one override between them.

The inner app answers for the base only; `generate()` reads REQUEST and adds the adapter, so every route that vLLM has
(chat, completions, responses, messages, with tools, structured output, log-probabilities) is served per adapter.

Invariants: an adapter is loaded by `add_lora` before a request may name it, never inside an engine step; an integer id
is drawn once a load and never again; what failed to load is removed, for a half-loaded adapter keeps its slot with the
previous tenant's weights in it; on the CPU the engine refuses to start with vLLM's own Punica wrapper.

Written for vLLM 0.32, which only this module, `vllm_requests`, `punica_cpu` and `plugin` import.
"""

import asyncio
import itertools
import logging
from collections.abc import Sequence
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from starlette.types import ASGIApp
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.platforms import current_platform
from vllm.renderers.inputs.preprocess import parse_model_prompt
from vllm.sampling_params import RequestOutputKind
from vllm.tool_parsers import ToolParserManager
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.exceptions import EngineDeadError as VllmDeadError

from server.engine.processes import Processes
from server.engine.protocol import (
    REQUEST,
    AdapterRejectedError,
    EngineDeadError,
    EngineInfo,
    Health,
    LoadedAdapter,
    RequestContext,
    Sample,
    Vitals,
)
from server.engine.vllm_requests import AdapterLLM, StepLogger, answering_name, lora_request_of, refuse_early

log = logging.getLogger(__name__)
T = TypeVar("T")

CPU_WRAPPER = "server.engine.punica_cpu.GroupedPunicaCPU"
STRUCTURED_OUTPUTS = '{"backend": "xgrammar"}'
"""One compiler for what strangers write. vLLM's default hands what it refuses to others: llguidance took 22 GB, and the
process with it, for one `minItems`, and Outlines builds an automaton over the whole vocabulary."""


class VllmEngine:
    """One vLLM engine: one base, `slots` adapters a batch, `host_slots` adapters in RAM."""

    def __init__(  # noqa: PLR0913  — what of vLLM's flags an operator decides, each by its name
        self,
        *,
        model: Path,
        base_name: str,
        slots: int,
        host_slots: int,
        max_rank: int,
        target_modules: Sequence[str],
        max_model_len: int | None = None,
        max_num_seqs: int = 16,
        kv_cache_memory_bytes: int = 1 << 30,
        dtype: str = "auto",
        tool_call_parser: str = "hermes",
        log_format: str = "text",
        otlp_traces_endpoint: str | None = None,
    ) -> None:
        self.flags = [
            *("--model", str(model), "--served-model-name", base_name, "--dtype", dtype),
            *("--enable-lora", "--max-loras", str(slots), "--max-cpu-loras", str(host_slots)),
            *("--max-lora-rank", str(max_rank), "--lora-target-modules", *target_modules),
            *("--max-num-seqs", str(max_num_seqs), "--kv-cache-memory-bytes", str(kv_cache_memory_bytes)),
            *(("--max-model-len", str(max_model_len)) if max_model_len else ()),
            *("--scheduling-policy", "priority", "--enable-prompt-tokens-details", "--disable-fastapi-docs"),
            *("--structured-outputs-config", STRUCTURED_OUTPUTS),
            *("--enable-auto-tool-choice", "--tool-call-parser", tool_call_parser, "--tool-strict-level", "parameter"),
            *("--allowed-media-domains", "none.invalid"),  # a multimodal base must not fetch what a client names
            *("--logging-config.formatter", log_format),
            *(("--otlp-traces-endpoint", otlp_traces_endpoint) if otlp_traces_endpoint else ()),
            *("--disable-uvicorn-access-log", "--worker-extension-cls", "server.engine.worker_checks.WorkerChecks"),
        ]
        self._base_name, self._slots, self._host_slots, self._max_rank = base_name, slots, host_slots, max_rank
        self._ids = itertools.count(slots + 1)  # vLLM's warm-up uses 1 … slots
        self._llm: AdapterLLM | None = None
        self._asgi: ASGIApp | None = None
        self._openapi: dict[str, Any] | None = None
        self._info: EngineInfo | None = None
        self._processes: Processes | None = None

    async def start(self) -> None:
        """Load the base and build vLLM's app over it. Blocks the event loop while vLLM starts its processes."""
        args = make_arg_parser(FlexibleArgumentParser()).parse_args(self.flags)
        validate_parsed_serve_args(args)
        _require_parser(args.tool_call_parser)
        try:
            llm = AdapterLLM.from_engine_args(AsyncEngineArgs.from_cli_args(args), stat_loggers=[StepLogger])
        except Exception as error:  # the vLLM seam: what goes wrong in its processes arrives as plain Exception
            raise EngineDeadError(f"vLLM did not start: {str(error).partition(chr(10))[0]}") from error
        self._llm = llm
        _log_as_we_do()
        await self._check_wrapper(llm)
        tasks = await llm.get_supported_tasks()
        app = build_app(args, tasks, llm.model_config)
        await init_app_state(llm, app.state, args, tasks)
        models = app.state.openai_serving_models
        models.model_name = partial(answering_name, models.model_name)
        if (responses := app.state.openai_serving_responses) is not None:
            within = responses._generate_with_builtin_tools  # noqa: SLF001  — there is no other way in
            responses._generate_with_builtin_tools = partial(refuse_early, llm, within)  # noqa: SLF001
        app.state.server = SimpleNamespace(should_exit=False)  # vLLM's error handler writes to it when the engine dies
        self._asgi, self._openapi = app, await asyncio.to_thread(app.openapi)
        self._processes = Processes(process.pid for process in llm.engine_core.resources.engine_manager.processes)
        self._info = EngineInfo(
            base_name=self._base_name,
            max_model_len=llm.model_config.max_model_len,
            max_rank=self._max_rank,
            slots=self._slots,
            host_slots=self._host_slots,
        )

    async def stop(self) -> None:
        """End vLLM's processes."""
        llm, self._llm = self._llm, None
        if llm is not None:
            if self._processes is not None and self._processes.look().is_halted:
                self._processes.kill()  # vLLM would ask it to end first, and wait
            if llm.output_handler is not None:
                llm.output_handler.cancel()  # or it reports the processes we end as an engine that died
            await asyncio.to_thread(llm.shutdown)

    @property
    def info(self) -> EngineInfo:
        """What the engine holds and takes."""
        return _started(self._info)

    @property
    def asgi(self) -> ASGIApp:
        """vLLM's own OpenAI app."""
        return _started(self._asgi)

    def openapi(self) -> dict[str, Any]:
        """What vLLM's routes take, as FastAPI describes them."""
        return _started(self._openapi)

    async def load(self, name: str, path: Path) -> LoadedAdapter:
        """Read the adapter's files into host RAM, and a slot, between two engine steps."""
        adapter = LoadedAdapter(name=name, int_id=next(self._ids), path=path)
        llm = _started(self._llm)
        try:
            await llm.add_lora(lora_request_of(adapter))
        except VllmDeadError as error:
            raise EngineDeadError("the engine died") from error
        except Exception as error:  # the vLLM seam: failures in its workers arrive as plain Exception
            await self.unload(adapter)
            log.warning("adapter load failed", extra={"adapter": name, "reason": str(error)})
            raise AdapterRejectedError("the engine can't load this adapter") from error
        return adapter

    async def unload(self, adapter: LoadedAdapter) -> None:
        """Take the adapter out of host RAM and out of its slot."""
        if self._llm is not None:
            with suppress(Exception):  # the vLLM seam: dead, or never registered; there is nothing left to remove
                await self._llm.until_unused(adapter)
                await self._llm.remove_lora(adapter.int_id)

    async def sample(self, prompt: str, adapter: LoadedAdapter | None, *, max_tokens: int) -> Sample:
        """Continue `prompt` greedily."""
        llm = _started(self._llm)
        (rendered,) = await llm.renderer.render_cmpl_async(
            [parse_model_prompt(llm.model_config, prompt)], llm.renderer.default_cmpl_tok_params
        )
        params = SamplingParams(
            temperature=0, max_tokens=max_tokens, ignore_eos=True, logprobs=0, output_kind=RequestOutputKind.FINAL_ONLY
        )
        token = REQUEST.set(RequestContext(adapter))
        try:
            async with aclosing(llm.generate(rendered, params, f"sample-{next(self._ids)}")) as outputs:
                completion = [output async for output in outputs][-1].outputs[0]
        except VllmDeadError as error:
            raise EngineDeadError("the engine died") from error
        finally:
            REQUEST.reset(token)
        logprobs = zip(completion.token_ids, completion.logprobs, strict=True)
        return Sample(tuple(completion.token_ids), tuple(choices[token_id].logprob for token_id, choices in logprobs))

    def health(self) -> Health:
        """Dead if vLLM says so."""
        if self._llm is None or self._info is None:
            return Health.STARTING
        return Health.DEAD if self._llm.errored else Health.READY

    def vitals(self) -> Vitals:
        """Its steps, and the processes that make them."""
        llm, look = _started(self._llm), _started(self._processes).look()
        return Vitals(llm.has_work, llm.stepped_at, look.cpu_seconds, look.is_halted, look.is_at_disk)

    async def _check_wrapper(self, llm: "AdapterLLM") -> None:
        """Refuse to serve where base rows would be answered with a tenant's adapter."""
        if not current_platform.is_cpu():
            return
        found = {name for worker in await llm.collective_rpc("punica_wrappers") for name in worker}
        if found != {CPU_WRAPPER}:
            await asyncio.to_thread(llm.shutdown)
            raise EngineDeadError(
                f"LoRA on the CPU must run on {CPU_WRAPPER}, not {found}: is lorikeet itself installed?"
            )


def _log_as_we_do() -> None:
    """What vLLM logs in this process goes where our own lines go, and not past them."""
    logger = logging.getLogger("vllm")
    logger.handlers.clear()
    logger.propagate = True


def _require_parser(name: str) -> None:
    known = sorted(ToolParserManager.list_registered())
    if name not in known:
        raise EngineDeadError(f"tool_call_parser {name} is none of vLLM's: choose one of {', '.join(known)}")


def _started(part: T | None) -> T:
    if part is None:
        raise EngineDeadError("the engine is not started")
    return part
