"""The catalogue of problem codes is complete, and the codes are stable."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pgmonkey
from pgmonkey.errors import Reason
from pgmonkey.telemetry.events import CATALOGUE
from tests.docs.problem_codes import CODES

_CODE = re.compile(
    r'"((?:registry|config|environment|reference|secret|file|probe|warning)\.[a-z_]+)"'
)
_BAD = Path(__file__).parents[1] / "configs"
_NO_CODES = {"registry.d", "config.yaml"} | CATALOGUE.keys()


def test_every_code_of_the_package_is_in_the_catalogue():
    """Whatever stands in the code as a code is documented."""
    used = set()
    for path in Path(pgmonkey.__file__).parent.rglob("*.py"):
        if path.stem != "__init__":
            used |= set(_CODE.findall(path.read_text()))
    # What a TLS file alone can have, the loader says with `file.`.
    tls = ("secret.no_certificate", "secret.shared")
    used = {code.replace("secret.", "file.") if code in tls else code for code in used}
    assert used - _NO_CODES - CODES.keys() == set()
    # The rest of the catalogue is made of these by another first word.
    made = {f"{area}.{code.partition('.')[2]}" for area in ("config", "file") for code in used}
    probes = {f"probe.{reason}" for reason in get_args(Reason)}
    assert CODES.keys() - used - made == probes


def test_every_code_of_the_bad_files_is_in_the_catalogue():
    """The files that test the problems name no other code."""
    expected = re.compile(r"# expect: \S+ ([a-z_.]+)")
    texts = (path.read_text(errors="replace") for path in _BAD.glob("*.bad.yaml"))
    named = {code for text in texts for code in expected.findall(text)}
    assert named <= CODES.keys()
