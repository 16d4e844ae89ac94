"""Read a Dockerfile, as far as ours goes: what it does not know it refuses."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Stage:
    """What one `FROM` begins."""

    base: str
    name: str
    #: COPY and RUN, in their order: ("RUN", shell text) or ("COPY", stage or "", sources, target).
    steps: list[tuple[str, ...]] = field(default_factory=list)
    workdir: str = "/"
    user: str = "0:0"
    env: dict[str, str] = field(default_factory=dict)
    healthcheck: list[str] = field(default_factory=list)
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)


def read(path: Path) -> list[Stage]:
    """Return the stages of a Dockerfile.

    Raises:
        AssertionError: An instruction, or a form of one, that is not known here.
    """
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    text = re.sub(r"^\s*#.*\n", "", path.read_text("utf-8"), flags=re.MULTILINE)
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if not line.strip():
            continue
        word, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        if word == "ARG":
            name, _, value = rest.partition("=")
            arguments[name] = value
        elif word == "FROM":
            base, _, name = rest.partition(" AS ")
            for argument, value in arguments.items():
                base = base.replace(f"${{{argument}}}", value)
            stages.append(Stage(base, name))
        else:
            _add(stages[-1], word, rest)
    return stages


def _add(stage: Stage, word: str, rest: str) -> None:
    if word == "RUN":
        stage.steps.append(("RUN", rest))
    elif word == "COPY":
        words = rest.split()
        origin = words.pop(0).removeprefix("--from=") if words[0].startswith("--") else ""
        stage.steps.append(("COPY", origin, *words))
    elif word == "ENV":
        stage.env |= dict(one.split("=", 1) for one in shlex.split(rest))
    elif word == "WORKDIR":
        stage.workdir = rest
        stage.steps.append(("WORKDIR", rest))
    elif word == "USER":
        stage.user = rest
    elif word == "HEALTHCHECK":
        stage.healthcheck = json.loads(rest.partition(" CMD ")[2])
    elif word == "ENTRYPOINT":
        stage.entrypoint = json.loads(rest)
    elif word == "CMD":
        stage.command = json.loads(rest)
    else:
        assert word == "EXPOSE", f"{word} is not known here"
