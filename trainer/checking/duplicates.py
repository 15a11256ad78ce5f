"""Rows that say what another says: exactly, nearly, on both sides of the split, or the same with another answer.

Exactly: but for case and white space. The held-out side is frozen: what is on both sides leaves the training side.
"""

from collections.abc import Iterator, Sequence

from datasketch import MinHash

from trainer.checking.drops import Judged
from trainer.checking.said import before_last_answer, normalized, told
from trainer.checking.shingles import Alike, Known, Shingler, Shingles, hashed
from trainer.checking.watching import Watch
from trainer.dataset import Row, Severity
from trainer.dataset.records import gist
from trainer.job_sections import Checks, Policy

ROWS_AT_ONCE = 512
PREVAILING_SHARE = 0.5
PREVAILING_ROWS = 20


def find_repeated(train: Judged, held_out: Judged, checks: Checks, watch: Watch) -> None:
    """`duplicates` and `near_duplicates` within each side, and `leakage` between them."""
    exact = _find_exact(train, held_out, checks)
    sides = [
        (side, place, row) for side in (held_out, train) for place, row in side.rows() if (id(side), place) not in exact
    ]
    rows = [row for _, _, row in sides]
    shingler = Shingler(rows)
    known = Known(shingler, rows)
    indexes = {id(side): Alike(checks.near_duplicate_similarity) for side in (train, held_out)}
    for key, (shingles, minhash) in enumerate(watch(_hashed(shingler, rows), "comparing rows", len(rows))):
        side, place, _ = sides[key]
        leaked = indexes[id(held_out)].find(shingles, minhash, known) if side is train else None
        if leaked:
            _leaks(train, place, held_out, sides[leaked[0]][1], checks.leakage, leaked[1])
        earlier = indexes[id(side)].find(shingles, minhash, known)
        if earlier:
            before, measured = sides[earlier[0]][1], earlier[1]
            detail = f"{measured:.0%} as {side.dataset.unit} {side.dataset.rows[before].line}"
            side.found("near_duplicates", checks.near_duplicates, place, detail)
        else:  # one of each kind is enough to find the others by
            indexes[id(side)].add(key, minhash)


def find_conflicts(side: Judged) -> None:
    """`conflicting_answers`, and `one_answer_prevails`: worth a look, and no more."""
    answers: dict[tuple[str, ...], tuple[str, int]] = {}
    counts: dict[str, int] = {}
    total = 0
    for place, row in side.rows():
        prompt = before_last_answer(row)
        if prompt is None:
            continue
        answer, total = normalized(told(row)), total + 1
        counts[answer] = counts.get(answer, 0) + 1
        first, where = answers.setdefault(tuple(map(normalized, prompt)), (answer, place))
        if first != answer:
            detail = f"than {side.dataset.unit} {side.dataset.rows[where].line}"
            side.found("conflicting_answers", Policy.WARN, place, detail)
    if total >= PREVAILING_ROWS:
        answer, count = max(counts.items(), key=lambda item: item[1])
        if count > PREVAILING_SHARE * total:
            side.findings.say("one_answer_prevails", Severity.WARN, f"{count} of {total} are {answer[:60]!r}")


def _find_exact(train: Judged, held_out: Judged, checks: Checks) -> set[tuple[int, int]]:
    """`duplicates` within each side, and `leakage` between them: those rows, by `id` of their side and place."""
    held: dict[bytes, int] = {}
    found: set[tuple[int, int]] = set()
    for side in (held_out, train):
        first: dict[bytes, int] = {}
        for place, row in list(side.rows()):
            digest = gist(row)
            earlier = first.setdefault(digest, place)
            if earlier != place:
                detail = f"as {side.dataset.unit} {side.dataset.rows[earlier].line}"
                side.found("duplicates", checks.duplicates, place, detail)
            elif side is train and digest in held:
                _leaks(train, place, held_out, held[digest], checks.leakage, 1.0)
            else:
                continue
            found.add((id(side), place))
        held = held or first
    return found


def _leaks(train: Judged, place: int, held_out: Judged, held: int, policy: Policy, measured: float) -> None:
    """The finding names both rows: they may be of two files."""
    other = held_out.at(held)
    nearly = "" if measured == 1.0 else f"{measured:.0%} "
    train.found("leakage", policy, place, f"{nearly}as held-out {other.file} {other.unit} {other.line}")


def _hashed(shingler: Shingler, rows: Sequence[Row]) -> Iterator[tuple[Shingles, MinHash]]:
    for start in range(0, len(rows), ROWS_AT_ONCE):
        shingles = [shingler(row) for row in rows[start : start + ROWS_AT_ONCE]]
        yield from zip(shingles, hashed(shingles), strict=True)
