"""Data sets of the hub, by name: hub:OWNER/NAME[/CONFIG][:SPLIT]. `datasets` runs no code of theirs."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from trainer.dataset.files import Record
from trainer.errors import DatasetError

PREFIX: Final = "hub:"
REFERENCE: Final = re.compile(
    r"hub:(?P<name>[\w.-]+/[\w.-]+)(?:/(?P<config>[\w.-]+))?(?::(?P<split>[\w.\[\]%:+-]+))?", re.ASCII
)
DEFAULT_SPLIT: Final = "train"

Load = Callable[[str, str | None, str], Iterable[Any]]
"""(name, config, split) → records. Raises whatever it does."""


def hub_records(reference: str, load: Load | None = None) -> Iterator[Record]:
    """The rows of a data set on the hub, counted from one. `load`: None for the hub itself.

    Raises:
        DatasetError: the reference can't be read, or the hub can't be reached or does not give it.
    """
    parsed = REFERENCE.fullmatch(reference)
    if parsed is None:
        raise DatasetError(f"{reference}: write it as hub:OWNER/NAME, hub:OWNER/NAME:SPLIT or hub:OWNER/NAME/CONFIG.")
    loaded = (load or _load)(parsed["name"], parsed["config"], parsed["split"] or DEFAULT_SPLIT)
    yield from enumerate(loaded, start=1)


def _load(name: str, config: str | None, split: str) -> Iterable[Any]:
    from datasets import load_dataset  # noqa: PLC0415  — heavy
    from datasets.exceptions import DatasetsError  # noqa: PLC0415  — the same
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415  — the same

    try:
        loaded: Iterable[Any] = load_dataset(name, config, split=split)
    except ConnectionError as error:
        raise DatasetError(
            f"hub:{name}: the hub can't be reached, and the data set is not in its cache: give a local file instead."
        ) from error
    except (DatasetsError, HfHubHTTPError, OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DatasetError(f"hub:{name}: the hub does not give it: {reason}") from error
    return loaded
