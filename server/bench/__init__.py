"""What `lorikeet bench gateway` measures: a module a scenario, each with `run(say) -> dict`."""
