"""The key `url`: a URI of libpq or a connection string instead of keys of their own."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pgmonkey import load_config
from pgmonkey.config.directory import DirectoryLoader
from pgmonkey.config.explain import explain
from pgmonkey.config.loader import load_file
from pgmonkey.config.redaction import MASK, Secret, redact_config
from pgmonkey.config.warnings import find_warnings
from pgmonkey.errors import ConfigError, EnvInterpolationError
from tests.kit.dictionaries import config_from_dict

PLAIN = {"host": "db", "dbname": "orders", "user": "app"}


@pytest.fixture
def load(tmp_path):
    """Load a database from its connection settings."""

    def load(*, api=load_file, **connection):
        path = tmp_path / "orders.yaml"
        path.write_text(yaml.safe_dump({"connection_settings": connection}))
        return api(path)

    return load


def clear(config):
    """Return the connection settings, with the secrets in clear."""
    return {
        key: value.reveal() if isinstance(value, Secret) else value
        for key, value in config.connection_settings.items()
    }


@pytest.mark.parametrize(
    "url, parts",
    [
        ("postgresql://app@db/orders", {}),
        ("postgres://app@db/orders", {}),
        ("postgresql://app:t%40e%2Fa@db:5433/orders", {"password": "t@e/a", "port": "5433"}),
        ("postgresql://app:t?e#a@db/orders", {"password": "t?e#a"}),
        ("postgresql://app@a:1,b:2/orders", {"host": "a,b", "port": "1,2"}),
        ("postgresql://app@a,b/orders", {"host": "a,b"}),
        ("postgresql://app@[2001:db8::1]:5433/orders", {"host": "2001:db8::1", "port": "5433"}),
        ("postgresql://app@%2Frun%2Fpostgresql/orders", {"host": "/run/postgresql"}),
        ("postgresql:///orders?host=/run/postgresql&user=app", {"host": "/run/postgresql"}),
        ("postgresql://app@db/orders?options=-c%20geqo%3Doff", {"options": "-c geqo=off"}),
        ("postgresql://app@db/orders?password=tea", {"password": "tea"}),
        ("postgresql://app@db/orders?ssl=true", {"sslmode": "require"}),
        ("postgresql://app@db/orders?connect_timeout=3", {"connect_timeout": "3"}),
        (
            "postgresql://app@a,b/orders?target_session_attrs=read-write",
            {"host": "a,b", "target_session_attrs": "read-write"},
        ),
        ("host=db dbname=orders user=app", {}),
        ("host = db dbname=orders user=app password='t e\\'a'", {"password": "t e'a"}),
        ("host=db\n  dbname=orders\n  user=app\n", {}),
        ("postgresql://app@db/orders\n", {}),
        ("service=orders", {"service": "orders"}),
    ],
)
def test_a_url_is_the_keys_that_it_stands_for(load, url, parts):
    """Nothing tells a database with a url from one with these keys."""
    config = load(url=url)
    expected = load(**({} if "service" in parts else PLAIN) | parts)
    assert clear(config) == clear(expected)
    assert config.digest == expected.digest
    assert config.place == expected.place
    assert config.connect_kwargs("pool") == expected.connect_kwargs("pool")
    assert config.changed_keys(expected) == {}
    assert "url" not in config.redacted()["connection_settings"]


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)


@settings(deadline=None, max_examples=50)
@given(password=TEXT, inside=TEXT)
@example(password="'\"\\@:/%#&?=${}<>,é", inside=" ")
def test_an_encoded_part_may_hold_every_character(password, inside):
    """In a URI with percent signs, in a connection string with quotes."""
    user, dbname = f"a{inside}z", f"d{inside}b"
    uri = "postgresql://{}:{}@db/{}".format(
        *(quote(part, safe="") for part in (user, password, dbname))
    )
    escaped = (part.replace("\\", "\\\\").replace("'", "\\'") for part in (user, password, dbname))
    string = "host=db user='{}' password='{}' dbname='{}'".format(*escaped)
    for url in (uri, string):
        if "${" not in url:  # a reference, in a file
            config = config_from_dict({"connection_settings": {"url": url}})
            assert clear(config) == {
                "host": "db",
                "user": user,
                "password": password,
                "dbname": dbname,
            }


def test_other_keys_of_the_file_override_its_parts(load):
    """Every part; a key without a value overrides nothing."""
    config = load(
        url="postgresql://app:tea@db:5433/orders?sslmode=disable",
        host="other",
        password="mate",
        sslmode=None,
        autocommit="true",
    )
    assert clear(config) == {
        "host": "other", "port": "5433", "dbname": "orders", "user": "app", "password": "mate",
        "sslmode": "disable", "autocommit": True,
    }  # fmt: skip


def test_a_url_overrides_what_the_defaults_say(tmp_path):
    """What is in the file counts before what is in `_defaults.yaml`, in whatever form."""
    (tmp_path / "_defaults.yaml").write_text(
        "connection_settings: {host: localhost, port: 5433, application_name: shop,\n"
        "  url: 'postgresql://nobody@nowhere/nothing?sslmode=disable'}\n"
    )
    for name, connection in {
        "orders": "{url: 'postgresql://app@db/orders'}",
        "events": "{url: 'postgresql://app@db/events', host: other}",
        "reports": "{dbname: reports}",
    }.items():
        (tmp_path / f"{name}.yaml").write_text(f"connection_settings: {connection}\n")
    scan = DirectoryLoader(tmp_path).scan()
    scan.raise_for_problems()
    common = {"port": "5433", "application_name": "shop"}
    assert clear(scan.configs["orders"]) == PLAIN | common
    assert clear(scan.configs["events"]) == PLAIN | common | {"host": "other", "dbname": "events"}
    assert clear(scan.configs["reports"]) == {
        "host": "localhost", "dbname": "reports", "user": "nobody", "sslmode": "disable", **common,
    }  # fmt: skip
    sources = {value.key: str(value.source) for value in explain(scan.configs["orders"])}
    assert sources["connection_settings.host"] == f"{tmp_path}/orders.yaml:1:28"
    assert sources["connection_settings.port"] == f"{tmp_path}/_defaults.yaml:1:46"


def sections(*, null):
    """Return a strategy for settings, each of which says where it is from."""
    keys = st.sampled_from(["host", "user", "password", "application_name"])
    return st.dictionaries(keys, st.none() if null else st.just("x"), max_size=4)


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_the_order_in_which_settings_count(tmp_path_factory, data):
    """Keys of the file, its url, keys of the defaults, their url if the file has none."""
    directory = tmp_path_factory.mktemp("registry.d")
    layers = {
        name: dict.fromkeys(data.draw(sections(null=False), name), name)
        for name in ("file", "url", "defaults", "defaults_url")
    }
    nulls = data.draw(sections(null=True), "nulls").keys() - layers["file"].keys()
    written = {
        name: " ".join(f"{key}={value}" for key, value in (PLAIN | layers[name]).items())
        for name in ("url", "defaults_url")
    }
    own = layers["file"] | dict.fromkeys(nulls)
    below = layers["defaults"] | {"url": written["defaults_url"]}
    if has_url := data.draw(st.booleans(), "has a url"):
        own |= {"url": written["url"]}
    for name, section in {"orders": own, "_defaults": below}.items():
        text = yaml.safe_dump({"connection_settings": section})
        (directory / f"{name}.yaml").write_text(text)
    scan = DirectoryLoader(directory, environ={}).scan()
    scan.raise_for_problems()
    kept = {key: value for key, value in layers["defaults"].items() if key not in nulls}
    order = [kept, PLAIN | layers["url"]] if has_url else [PLAIN | layers["defaults_url"], kept]
    assert clear(scan.configs["orders"]) == order[0] | order[1] | layers["file"]


def test_a_password_that_is_made_on_demand_overrides_that_of_the_url(load, tmp_path):
    """Beside the url; the password of a url in a file overrides one of the defaults."""
    url = "postgresql://app:tea@db/orders"
    command = {"from_command": ["/bin/echo", "mate"]}
    config = load(url=url, password=command)
    assert clear(config) == PLAIN
    assert config.on_demand is not None
    assert config.digest == load(url=url.replace("tea", "x"), password=command).digest
    defaults = {"connection_settings": {"password": command}}
    (tmp_path / "_defaults.yaml").write_text(yaml.safe_dump(defaults))
    load(url=url)
    config = DirectoryLoader(tmp_path).scan().configs["orders"]
    assert clear(config) == PLAIN | {"password": "tea"}
    assert config.on_demand is None


def test_a_problem_of_a_key_beside_a_url_is_at_that_key(load):
    """Although the url has a part of this name: it does not take the place of the key."""
    with pytest.raises(ConfigError) as caught:
        load(url="postgresql://app:tea@db/orders", password="${NO_SUCH}", user={"from_file": "x"})
    assert [(problem.key, problem.code) for problem in caught.value.problems] == [
        ("connection_settings.password", "reference.unset"),
        ("connection_settings.user.from_file", "secret.missing"),
    ]


def test_what_a_url_overrides_need_not_be_there(load, tmp_path):
    """Neither a variable nor a file that the defaults name; so no change of them counts."""
    defaults = {"password": "${NO_SUCH}", "host": {"from_file": "x"}, "sslrootcert": "system"}
    path = tmp_path / "_defaults.yaml"
    path.write_text(yaml.safe_dump({"connection_settings": defaults}))
    load(url="postgresql://app:tea@db/orders?sslmode=disable")
    scan = DirectoryLoader(tmp_path).scan()
    scan.raise_for_problems()
    config = scan.configs["orders"]
    parts = {"password": "tea", "sslmode": "disable", "sslrootcert": "system"}
    assert clear(config) == PLAIN | parts
    assert config.sources.paths == ()
    assert config.is_current()


@pytest.mark.parametrize("written", ["${URL}", {"from_env": "URL"}, {"from_file": "uri"}])
def test_a_url_from_outside(load, tmp_path, monkeypatch, written):
    """`DATABASE_URL` of a platform, or the file `uri` of CloudNativePG's and Zalando's secrets."""
    url = "postgresql://app:te%24%7Ba@db/orders"
    monkeypatch.setenv("URL", url)
    (tmp_path / "uri").write_text(f"{url}\n")
    config = load(url=written)
    assert clear(config) == PLAIN | {"password": "te${a"}
    (source,) = {str(v.source) for v in explain(config) if v.key.endswith((".host", ".password"))}
    where = "secret file uri" if "from_file" in written else "environment variable URL"
    assert source.endswith(f", {where}")


def test_a_url_made_of_several_references(load, monkeypatch):
    """A password that would take the url apart is a problem, and shows nowhere."""
    monkeypatch.setenv("A_PASSWORD", "tea")
    url = "postgresql://app:${A_PASSWORD}@db/orders"
    assert clear(load(url=url)) == PLAIN | {"password": "tea"}
    monkeypatch.setenv("A_PASSWORD", "hunter2/@x")
    with pytest.raises(ConfigError) as caught:
        load(url=url)
    assert "hunter2" not in str(caught.value)
    assert "the value comes from the variable A_PASSWORD" in str(caught.value)


@pytest.mark.parametrize("missing", ["host", "dbname", "user"])
def test_a_part_that_is_missing_is_named(load, missing):
    """Host, dbname and user must be in the url, or beside it."""
    url = " ".join(f"{key}={value}" for key, value in PLAIN.items() if key != missing)
    with pytest.raises(ConfigError) as caught:
        load(url=url)
    (problem,) = caught.value.problems
    assert (problem.key, problem.code) == ("connection_settings.url", "config.required")
    assert problem.message == f"{missing} is required, and the url has none"
    assert clear(load(url=url, **{missing: PLAIN[missing]})) == PLAIN


# What a person forgets to encode, around and inside of what no problem may show.
HOSTILE = st.text(st.sampled_from("@/:?#%&= '\\[],\taZ0"), max_size=8)


@settings(deadline=None, max_examples=150)
@given(before=HOSTILE, inside=HOSTILE, after=HOSTILE, form=st.sampled_from([
    "postgresql://app:{}@db/orders", "postgresql://app:{}@db:5432/orders?sslmode=disable",
    "postgresql://{}@db/orders", "postgresql://db/orders?user=app&password={}",
    "postgresql+psycopg://app:{}@db/orders", "mysql://app:{}@db/orders", "{}",
    "host=db dbname=orders user=app password={}", "host=db dbname=orders user=app password='{}'",
]))  # fmt: skip
@example(before="", inside="@", after="", form="postgresql://app:{}@db/orders")
@example(before="1/", inside="", after="", form="postgresql://app:{}@db/orders")
@example(before="", inside=" ", after="", form="host=db dbname=orders user=app password={}")
def test_no_piece_of_a_password_is_shown_whatever_is_in_it(before, inside, after, form):
    """It is the password, or the url is a problem: no piece becomes a host, a database or a text."""
    url = form.format(f"{before}QQ7{inside}QQ8{after}")
    mapping = {"connection_settings": {"url": url, "dbname": "orders", "user": "app"}}
    try:
        config = config_from_dict(mapping)
    except (ConfigError, EnvInterpolationError) as error:
        shown = str(error)
    else:
        shown = repr((config.redacted(), config.place, config.server, config.names))
    assert "QQ" not in shown


@pytest.mark.parametrize("form", ["postgresql://app:{}@db/orders?sslpassword={}", "password={}"])
def test_the_secrets_of_a_url_are_secrets(load, tmp_path, canary, form):
    """In the config, in what is shown of it, in `load_config` and in `redact_config`."""
    secret = canary.secret()
    url = form.format(secret, secret)
    config = load(url=url, **PLAIN)
    assert {one.reveal() for one in config.secrets} == {secret}
    canary.check(f"{config} {config.redacted()} {config.place} {explain(config)}")
    assert config.redacted()["connection_settings"]["password"] == MASK
    plain = load(api=load_config, url=url)
    assert plain["connection_settings"]["password"] == secret
    canary.check(f"{plain} {redact_config({'connection_settings': {'url': url}})}")
    canary.check(str(redact_config({"dsn": f"postgresql://a:{secret}?@db"})))


@pytest.mark.parametrize("url", ["{}", "postgresql://app:{}@@db/orders", "host=db password={} x"])
def test_a_malformed_url_is_a_problem_that_quotes_nothing(load, canary, url):
    """Through each way to load a file, also in a traceback with locals."""
    secret = canary.secret()
    for api in (load_file, load_config):
        with pytest.raises(ConfigError) as caught:
            load(url=url.format(secret), api=api)
        (problem,) = caught.value.problems
        assert (problem.key, problem.code) == ("connection_settings.url", "config.malformed_url")
        canary.check(str(caught.value))


def test_the_older_api_takes_a_url(load, monkeypatch):
    """`load_config` gives what `psycopg.connect` takes; a reference that is not resolved stays."""
    monkeypatch.setenv("URL", "postgresql://app@db:5433/orders?connect_timeout=3")
    resolved = load(api=lambda path: load_config(path, resolve_env=True), url="${URL}")
    taken = {"host": "db", "port": 5433, "dbname": "orders", "user": "app", "connect_timeout": 3}
    found = resolved["connection_settings"]
    assert {key: int(v) if v.isdigit() else v for key, v in map_text(found).items()} == taken
    for written in ("${URL}", {"from_env": "URL"}):
        assert load(api=load_config, url=written)["connection_settings"] == {"url": written}
        with pytest.raises(EnvInterpolationError, match="references are not resolved here"):
            load(api=lambda path: load_file(path, resolve=False, isolate=False), url=written)
    with pytest.raises(ConfigError, match="its port: expected an integer"):
        load(api=load_config, url="postgresql://db:x/orders")


@pytest.mark.parametrize("resolve", [False, True])
def test_a_null_in_the_older_api_is_absent(load, resolve):
    """As a key beside a url, whose part counts then, and as the url itself."""

    def api(path):
        return load_config(path, resolve_env=resolve)["connection_settings"]

    found = load(api=api, url="postgresql://app@db/orders", host=None, user="other", sslmode=None)
    assert found == PLAIN | {"user": "other", "sslmode": None}
    assert load(api=api, url=None, **PLAIN) == PLAIN


def map_text(settings):
    """Return values as text."""
    return {key: str(value) for key, value in settings.items()}


def test_a_warning_about_the_password_of_a_url_is_at_the_url(load):
    """It says which part it means."""
    config = load(url="postgresql://app:%27tea%27@db/orders")
    (warning,) = find_warnings([config])
    assert warning.key == "connection_settings.url"
    assert warning.message == "its password: starts and ends with a quote"


def test_a_change_inside_a_url_has_the_names_of_its_parts(load):
    """So does a change from a url to keys of their own, which is none."""
    before = load(url="postgresql://app:tea@db/orders")
    for url, keys in {
        "postgresql://app:mate@db/orders": {"password"},
        "postgresql://app:tea@other:5433/orders": {"host", "port"},
        "postgresql://app:tea@db/orders?application_name=x": {"application_name"},
    }.items():
        after = load(url=url)
        assert after.changed_keys(before) == {f"connection_settings.{k}": "reconnect" for k in keys}
        assert (after.place == before.place) is not ("host" in keys)


def test_a_default_of_a_url_is_refused(load, tmp_path):
    """A password may be in it."""
    written = "${NO_URL:-postgresql://app@db/orders}"
    with pytest.raises(ConfigError) as caught:
        load(url=written)
    assert [problem.code for problem in caught.value.problems] == ["reference.sensitive_default"]
    config = load(api=lambda path: load_file(path, allow_sensitive_defaults=True), url=written)
    assert clear(config) == PLAIN


def test_a_file_that_a_url_names_is_relative_to_the_config(load, tmp_path):
    """As under a key of its own; a renewed certificate is a change."""
    certificate = Path(tmp_path, "ca.crt")
    certificate.write_text("-----BEGIN CERTIFICATE-----\none\n")
    url = "postgresql://app@db/orders?sslmode=verify-full&sslrootcert=ca.crt"
    first = load(url=url)
    assert first.connect_kwargs("pool")["sslrootcert"] == str(certificate)
    certificate.write_text("-----BEGIN CERTIFICATE-----\ntwo\n")
    assert load(url=url).changed_keys(first) == {"connection_settings.sslrootcert": "reconnect"}


def test_a_list_of_urls_is_no_url(load):
    """One text; several hosts are a part of it."""
    with pytest.raises(ConfigError) as caught:
        load(url=["postgresql://app:hunter2@db/orders"])
    assert "hunter2" not in str(caught.value)
    assert json.dumps([p.code for p in caught.value.problems]) == '["config.type"]'
