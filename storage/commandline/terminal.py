"""Texts for a terminal. Names in files may hold escape sequences, which would move the cursor or forge a line."""

import unicodedata

KEPT = "\n\t"
"""Control characters of our own layout."""
_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of what is not shown: controls, directions, halves of pairs, separators of lines."""


def printable(text: str, kept: str = KEPT) -> str:
    r"""The text with every character that is not shown written as Python writes it, such as ``\x1b``.

    Halves of surrogate pairs, which no terminal can print, are among them.

        >>> printable("a\x1b[2Jb")
        'a\\x1b[2Jb'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if character not in kept and unicodedata.category(character) in _HIDDEN
        else character
        for character in text
    )


def one_line(text: str) -> str:
    """A foreign name as it stands in a line: ends of lines and tabs are written out as well."""
    return printable(text, kept="")
