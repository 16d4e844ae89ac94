"""The policy of trust: what becomes of a database whose files others can change."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pgmonkey.config.trust import Judge, Trust
from pgmonkey.problem import Problem


class TrustPolicy:
    """Judge the files of one registry, say what is doubtful once, and refuse it if that is wanted.

    Args:
        trust: `strict` makes a doubt a problem, `warn` says it once, `off` does not look.
        on_untrusted: Called with a doubtful file and the reason, once for each file.
    """

    def __init__(self, trust: Trust, on_untrusted: Callable[[str, str], None] | None) -> None:
        self._trust: Trust = trust
        self._on_untrusted = on_untrusted
        self._told: set[str] = set()
        self._judge = Judge()

    def look_again(self) -> None:
        """Forget what was found about files and directories: a new look at them begins."""
        self._judge = Judge()

    def problems(
        self, paths: Iterable[str], declared_by: str, name: str | None
    ) -> tuple[Problem, ...]:
        """Return what keeps a database, or the defaults, from being used; mostly nothing.

        Args:
            paths: The files that it is made from.
            declared_by: The config file, which the problems are said to be in.
            name: The database; `None` for the defaults.
        """
        if self._trust == "off":
            return ()
        problems: list[Problem] = []
        for path in paths:
            doubt = self._judge.doubt(path)
            if doubt is None:
                continue
            if self._on_untrusted is not None and path not in self._told:
                self._told.add(path)
                self._on_untrusted(path, str(doubt))
            if self._trust == "strict":
                message = f"the file is not to be trusted: {doubt}"
                problems.append(
                    Problem(declared_by, "file.untrusted", message, hint=doubt.hint, database=name)
                )
        return tuple(dict.fromkeys(problems))
