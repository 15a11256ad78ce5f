"""`lorikeet bench registry` measures what it says it measures, on any machine."""

import json

import pytest
from typer.testing import CliRunner

from lorikeet import build


def test_the_bench_of_the_registry_prints_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.bench.LARGE_MODULES", 32)
    asked = ["bench", "registry", "--tenants", "5", "--adapters", "40", "--calls", "100", "--json"]
    result = CliRunner().invoke(build("bench", "registry"), asked)
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert (figures["tenants"], figures["adapters"]) == (5, 40)
    assert all(figures[name] > 0 for name in ("resolve_p50_ms", "list_p50_ms", "promote_p50_ms"))
    # A whole upload in memory would be 16 MB more than the small one's.
    assert figures["upload_large_mb"] > figures["upload_small_mb"] + 12
    assert figures["upload_large_peak_mb"] < figures["upload_small_peak_mb"] + 8
