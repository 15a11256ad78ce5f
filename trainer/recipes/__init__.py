"""One flat function an objective, on TRL and PEFT: `sft`, `dpo`. Only `arguments`, `cpu_head` and `dpo` know TRL."""
