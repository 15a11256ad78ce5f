from io import StringIO

from rich.console import Console

from trainer.progress import Narrator


def test_what_is_told_moves_no_cursor_and_sets_no_title() -> None:
    shown = StringIO()
    Narrator(Console(file=shown, highlight=False)).say("a\x1b]0;title\x07b\u202ec")
    assert shown.getvalue().strip() == "a�]0;title�b�c"
