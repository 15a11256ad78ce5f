"""What is drawn by chance, kept as it is: a look aside must not change what is learned."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def untouched_randomness() -> Iterator[None]:
    """Whatever the block draws, what follows it draws as if the block had not been."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  — the one that the libraries draw from
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
