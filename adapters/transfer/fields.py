"""The kinds of values that stand in an export's records: what neither database could keep is refused as it is read."""

import json
import unicodedata
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, StrictBool

from adapters.names import RULE, is_alias_name, is_name, quoted
from adapters.values import Kind


def _name(text: str) -> str:
    if not is_name(text):
        raise ValueError(f"{quoted(text)} can't be a name: use {RULE}")
    return text


def _alias_name(text: str) -> str:
    if not is_alias_name(text):
        raise ValueError(f"{quoted(text)} can't name an alias")
    return text


def _storable(text: str) -> str:
    text.encode("utf-8")  # a lone surrogate is a ValueError, and no database takes it
    if "\0" in text:
        raise ValueError("text has no NUL")
    return text


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it may hold printable characters alone")
    return text


def _path(text: str) -> str:
    if any(unicodedata.category(character) == "Cc" for character in text):
        raise ValueError("a path may hold no control characters")
    return text


def _moment(stated: object) -> object:
    moment = datetime.fromisoformat(stated) if isinstance(stated, str) else stated
    if not isinstance(moment, datetime) or moment.utcoffset() != timedelta(0):
        raise ValueError("write a time in UTC, such as 2026-01-02T03:04:05+00:00")
    return moment.astimezone(UTC)


def _day(stated: object) -> object:
    day = date.fromisoformat(stated) if isinstance(stated, str) else stated
    if isinstance(stated, str) and str(day) != stated:  # such as 2026-W01-1
        raise ValueError("write a day as YYYY-MM-DD")
    return day


def _json(stated: dict[str, Any]) -> dict[str, Any]:
    json.dumps(stated, allow_nan=False)  # 1e999 is JSON, and infinite
    return stated


Name = Annotated[str, AfterValidator(_name)]
AliasName = Annotated[str, AfterValidator(_alias_name)]
Number = Annotated[int, Field(strict=True, ge=1, lt=2**31)]
Size = Annotated[int, Field(strict=True, ge=0, lt=2**53)]
Count = Annotated[int, Field(strict=True, ge=0, le=2**40)]
"""Of what one key used of one version in a day. Millions of them add up to what both databases can hold."""
Moment = Annotated[datetime, BeforeValidator(_moment)]
Day = Annotated[date, BeforeValidator(_day)]
Text = Annotated[str, AfterValidator(_storable)]
Shown = Annotated[Text, AfterValidator(_printable)]
"""What a person reads at a terminal, which would do what escape sequences say."""
PathText = Annotated[Text, AfterValidator(_path)]
Who = Annotated[Shown, Field(max_length=200)]
Digest = Annotated[str, Field(pattern=r"\Asha256:[0-9a-f]{64}\z")]
Hex = Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
Fingerprint = Annotated[Shown, Field(min_length=1, max_length=100)]
Object = Annotated[dict[str, Any], AfterValidator(_json)]


class _ManifestRecord(BaseModel):
    """What every manifest has, whatever a later version of this program adds."""

    digest: Digest
    kind: Kind
    dtype: Shown
    tensor_count: Size
    size_bytes: Size
    base_fingerprint: Fingerprint
    rank: Number | None = None
    alpha: float | None = None
    target_modules: tuple[Shown, ...] = ()
    use_rslora: StrictBool = False
    model_fingerprint: Fingerprint | None = None


def _manifest(stated: dict[str, Any]) -> dict[str, Any]:
    _ManifestRecord.model_validate(stated)
    return _json(stated)


StoredManifest = Annotated[dict[str, Any], AfterValidator(_manifest)]
