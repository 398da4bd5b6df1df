"""A ChatML model, its tokenizer for comparison, and a desk that tokenises it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tests.prompts.desk import Desk
from tests.prompts.models import CHATML, save_model, tokenizer_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ChatML model."""
    return save_model(tmp_path_factory.mktemp("chatml"), tokenizer_of("chatml"), chat_template=CHATML)


@pytest.fixture(scope="module")
def plain() -> Tokenizer:
    """Its tokenizer, for comparison."""
    return tokenizer_of("chatml")


@pytest.fixture
def desk(folder: Path) -> Iterator[Desk]:
    """A desk that tokenises model `m` itself."""
    desk = Desk()
    desk.resolver.add_model("m", tokenizer=folder)
    yield desk
    desk.resolver.close()
