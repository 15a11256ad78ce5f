"""Which weights an adapter was trained on, for `--onto dequantised`: what NF4 made of the base is not one thing."""

from trainer.errors import ArtifactError
from trainer.job import Method
from trainer.source import Source, Training

DEQUANTISED = "dequantised"


def settle_onto(source: Source, onto: str, *, is_double: bool | None) -> Training | None:
    """How the source's base was quantised, as its run says, else as is stated; None: `onto` is the base as it is.

    Where nothing says it, `precision` is None: then the base's own is taken.

    Raises:
        ArtifactError: it was not trained on NF4; or `is_double` is stated of what needs no saying.
    """
    if onto != DEQUANTISED:
        if is_double is not None:
            raise ArtifactError("--double-quantisation: belongs to --onto dequantised; leave it out.")
        return None
    known = source.training
    if known is None:
        return Training(Method.QLORA, "nf4", is_double is not False, None)
    if known.method != Method.QLORA:
        raise ArtifactError(f"{source.label}: was trained by {known.method}, on the base as it is: use --onto bf16.")
    if known.quantization == "int8":
        raise ArtifactError(f"{source.label}: was trained on int8, which is not dequantised here: use --onto bf16.")
    if known.is_double is None:
        return Training(known.method, "nf4", is_double is not False, known.precision)
    if is_double is not None:
        how = "quantised, too" if known.is_double else "not quantised"
        raise ArtifactError(f"--double-quantisation: {source.label} says itself that NF4's scales were {how}.")
    return known
