"""The gate for whole models: a checkpoint that fits the base it was made from, written anew, or a refusal."""

from adapters.gate.checkpoint.admit import admit_model

__all__ = ["admit_model"]
