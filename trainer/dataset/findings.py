"""What can be wrong with data: a stable code each, a sentence, and what would be right."""

from collections import Counter
from collections.abc import Iterable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final, NamedTuple

from pydantic import BaseModel, ConfigDict

from trainer.errors import DatasetError

NAMED_PLACES: Final = 20
"""So many places of a finding are named; of the others it says how many there are."""


class Severity(StrEnum):
    """What a finding means for the training."""

    ERROR = "error"
    """Nothing is trained."""
    WARN = "warn"
    DROP = "drop"
    """The rows were left out."""
    NOTE = "note"


class Place(BaseModel):
    """A row, and what is the matter with this one."""

    model_config = ConfigDict(frozen=True)

    file: str
    unit: str
    line: int
    detail: str = ""


class Finding(BaseModel):
    """One thing that was found, in however many places."""

    model_config = ConfigDict(frozen=True)

    code: str
    severity: Severity
    count: int
    """Of places; 0 for a finding about the data as a whole."""
    sentence: str
    fix: str
    places: tuple[Place, ...] = ()
    """The first of them, in order."""

    @property
    def where(self) -> str:
        """The places in words: `chat.jsonl line 4 (same as line 1), line 9, and 3 more`."""
        said, file = [], None
        for place in self.places:
            at = f"{place.unit} {place.line}" + (f" ({place.detail})" if place.detail else "")
            said.append(at if place.file == file else f"{place.file} {at}")
            file = place.file
        more = self.count - len(self.places)
        return ", ".join(said) + (f", and {more} more" if more > 0 and said else "")

    def __str__(self) -> str:
        where = f": {self.where}" if self.places else ""
        return f"{self.code}: {self.sentence}{where}. {self.fix}"


class Kind(NamedTuple):
    """What a code means. `{rows}` in the sentence is how many places there are, as in "3 rows"."""

    sentence: str
    fix: str


KINDS: Final[Mapping[str, Kind]] = MappingProxyType(
    {
        # reading
        "empty_file": Kind("there are no examples in it", "Put one example on each line."),
        "wrong_encoding": Kind("{rows} not in UTF-8", "Convert the file, such as with `iconv -f LATIN1 -t UTF-8`."),
        "not_a_table": Kind("the file can't be read as what its name says", "Write it anew, or rename it."),
        "not_json": Kind("{rows} not JSON", "Write one JSON object on each line."),
        "wrong_shape": Kind("{rows} of no shape that can be learned from", "Write them as README.md shows."),
        "wrong_role": Kind(
            "{rows} with a role that can't be, or not there",
            "Use system (first), user, assistant (last) and tool; the assistant answers a user.",
        ),
        "broken_message": Kind("{rows} with a message that can't be learned from", "Mend the message."),
        "mixed_formats": Kind(
            "the data have more than one format", "Write all rows in one, or say which as `format:`."
        ),
        "broken_pair": Kind("{rows} with no preference in the pair", "Give one prompt and two different answers."),
        "unused_keys": Kind("keys that nothing is learned from", "Rename them, if they were meant to be learned."),
        # splitting
        "nothing_held_out": Kind(
            "nothing is held out, so nothing can be judged",
            "Give ten examples or more, or a file of others as `held_out:`.",
        ),
        # what rows say
        "duplicates": Kind("{rows} saying the same as an earlier one", "Remove them, or set checks.duplicates: drop."),
        "near_duplicates": Kind(
            "{rows} saying nearly the same as an earlier one", "Remove them, or set checks.near_duplicates: drop."
        ),
        "leakage": Kind(
            "{rows} trained on and held out as well, word for word or nearly",
            "Remove them from either side, or set checks.leakage: drop, which keeps them held out only.",
        ),
        "conflicting_answers": Kind(
            "{rows} answering a prompt otherwise than an earlier one", "Decide on one answer, if there is but one."
        ),
        "one_answer_prevails": Kind(
            "most rows have one and the same answer", "Add others, or it is all that is learned."
        ),
        "empty_answer": Kind("{rows} with an empty answer", "Write it, or set checks.empty_answer: drop."),
        "short_answer": Kind(
            "{rows} with an answer below checks.short_answer_tokens", "Nothing, if answers are meant to be so short."
        ),
        "cut_answer": Kind(
            "{rows} with an answer that ends in the middle",
            "Write it to its end, or set checks.cut_answer to drop, or to warn if it is meant so.",
        ),
        "perhaps_cut": Kind("{rows} with an answer that may end in the middle", "Nothing, if it is meant so."),
        "invalid_json": Kind(
            "{rows} with an answer that is not the JSON asked for", "Mend it, or set checks.invalid_json: drop."
        ),
        "damaged_text": Kind(
            "{rows} with characters that a wrong encoding left", "Read the source in its own encoding, and write UTF-8."
        ),
        "control_tokens": Kind(
            "{rows} with the model's own control tokens in the text", "Remove them: the chat template writes them."
        ),
        "raw_text": Kind(
            "raw text is learned without the chat template, although the base is a chat model",
            "Nothing, for /v1/completions; for chats, write messages.",
        ),
        # what tokens say
        "template_refuses": Kind(
            "{rows} that the base's chat template does not render", "Write them as it wants them."
        ),
        "too_long": Kind(
            "{rows} longer than max_length", "Shorten them, raise max_length, or set checks.too_long: drop or truncate."
        ),
        "nothing_learned": Kind(
            "{rows} of which no token is learned", "Give them an answer, or set checks.nothing_learned: drop."
        ),
        "no_stop_token": Kind(
            "{rows} whose answer does not end with a stop token that is learned",
            "The answer must end with a token that generation stops at: see eos_token and generation_config.json.",
        ),
        "all_rows_dropped": Kind("nothing is left to train on", "See what the rows were left out for."),
    }
)


class Findings:
    """Gathers places under their codes, and says in the end what was found."""

    def __init__(self) -> None:
        self._severities: dict[str, Severity] = {}
        self._counts: Counter[str] = Counter()
        self._places: dict[str, list[Place]] = {}
        self._details: dict[str, str] = {}

    def add(self, code: str, severity: Severity, place: Place) -> None:
        """A row to which it applies; rows come in the order in which they stand."""
        self._severities[code] = severity
        self._counts[code] += 1
        if self._counts[code] <= NAMED_PLACES:
            self._places.setdefault(code, []).append(place)

    def say(self, code: str, severity: Severity, detail: str = "") -> None:
        """Something that is true of the data as a whole."""
        self._severities[code] = severity
        self._details[code] = detail

    def gathered(self) -> tuple[Finding, ...]:
        """Everything, errors first."""
        found = [self._finding(code, severity) for code, severity in self._severities.items()]
        return tuple(sorted(found, key=lambda finding: list(Severity).index(finding.severity)))

    def _finding(self, code: str, severity: Severity) -> Finding:
        kind, count = KINDS[code], self._counts[code]
        rows = "1 row" if count == 1 else f"{count} rows"
        detail = self._details.get(code, "")
        return Finding(
            code=code,
            severity=severity,
            count=count,
            sentence=kind.sentence.format(rows=rows) + (f": {detail}" if detail else ""),
            fix=kind.fix,
            places=tuple(self._places.get(code, ())),
        )


def require_no_errors(findings: Iterable[Finding], name: str) -> None:
    """Raise DatasetError with every finding that is an error, by code and line."""
    errors = [finding for finding in findings if finding.severity is Severity.ERROR]
    if errors:
        raise DatasetError(f"{name}: the data can't be trained on. {' '.join(map(str, errors))}")
