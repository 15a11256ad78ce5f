"""A run's curve, out of its metrics.jsonl."""

import json
import math
from pathlib import Path


def read_curve(path: Path, key: str) -> tuple[tuple[float, float], ...]:
    """(step, value) of each line that has `key`; the others, and what is not finite, are passed over."""
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError):
        return ()
    return tuple(point for line in lines if (point := _point(line, key)) is not None)


def _point(line: str, key: str) -> tuple[float, float] | None:
    try:
        told = json.loads(line)
        return (float(told["step"]), float(told[key])) if math.isfinite(told[key]) else None
    except (ValueError, TypeError, KeyError):
        return None
