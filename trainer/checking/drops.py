"""Rows that the checks leave out, by the job's policy; and where findings about rows go."""

from collections import Counter
from collections.abc import Iterable

from trainer.dataset import Dataset, Findings, Place, Row, Severity
from trainer.job_sections import Policy


class Judged:
    """The rows of one side that are still in, and what is found of them."""

    def __init__(self, dataset: Dataset, findings: Findings) -> None:
        self.dataset = dataset
        self.findings = findings
        self.dropped: Counter[str] = Counter()
        """code → how many rows were left out for it."""
        self._out: set[int] = set()

    def rows(self) -> Iterable[tuple[int, Row]]:
        """The rows that are in, each with its place among all of them."""
        return ((place, row) for place, row in enumerate(self.dataset.rows) if place not in self._out)

    def found(self, code: str, policy: Policy, place: int, detail: str = "") -> None:
        """Something is the matter with the row at `place`; it is out, if that is the policy."""
        self.findings.add(code, Severity(policy), self.dataset.place(self.dataset.rows[place], detail))
        if policy is Policy.DROP:
            self.leave_out(code, place)

    def leave_out(self, code: str, place: int) -> None:
        """The row is not trained on."""
        if place not in self._out:
            self._out.add(place)
            self.dropped[code] += 1

    def at(self, place: int) -> Place:
        """Where the row stands."""
        return self.dataset.place(self.dataset.rows[place])
