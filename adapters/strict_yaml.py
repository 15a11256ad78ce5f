"""YAML without its traps, for files that people write by hand: settings and jobs."""

import re
from collections.abc import Hashable
from typing import Any

import yaml

from adapters.errors import InvalidError


def parse_yaml(text: str) -> Any:  # noqa: ANN401  — whatever the YAML says
    """The value that `text` says.

    Raises:
        InvalidError: `invalid_yaml`; the message says in which line: it is not YAML, or a key is given twice.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506  — derived from SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1} " if error.problem_mark else ""
        raise InvalidError(f"{line}{error.problem}", code="invalid_yaml") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # PyYAML lets the latter two through
        raise InvalidError(f"not YAML: {' '.join(str(error).split())}", code="invalid_yaml") from error


def yaml_key_lines(text: str) -> dict[str, int]:
    """The line of each outermost key of a text that `parse_yaml` has taken, counted from 1."""
    node = yaml.compose(text, Loader=_StrictLoader)
    return {key.value: key.start_mark.line + 1 for key, _ in node.value} if isinstance(node, yaml.MappingNode) else {}


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
