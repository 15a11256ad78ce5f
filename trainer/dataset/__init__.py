"""The data of a job: read from any format, and split. What it says is checked in `trainer.checking`."""

from trainer.dataset.findings import Finding, Findings, Place, Severity, require_no_errors
from trainer.dataset.read import read_dataset, split_data
from trainer.dataset.schema import complaints_of, read_schema
from trainer.dataset.split import write_rows
from trainer.dataset.values import Completion, Conversation, Dataset, Message, PlainText, Preference, Row, Split

__all__ = [
    "Completion",
    "Conversation",
    "Dataset",
    "Finding",
    "Findings",
    "Message",
    "Place",
    "PlainText",
    "Preference",
    "Row",
    "Severity",
    "Split",
    "complaints_of",
    "read_dataset",
    "read_schema",
    "require_no_errors",
    "split_data",
    "write_rows",
]
