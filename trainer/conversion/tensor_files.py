"""safetensors files read one tensor at a time, in float32. Never holds more than the tensor that is asked for."""

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from trainer.errors import TrainerError

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


class TensorFiles:
    """The tensors of some files, by name. Raises `error`, a TrainerError, where one can't be read."""

    def __init__(self, files: Iterable[Path], *, error: type[TrainerError]) -> None:
        self._error = error
        self._file_of: dict[str, Path] = {}
        for file in files:
            try:
                with safe_open(file, framework="pt") as opened:
                    self._file_of |= dict.fromkeys(opened.offset_keys(), file)
            except (SafetensorError, OSError) as caught:
                raise self._unreadable(file, caught) from caught

    @property
    def names(self) -> frozenset[str]:
        """What all the tensors are called."""
        return frozenset(self._file_of)

    @property
    def by_file(self) -> dict[Path, tuple[str, ...]]:
        """The files in their order, each with its tensors as they lie in it."""
        found: dict[Path, list[str]] = {}
        for name, file in self._file_of.items():
            found.setdefault(file, []).append(name)
        return {file: tuple(names) for file, names in found.items()}

    def dtype(self, name: str) -> str:
        """What safetensors calls it: `BF16`, `F32`."""
        with safe_open(self._file_of[name], framework="pt") as opened:
            return str(opened.get_slice(name).get_dtype())

    def read_as_it_is(self, name: str) -> torch.Tensor:
        """The tensor in its own dtype, whatever its values are."""
        file = self._file_of[name]
        try:
            with safe_open(file, framework="pt") as opened:
                tensor: torch.Tensor = opened.get_tensor(name)
        except (SafetensorError, OSError) as caught:
            raise self._unreadable(file, caught) from caught
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape, out of the header: no weights are read."""
        with safe_open(self._file_of[name], framework="pt") as opened:
            return tuple(opened.get_slice(name).get_shape())

    def read(self, name: str) -> torch.Tensor:
        """The tensor in float32; every value is finite."""
        file = self._file_of[name]
        try:
            with safe_open(file, framework="pt") as opened:
                dtype = opened.get_slice(name).get_dtype()
                if dtype not in FLOATS:
                    raise self._error(
                        f"{file.name}: {name} is {dtype}, so it is quantised; "
                        f"a conversion needs the weights in one of {', '.join(sorted(FLOATS))}."
                    )
                tensor: torch.Tensor = opened.get_tensor(name).to(torch.float32)
        except (SafetensorError, OSError) as caught:
            raise self._unreadable(file, caught) from caught
        if not bool(torch.isfinite(tensor).all()):
            raise self._error(f"{file.name}: {name} holds NaN or infinity: the training went wrong, or the file is.")
        return tensor

    def _unreadable(self, file: Path, caught: Exception) -> TrainerError:
        return self._error(f"{file} can't be read as safetensors: {str(caught).strip().partition(chr(10))[0]}.")
