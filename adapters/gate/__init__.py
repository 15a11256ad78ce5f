"""The gate: what a stranger uploads becomes an adapter that can hurt nobody, or a refusal that says why."""

from adapters.gate.admit import Admitted, admit
from adapters.gate.checkpoint import admit_model

__all__ = ["Admitted", "admit", "admit_model"]
