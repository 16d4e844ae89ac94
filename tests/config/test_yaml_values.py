"""How YAML becomes values: text until the schema types it, positions, limits."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgmonkey.config.loader import load_file
from pgmonkey.config.yaml_reader import Position, YamlProblem, read_yaml


def value(text):
    """Return the value of a document."""
    return read_yaml(text.encode()).value


@pytest.mark.parametrize(
    "scalar",
    ["0123", "NO", "yes", "2024-01-01", "12:30:45", "1_000", "0x1F", "1e3", ".nan", "Null", "NULL"],
)
def test_scalars_are_text(scalar):
    """YAML's own guesses at numbers, booleans and dates are not made."""
    assert value(f"a: {scalar}") == {"a": scalar}
    assert value(f"{scalar}: a") == {scalar: "a"}


def test_only_plain_null_tilde_and_nothing_are_null():
    """In quotes they are text."""
    assert value("a: null\nb: ~\nc:\nd: 'null'\ne: \"~\"\nf: ''\ng: [null, x]") == {
        "a": None, "b": None, "c": None, "d": "null", "e": "~", "f": "", "g": [None, "x"],
    }  # fmt: skip


def test_a_password_of_digits_arrives_as_written(tmp_path):
    """`password: 0123` is 0123, `dbname: NO` is NO, and a port is the same with and without quotes."""
    for name, port in (("a", "5432"), ("b", "'5432'")):
        (tmp_path / f"{name}.yaml").write_text(
            f"connection_settings: {{host: h, user: u, dbname: NO, password: 0123, port: {port}}}"
        )
    one, other = load_file(tmp_path / "a.yaml"), load_file(tmp_path / "b.yaml")
    kwargs = one.connect_kwargs("normal")
    assert (kwargs["password"], kwargs["dbname"], kwargs["port"]) == ("0123", "NO", "5432")
    assert one.digest == other.digest


def test_anchors_aliases_and_merge_keys_work():
    """An own key wins over a merged one, the first of several merged mappings over the next."""
    text = """\
base: &base {host: a, port: '1'}
more: &more {host: b, user: u}
one: {<<: *base, port: '2'}
two: {<<: [*base, *more]}
three: {port: '3', <<: *base}
list: [&x y, *x]
"""
    document = value(text)
    assert document["one"] == {"host": "a", "port": "2"}
    assert document["two"] == {"host": "a", "port": "1", "user": "u"}
    assert document["three"] == {"port": "3", "host": "a"}
    assert document["list"] == ["y", "y"]
    assert value("'<<': x") == {"<<": "x"}


def test_a_merged_value_has_the_place_where_it_is_written():
    """The problem of a merged value points to the anchor."""
    document = read_yaml(b"a: &a\n  port: x\nb:\n  <<: *a\n")
    assert document.position(("b", "port")) == Position(2, 9)
    assert document.position(("b", "port"), of_key=True) == Position(2, 3)


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_byte_order_mark_and_windows_line_ends_are_accepted(bom, end):
    """They change neither values nor places."""
    document = read_yaml(bom + end.join([b"a: x", b"b:", b"  c: y", b""]))
    assert document.value == {"a": "x", "b": {"c": "y"}}
    assert document.position(("b", "c")) == Position(3, 6)


def test_columns_count_characters():
    """A letter of several bytes is one column."""
    assert read_yaml("{ä: x, b: y}".encode()).position(("b",)) == Position(1, 11)


@pytest.mark.parametrize(
    "content, code",
    [
        (b"[" * 100_000, "config.too_deep"),
        (b"a: " * 1 + b"{a: " * 5000, "config.too_deep"),
        (b"".join(b"%s- \n" % (b" " * n) for n in range(400)), "config.too_deep"),
        (b"a: &a [" + b"x," * 900 + b"]\nb: [*a,*a,*a]", "config.too_many_nodes"),
        (b"".join(b"k%d: v\n" % n for n in range(1500)), "config.too_many_nodes"),
        (b"[" + b"x," * 3000 + b"]", "config.too_many_nodes"),
        (b"#" * (256 * 1024 + 1), "config.too_large"),
    ],
)
def test_limits_hold_before_anything_is_built(content, code):
    """Depth, number and size are refused before anything of that size is built."""
    tracemalloc.start()
    with pytest.raises(YamlProblem) as caught:
        read_yaml(content)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert caught.value.code == code
    assert peak < 10_000_000


def test_2000_nodes_and_20_levels_are_accepted():
    """The limits themselves are allowed."""
    assert len(value("\n".join(f"k{n}: v" for n in range(999)))) == 999
    assert value("[" * 20 + "]" * 20)
    with pytest.raises(YamlProblem):
        value("[" * 21 + "]" * 21)


def test_tags_are_refused_everywhere():
    """On keys, values, lists and mappings; the message does not repeat the tag."""
    for text in ("a: !t x", "!t a: x", "a: !t [x]", "a: !!str x", "! x", "a: !t {}"):
        with pytest.raises(YamlProblem) as caught:
            value(text)
        assert (caught.value.code, str(caught.value)) == ("config.tag", "tags are not allowed")


@settings(max_examples=300)
@given(
    content=st.binary(max_size=200)
    | st.text("ab:-[]{}&*!|>'\"%@`#,\n\t ~<\\", max_size=60).map(str.encode)
)
def test_any_bytes_are_a_document_or_a_problem(content):
    """Nothing else is raised, whatever a file holds."""
    document = problem = None
    try:
        document = read_yaml(content)
    except YamlProblem as error:
        problem = error
    if problem is None:
        assert document.value is None or isinstance(document.value, (str, list, dict))
    else:
        assert problem.code.startswith("config.")
        assert problem.__cause__ is problem.__context__ is None


@settings(max_examples=200)
@given(
    value=st.recursive(
        st.none() | st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.text("abcdef", min_size=1, max_size=5), inner, max_size=4)
        ),
        max_leaves=12,
    )
)
def test_what_is_written_is_read(value):
    """Values written with quotes come back as they were."""
    # JSON is YAML, but for the escapes of surrogate pairs.
    document = read_yaml(json.dumps(value, ensure_ascii=False).encode())
    assert document.value == value
