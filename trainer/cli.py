"""`lorikeet train`: the table of its verbs."""

import typer

from trainer.verbs import check, combine, compare, convert, export, judge, merge, plan, quantize, run

app = typer.Typer(no_args_is_help=True)


@app.callback()
def train() -> None:
    """Train adapters: from a job file to a published version."""


app.command("plan", epilog=plan.EXAMPLE)(plan.plan_command)
app.command("check", epilog=check.EXAMPLE)(check.check_command)
app.command("run", epilog=run.RUN_EXAMPLE)(run.run_command)
app.command("resume", epilog=run.RESUME_EXAMPLE)(run.resume_command)
app.command("judge", epilog=judge.EXAMPLE)(judge.judge_command)
app.command("compare", epilog=compare.EXAMPLE)(compare.compare_command)
app.command("convert", epilog=convert.EXAMPLE)(convert.convert_command)
app.command("merge", epilog=merge.EXAMPLE)(merge.merge_command)
app.command("combine", epilog=combine.EXAMPLE)(combine.combine_command)
app.command("export", epilog=export.EXAMPLE)(export.export_command)
app.command("quantize", epilog=quantize.EXAMPLE)(quantize.quantize_command)
