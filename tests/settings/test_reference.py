"""The settings page of the documentation is the schema, written out."""

from pathlib import Path

from kvrouter.settings_reference import reference

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_the_settings_page_is_up_to_date() -> None:
    """When this fails: python -m kvrouter.settings_reference > docs/settings.md."""
    assert PAGE.read_text(encoding="utf-8") == reference()
