"""One setting as a field of a schema: its default, its bounds, what it is called and what it is for.

The schemas are `settings.py` and `settings_gateway.py`; `settings_sources.py` reads what stands here.
"""

from dataclasses import field
from typing import Any

__all__ = ["setting"]


def setting(
    default: object,
    help_text: str,
    *,
    flag: str | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    choices: tuple[str, ...] = (),
    or_else: str = "",
    variable: str | None = None,
    metavar: str | None = None,
    name_characters_max: int | None = None,
    live: bool = False,
) -> Any:
    """Describe one setting: `flag` and `variable` are its short names beside the derived ones.

    With `or_else`, which says what, other values than the `choices` are taken too; whoever uses them checks them.
    With `name_characters_max` it is a name that every broker and store can hold: letters, digits, `_` and `-`.
    What is `live` can be changed while the router runs; everything else needs a restart.
    """
    return field(
        default=default,
        metadata={
            "help": help_text,
            "flag": flag,
            "at_least": at_least,
            "at_most": at_most,
            "choices": choices,
            "or_else": or_else,
            "variable": variable,
            "metavar": metavar,
            "name_characters_max": name_characters_max,
            "live": live,
        },
    )
