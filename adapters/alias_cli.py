"""`lorikeet adapters promote|rollback|unalias|history`: where aliases point, and how they came there."""

from functools import partial
from operator import attrgetter
from typing import Annotated, Final

import typer

from adapters.arguments import AdapterName, adapter_of, all_of, version_of
from adapters.callers import Caller
from adapters.errors import InvalidError
from adapters.names import LIVE, quoted
from adapters.printing import AsJson, Columns, print_one, print_rows
from adapters.settings import RegistrySettings
from adapters.values import Alias, Arm, Move, Shadow

aliases = typer.Typer()

AliasOption = Annotated[str, typer.Option(help="The alias to move.")]
RevisionOption = Annotated[
    int | None, typer.Option(min=0, help="Move it only if its revision is still this; 0: only if it is new.")
]


def shown_arms(pointing: Alias | Move) -> str:
    """`3`, or `3 (90) 4 (10)`."""
    if len(pointing.arms) == 1:
        return str(pointing.arms[0].version)
    return " ".join(f"{arm.version} ({arm.weight})" for arm in pointing.arms)


_ALIAS: Final[Columns] = {
    "alias": lambda alias: alias.name,
    "version": shown_arms,
    "shadow": lambda alias: f"{alias.shadow.version} ({alias.shadow.percent} %)" if alias.shadow else None,
    "revision": lambda alias: alias.revision,
    "moved": lambda alias: alias.moved_at,
    "by": lambda alias: alias.moved_by,
}
_MOVE: Final[Columns] = {
    "move": lambda move: move.number,
    "version": shown_arms,
    "promoted": lambda move: move.at,
    "by": lambda move: move.by,
}


@aliases.command(epilog="Example: lorikeet adapters promote acme/support --split 3=90 --split 4=10")
def promote(
    name: Annotated[str, typer.Argument(metavar="TENANT/NAME[@N]", help="A version, or with --split an adapter.")],
    *,
    split: Annotated[
        list[str] | None, typer.Option(metavar="N=WEIGHT", help="A version's share of the traffic; repeat it.")
    ] = None,
    alias: AliasOption = LIVE,
    expect_revision: RevisionOption = None,
    as_json: AsJson = False,
) -> None:
    """Point an alias at a version, or split it between several: `live`, unless another is named."""
    to: int | list[Arm]
    if split:
        tenant, adapter = adapter_of(name)
        to = [_arm(text) for text in split]
    else:
        tenant, adapter, to = version_of(name)
    with RegistrySettings().open() as registry:
        moved = registry.aliases.promote(
            Caller.operator(), tenant, adapter, to, alias=alias, expected_revision=expect_revision
        )
    print_one(moved, _ALIAS, as_json=as_json)


@aliases.command(epilog="Example: lorikeet adapters rollback acme/support")
def rollback(
    name: AdapterName, *, alias: AliasOption = LIVE, expect_revision: RevisionOption = None, as_json: AsJson = False
) -> None:
    """Point an alias at what it pointed at before its last promotion."""
    with RegistrySettings().open() as registry:
        moved = registry.aliases.rollback(
            Caller.operator(), *adapter_of(name), alias=alias, expected_revision=expect_revision
        )
    print_one(moved, _ALIAS, as_json=as_json)


@aliases.command(epilog="Example: lorikeet adapters unalias acme/support --alias canary")
def unalias(
    name: AdapterName,
    *,
    alias: Annotated[str, typer.Option(help="The alias to take away.")] = LIVE,
    expect_revision: RevisionOption = None,
    as_json: AsJson = False,
) -> None:
    """Take an alias away: requests by its name are refused from now on, and its versions may be retired."""
    with RegistrySettings().open() as registry:
        removed = registry.aliases.remove(
            Caller.operator(), *adapter_of(name), alias, expected_revision=expect_revision
        )
    print_one(removed, _ALIAS, as_json=as_json)


@aliases.command(epilog="Example: lorikeet adapters shadow acme/support@4 --percent 10")
def shadow(
    name: Annotated[str, typer.Argument(metavar="TENANT/NAME[@N]", help="A version, or with --end an adapter.")],
    *,
    percent: Annotated[int, typer.Option(min=1, max=100, help="How much of the traffic.")] = 100,
    alias: Annotated[str, typer.Option(help="The alias whose traffic it is.")] = LIVE,
    end: Annotated[bool, typer.Option("--end", help="End it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let a version get a copy of a share of an alias's traffic; its answers are thrown away."""
    if end:
        tenant, adapter = adapter_of(name)
        to = None
    else:
        tenant, adapter, number = version_of(name)
        to = Shadow(number, percent)
    with RegistrySettings().open() as registry:
        shadowed = registry.aliases.shadow(Caller.operator(), tenant, adapter, to, alias=alias)
    print_one(shadowed, _ALIAS, as_json=as_json)


@aliases.command(epilog="Example: lorikeet adapters history acme/support --alias canary")
def history(
    name: AdapterName,
    *,
    alias: Annotated[str, typer.Option(help="The alias whose promotions to list.")] = LIVE,
    as_json: AsJson = False,
) -> None:
    """Every promotion of an alias, the newest first, whether or not it was rolled back since."""
    with RegistrySettings().open() as registry:
        page = partial(registry.aliases.history, Caller.operator(), *adapter_of(name), alias=alias)
        moves = list(all_of(lambda before, limit: page(before=before, limit=limit), attrgetter("number")))
    print_rows(moves, _MOVE, as_json=as_json)


def _arm(text: str) -> Arm:
    number, _, weight = text.partition("=")
    if not (text.isascii() and number.isdigit() and weight.isdigit() and max(len(number), len(weight)) < 10):  # noqa: PLR2004  — fits SQL
        raise InvalidError(f"{quoted(text)} is no share: write VERSION=WEIGHT, such as 3=90.", code="invalid_split")
    return Arm(int(number), int(weight))
