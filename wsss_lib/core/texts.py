"""Texts that strangers wrote, such as names of classes and images, escaped to be shown unchanged."""

import re
import unicodedata

# What Markdown, HTML or MathJax would read as more than a character. An underscore inside a word is not one of these.
MARKUP = re.compile(r"[&<>|*`~$\\\[\]]|(?<!\w)_|_(?!\w)")


def as_markdown(text: str) -> str:
    """Return Markdown, for one line or table cell, that shows a text character by character.

    >>> as_markdown("<b>cat|dog</b> vwl_m")
    '&#60;b&#62;cat\\\\|dog&#60;/b&#62; vwl_m'
    """

    def escaped(match: re.Match) -> str:
        character = match[0]
        if character == "|":  # the one that ends a cell even where it is an entity
            return "\\|"
        # MathJax reads the finished page, where an entity has become its character again; it looks for no end beyond a tag.
        return f"<span>&#{ord(character)};</span>" if character in "$\\" else f"&#{ord(character)};"

    return MARKUP.sub(escaped, " ".join(text.split()))


def is_one_line(name: str) -> bool:
    """Return whether a name has something to show and no line break, control character or half of a character."""
    return bool(name.strip()) and not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name)
