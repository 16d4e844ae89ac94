"""Every snippet of the README and the documentation works as it is written."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import os
import re
import subprocess
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from tests.docs.commands import commands, complaint
from tests.docs.environment import Environment
from tests.docs.snippets import ROOT, Snippet, pages, parse, snippets

_NAME = re.compile(r"^# *(?:[\w.-]+/)*(?P<name>_?[a-z][a-z0-9_-]*\.ya?ml)\b")
_VARIABLE = re.compile(r"\$\{([A-Za-z_]\w*)|from_env: *([A-Za-z_]\w*)")
_A_URL = "postgresql://app:tea@db.internal/orders"
_A_DOCUMENT = b'{"username": "app", "password": "tea"}'
_CREDENTIAL = re.compile(r"\$\{CREDENTIALS_DIRECTORY\}/([\w.-]+)")
_SECRET_PATH = re.compile(r"/(?:run/secrets|etc/[\w-]+)/[\w./-]+")

ALL = [snippet for page in pages() for snippet in snippets(page)]
WANTED = [snippet for snippet in ALL if snippet.word != "skip"]


def of(*languages: str) -> list:
    """Return the snippets of these languages, as parameters."""
    return [pytest.param(s, id=s.place) for s in WANTED if s.language in languages]


@pytest.mark.parametrize("snippet", of("yaml"))
def test_yaml_is_valid(snippet: Snippet, tmp_path, monkeypatch, certificate):
    """A snippet that begins with a file's name is a database file and loads; others are YAML."""
    if file_name(snippet) is None:
        list(yaml.safe_load_all(snippet.text))
        return
    from pgmonkey.config.directory import DirectoryLoader

    directory = tmp_path / "registry.d"
    directory.mkdir()
    # What is merged under every database: with the page's databases, or with the least that is one.
    defaults = [s for s in WANTED if s.page == snippet.page and file_name(s) == "_defaults.yaml"]
    least = Snippet(
        "", 0, "yaml", "# least.yaml\nconnection_settings: {host: h, dbname: d, user: u}\n"
    )
    for one in (*defaults[:1], snippet, *([least] if snippet in defaults else [])):
        text = prepare(one.text, tmp_path, monkeypatch, certificate)
        (directory / file_name(one)).write_text(text, encoding="utf-8")

    problems = [
        problem
        for scan in [DirectoryLoader(directory).scan()]
        for problem in (*scan.general, *(p for found in scan.problems.values() for p in found))
    ]

    if snippet.word == "invalid":
        assert snippet.rest in {problem.code for problem in problems}
    else:
        assert not problems, "\n".join(map(str, problems))


def file_name(snippet: Snippet) -> str | None:
    """Return the name of the database file that a snippet shows."""
    match = _NAME.match(snippet.text) if snippet.language == "yaml" else None
    return match["name"] if match else None


def prepare(
    text: str, directory: Path, monkeypatch: pytest.MonkeyPatch, certificate: tuple[bytes, bytes]
) -> str:
    """Make the variables and the secret files that a snippet refers to."""
    for match in _VARIABLE.finditer(text):
        variable = match[1] or match[2]
        value = "5432" if variable.endswith("PORT") else "value"
        monkeypatch.setenv(variable, _A_URL if variable.endswith("_URL") else value)
    for found in _CREDENTIAL.finditer(text):
        credentials = directory / "credentials"
        credentials.mkdir(exist_ok=True)
        (credentials / found[1]).write_text("tea")
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    for found in set(_SECRET_PATH.findall(text)):
        path = directory / "mounts" / found.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        chain, key = certificate
        contents = {".crt": chain, ".pem": chain, ".key": key, ".json": _A_DOCUMENT}
        content = _A_URL.encode() if path.name == "uri" else contents.get(path.suffix, b"value\n")
        path.write_bytes(content)
        path.chmod(0o600)
    for found in re.findall(r"\.\./(secrets/[\w./-]+)", text):  # beside the registry
        path = directory / found
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("value\n")
    return _SECRET_PATH.sub(lambda found: f"{directory}/mounts{found[0]}", text)


@pytest.fixture(scope="session")
def certificate() -> tuple[bytes, bytes]:
    """A self-signed certificate and its key, in PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "docs")])
    now = datetime.now(UTC)
    chain = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    return chain.public_bytes(serialization.Encoding.PEM), key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


@pytest.mark.parametrize("snippet", of("json", "toml"))
def test_json_and_toml_are_valid(snippet: Snippet):
    """A snippet of JSON or TOML parses."""
    parse = json.loads if snippet.language == "json" else tomllib.loads
    parse(snippet.text)


@pytest.mark.parametrize("snippet", of("shell", "console"))
def test_commands_exist(snippet: Snippet):
    """Each command, sub-command and option of a shell snippet exists."""
    complaints = [c for words in commands(snippet) if (c := complaint(words))]
    assert complaints == []


@pytest.fixture
def environment(tmp_path, server, canary, monkeypatch):
    """Where snippets run, with the databases that the repository's registry declares."""
    environment = Environment(tmp_path, server, canary)
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith("PG"):
            monkeypatch.delenv(name)
    for name, value in environment.variables.items():
        monkeypatch.setenv(name, value)
    with environment.databases():
        yield environment


@pytest.mark.parametrize(
    "snippet",
    [pytest.param(s, id=s.place) for s in WANTED if s.word == "run"],
)
def test_marked_commands_run(snippet: Snippet, environment: Environment, canary):
    """A shell snippet marked `run` ends with its exit code, and shows no secret."""
    text = snippet.text
    if snippet.language == "console":
        text = "\n".join(line[2:] for line in text.splitlines() if line.startswith("$ "))
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        env=environment.shell_variables(),
        cwd=environment.directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )

    canary.check(done.stdout + done.stderr, snippet.place)
    expected = int(snippet.rest.removeprefix("exit=") or 0)
    assert done.returncode == expected, f"{snippet.place}\n{done.stdout}{done.stderr}"


PYTHON_PAGES = sorted({s.page for s in WANTED if s.language == "python"})


@pytest.mark.parametrize("page", PYTHON_PAGES)
def test_python_runs(page: str, environment: Environment):
    """The Python of a page runs from top to bottom, in one namespace and on one event loop."""
    namespace: dict = {"__name__": "__main__"}
    with asyncio.Runner() as runner:
        try:
            for snippet in WANTED:
                if (snippet.page, snippet.language) == (page, "python"):
                    run(snippet, namespace, runner)
        finally:
            close(namespace, runner)


def run(snippet: Snippet, namespace: dict, runner: asyncio.Runner) -> None:
    """Run one snippet; a traceback names the line of the page."""
    source = "\n" * (snippet.line - 1) + snippet.text
    code = compile(
        source,
        str(ROOT / snippet.page),
        "exec",
        flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
        dont_inherit=True,  # annotations are what the page writes
    )
    expected = snippet.rest if snippet.word == "raises" else ""
    try:
        if code.co_flags & inspect.CO_COROUTINE:
            runner.run(eval(code, namespace))
        else:
            exec(code, namespace)
    except Exception as error:
        if type(error).__name__ != expected:
            raise
    else:
        assert not expected, f"{snippet.place}: {expected} was not raised"


def close(namespace: dict, runner: asyncio.Runner) -> None:
    """Close what the page left open, as the end of its program would."""

    async def close_async(registry) -> None:
        async with registry:
            pass

    from pgmonkey import PGConnectionManager, Registry

    for value in namespace.values():
        if isinstance(value, Registry):
            runner.run(close_async(value))
        elif isinstance(value, PGConnectionManager):
            runner.run(value.clear_cache_async())
    namespace.clear()  # with handles of a registry that another one of the page has replaced


@pytest.mark.parametrize("snippet", [pytest.param(s, id=s.place) for s in ALL if s.directive])
def test_directives_are_known(snippet: Snippet):
    """The comment above a fence is one that these tests know, and a `skip` has a reason."""
    assert snippet.word in ("skip", "invalid", "raises", "run", "walk")
    if snippet.word not in ("run", "walk"):
        assert snippet.rest, f"{snippet.place}: {snippet.word} says why, or what"


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path):
    """A link to another file of the repository has a target."""
    text = re.sub(r"^(`{3,}).*?^\1`*$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, _ = target.partition("#")
        if path and "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / path).exists(), f"{page.name} links to {target}"


def test_the_parser_finds_fences_and_their_directives():
    """Indented, nested and unclosed fences are read as Markdown reads them."""
    text = (
        "<!-- snippet: skip shows a shape -->\n"
        "```python\na\n```\n"
        "<!-- snippet: run -->\ntext between\n"
        "- item\n\n"
        "  ```yaml\n  # orders.yaml\n  a:\n    b: 1\n  ```\n"
        "````markdown\n```python\nnot code\n```\n````\n"
        "```text\nplain\n```\n"
        "~~~bash\nmake test\n"
    )
    assert list(parse(text, "page.md")) == [
        Snippet("page.md", 3, "python", "a\n", "skip shows a shape"),
        Snippet("page.md", 10, "yaml", "# orders.yaml\na:\n  b: 1\n"),
        Snippet("page.md", 23, "shell", "make test\n"),
    ]


@pytest.mark.parametrize(
    "language, text, expected",
    [
        ("shell", "make test ARGS='-k x'", None),
        ("shell", "make tset", "the Makefile has no target 'tset'"),
        ("shell", "A=1 curl -s localhost:9749/metrics | grep '^pgmonkey' > out 2>&1", None),
        ("shell", "crul -s localhost", "'crul' is no program that the documentation uses"),
        ("shell", "pip install 'pgmonkey[demo]'", None),
        ("shell", "pip install 'pgmonkey[web]'", "pgmonkey has no extra web"),
        ("shell", "uvx --from 'pgmonkey[web]' pgmonkey demo", "pgmonkey has no extra web"),
        ("shell", "pgmonkey serve registry.d --listen 127.0.0.1:9749", None),
        ("shell", "pgmonkey sevre", "pgmonkey has no command 'sevre'"),
        ("shell", "pgmonkey serve \\\n  --lisen x", "pgmonkey serve has no option --lisen"),
        ("shell", "cat > a.yaml <<'EOF'\nmkae x\nEOF\nmake run", None),
        ("console", "$ make run\nmkae: output", None),
    ],
)
def test_the_check_of_commands_sees_slips(language, text, expected):
    """The error for a wrong target, program, extra, command or option names it."""
    snippet = Snippet("page.md", 1, language, text + "\n")

    assert next((c for words in commands(snippet) if (c := complaint(words))), None) == expected
