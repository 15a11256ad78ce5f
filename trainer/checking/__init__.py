"""What is wrong with data, found before a step is trained: what rows say, what their tokens say, and a report."""

from trainer.checking.check import Checked, check, require_sound
from trainer.checking.report import DataReport
from trainer.checking.stopping import stop_tokens

__all__ = ["Checked", "DataReport", "check", "require_sound", "stop_tokens"]
