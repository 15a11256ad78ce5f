"""The JSON Schema that answers satisfy. References to other documents are not followed: nothing is fetched."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from adapters import parse_strictly
from trainer.errors import JobError

Complain = Callable[[Any], str | None]
"""What is the matter with a value; None if nothing is."""


def read_schema(path: Path) -> Mapping[str, Any]:
    """The schema in a file. Raises JobError if there is none."""
    from jsonschema import SchemaError, validators  # noqa: PLC0415  — a third of a second, for those who need it

    try:
        schema = parse_strictly(path.read_bytes())
        if not isinstance(schema, dict):
            raise JobError(f"answer_schema {path.name}: a JSON Schema is an object.")
        validators.validator_for(schema).check_schema(schema)
    except OSError as error:
        raise JobError(f"answer_schema {path}: can't be read: {error.strerror}.") from error
    except ValueError as error:
        raise JobError(f"answer_schema {path.name}: {error}.") from error
    except SchemaError as error:
        raise JobError(f"answer_schema {path.name}: no JSON Schema: {error.message.splitlines()[0]}.") from error
    return schema


def complaints_of(schema: Mapping[str, Any]) -> Complain:
    """A function that says how a value breaks the schema."""
    from jsonschema import ValidationError, validators  # noqa: PLC0415  — see above
    from referencing import Registry  # noqa: PLC0415  — see above
    from referencing.exceptions import Unresolvable  # noqa: PLC0415  — see above

    # A registry of our own: without one, jsonschema fetches what a $ref names.
    validator = validators.validator_for(schema)(schema, registry=Registry())

    def complain(value: Any) -> str | None:  # noqa: ANN401  — JSON
        try:
            broken = min(validator.iter_errors(value), key=_depth, default=None)
        except (Unresolvable, RecursionError) as error:
            raise JobError("answer_schema: it refers to what it does not hold: put that under its $defs.") from error
        return _said(broken) if isinstance(broken, ValidationError) else None

    return complain


def _depth(error: Any) -> int:  # noqa: ANN401  — jsonschema's ValidationError
    return len(error.absolute_path)


def _said(error: Any) -> str:  # noqa: ANN401  — jsonschema's ValidationError
    where = error.json_path if error.absolute_path else "it"
    return f"{where}: {error.message.splitlines()[0][:120]}"
