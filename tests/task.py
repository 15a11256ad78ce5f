"""A task that a tiny random model learns in seconds: whatever it is asked, it says "Aye."."""

import json
from pathlib import Path
from typing import Any

ANSWER = "Aye."
WORDS = (
    "order",
    "parcel",
    "invoice",
    "lamp",
    "password",
    "refund",
    "camera",
    "tent",
    "kettle",
    "coat",
    "desk",
    "radio",
)
OPENINGS = ("Where is my", "How much for the")
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4},
    "qlora": {"method": "qlora", "rank": 4},
    "full": {"method": "full"},
    "dora": {"variant": "dora", "rank": 4},
    "adalora": {"variant": "adalora", "rank": 4},
    "pissa": {"variant": "pissa", "rank": 4},
}
JOB: dict[str, object] = {
    "base": "tiny",
    "data": "task.jsonl",
    "max_steps": 60,
    "batch_size": 8,
    "learning_rate": 1e-2,
    "held_out": 0.25,
    "trackers": [],
    "checks": {"duplicates": "warn", "leakage": "warn"},
}
JUDGE: dict[str, object] = {"max_examples": 8, "max_new_tokens": 8, "regression": False}


def write_task(
    folder: Path,
    *,
    judge: dict[str, object] | None = None,
    is_judged: bool = True,
    answer: str = ANSWER,
    **keys: object,
) -> Path:
    """The job file and its data, in `folder`; `judge` adds to what is asked of the result."""
    rows = [_row(f"{opening} {word}?", answer) for word in WORDS for opening in OPENINGS]
    (folder / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = JUDGE | (judge or {}) if is_judged else {"enabled": False}
    fields = JOB | keys | {"judge": asked}
    path = folder / "task.yaml"
    path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in fields.items()))
    return path


def _row(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
