from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit import Canary
from tests.kit.command import environment, invoke

_ROOT = Path(__file__).parents[2]
_BAD = _ROOT / "tests" / "configs"

# What a schema of one file cannot see, though it is wrong.
BEYOND = {
    # another parser of YAML turns the value into an acceptable one
    "duration-nan", "port-decimal", "port-hexadecimal", "port-underscore",
    "port-with-leading-zero",
    # what is on this machine
    "from-file-directory", "from-file-missing", "sslrootcert-is-a-directory",
    "sslrootcert-missing", "sslrootcert-without-certificate", "unset-from-env",
    "unset-variable-with-message", "unset-variable", "from-file-no-directory", "port-from-file",
    "secret-byte-order-mark", "secret-empty", "secret-is-a-device", "secret-not-utf-8",
    "secret-nul", "user-from-file-with-a-line-break",
    "json-key-missing", "json-key-of-a-boolean", "json-key-of-a-list", "json-key-of-an-empty-text",
    "json-key-of-an-object", "json-key-of-no-json", "json-key-too-deep",
    # what must hold between values, which may also stand in _defaults.yaml
    "min-over-max", "no-connection-settings", "nothing-required", "pgbouncer-with-settings",
    "host-missing", "dbname-missing", "user-missing", "addresses-and-hosts",
    "setting-twice", "three-ports-for-two-hosts", "verify-full-without-root",
    "user-from-another-resolver", "url-without-dbname", "url-with-two-hosts-and-three-ports",
    # a reference is not looked into, nor is an address or a URL
    "url-is-a-broken-string", "url-of-asyncpg", "url-with-a-percent", "url-with-a-schema", "url-with-a-slash",
    "url-with-a-space", "url-with-a-wrong-port", "url-with-a-wrong-sslmode",
    "url-with-an-at-sign", "url-with-an-unknown-parameter",
    "host-with-many-colons",
    "reference-dangling-default", "reference-too-deep",
}  # fmt: skip
# The validator itself follows it for ever.
ENDLESS = {"recursive-alias"}


@pytest.fixture(scope="module")
def schema_file(tmp_path_factory: pytest.TempPathFactory, canary: Canary) -> Path:
    """The output of `pgmonkey schema` in a file."""
    done = invoke("schema", canary=canary)
    assert (done.code, done.err) == (0, "")
    path = tmp_path_factory.mktemp("schema") / "schema.json"
    path.write_text(done.out)
    return path


def validate(schema_file: Path, *files: Path) -> set[str]:
    """Return the names of the files that check-jsonschema rejects."""
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "-o", "json", "--schemafile", schema_file, *files],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    rejected = [*report.get("errors", ()), *report.get("parse_errors", ())]
    assert done.returncode == bool(rejected)
    return {Path(error["filename"]).stem for error in rejected}


def test_the_schema_itself_is_valid(schema_file: Path) -> None:
    """It is a draft 7 schema, as the validator of that draft sees it."""
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--check-metaschema", schema_file],
        capture_output=True,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert json.loads(schema_file.read_text())["$schema"].endswith("draft-07/schema#")


def test_good_files_are_accepted(schema_file: Path, tmp_path: Path) -> None:
    """The repository's registry, its defaults included, and every way to write a value."""
    (tmp_path / "long.yaml").write_text(
        "connection_type: ${TYPE:-pool}\n"
        "description: null\n"
        "connection_settings:\n"
        "  host: [one, '${TWO}', {from_env: THREE}, '::1', '/run/my sockets', '${FOUR:-db:x}']\n"
        "  port: [5432, '5433', {from_file: port}]\n"
        "  dbname: 2024\n"
        "  user: {from_env: APP_USER}\n"
        "  password: pre-${PASSWORD:?is not set}-$${post}\n"
        "  sslmode: ${MODE-prefer}\n"
        "  sslrootcert: ${CA:-/etc/ca.crt}\n"
        "  connect_timeout: 0\n"
        "  keepalives: ON\n"
        "  keepalives_idle: '60'\n"
        "  keepalives_interval: 1min\n"
        "  tcp_user_timeout: 1.5 s\n"
        "  autocommit: yes\n"
        "  prepare_threshold: null\n"
        "pool_settings: {min_size: 0, max_size: '${SIZE}', timeout: 5, max_idle: 10 min}\n"
        "async_pool_settings: {kwargs: {autocommit: true, row_factory: '${ROWS}'}}\n"
        "sync_settings: {search_path: [a, b], statement_timeout: 30s, jit: off, app.x: ''}\n"
        "timeout: 500ms\n"
        "leak_detection: off\n"
        "required: {from_env: REQUIRED}\n"
        "revision: 7\n"
    )
    (tmp_path / "least.yaml").write_text("connection_settings: {service: orders}\n")
    good = [*(_ROOT / "pgmonkey" / "demo" / "registry.d").glob("*.yaml"), *tmp_path.glob("*.yaml")]
    assert validate(schema_file, *good) == set()


def test_bad_files_are_rejected(schema_file: Path) -> None:
    """All that a look at one file can see; what it cannot see is a list with reasons."""
    names = {path.name.removesuffix(".bad.yaml") for path in _BAD.glob("*.bad.yaml")} - ENDLESS
    files = [_BAD / f"{name}.bad.yaml" for name in sorted(names)]
    rejected = {stem.removesuffix(".bad") for stem in validate(schema_file, *files)}
    assert sorted(names - rejected) == sorted(BEYOND)


WRONG = [
    "timeout: 0",
    "timeout: 0.0s",
    "timeout: 5m",
    "leak_detection: true",
    "pool_settings: {max_size: 0}",
    "pool_settings: {max_size: '1001x'}",
    "connection_settings: {port: 70000}",
    "connection_settings: {password: '${P:-x}'}",
    "connection_settings: {password: {from_env: A, from_file: B}}",
    "connection_settings: {keepalives: 2}",
    "connection_settings: {tcp_user_timeout: 1.5}",
    "connection_settings: {tcp_user_timeout: 5m}",
    "connection_settings: {port: ' 5432'}",
    "connection_settings: {user: 'app '}",
    'connection_settings: {dbname: "orders\\n"}',
    "connection_settings: {host: 'db:5432'}",
    "connection_settings: {host: [db, ' db']}",
    "sync_settings: {search path: x}",
    "sync_settings: {a: {b: c}}",
    "connection_settings: [host]",
    "description: ${",
]


def test_wrong_values_are_rejected(schema_file: Path, tmp_path: Path) -> None:
    """Each kind of value has its form."""
    for number, text in enumerate(WRONG):
        (tmp_path / f"{number}.yaml").write_text(text + "\n")
    rejected = validate(schema_file, *tmp_path.glob("*.yaml"))
    assert [WRONG[number] for number in range(len(WRONG)) if str(number) not in rejected] == []


def test_every_value_is_described(schema_file: Path) -> None:
    """Editors show a description for each key; those that have a default show it."""
    schema = json.loads(schema_file.read_text())
    properties = dict(schema["properties"])
    for section in ("connection_settings", "pool_settings"):
        properties |= properties[section]["properties"]
    assert all(found["description"] for found in properties.values())
    assert properties["max_size"]["default"] == 10
    assert properties["autocommit"]["default"] is False
    assert properties["timeout"]["examples"] == ["5s"]
    assert properties["max_size"]["examples"] == [10]
    assert properties["required"]["examples"] == [False]
    assert properties["tcp_user_timeout"]["default"] == 30_000


def parts(schema: object, path: str = "") -> Iterator[tuple[str, dict]]:
    """Yield each object of a document with its path."""
    if isinstance(schema, dict):
        yield path, schema
    for key, found in schema.items() if isinstance(schema, dict) else ():
        yield from parts(found, f"{path}/{key}")
    for number, found in enumerate(schema) if isinstance(schema, list) else ():
        yield from parts(found, f"{path}/{number}")


def test_a_key_has_one_title(schema_file: Path) -> None:
    """It is that of the key: an editor that shows those of the alternatives, too, has no other."""
    schema = json.loads(schema_file.read_text())
    titled = {path for path, found in parts(schema) if isinstance(found.get("title"), str)}
    keys = {
        f"{path}/{key}"
        for path, found in parts(schema["properties"], "/properties")
        if path.endswith("/properties")
        for key in found
    }
    keys |= {f"/properties/{key}" for key in schema["properties"]}
    others = {
        "",
        *(f"/properties/{side}_settings/additionalProperties" for side in ("sync", "async")),
    }
    assert titled == keys | others


def test_an_editor_says_what_is_expected(schema_file: Path) -> None:
    """Each pattern has a message in words; a pattern that forbids something has no message."""
    schema = json.loads(schema_file.read_text())
    for path, found in parts(schema):
        if isinstance(found.get("pattern"), str) and not path.endswith("/not"):
            assert found["patternErrorMessage"].startswith("expected "), path


def test_no_example_of_a_number_is_a_text(schema_file: Path) -> None:
    """An editor that inserts an example would put quotes around it."""
    schema = json.loads(schema_file.read_text())
    examples = [one for _, found in parts(schema) for one in found.get("examples", ())]
    assert examples
    assert not [one for one in examples if isinstance(one, str) and one.isdigit()]
    assert {"true", "false"}.isdisjoint(one for one in examples if isinstance(one, str))


def test_the_schema_is_published_with_its_identity(schema_file: Path) -> None:
    """The documentation has it as a file; its `$id` does not depend on where it lies."""
    published = json.loads((_ROOT / "docs" / "pgmonkey.schema.json").read_text())
    schema = json.loads(schema_file.read_text())
    assert published["$id"] == schema["$id"] == "urn:pgmonkey:schema:database"
    assert published["properties"].keys() == schema["properties"].keys()
