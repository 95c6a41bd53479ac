"""Docstrings for the site: references and formulas, which are written as Sphinx reads them."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe
from formulas import formula
from public import places

_ROLE = re.compile(r":(class|func|meth|attr|mod|data):`(~?)([^`]+)`")
_INLINE = re.compile(r":math:`([^`]+)`")
_BLOCK = re.compile(r"^( *)\.\. math::(.*)\n((?:\1 +.*\n|\n)*)", re.MULTILINE)
_TABLE = re.compile(r"^( *)=+  +=+\n(.*?)\n\1=+  +=+\n(.*?)\n\1=+  +=+$", re.MULTILINE | re.DOTALL)


def _block(found: re.Match[str]) -> str:
    indent, first, rest = found.groups()
    return f"{indent}{formula(first + ' ' + rest, 'block')}\n\n"


def _table(found: re.Match[str]) -> str:
    """Return a simple table of reStructuredText as one of Markdown."""
    indent, head, body = found.groups()
    rows = [re.split(r"  +", line.strip(), maxsplit=1) for line in [head, *body.split("\n")]]
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"{indent}| {' | '.join(row)} |" for row in rows)


class Docstrings(griffe.Extension):
    """Turn ``:class:`X` ``, ``:math:`x` `` and ``.. math::`` into what the site can show."""

    def on_instance(self, *, obj: griffe.Object, **others: Any) -> None:
        """Rewrite the docstring of an object when it has been read."""
        if obj.docstring is not None:
            obj.docstring.value = self.rewritten(obj.docstring.value, obj)

    def rewritten(self, text: str, obj: griffe.Object) -> str:
        """Return a docstring in Markdown."""
        text = textwrap.dedent(text) if text.startswith(" ") else text
        text = _TABLE.sub(_table, _BLOCK.sub(_block, text + "\n")).removesuffix("\n")
        text = _INLINE.sub(lambda found: formula(found[1]), text)
        return _ROLE.sub(lambda found: self._reference(found, obj), text)

    def _reference(self, found: re.Match[str], obj: griffe.Object) -> str:
        """Link a name where the site describes it; else show it as code."""
        role, short, name = found.groups()
        shown = name.rsplit(".", 1)[-1] if short else name
        shown += "()" if role in ("func", "meth") else ""
        owner = obj if obj.is_class else obj.parent
        own = f"{owner.name}.{name}" if owner is not None else name
        last = ".".join(name.split(".")[-2:]) if role == "meth" else name.rsplit(".", 1)[-1]
        place = places().get(own if role == "meth" and "." not in name else last)
        return f"`{shown}`" if place is None else f"[`{shown}`][{place}]"
