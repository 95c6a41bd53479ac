"""LaTeX as MathML, which browsers draw without a script."""

from __future__ import annotations

from latex2mathml.converter import convert

# The converter lets bars grow with what is around them, keeps the \_ of a text, leaves no space
# around log, and gives letters an attribute that browsers no longer read in place of the letter.
_MENDED = {
    "<mo>&#x02016;</mo>": '<mo stretchy="false">&#x02016;</mo>',
    r"\_": "_",
    "<mi>log</mi>": '<mspace width="0.167em" /><mi>log</mi><mspace width="0.167em" />',
    '<mi mathvariant="double-struck">E</mi>': "<mi>&#x1D53C;</mi>",
    '<mi mathvariant="script">N</mi>': "<mi>&#x1D4A9;</mi>",
}


def formula(text: str, display: str = "inline") -> str:
    """Return a LaTeX formula as MathML."""
    # It knows neither arg nor alignment.
    text = " ".join(text.split()).replace(r"\arg", r"\mathrm{arg}\,")
    if "&" in text:
        text = rf"\begin{{array}}{{l}}{text.replace('&', '')}\end{{array}}"
    made = convert(text, display=display)
    for written, mended in _MENDED.items():
        made = made.replace(written, mended)
    return made
