from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgmonkey.config.interpolation import (
    ReferenceSyntaxError,
    UnsetVariableError,
    expand,
    parse_template,
    uses_default,
    variables,
)

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
VALUES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


def resolve(text, **environ):
    """Return a text with its references replaced."""
    return expand(parse_template(text), environ.get)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("${A}", "a"),
        ("x${A}y${B}z", "xaybz"),
        ("${A:-d}", "a"),
        ("${U:-d}", "d"),
        ("${E:-d}", "d"),
        ("${E-d}", ""),
        ("${U-d}", "d"),
        ("${U:-}", ""),
        ("${A:?needed}", "a"),
        ("${U:-${A}}", "a"),
        ("${U:-${V:-${B}}}", "b"),
        ("${A:-${B}}", "a"),
        ('${U:-{"x": {"y": 1}}}', '{"x": {"y": 1}}'),
        ("${U:-a:b-c?d}", "a:b-c?d"),
        ("${U:-two\nlines}", "two\nlines"),
        ("$${A}", "${A}"),
        ("$$${A}", "$${A}"),
        ("${U:-$${A}}", "${A}"),
        ("pa$word$A$", "pa$word$A$"),
        ("}{", "}{"),
    ],
)
def test_every_form_gives_what_a_shell_user_expects(text, expected):
    """`:-` counts empty as unset and `-` does not; defaults nest with balanced braces."""
    assert resolve(text, A="a", B="b", E="") == expected


@pytest.mark.parametrize(
    "text, message",
    [
        ("x${A", "not closed"),
        ("${}", "no valid name"),
        ("${ A }", "no valid name"),
        ("${1A}", "no valid name"),
        ("${A+x}", "not supported"),
        ("${A:+x}", "not supported"),
        ("${A=x}", "not supported"),
        ("${A:=x}", "not supported"),
        ("${A?x}", "not supported"),
        ("${A b}", "not supported"),
        ("${A:-${B}", "not closed"),
        ("${A:-{}", "not closed"),
        ("ab${A:?x", "not closed"),
        ("${A:-${1}}", "no valid name"),
    ],
)
def test_a_malformed_reference_is_an_error_that_says_what_is_wrong(text, message):
    """What is no reference is never passed on as text, and the error does not quote it."""
    with pytest.raises(ReferenceSyntaxError, match=message) as caught:
        parse_template(text)
    assert text not in str(caught.value)


def test_deep_nesting_is_an_error():
    """A reference nested beyond reason is refused before the interpreter's own limit."""
    with pytest.raises(ReferenceSyntaxError, match="nested"):
        parse_template("${A:-" * 5000)


def test_an_unset_variable_names_itself_and_its_message():
    """The error carries the variable and what its author wrote."""
    with pytest.raises(UnsetVariableError) as caught:
        resolve("${PORT:?ask {ops} for it}")
    assert (caught.value.name, caught.value.message) == ("PORT", "ask {ops} for it")
    with pytest.raises(UnsetVariableError):
        resolve("${PORT:?}", PORT="")


@given(value=VALUES)
def test_a_value_from_outside_is_never_interpolated_again(value):
    """Whatever a variable holds, references included, arrives unchanged."""
    assert resolve("<${A}>", A=value, B="b") == f"<{value}>"


@given(text=VALUES)
def test_escaping_makes_any_text_literal(text):
    """A text whose `${` are all written `$${` comes out as it was."""
    assert resolve(text.replace("${", "$${")) == text


@given(text=st.text("${}:-?ABab_1 ", max_size=30))
def test_any_text_is_parsed_or_refused(text):
    """No text makes the parser fail in another way, and what it parses, it expands."""
    try:
        template = parse_template(text)
    except ReferenceSyntaxError:
        return
    environ = {variable.name: "v" for variable in variables(template)}
    assert "${" not in expand(template, environ.get) or "$${" in text


@given(name=NAMES, default=st.text("abc:-?", max_size=8), value=st.none() | VALUES)
def test_a_default_stands_for_unset_and_empty(name, default, value):
    """`:-` and `-` differ only for an empty value."""
    environ = {} if value is None else {name: value}
    assert resolve(f"${{{name}:-{default}}}", **environ) == (value or default)
    assert resolve(f"${{{name}-{default}}}", **environ) == (default if value is None else value)
    assert uses_default(parse_template(f"${{{name}:-x}}"), environ.get) is not bool(value)
