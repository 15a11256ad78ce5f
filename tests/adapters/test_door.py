"""The package has one door, and no heavy furniture behind it."""

import subprocess
import sys

import adapters


def test_the_door_names_what_it_exports_in_order() -> None:
    assert adapters.__all__ == sorted(adapters.__all__)
    assert all(hasattr(adapters, name) for name in adapters.__all__)


def test_the_registry_needs_no_ml_and_no_web_stack() -> None:
    blocked = ("torch", "vllm", "transformers", "peft", "trl", "safetensors", "fastapi", "starlette")
    program = f"import sys; sys.modules.update(dict.fromkeys({blocked})); import adapters.cli"
    subprocess.run([sys.executable, "-c", program], check=True)
