"""The package takes the fastest implementation that is there, and says which."""

from kvrouter import index as package
from kvrouter import native_core


def test_the_package_names_its_implementation() -> None:
    """Operators can see which core answers."""
    assert package.implementation == native_core.implementation
    assert package.PrefixIndex.__module__ == f"kvrouter.index.{package.implementation}"
