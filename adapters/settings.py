"""The registry's settings, from the environment: LORIKEET_HOME, LORIKEET_DATABASE_URL, LORIKEET_MAX_RANK and so on."""

from pathlib import Path
from typing import Any, Self

from pydantic import Field, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from adapters.errors import InvalidError
from adapters.limits import Limits
from adapters.registry import Registry, open_registry
from adapters.storage import DEFAULT_CACHE_BYTES


class RegistrySettings(BaseSettings):
    """Where the registry lives and what it takes."""

    model_config = SettingsConfigDict(env_prefix="LORIKEET_", frozen=True, extra="ignore")

    home: Path = Path("~/.lorikeet")
    """The folder of registry.db and store/, or with a store elsewhere of cache/."""
    database_url: str | None = Field(default=None, repr=False)
    """PostgreSQL's, say `postgresql+psycopg://user:password@host/name`. None: SQLite, in the home."""
    store_url: str | None = Field(default=None, repr=False)
    """Where the bytes of versions lie: `s3://bucket/folder`, with AWS_ variables or a role. None: in the home."""
    store_endpoint: str | None = Field(default=None, repr=False)
    """Of a store that is not Amazon's, say `https://minio.example:9000`. One that is http must be named here."""
    cache_bytes: int = Field(default=DEFAULT_CACHE_BYTES, ge=1)
    """The most that cache/ keeps of a store elsewhere; what is in use stays beyond it."""
    max_rank: int = Field(default=Limits.max_rank, ge=1, le=512)
    """The highest rank that may be published; a server must be started with as much."""
    max_upload_bytes: int = Field(default=Limits.max_upload_bytes, ge=1)
    """The most that an adapter's weights, or an archive once unpacked, may have."""
    max_model_bytes: int = Field(default=Limits.max_model_bytes, ge=1)
    """The same for the weights of a merged or full model."""

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
            store_url=self.store_url,
            store_endpoint=self.store_endpoint,
            cache_bytes=self.cache_bytes,
            limits=Limits(self.max_rank, self.max_upload_bytes, self.max_model_bytes),
        )
