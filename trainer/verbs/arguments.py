"""What the verbs of `lorikeet train` take alike."""

from typing import Annotated

import typer

from trainer.errors import JobError

Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Replace a key of the job, such as judge.max_examples=8; repeatable."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
PublishAs = Annotated[
    str | None, typer.Option("--publish", metavar="TENANT/NAME", help="Publish what was made as a version.")
]
Promote = Annotated[bool, typer.Option("--promote", help="… and make it live, if its report passed.")]


def as_pairs(overrides: list[str] | None) -> dict[str, str]:
    """Key → YAML text. Raises JobError."""
    pairs = [override.partition("=") for override in overrides or []]
    wrong = next((key for key, equals, _ in pairs if not (key and equals)), None)
    if wrong is not None:
        raise JobError(f"--set {wrong}: write it as KEY=VALUE, such as --set rank=8.")
    return {key: value for key, _, value in pairs}
