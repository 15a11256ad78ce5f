"""A tenant or the whole registry as a folder, and back: for a backup, or a move to another machine or database."""

from adapters.transfer.export import export_to
from adapters.transfer.judge import Intake
from adapters.transfer.load import import_from
from adapters.transfer.records import Transfer

__all__ = ["Intake", "Transfer", "export_to", "import_from"]
