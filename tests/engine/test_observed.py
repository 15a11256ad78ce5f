"""What vLLM is told about logs and traces. Its processes are not started."""

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.engine


def parsed(**options: Any) -> Any:
    """vLLM's arguments, as it reads our flags."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from server.engine.vllm import VllmEngine

    engine = VllmEngine(
        model=Path("/models/base"),
        base_name="base",
        slots=1,
        host_slots=2,
        max_rank=8,
        target_modules=["q_proj"],
        **options,
    )
    return make_arg_parser(FlexibleArgumentParser()).parse_args(engine.flags)


def test_vllm_logs_no_request_and_no_answer() -> None:
    arguments = parsed()
    assert not arguments.enable_log_requests
    assert not arguments.enable_log_outputs


def test_vllms_own_processes_log_as_we_do() -> None:
    assert parsed(log_format="json").logging_config.formatter == "json"
    assert parsed(log_format="text").logging_config.formatter == "text"


def test_vllm_sends_its_spans_where_ours_go() -> None:
    endpoint = "http://127.0.0.1:4318/v1/traces"
    assert parsed(otlp_traces_endpoint=endpoint).otlp_traces_endpoint == endpoint
    assert parsed().otlp_traces_endpoint is None
