"""What an operator may set, built once at the process's edge. Only this module reads the environment."""

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from server.errors import SettingsError

Rank = Literal[1, 8, 16, 32, 64, 128, 256, 320, 512]
RANK_LADDER: tuple[Rank, ...] = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM's buffers come in. Time and memory follow the step, not an adapter's own rank."""


class ServerSettings(BaseSettings):
    """`LORIKEET_<NAME>` in the environment, or a flag of `lorikeet serve`."""

    model_config = SettingsConfigDict(env_prefix="LORIKEET_", frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    """The address to listen on. Any but a loopback address needs an API key to exist."""
    port: int = Field(default=8000, ge=1, le=65535)
    """The port to listen on."""
    base: str = "smollm2-135m-instruct"
    """The base to serve: a name, fingerprint or path that the registry knows, or a `merged` or `full` version."""
    max_loras: PositiveInt = 8
    """Adapters that one batch can mix (the engine's slots)."""
    max_cpu_loras: PositiveInt = 64
    """Adapters kept in host RAM. One place is kept spare for the one being loaded."""
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
    max_body_bytes: PositiveInt = 1 << 20
    """The largest request body, save uploads: the registry says how large those may be."""
    load_timeout_seconds: PositiveFloat = 30.0
    """How long a request waits for its adapter before it is told to come back (503)."""
    ledger_seconds: float = Field(default=5.0, gt=0, le=60)
    """How often what was used is written down: a crash loses what was used since, at most."""
    drain_seconds: PositiveInt = 30
    """How long running requests may still take after a stop was asked for."""

    @classmethod
    def build(cls, flags: Mapping[str, Any]) -> Self:
        """From the environment and the flags that were given (the others are None); flags win.

        Raises:
            SettingsError: one line that names each wrong setting.
        """
        try:
            return cls(**{name: value for name, value in flags.items() if value is not None})
        except ValidationError as error:
            wrong = (f"{'.'.join(map(str, one['loc'])) or 'settings'}: {one['msg']}" for one in error.errors())
            raise SettingsError("; ".join(wrong)) from error

    @model_validator(mode="after")
    def _host_slots_cover_slots(self) -> Self:
        if self.max_cpu_loras <= self.max_loras:
            # One place of host RAM is kept spare, and vLLM refuses fewer places in RAM than slots.
            raise ValueError(f"max_cpu_loras ({self.max_cpu_loras}) must be above max_loras ({self.max_loras})")
        return self

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

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
