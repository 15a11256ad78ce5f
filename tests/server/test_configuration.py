"""Settings: from flags, the environment, a file and defaults, in this order; strictly, and all complaints at once."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adapters import RegistrySettings
from server.cli import app
from server.configuration import Configuration, configure
from server.engine.environment import DANGEROUS, FIXED, EnginePackageError, prepare_environment
from server.errors import SettingsError
from server.settings import ServerSettings, lorikeet_variables

ROOT = Path(__file__).parent.parent.parent
NO_FLAGS: dict[str, str | None] = {}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in lorikeet_variables():
        monkeypatch.delenv(name)
    monkeypatch.setenv("LORIKEET_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "server.yaml"
    path.write_text("")
    return path


def refusal(*assignments: str, file: Path | None = None, **flags: str) -> str:
    with pytest.raises(SettingsError) as refused:
        configure(flags, assignments, file)
    assert "\n" not in refused.value.message
    return refused.value.message


def places(configuration: Configuration) -> dict[str, str]:
    return {one.name: one.place for one in configuration.shown()}


def test_a_flag_wins_over_the_environment_and_that_over_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("port: 9001\nmax_loras: 3\ndrain_seconds: 7\n")
    monkeypatch.setenv("LORIKEET_PORT", "9002")
    monkeypatch.setenv("LORIKEET_MAX_LORAS", "4")

    configuration = configure({"port": "9003", "max_loras": None}, (), file)

    server = configuration.server
    assert (server.port, server.max_loras, server.drain_seconds, server.max_num_seqs) == (9003, 4, 7, 16)
    shown = places(configuration)
    assert [shown[name] for name in ("port", "max_loras", "drain_seconds", "max_num_seqs", "home")] == [
        "--port",
        "LORIKEET_MAX_LORAS",
        "server.yaml line 3",
        "default",
        "LORIKEET_HOME",
    ]


def test_every_setting_can_be_given_by_set() -> None:
    assert configure(NO_FLAGS, ["queue_timeout_seconds=2.5"]).server.queue_timeout_seconds == 2.5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_lorra: 3", r"server.yaml line 1: there is no setting 'max_lorra' \(did you mean 'max_loras'\?\)"),
        ("port: 1\n\nport: 2", "server.yaml: line 3 the key 'port' is given twice"),
        ("home: /data", "server.yaml line 1: home is the registry's, for all commands: set LORIKEET_HOME"),
        ("- port", "server.yaml: settings are `name: value` lines"),
        ("port: [1", "server.yaml: line 1"),
        ("max_num_seqs: yes", "server.yaml line 1: max_num_seqs: input should be a valid integer"),
        ("1: 2", "server.yaml line 1: there is no setting '1'"),
        ("dtype: int3", "server.yaml line 1: dtype: input should be 'auto', 'bfloat16'"),
        ("host: ''", "server.yaml line 1: host: "),
    ],
)
def test_what_is_wrong_in_the_file_is_told_with_its_line(file: Path, text: str, said: str) -> None:
    file.write_text(text)
    assert re.search(said, refusal(file=file))


def test_an_empty_file_sets_nothing(file: Path) -> None:
    assert configure(NO_FLAGS, (), file).server == ServerSettings()


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    assert "can't be read: No such file or directory" in refusal(file=tmp_path / "nothing.yaml")
    assert "can't be read: Is a directory" in refusal(file=tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    assert "can't be read: not UTF-8 text" in refusal(file=tmp_path / "bytes.yaml")


def test_an_unknown_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORIKEET_DATABSE_URL", "postgresql://somewhere")
    assert "LORIKEET_DATABSE_URL: there is no such setting (did you mean 'LORIKEET_DATABASE_URL'?)" in refusal()


def test_an_empty_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORIKEET_STORE_URL", "")
    assert "LORIKEET_STORE_URL is empty" in refusal()


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("port", "--set port: write it as name=value"),
        ("prot=1", "--set prot: there is no setting 'prot' (did you mean 'port'?)"),
        ("max_rank=8", "--set max_rank: max_rank is the registry's, for all commands: set LORIKEET_MAX_RANK"),
    ],
)
def test_what_is_wrong_with_set_is_told(assignment: str, said: str) -> None:
    assert said in refusal(assignment)


def test_a_setting_is_given_once_on_the_command_line() -> None:
    assert "port is given by --port and by --set" in refusal("port=1", port="2")
    assert "--set gives port twice" in refusal("port=1", "port=2")


def test_all_that_is_wrong_is_told_at_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("max_lorra: 3\ndrain_seconds: 0\n")
    monkeypatch.setenv("LORIKEET_PORTT", "1")
    monkeypatch.setenv("LORIKEET_MAX_RANK", "9999")
    message = refusal("max_loras=80", file=file, port="abc")
    for part in ("max_lorra", "drain_seconds", "LORIKEET_PORTT", "LORIKEET_MAX_RANK", "--port", "max_cpu_loras (64)"):
        assert part in message


def test_settings_that_contradict_each_other_are_told_with_their_places() -> None:
    message = refusal("max_loras=64")
    assert message == "max_cpu_loras (64) must be above max_loras (64); max_loras is from --set max_loras"


def test_what_would_only_follow_from_a_wrong_value_is_not_said() -> None:
    assert "must be above" not in refusal("max_loras=many", "max_cpu_loras=8")


def test_a_rank_below_the_registrys_is_told_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORIKEET_MAX_RANK", "100")
    assert "choose 128" in refusal(max_lora_rank="64")


def test_a_rank_can_be_given_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORIKEET_MAX_LORA_RANK", "128")
    assert configure(NO_FLAGS).server.max_lora_rank == 128


def test_the_admin_port_is_another() -> None:
    assert "admin_port (8000) must be another than port" in refusal(admin_port="8000")


def test_show_config_says_every_setting_and_starts_nothing(home: Path) -> None:
    result = CliRunner().invoke(app, ["--show-config", "--json", "--port", "9000"])
    assert result.exit_code == 0, result.output
    shown = json.loads(result.output)
    assert list(shown) == [*RegistrySettings.model_fields, *ServerSettings.model_fields]
    assert shown["port"] == {"value": 9000, "from": "--port"}
    assert shown["max_loras"] == {"value": 8, "from": "default"}
    assert not (home / "home").exists()


def test_show_config_is_for_people_too() -> None:
    lines = CliRunner().invoke(app, ["--show-config", "--port", "9000"]).output.splitlines()
    assert [line.split() for line in lines if line.startswith("port ")] == [["port", "9000", "--port"]]
    assert [line.split() for line in lines if line.startswith("max_lora_rank ")] == [["max_lora_rank", "-", "default"]]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("LORIKEET_DATABASE_URL", "postgresql+psycopg://lorikeet:hunter2@db/lorikeet"),
        ("LORIKEET_DATABASE_URL", "postgresql+psycopg://db/lorikeet?user=lorikeet&password=hunter2"),
        ("LORIKEET_STORE_URL", "s3://AKIA:hunter2@bucket/folder"),
        ("LORIKEET_STORE_ENDPOINT", "https://minio.example:9000/?X-Amz-Signature=hunter2"),
        ("LORIKEET_STORE_ENDPOINT", "https://minio.example:9000/?hunter2#hunter2"),
        ("LORIKEET_STORE_ENDPOINT", "https://minio.example:9000/;token=hunter2"),
        ("LORIKEET_DATABASE_URL", "postgresql+psycopg://lorikeet:hun/hunter2@db/lorikeet"),
        ("LORIKEET_DATABASE_URL", "postgresql+psycopg://lorikeet:hun?hunter2@db/lorikeet"),
        ("LORIKEET_DATABASE_URL", "postgresql+psycopg://lorikeet:hun#hunter2@db/lorikeet"),
        ("LORIKEET_DATABASE_URL", "postgresql+psycopg://lorikeet:hun@hunter2@db/lorikeet"),
        ("LORIKEET_DATABASE_URL", "postgresql+psycopg://db/lorikeet?pwd=hunter2"),
        ("LORIKEET_OTLP_TRACES_ENDPOINT", "https://hunter2@collector/v1/traces"),
        ("LORIKEET_OTLP_TRACES_ENDPOINT", "https://collector/v1/traces?sig=hunter2"),
        ("LORIKEET_OTLP_TRACES_ENDPOINT", "https://[hunter2@collector"),
    ],
)
def test_show_config_hides_what_is_secret(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    for arguments in (["--show-config"], ["--show-config", "--json"]):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        assert "hunter2" not in result.output
        assert "***" in result.output


def test_what_an_address_shows_says_where_it_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "LORIKEET_DATABASE_URL", "postgresql+psycopg://lorikeet:hunter2@db:5432/lorikeet?sslmode=require"
    )
    shown = {one.name: one.value for one in configure(NO_FLAGS).shown()}
    assert shown["database_url"] == "postgresql+psycopg://***@db:5432/lorikeet?***"


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("otlp_traces_endpoint=grpc://lorikeet:hunter2@collector:4317", 'not "grpc://***@collector:4317"'),
        ("otlp_traces_endpoint=lorikeet:hunter2@collector:4317", 'not "***@collector:4317"'),
        ("otlp_traces_endpoint=ftp://collector/?key=hunter2", 'not "ftp://collector/?***"'),
        ("postgresql://lorikeet:hunter2@db", "--set ***: write it as name=value"),
        ("postgresql://lorikeet:hunter2@db/x?sslmode=require", "there is no setting 'postgresql://***@db/x?***'"),
    ],
)
def test_no_complaint_says_what_is_secret(
    assignment: str, said: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, _, value = assignment.partition("=")
    messages = [refusal(assignment)]
    if name == "otlp_traces_endpoint":
        file.write_text(f"{name}: '{value}'")
        messages += [refusal(file=file), refusal(otlp_traces_endpoint=value)]
        monkeypatch.setenv(f"LORIKEET_{name.upper()}", value)
        messages.append(refusal())
    assert all(said in message and "hunter2" not in message for message in messages), messages


def test_json_is_for_show_config_alone() -> None:
    assert CliRunner().invoke(app, ["--json"]).exit_code == 2


def test_an_unknown_flag_is_refused_with_the_near_ones() -> None:
    result = CliRunner().invoke(app, ["--max-lorra", "3"])
    assert result.exit_code == 2
    assert "--max-loras" in result.output


def test_all_of_our_variables_are_settings_of_the_registry_or_of_the_server() -> None:
    known = {f"LORIKEET_{name.upper()}" for name in (*RegistrySettings.model_fields, *ServerSettings.model_fields)}
    files = [*ROOT.glob("trainer/**/*.py"), *ROOT.glob("adapters/**/*.py"), *ROOT.glob("server/**/*.py")]
    named = {name for path in files for name in re.findall(r"\bLORIKEET_[A-Z][A-Z_]*[A-Z]\b", path.read_text())}
    assert named <= known


def test_the_settings_of_the_two_rooms_have_no_name_in_common() -> None:
    assert RegistrySettings.model_fields.keys().isdisjoint(ServerSettings.model_fields)


@pytest.mark.parametrize("name", DANGEROUS)
def test_variables_that_would_open_vllm_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.engine.environment._is_installed", lambda package: package == "vllm")
    monkeypatch.setattr("server.engine.environment.FIXED", {})
    monkeypatch.setattr("server.engine.environment.DEFAULTS", {})
    monkeypatch.setattr("server.engine.environment._threads", dict)
    prepare_environment()
    monkeypatch.setenv(name, "1")
    with pytest.raises(EnginePackageError, match=f"unset {name}"):
        prepare_environment()


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_reads_every_variable_that_is_refused() -> None:
    found = find_spec("vllm")
    assert found is not None
    assert found.origin is not None
    text = (Path(found.origin).parent / "envs.py").read_text()
    assert [name for name in DANGEROUS if f'"{name}"' not in text] == []


def test_of_vllms_plugins_only_ours_is_ever_loaded() -> None:
    assert FIXED["VLLM_PLUGINS"] == "lorikeet"
