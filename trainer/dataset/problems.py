"""A row that can't be learned from: raised where it is read, gathered by `read.py`, which goes on to the next."""

from trainer.errors import DatasetError


class BrokenRow(DatasetError):  # noqa: N818  — what it is, where it is told
    """What is the matter with one row, under one of the codes of `findings.KINDS`."""

    def __init__(self, kind: str, complaint: str, *, line: int = 1) -> None:
        super().__init__(complaint)
        self.kind = kind
        self.line = line
        """Where the file can be read no further, if that is the matter."""
