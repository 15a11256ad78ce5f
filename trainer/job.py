"""A training job: what to train on what, as one frozen value read strictly from a YAML file.

Knows nothing of data or models: whether the files exist and the base fits is `plan.py`'s to say.
"""

import difflib
import json
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trainer.errors import JobError

LINEAR_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of a Llama-like block."""

Count = Annotated[int, Field(ge=1, lt=2**31)]
Text = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")]
"""A path may not hold a zero byte."""
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class TrainJob(BaseModel):
    """A request to train one adapter. Paths are relative to the job file."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    base: Text
    """A base of the registry, by name, fingerprint or path."""
    data: Text
    """Chat JSONL: one {"messages": […]} a line."""
    output: Text | None = None
    """The run folder; None: beside the registry, named after the job and what it is made of."""

    method: Literal["lora"] = "lora"
    rank: Count = 16
    alpha: Positive = 32.0
    dropout: Share = 0.0
    target_modules: tuple[str, ...] = Field(default=LINEAR_MODULES, min_length=1)

    learning_rate: Positive = 2e-4
    """Ten times what full fine-tuning takes: an adapter starts at zero."""
    epochs: Positive = 3.0
    max_steps: Count | None = None
    """Optimizer steps, in place of `epochs`."""
    batch_size: Count = 8
    gradient_accumulation: Count = 1
    max_length: Count = 1024
    """In tokens. A longer example is an error: cut off, it would teach not to stop."""
    warmup: Share = 0.03
    """The share of the steps in which the learning rate rises; it then falls to zero in a straight line."""
    seed: int = Field(default=42, ge=0, lt=2**32)
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of the frozen base and the sums. auto: bfloat16 where the hardware multiplies it faster, else float32."""
    gradient_checkpointing: bool | None = None
    """Recompute activations to save memory, for a third more time. None: on a GPU only."""
    checkpoint_steps: Count = 100

    @model_validator(mode="after")
    def _has_one_end(self) -> Self:
        if self.max_steps is not None and "epochs" in self.model_fields_set:
            raise ValueError("give epochs or max_steps, not both")
        return self

    @property
    def recipe(self) -> dict[str, Any]:
        """Everything that decides the weights, save the bytes of data and base: what a run's digest is taken over."""
        return self.model_dump(mode="json", exclude={"base", "data", "output"})


def read_job(path: Path, overrides: Mapping[str, str] | None = None) -> TrainJob:
    """Read a job file; `overrides` (key → YAML text) replace its keys.

    Raises:
        JobError: it can't be read, is not YAML, or has an unknown key or a value that can't be; the message says where.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise JobError(f"{path}: the job file can't be read: {reason}.") from error
    fields = _parse(text, path.name)
    if not isinstance(fields, dict):
        raise JobError(f"{path.name}: a job is a list of `key: value` lines, such as `rank: 16`.")
    fields |= {key: _parse(value, f"--set {key}") for key, value in (overrides or {}).items()}
    try:
        # As JSON: there, strict still takes a list for a tuple.
        return TrainJob.model_validate_json(json.dumps(fields, default=str))
    except ValidationError as error:
        raise JobError(f"{path.name}: {'; '.join(map(_explain, error.errors()))}.") from error
    except (TypeError, ValueError, RecursionError) as error:  # what JSON can't say: a list that holds itself
        raise JobError(f"{path.name}: a job is plain `key: value` lines.") from error


def _explain(problem: Any) -> str:  # noqa: ANN401  — pydantic's ErrorDetails
    key = ".".join(map(str, problem["loc"]))
    match problem["type"]:
        case "extra_forbidden":
            near = difflib.get_close_matches(key, TrainJob.model_fields, n=1)
            return f"unknown key '{key}'" + (f" (did you mean '{near[0]}'?)" if near else "")
        case "missing":
            return f"the key '{key}' is missing"
        case "value_error":
            return str(problem["ctx"]["error"])
        case _:
            return f"{key}: {_uncapitalized(problem['msg'])}, not {json.dumps(problem['input'], default=str)}"


def _uncapitalized(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def _parse(text: str, where: str) -> Any:  # noqa: ANN401  — whatever the YAML says
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506  — derived from SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise JobError(f"{where}:{line} {error.problem}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # PyYAML lets the latter two through
        raise JobError(f"{where}: not YAML: {' '.join(str(error).split())}.") from error


class _StrictLoader(yaml.SafeLoader):
    """PyYAML without two of its traps: 1e-3 is a number, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002  — PyYAML's
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key is a word", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key '{key.value}' is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


# On the subclass's own copy of the table; YAML 1.2's floats, where 1.1 wants a dot in the mantissa.
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(?:[0-9]+)(?:\.[0-9]*)?[eE][-+]?[0-9]+"), list("-+0123456789")
)
