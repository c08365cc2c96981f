"""Names that must be one of a few, and the error that helps when they are not."""

import difflib
from collections.abc import Iterable


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return the nearest known name as a question, or all of them where none is near."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(known)}"


def check_choice(where: str, name: str, known: Iterable[str]) -> None:
    """Raise ValueError where `name`, given for the setting `where`, is not one of the known."""
    known = list(known)
    if name not in known:
        raise ValueError(f"{where} = {name!r} is unknown; {suggestion(str(name), known)}")
