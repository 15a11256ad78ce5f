"""What an operator may set, built once at the process's edge (server/configuration.py).

Only this module reads the environment.
"""

import os
from ipaddress import ip_address
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from server.errors import SettingsError
from server.logs import LogFormat, LogLevel

PREFIX: Final = "LORIKEET_"


def _number(value: object) -> object:
    """A variable's text as the number that it says: pydantic compares choices as they come."""
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value


Rank = Annotated[Literal[1, 8, 16, 32, 64, 128, 256, 320, 512], BeforeValidator(_number)]
RANK_LADDER: tuple[Rank, ...] = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM's buffers come in. Time and memory follow the step, not an adapter's own rank."""


def lorikeet_variables() -> dict[str, str]:
    """Those of the environment that are ours, by their names in capitals."""
    return {name.upper(): value for name, value in os.environ.items() if name.upper().startswith(PREFIX)}


def notify_socket() -> str | None:
    """Where whoever supervises this process wants to be told that it is ready: systemd's word for it."""
    return os.environ.get("NOTIFY_SOCKET")


def is_supervised() -> bool:
    """Whether somebody starts this process again when it ends: systemd, Kubernetes, or a container's engine."""
    is_unit = "INVOCATION_ID" in os.environ and os.environ.get("SYSTEMD_EXEC_PID", str(os.getpid())) == str(os.getpid())
    return is_unit or "KUBERNETES_SERVICE_HOST" in os.environ or os.getpid() == 1


class ServerSettings(BaseModel):
    """`LORIKEET_<NAME>` in the environment, a key of the settings file, or a flag of `lorikeet serve`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(default="127.0.0.1", min_length=1)
    """The address to listen on. Any but a loopback address needs an API key to exist."""
    port: int = Field(default=8000, ge=1, le=65535)
    """The port to listen on."""
    admin_port: int | None = Field(default=None, ge=1, le=65535)
    """The port of the admin API, `/metrics` and their schema, which are then at no other. Unset: all on one port."""
    admin_host: str = Field(default="127.0.0.1", min_length=1)
    """The address of `admin_port`, where there is one. As with `host`, any but a loopback address needs an API key."""
    base: str = "smollm2-135m-instruct"
    """The base to serve: a name, hub id or path that the registry knows, or a `merged` or `full` version."""
    max_loras: PositiveInt = 8
    """Adapters that one batch can mix (the engine's slots)."""
    max_cpu_loras: PositiveInt = 64
    """Adapters kept in host RAM. Above max_loras: what is pinned or loaded ahead of its turn takes places beyond the
    slots. One place is kept spare for the one being loaded."""
    max_lora_rank: Rank | None = None
    """The highest rank served: a step of vLLM's ladder, not below LORIKEET_MAX_RANK. Unset: the step that covers it."""
    max_model_len: int | None = Field(default=None, ge=64)
    """Prompt and answer together, in tokens, 64 at least. Unset: what the base was made for."""
    max_num_seqs: PositiveInt = 16
    """Sequences in one batch."""
    kv_cache_memory_bytes: PositiveInt = 1 << 30
    """Memory for the keys and values of running requests and of the prefix cache."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "bfloat16"
    """What the base is computed in; auto is what its checkpoint says."""
    tool_call_parser: str = "hermes"
    """How the base writes a tool call, in vLLM's word for it: hermes, llama3_json, mistral …"""
    max_body_bytes: PositiveInt = 1 << 20
    """The largest request body, save uploads: the registry says how large those may be."""
    max_num_queued_reqs: PositiveInt | None = None
    """Requests that may wait for their turn; what comes then is told to come back (503). Unset: four batches."""
    queue_timeout_seconds: PositiveFloat = 30.0
    """How long a request waits for its turn before it is told to come back (503)."""
    load_timeout_seconds: PositiveFloat = 30.0
    """How long a request waits for its adapter before it is told to come back (503)."""
    ledger_seconds: float = Field(default=4.0, gt=0, le=60)
    """How often what was used is written down: a crash loses what was used since, at most."""
    drain_seconds: PositiveInt = 30
    """How long running requests may still take after a stop was asked for."""
    log_format: LogFormat | None = None
    """`json` or `text`: the lines on stderr. Unset: text on a terminal, JSON elsewhere."""
    log_level: LogLevel = "info"
    """The least that is logged: `debug`, `info` (a line for each request), `warning` or `error`."""
    otlp_traces_endpoint: str | None = Field(default=None, pattern=r"^https?://")
    """Where OpenTelemetry's spans go, by OTLP over HTTP: `http://collector:4318/v1/traces`. Unset: there are none."""
    write_timeout_seconds: PositiveFloat = 30.0
    """How long a client may leave an answer unread before its connection is cut; in all, if it reads under 4 KiB/s."""
    stall_seconds: PositiveFloat = 10.0
    """With work in hand, no step made and no processor used for this long, the engine hangs: the server ends."""
    step_seconds: PositiveFloat = 120.0
    """… and for this long, if its processes do use the processor."""
    heartbeat_seconds: PositiveFloat = 15.0
    """How often an idle engine is asked for a token. Ready means that one was made lately."""

    @model_validator(mode="after")
    def _host_slots_cover_slots(self) -> Self:
        if self.max_cpu_loras <= self.max_loras:
            # One place of host RAM is kept spare, and vLLM refuses fewer places in RAM than slots.
            raise ValueError(f"max_cpu_loras ({self.max_cpu_loras}) must be above max_loras ({self.max_loras})")
        return self

    @model_validator(mode="after")
    def _doors_are_two(self) -> Self:
        if self.admin_port == self.port:
            raise ValueError(f"admin_port ({self.admin_port}) must be another than port: leave it unset for one port")
        return self

    @property
    def most_pins(self) -> int:
        """Versions that pins may keep in host RAM: a place for each slot, and one, is left to the others."""
        return max(0, self.max_cpu_loras - self.max_loras - 1)

    @property
    def places(self) -> int:
        """Sequences that the engine is given at once: a batch, and the next few, so that no step lacks one."""
        return self.max_num_seqs + max(1, self.max_num_seqs // 4)

    @property
    def doors(self) -> list[tuple[str, int]]:
        """The addresses to listen on."""
        admin = [] if self.admin_port is None else [(self.admin_host, self.admin_port)]
        return [(self.host, self.port), *admin]

    @property
    def open_hosts(self) -> list[str]:
        """Those of the addresses that other machines may reach."""
        return [host for host, _ in self.doors if not _is_loopback(host)]

    def rank_step(self, registry_max_rank: int) -> int:
        """The step of the ladder to start the engine at.

        Raises:
            SettingsError: the chosen step, or every step, is below the registry's highest rank.
        """
        covering = [step for step in RANK_LADDER if step >= registry_max_rank]
        if not covering:
            raise SettingsError(f"the registry allows rank {registry_max_rank}, vLLM at most {RANK_LADDER[-1]}")
        if self.max_lora_rank is None:
            return covering[0]
        if self.max_lora_rank not in covering:
            raise SettingsError(
                f"max_lora_rank ({self.max_lora_rank}) is below the highest rank that the registry takes "
                f"({registry_max_rank}): leave it unset or choose {covering[0]}, or lower LORIKEET_MAX_RANK"
            )
        return self.max_lora_rank


def _is_loopback(host: str) -> bool:
    """A name is taken for one that others can reach."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
