from __future__ import annotations

import json
import os
import pty
import resource
import shlex
import signal
import socket
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.docs.commands import complaint
from tests.kit import Canary, RegistryDirectory, TemporaryDatabase
from tests.kit.command import Running, command, environment, invoke, run

_ROOT = Path(__file__).parents[2]
GOOD = "connection_settings: {host: db, dbname: orders, user: app}\n"
BAD = "connection_settings:\n  host: db\n  dbname: orders\n  user: app\n  pasword: '%, x'\n"
HINT = 'did you mean "password"?'


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """Write the secrets that the repository's own registry refers to."""
    for name in ("orders", "events", "reports"):
        directory = tmp_path / "secrets" / name
        directory.mkdir(parents=True)
        for key in ("username", "password"):
            (directory / key).write_text("tea\n")
    return tmp_path / "secrets"


@pytest.mark.parametrize("output", ["text", "github"])
def test_nothing_is_printed_without_problems(output: str, secrets: Path, canary: Canary) -> None:
    """The repository's own registry is good: exit code 0, and not a byte of output."""
    environment = {"PGMONKEY_DEMO_SECRETS": str(secrets)}
    done = invoke(
        "check",
        _ROOT / "pgmonkey" / "demo" / "registry.d",
        "-o",
        output,
        canary=canary,
        env=environment,
    )
    assert (done.code, done.out, done.err) == (0, "", "")


def test_a_terminal_is_told_that_all_is_well(tmp_path: Path) -> None:
    """On a terminal a check without problems says how many databases it has checked."""
    (tmp_path / "a.yaml").write_text(GOOD)
    (tmp_path / "b.yaml").write_text(GOOD)
    terminal, output = pty.openpty()
    with subprocess.Popen(
        command("check", tmp_path), stdout=output, stderr=output, env=environment()
    ) as process:
        os.close(output)
        assert process.wait(30) == 0
    assert os.read(terminal, 1000) == b"2 databases, no problems\r\n"
    os.close(terminal)


def test_problems_are_printed_and_counted(tmp_path: Path, canary: Canary) -> None:
    """Problems go to standard output, their number to standard error; the code is 1."""
    (tmp_path / "a.yaml").write_text(BAD)
    (tmp_path / "b.yaml").write_text("")
    (tmp_path / "c.yaml").write_text(GOOD)
    done = invoke("check", ".", canary=canary, cwd=tmp_path)
    assert done.code == 1
    first, second, *_ = done.out.splitlines()
    assert first.startswith("./a.yaml:5:3: connection_settings.pasword: unknown key")
    assert second == f"  hint: {HINT}"
    assert "./b.yaml: the file is empty" in done.out
    assert done.err == "2 problems in 2 files\n"


def test_json_has_a_documented_shape(tmp_path: Path, canary: Canary) -> None:
    """JSON holds the directory, how many databases it declares, and every problem."""
    (tmp_path / "a.yaml").write_text(BAD)
    (tmp_path / "b.yaml").write_text(GOOD)
    done = invoke("check", ".", "-o", "json", canary=canary, cwd=tmp_path)
    report = json.loads(done.out)
    assert (done.code, done.err) == (1, "")
    assert (report["directory"], report["databases"]) == (".", 2)
    assert report["problems"] == [
        {
            "path": "./a.yaml",
            "code": "config.unknown_key",
            "message": 'unknown key "pasword"',
            "line": 5,
            "column": 3,
            "key": "connection_settings.pasword",
            "hint": HINT,
            "database": "a",
        }
    ]


def test_json_is_printed_when_all_is_well(tmp_path: Path, canary: Canary) -> None:
    """A program that reads JSON gets a document in any case."""
    done = invoke("check", tmp_path, "-o", "json", canary=canary)
    assert done.code == 0
    assert json.loads(done.out)["problems"] == []


def test_github_annotations_are_escaped(tmp_path: Path, canary: Canary) -> None:
    """One line for each problem, with file, line and column; nothing in a name ends it early."""
    (tmp_path / "a,b:c%.yaml").write_text(GOOD)
    (tmp_path / "a.yaml").write_text(BAD)
    done = invoke("check", ".", "-o", "github", canary=canary, cwd=tmp_path)
    assert done.code == 1
    named, unknown = done.out.splitlines()
    assert named.startswith("::error file=./a%2Cb%3Ac%25.yaml,title=config.file_name::")
    assert unknown == (
        "::error file=./a.yaml,line=5,col=3,title=config.unknown_key::"
        f'connection_settings.pasword: unknown key "pasword"%0Ahint: {HINT}'
    )


def test_warnings_are_printed_and_change_no_exit_code(tmp_path: Path, canary: Canary) -> None:
    """A byte order mark, a shell's variable and a name that is cut are accepted, with a warning."""
    text = (
        "connection_settings:\n  host: db\n  dbname: orders\n  user: app\n  password: $PASSWORD\n"
    )
    (tmp_path / "a.yaml").write_text(f"\ufeff{text}  application_name: {'x' * 64}\n")
    (tmp_path / "b.yaml").write_text(text.replace("$PASSWORD", "$ecret"))
    done = invoke("check", ".", canary=canary, cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    lines = [line for line in done.out.splitlines() if not line.startswith("  hint: ")]
    assert [(line.split(": ")[0], line.split("[")[-1]) for line in lines] == [
        ("./a.yaml:1:1", "warning.byte_order_mark]"),
        ("./a.yaml:5:13", "warning.variable]"),
        ("./a.yaml:6:21", "warning.cut]"),
    ]
    assert "$PASSWORD" not in done.out
    done = invoke("check", ".", "-o", "github", canary=canary, cwd=tmp_path)
    assert done.out.count("::warning file=./a.yaml,line=") == 3
    done = invoke("check", ".", "-o", "json", canary=canary, cwd=tmp_path)
    assert [one["column"] for one in json.loads(done.out)["warnings"]] == [1, 13, 21]


def test_warnings_about_the_defaults_are_printed_once(tmp_path: Path, canary: Canary) -> None:
    """What `_defaults.yaml` says is a matter of that file, however many databases take it over."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(GOOD)
    (tmp_path / "_defaults.yaml").write_text("connection_settings: {password: $SECRET}\n")
    done = invoke("check", ".", canary=canary, cwd=tmp_path)
    assert done.code == 0
    assert done.out.count("warning.variable") == 1
    assert done.out.startswith("./_defaults.yaml:1:33: connection_settings.password: ")


@pytest.mark.parametrize(
    "password, message",
    [
        ("tea\n", "ends with a line break"),
        ('"tea"', "starts and ends with a quote"),
        ("{{ .Data.tea }}", "has the marks of a template"),
    ],
)
def test_a_password_that_is_probably_not_alone_is_a_warning(
    password: str, message: str, tmp_path: Path, canary: Canary
) -> None:
    """White space, quotes, the marks of a template: with the variable or file that it is from."""
    base = "connection_settings: {host: db, dbname: orders, user: app, password: "
    (tmp_path / "password").write_text(password + "\n")
    (tmp_path / "a.yaml").write_text(f"{base}{{from_file: password}}}}\n")
    (tmp_path / "b.yaml").write_text(f"{base}{json.dumps(password)}}}\n")
    (tmp_path / "c.yaml").write_text(f"{base}'${{C_PASSWORD}}'}}\n")
    (tmp_path / "d.yaml").write_text(f"{base}tea}}\n")
    done = invoke("check", ".", canary=canary, cwd=tmp_path, env={"C_PASSWORD": password})
    assert (done.code, done.err) == (0, "")
    lines = [line for line in done.out.splitlines() if not line.startswith("  hint: ")]
    where = "1:70: connection_settings.password: "
    assert lines == [
        f"./a.yaml:{where}{message}; the value comes from the file password  [warning.password]",
        f"./b.yaml:{where}{message}  [warning.password]",
        f"./c.yaml:{where}{message}; the value comes from the variable C_PASSWORD  [warning.password]",
    ]


def test_a_warning_about_a_password_of_the_defaults_is_printed_once(
    tmp_path: Path, canary: Canary
) -> None:
    """However many databases log in with it."""
    (tmp_path / "_defaults.yaml").write_text("connection_settings: {password: ' tea'}\n")
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(GOOD)
    done = invoke("check", ".", canary=canary, cwd=tmp_path)
    assert done.out.count("warning.password") == 1
    assert done.out.startswith("./_defaults.yaml:1:33: connection_settings.password: starts with")


def test_trust_is_judged_as_the_service_judges_it(tmp_path: Path, canary: Canary) -> None:
    """A file that everybody can change: a problem if asked for, a line, or nothing by default."""
    (tmp_path / "orders.yaml").write_text(GOOD)
    (tmp_path / "orders.yaml").chmod(0o666)
    assert invoke("check", tmp_path, canary=canary).code == 0
    reason = f"{tmp_path}/orders.yaml can be changed by everybody (mode 0666)"
    done = invoke("check", tmp_path, "--trust", "warn", canary=canary)
    assert (done.code, done.out, done.err) == (0, "", f"{reason}\n")
    done = invoke("check", tmp_path, "--trust", "strict", canary=canary)
    assert (done.code, done.err) == (1, "1 problem in 1 file\n")
    assert f"the file is not trusted: {reason}  [file.untrusted]" in done.out
    (tmp_path / "orders.yaml").chmod(0o644)
    done = invoke("check", tmp_path, "--trust", "strict", canary=canary)
    assert (done.code, done.out, done.err) == (0, "", "")


def test_a_directory_without_databases_is_reported(tmp_path: Path, canary: Canary) -> None:
    """A check that had nothing to look at says so: perhaps it is the wrong directory."""
    (tmp_path / "readme.txt").write_text("")
    done = invoke("check", tmp_path, canary=canary)
    assert (done.code, done.out, done.err) == (0, "", f"{tmp_path} declares no database\n")


def test_static_wants_no_variables_and_no_files(tmp_path: Path, canary: Canary) -> None:
    """Where files are written there are no secrets: only what the files say themselves counts."""
    (tmp_path / "a.yaml").write_text(
        "connection_settings:\n"
        "  host: ${NOWHERE_HOST}\n"
        "  dbname: orders\n"
        "  user: {from_file: /nowhere/username}\n"
        "  password: {from_env: NOWHERE_PASSWORD}\n"
        "  sslmode: verify-full\n"
        "  sslrootcert: /nowhere/ca.crt\n"
    )
    assert invoke("check", tmp_path, canary=canary).code == 1
    # A variable that libpq reads is the business of the machine that connects.
    done = invoke("check", tmp_path, "--static", canary=canary, env={"PGTZ": "UTC"})
    assert (done.code, done.out, done.err) == (0, "", "")
    (tmp_path / "b.yaml").write_text(
        "connection_settings:\n"
        "  host: ${NOWHERE\n"
        "  dbname: orders\n"
        "  user: app\n"
        "  port: ${NOWHERE_PORT:-http}\n"
        "  password: ${NOWHERE_PASSWORD:-tea}\n"
    )
    done = invoke("check", tmp_path, "--static", "-o", "json", canary=canary)
    assert done.code == 1
    assert [problem["code"] for problem in json.loads(done.out)["problems"]] == [
        "reference.malformed",
        "config.type",
        "reference.sensitive_default",
    ]


def test_files_are_checked_as_files_of_their_registry(tmp_path: Path, canary: Canary) -> None:
    """Named files are checked alone, with the defaults of their directory merged under them."""
    (tmp_path / "_defaults.yaml").write_text("connection_settings: {host: db, user: app}\n")
    (tmp_path / "a.yaml").write_text("connection_settings: {dbname: orders}\n")
    (tmp_path / "b.yaml").write_text("connection_settings: {dbname: orders, pasword: x}\n")
    (tmp_path / "c.yml").write_text("")

    def check(*paths: object) -> tuple[int, int, list[str]]:
        done = invoke("check", *paths, "-o", "json", canary=canary, cwd=tmp_path)
        report = json.loads(done.out)
        names = [problem["database"] for problem in report["problems"]]
        return done.code, report["databases"], names

    assert check("a.yaml") == (0, 1, [])
    assert check(tmp_path / "b.yaml") == (1, 1, ["b"])
    assert check("a.yaml", "c.yml", "./b.yaml") == (1, 3, ["b", "c"])
    assert check("_defaults.yaml") == (1, 3, ["b", "c"])
    assert check("d.yaml") == (1, 0, ["d"])
    (tmp_path / "_defaults.yaml").write_text("connection_settings: {prt: 1}\n")
    assert check("a.yaml")[0] == 1


def test_a_directory_that_is_not_there_is_a_problem(tmp_path: Path, canary: Canary) -> None:
    """It is a problem, with code 1; the directory may also come from the environment."""
    done = invoke("check", canary=canary, env={"PGMONKEY_REGISTRY": str(tmp_path / "nowhere")})
    assert done.code == 1
    assert done.out == (
        f"{tmp_path}/nowhere: the directory does not exist  [registry.missing]\n"
        "  hint: make it, or name another\n"
    )


@pytest.mark.timing
def test_a_thousand_files_take_less_than_a_second(tmp_path: Path, canary: Canary) -> None:
    """Processor time of the whole command, imports included, in the best of three runs."""
    for number in range(1000):
        (tmp_path / f"db{number}.yaml").write_text(
            GOOD + f"description: number {number}\npool_settings: {{min_size: 2, max_size: 10}}\n"
        )
    taken: list[float] = []
    while len(taken) < 3 and min(taken, default=1.0) >= 1.0:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = run("check", tmp_path, canary=canary)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert (done.code, done.out, done.err) == (0, "", "")
        taken.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert min(taken) < 1.0


@pytest.mark.parametrize(
    "arguments",
    [
        ["-o", "yaml"],
        ["--static", "--online"],
        ["--static", "--trust", "warn"],
        ["a", "b"],
        ["a", "--dir", "a"],
        ["a.yaml", "--dir", "a"],
        ["a.yaml", "b"],
        ["a.yaml", "b/c.yaml"],
        ["--onlin"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], tmp_path: Path, canary: Canary) -> None:
    """A wrong argument is named, with the usage."""
    done = invoke("check", *arguments, canary=canary, cwd=tmp_path)
    assert done.code == 2
    assert done.err.startswith("Usage: pgmonkey check")


def test_online_says_nothing_of_databases_that_answer(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary
) -> None:
    """Each database is connected to once, whatever its type."""
    for kind in ("normal", "pool", "async", "async_pool"):
        registry_dir.declare(kind, database, kind)
    done = invoke("check", registry_dir, "--online", canary=canary)
    assert (done.code, done.out, done.err) == (0, "", "")


def test_online_says_why_a_database_cannot_be_reached(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary
) -> None:
    """A refused login, a missing server and a misspelt setting are problems of their files."""
    registry_dir.declare("a", database, connection={"password": f"{canary.secret()} "})
    registry_dir.declare("b", database, connection={"port": 1, "connect_timeout": 2})
    registry_dir.declare("c", database, sync_settings={"statement_timout": "5s"})
    registry_dir.declare("d", database, sync_settings={"statement_timeout": "5 sekunds"})
    registry_dir.write("e", BAD)
    done = invoke("check", registry_dir, "--online", "-o", "json", canary=canary)
    assert done.code == 1
    problems = {problem["database"]: problem for problem in json.loads(done.out)["problems"]}
    codes = {name: problem["code"] for name, problem in problems.items()}
    assert codes == {
        "a": "probe.auth",
        "b": "probe.refused",
        "c": "probe.setting",
        "d": "probe.setting",
        "e": "config.unknown_key",
    }
    assert 'unrecognized configuration parameter "statement_timout"' in problems["c"]["message"]
    assert 'invalid value for parameter "statement_timeout"' in problems["d"]["message"]
    assert problems["b"]["message"].startswith("cannot connect to b: ")
    assert problems["a"]["hint"].startswith("check the user and the password")
    assert problems["a"]["hint"].endswith(
        "; the password ends with white space: remove it, unless it is a part of the password"
    )


@pytest.mark.parametrize("output", ["text", "github"])
def test_online_names_the_database_on_every_line(
    output: str, tmp_path: Path, canary: Canary
) -> None:
    """Three dead databases behind one `_defaults.yaml` are three lines that differ."""
    (tmp_path / "_defaults.yaml").write_text(
        "connection_settings: {host: '${SHOP_HOST}', port: 1, dbname: shop, user: app}\n"
    )
    for name in ("events", "orders", "reports"):
        (tmp_path / f"{name}.yaml").write_text("connection_settings: {}\n")
    environ = {"SHOP_HOST": "127.0.0.1"}
    done = invoke("check", ".", "--online", "-o", output, canary=canary, cwd=tmp_path, env=environ)
    assert done.code == 1
    assert done.out.count("; the value comes from the variable SHOP_HOST\n") == 3
    lines = [line for line in done.out.splitlines() if not line.startswith("  hint: ")]
    assert [name in line for line in lines for name in ("events", "orders", "reports")] == [
        True, False, False, False, True, False, False, False, True,
    ]  # fmt: skip
    assert all("_defaults.yaml" in line and "refused" in line for line in lines)


def test_ctrl_c_does_not_wait_for_servers_that_say_nothing(tmp_path: Path, canary: Canary) -> None:
    """A probe that is under way is left where it is: code 130, long before it would have ended."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        (tmp_path / "a.yaml").write_text(
            "connection_settings: {host: 127.0.0.1, dbname: orders, user: app, connect_timeout: 60,"
            f" port: {silent.getsockname()[1]}}}\n"
        )
        with Running("check", tmp_path, "--online", canary=canary) as running:
            client, _ = silent.accept()
            with client:
                running.send(signal.SIGINT)
                assert running.code(30) == 130
            assert running.text == "interrupted\n"


def test_the_hook_for_pre_commit_calls_what_exists() -> None:
    """`.pre-commit-hooks.yaml` has one hook, whose command line is valid."""
    (hook,) = yaml.safe_load((_ROOT / ".pre-commit-hooks.yaml").read_text())
    assert complaint(shlex.split(hook["entry"])) is None
    assert {"id", "name", "entry", "language", "files", "pass_filenames"} <= hook.keys()


def test_the_service_refuses_files_that_others_can_change(tmp_path: Path, canary: Canary) -> None:
    """Trust is strict there, unless it is told otherwise; the problem names the file."""
    path = tmp_path / "orders.yaml"
    path.write_text(GOOD)
    path.chmod(0o666)
    done = run("serve", tmp_path, "--listen", "127.0.0.1:0", canary=canary)
    assert done.code == 1
    assert f"{path} can be changed by everybody (mode 0666)  [file.untrusted]" in done.err


OLDER = """\
postgresql:
  connection_type: pool
  connection_settings:
    user: yes
    password: 0123
    host: db
    port: 5432
    dbname: shop
    autocommit: true
    gssencmode: disable
  sync_settings: {search_path: "app, public", jit: off}
timeout: 3
"""


def test_a_file_of_4_0_may_mean_something_else(tmp_path: Path, canary: Canary) -> None:
    """What 4.0 dropped, read as a number or ignored is a warning with a place, and no value."""
    path = tmp_path / "My Config.yml"
    path.write_text(OLDER)
    done = invoke("check", "--from-4.0", path, canary=canary)
    assert (done.code, done.err) == (0, "")
    lines = [line for line in done.out.splitlines() if not line.startswith("  hint: ")]
    assert [line.removeprefix(f"{path}:") for line in lines] == [
        f"{where}  [warning.upgrade]"
        for where in (
            "2:3: postgresql: this wrapper is deprecated",
            "4:11: postgresql.connection_settings.user: pgmonkey 4.0 read true or false",
            "5:15: postgresql.connection_settings.password: pgmonkey 4.0 read a number",
            "9:17: postgresql.connection_settings.autocommit: pools of pgmonkey 4.0 ignored it",
            "10:17: postgresql.connection_settings.gssencmode: pgmonkey 4.0 ignored it",
            "11:32: postgresql.sync_settings.search_path: pgmonkey 4.0 set one schema of this name",
            "12:10: timeout: pgmonkey 4.0 dropped it beside postgresql:",
        )
    ]
    assert "0123" not in done.out


def test_a_file_of_4_0_that_means_the_same(tmp_path: Path, canary: Canary) -> None:
    """Nothing is printed; one with a problem has it, one that is missing is named."""
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("connection_settings: {host: db, port: '5432', user: a, autocommit: 'true'}\n")
    bad.write_text("connection_settings: {hosst: db, port: 5432}\n")
    pool = tmp_path / "pool.yaml"
    pool.write_text(
        "connection_type: pool\nconnection_settings: {host: db, user: a}\n"
        "pool_settings: {kwargs: {autocommit: true}}\n"
    )
    done = invoke("check", "--from-4.0", good, pool, canary=canary)
    assert (done.code, done.out, done.err) == (0, "", "")
    done = invoke("check", "--from-4.0", good, bad, "-o", "json", canary=canary)
    assert done.code == 1
    answer = json.loads(done.out)
    assert (answer["directory"], answer["databases"]) == (None, 2)
    assert [one["code"] for one in answer["problems"]] == ["config.unknown_key"]
    done = invoke("check", "--from-4.0", tmp_path / "no.yaml", canary=canary)
    assert (done.code, done.err) == (1, f"{tmp_path / 'no.yaml'}: No such file or directory\n")
    done = invoke("check", "--from-4.0", canary=canary)
    assert done.code == 2


@pytest.mark.parametrize("off", ["'false'", "'no'", "'${SWITCH}'", "{from_env: SWITCH}"])
def test_a_switch_of_4_0_in_quotes_was_on(off: str, tmp_path: Path, canary: Canary) -> None:
    """4.0 took any text for on, also `false` in quotes or of a variable; a bare `no` was off."""
    path = tmp_path / "a.yaml"
    text = (
        "connection_settings: {host: db, user: a, autocommit: OFF}\n"
        "pool_settings:\n  check_on_checkout: OFF\n"
    )
    path.write_text(text.replace("OFF", off))
    done = invoke("check", "--from-4.0", path, canary=canary, env={"SWITCH": "off"})
    assert (done.code, done.err) == (0, "")
    on = "pgmonkey 4.0 took any text for on  [warning.upgrade]"
    assert [line for line in done.out.splitlines() if "hint" not in line] == [
        f"{path}:1:54: connection_settings.autocommit: {on}",
        f"{path}:3:22: pool_settings.check_on_checkout: {on}",
    ]
    assert "hint: it is off now, as it is written" in done.out
    path.write_text(text.replace("OFF", "no"))
    done = invoke("check", "--from-4.0", path, canary=canary)
    assert (done.code, done.out) == (0, "")


def test_kwargs_of_one_pool_of_4_0_hold_for_all_types(tmp_path: Path, canary: Canary) -> None:
    """That is a warning where the type of the file is another one: its blocks were transactions."""
    path = tmp_path / "a.yaml"
    text = (
        "connection_type: TYPE\nconnection_settings: {host: db, user: a}\n"
        "pool_settings: {kwargs: {autocommit: true}}\n"
    )
    for kind in ("normal", "async", "async_pool"):
        path.write_text(text.replace("TYPE", kind))
        done = invoke("check", "--from-4.0", path, canary=canary)
        assert (done.code, done.err) == (0, "")
        assert done.out == (
            f"{path}:3:38: pool_settings.kwargs.autocommit: pgmonkey 4.0 gave it to this pool alone"
            "  [warning.upgrade]\n  hint: it holds for all types now\n"
        )
    path.write_text(text.replace("TYPE", "pool"))
    assert invoke("check", "--from-4.0", path, canary=canary).out == ""


def test_a_file_of_4_0_with_references(tmp_path: Path, canary: Canary) -> None:
    """They are resolved; with `--static` they may be missing."""
    path = tmp_path / "a.yaml"
    path.write_text("connection_settings: {host: db, user: a, password: '${NO_SUCH}'}\n")
    done = invoke("check", "--from-4.0", path, canary=canary)
    assert done.code == 1
    assert "NO_SUCH" in done.out
    done = invoke("check", "--from-4.0", "--static", path, canary=canary)
    assert (done.code, done.out) == (0, "")
