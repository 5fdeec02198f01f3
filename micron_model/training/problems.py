"""What went wrong without ending a run: said once each, counted to the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from rich.console import Console

from ..data.clips.problems import Problem
from ..plain_text import say

SHOWN = 20


def report_problems(
    problems: Iterable[Problem], console: Console, what: str = "files were passed over"
) -> None:
    """List files that were passed over, or what else is said of them, each once."""
    distinct = dict.fromkeys(problems)
    if distinct:
        console.print(f"{len(distinct)} {what}:")
        for problem in list(distinct)[:SHOWN]:
            _print(console, f"  {problem.path}: {problem.reason}")
        if len(distinct) > SHOWN:
            console.print(f"  … and {len(distinct) - SHOWN} more")


def _print(console: Console, line: str) -> None:
    say(console, line)


class ProblemReport:
    """Says what a run passes over when it first happens, and at the end how often.

    Args:
        console: where.
        prefix: before each line, for example the rank.
    """

    def __init__(self, console: Console, prefix: str = ""):
        self.console, self.prefix = console, prefix
        self.counts: Counter[Problem] = Counter()

    def add(self, problems: Iterable[Problem]) -> None:
        for problem in problems:
            self.counts[problem] += 1
            if self.counts[problem] == 1 and len(self.counts) <= SHOWN:
                self.say(f"passed over: {problem.path}: {problem.reason}")

    def say(self, message: str | None) -> None:
        """A line of its own; nothing for None."""
        if message is not None:
            _print(self.console, self.prefix + message)

    def finish(self) -> None:
        if self.counts:
            # Files, not problems: of a shard that is cut short, two things are said.
            files = {problem.path for problem in self.counts}
            self.say(f"{len(files)} files were passed over, {self.counts.total()} times in all")
