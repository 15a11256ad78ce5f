"""What was used, as it adds up in memory until the ledger writes it."""

from dataclasses import dataclass, field
from datetime import date
from typing import NamedTuple


class Account(NamedTuple):
    """Whose it is."""

    day: date
    tenant: str
    adapter: str
    version: int
    key_id: str


@dataclass(slots=True)
class Sums:
    """Of one account: the counts of a UsageRow, in its order."""

    requests: int = 0
    failed_requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    aborted_requests: int = 0
    cached_tokens: int = 0
    answered_requests: int = 0
    first_token_ms: int = 0
    request_ms: int = 0

    @property
    def tokens(self) -> int:
        """Prompt and answer together."""
        return self.prompt_tokens + self.completion_tokens

    def add(self, more: "Sums") -> None:
        """Add each to each."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(more, name))


@dataclass(slots=True)
class Month:
    """What of a tenant's month is in a batch."""

    tokens: int = 0


@dataclass(slots=True)
class Batch:
    """What is written at once."""

    sums: dict[Account, Sums] = field(default_factory=dict)
    months: dict[tuple[date, str], Month] = field(default_factory=dict)
    """By month: the wall clock may step over a month's end and back."""

    def of(self, account: Account, most: int) -> Sums:
        """The account's, or if there are `most` already, what those that came too late share."""
        if account not in self.sums and len(self.sums) >= most:
            account = Account(account.day, account.tenant, "", 0, "")
        return self.sums.setdefault(account, Sums())

    def month(self, month: date, tenant: str) -> Month:
        """The tenant's."""
        return self.months.setdefault((month, tenant), Month())

    def tokens(self, month: date, tenant: str) -> int:
        """Those of a month."""
        found = self.months.get((month, tenant))
        return found.tokens if found else 0
