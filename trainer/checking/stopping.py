"""At which tokens generation stops: what an answer must end with, and the model learn to write."""

import json
from pathlib import Path

from trainer.errors import BaseError
from trainer.supervision import AnyExample, Tokenizer

WHITE_TOKENS = 3
"""After the stop token, so many of white space may follow: ChatML ends a turn with a new line."""


def stop_tokens(tokenizer: Tokenizer) -> frozenset[int]:
    """The tokenizer's end, and what the base's generation_config.json (or, without one, its config.json) stops at.

    Raises:
        BaseError: the file can't be read.
    """
    stops = {tokenizer.eos_token_id} - {None}
    folder = Path(tokenizer.name_or_path)
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            stops |= _stops_in(folder / name)
            break
    return frozenset(token for token in stops if token is not None)


def ends_with_stop(tokenizer: Tokenizer, example: AnyExample, stops: frozenset[int]) -> bool:
    """Whether the last thing that is learned, but for white space, is where generation stops."""
    answer = example.answer_ids
    for token in answer[: -WHITE_TOKENS - 2 : -1]:
        if token in stops:
            return True
        if str(tokenizer.decode([token])).strip():
            return False
    return False


def _stops_in(path: Path) -> set[int | None]:
    try:
        stops = json.loads(path.read_bytes()).get("eos_token_id")
    except (OSError, ValueError, AttributeError) as error:
        raise BaseError(f"{path.name}: the base's file can't be read: {error}.") from error
    listed = stops if isinstance(stops, list) else [stops]
    return {token for token in listed if isinstance(token, int)}
