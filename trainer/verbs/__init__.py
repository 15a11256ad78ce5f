"""The verbs of `lorikeet train`: one module each, a Typer command function of the same name."""
