"""Docstrings as Markdown, for mkdocstrings: roles become code, and ``::`` before a formula is left out."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_ROLE = re.compile(r":\w+:`([^`]+)`")
_LITERAL = re.compile(r"^( *)::$", re.MULTILINE)


class Docstrings(Extension):
    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            text = _ROLE.sub(r"`\1`", obj.docstring.value)
            obj.docstring.value = _LITERAL.sub("", text).replace("::\n\n    ", ":\n\n    ")
