"""The registry's settings, from the environment: LORIKEET_HOME, LORIKEET_DATABASE_URL, LORIKEET_MAX_RANK and so on."""

from pathlib import Path
from typing import Any, Self

from pydantic import Field, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from adapters.errors import InvalidError
from adapters.limits import Limits
from adapters.registry import Registry, open_registry


class RegistrySettings(BaseSettings):
    """Where the registry lives and what it takes."""

    model_config = SettingsConfigDict(env_prefix="LORIKEET_", frozen=True, extra="ignore")

    home: Path = Path("~/.lorikeet")
    """The folder of registry.db and store/."""
    database_url: str | None = Field(default=None, repr=False)
    """PostgreSQL's, say `postgresql+psycopg://user:password@host/name`. None: SQLite, in the home."""
    max_rank: int = Field(default=Limits.max_rank, ge=1, le=512)
    """The highest rank that may be published; a server must be started with as much."""
    max_upload_bytes: int = Field(default=Limits.max_upload_bytes, ge=1)
    """The most that an adapter's weights, or an archive once unpacked, may have."""

    @model_validator(mode="wrap")
    @classmethod
    def _say_what_is_wrong(cls, fields: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:  # noqa: ANN401  — pydantic's
        try:
            return validate(fields)
        except ValidationError as error:
            wrong = (f"LORIKEET_{str(one['loc'][-1]).upper()}: {one['msg']}" for one in error.errors())
            raise InvalidError("; ".join(wrong), code="invalid_setting") from error

    def open(self) -> Registry:
        """The registry with these settings."""
        return open_registry(
            self.home.expanduser(),
            self.database_url,
            max_rank=self.max_rank,
            max_upload_bytes=self.max_upload_bytes,
        )
