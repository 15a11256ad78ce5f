"""The gate: what a stranger uploads becomes an adapter that can hurt nobody, or a refusal that says why."""

from adapters.gate.admit import Admitted, admit

__all__ = ["Admitted", "admit"]
