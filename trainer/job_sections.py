"""The sections of a training job, and what its keys are made of: `checks` and `judge`, as one frozen value each.

Knows nothing of the job that they stand in.
"""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1, lt=2**31)]
Text = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")]
"""A path may not hold a zero byte."""
Share = Annotated[float, Field(ge=0, lt=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Policy(StrEnum):
    """What becomes of a finding in the data."""

    ERROR = "error"
    WARN = "warn"
    DROP = "drop"
    """The row is left out, and the report says so."""


class Section(BaseModel):
    """Strict and frozen, as all of a job is."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


Metric = Literal["exact_match", "f1", "json_valid", "json_schema", "command", "preference"]
"""Of an answer beside the expected one: each is a share of 1, and more is better."""


class Checks(Section):
    """What becomes of what the checks of the data find, before a step is trained."""

    broken_row: Literal["error", "drop"] = "error"
    """A row that can't be read, or means nothing that can be learned."""
    duplicates: Policy = Policy.ERROR
    """Rows that say the same thing word for word, but for case and white space."""
    near_duplicates: Policy = Policy.WARN
    """Rows that are as alike as the next key says."""
    near_duplicate_similarity: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Jaccard's, over runs of words."""
    leakage: Policy = Policy.ERROR
    """A held-out row that is also trained on, word for word or nearly."""
    empty_answer: Policy = Policy.ERROR
    """Nothing but white space."""
    short_answer: Policy = Policy.WARN
    """Fewer tokens than the next key says."""
    short_answer_tokens: Count = 3
    """The articles say 20; classes and numbers are shorter than that, and are answers all the same."""
    cut_answer: Policy = Policy.ERROR
    """An answer that ends in the middle: of a sentence, a bracket, a fence. Only what is nearly certain is found."""
    invalid_json: Policy = Policy.ERROR
    """Where `answers: json`."""
    too_long: Policy | Literal["truncate"] = Policy.ERROR
    """More than max_length tokens. truncate, warn: cut, and then it does not learn to stop."""
    nothing_learned: Policy = Policy.ERROR
    """No token of the row is supervised. warn: it is left out all the same, for nothing could be done with it."""
    no_stop_token: Policy = Policy.ERROR
    """The answer does not end with a token that generation stops at, or that token is not learned."""


class Judge(Section):
    """What is measured of base and result on the held-out examples, and what must hold before `live` may move."""

    enabled: bool = True
    """Whether anything is measured."""
    metrics: tuple[Metric, ...] | None = None
    """None: exact_match and f1; with `answers: json` json_valid too, json_schema with `answer_schema`, and command if
    there is one; for `objective: dpo`, preference: how often the chosen answer is likelier by the token than the
    rejected one. Always: the held-out loss."""
    command: Text | None = None
    """For the metric `command`: run by a shell once for each side, with {"prompt", "answer", "expected"} a line on
    stdin; prints one number from 0 to 1 a line."""
    command_seconds: Positive = 300.0
    """How long it may take."""
    max_examples: Count = 64
    """Of the held-out ones, for answers; the held-out loss takes all."""
    max_new_tokens: Count | None = None
    """None: twice the longest held-out answer, 512 at the most."""
    regression: bool = True
    """Also the general abilities: the set that ships."""
    min_metrics: dict[str, Fraction] = Field(default_factory=dict)
    """metric → the least that the result may have, such as {"exact_match": 0.9}."""
    max_loss_ratio: Positive | None = 1.0
    """Held-out loss of the result over the base's: above it, it has learned nothing that lasts."""
    max_regression_drop: Fraction | None = 0.1
    """How much of the general abilities' share of right answers may be lost."""
    min_stop_rate: Fraction | None = 0.9
    """The share of answers that end by themselves."""
