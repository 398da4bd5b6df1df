"""A model's folder is read as it comes: tokenizer, template, special tokens, and what to cut conversations at."""

import json
from pathlib import Path
from typing import Any

import pytest

from kvrouter.blocks import token_bytes
from kvrouter.errors import SettingsError
from kvrouter.service.prompts.model_files import load_model_files, model_paths
from tests.prompts.models import CHATML, save_model, tokenizer_of

_USER = [{"role": "user", "content": "hi"}]


def test_a_folder_or_its_file_may_be_named(tmp_path: Path) -> None:
    """Both find the same things."""
    folder = save_model(tmp_path, tokenizer_of("chatml"), chat_template=CHATML)

    for path in (folder, folder / "tokenizer.json"):
        files = load_model_files(path)
        assert files.template is not None
        assert files.template.render(_USER).startswith("<|im_start|>user")
        assert files.tokenizer.anchor == "<|im_start|>"


def test_a_template_of_its_own_file_wins_over_the_configuration(tmp_path: Path) -> None:
    """And an explicit one over both."""
    folder = save_model(tmp_path, tokenizer_of("chatml"), chat_template="from configuration")
    (folder / "chat_template.jinja").write_text("from file", encoding="utf-8")
    (folder / "mine.jinja").write_text("mine", encoding="utf-8")

    given, explicit = load_model_files(folder), load_model_files(folder, chat_template=folder / "mine.jinja")

    assert given.template is not None
    assert given.template.render(_USER) == "from file"
    assert explicit.template is not None
    assert explicit.template.render(_USER) == "mine"


def test_a_processor_may_hold_the_template(tmp_path: Path) -> None:
    """Multimodal models have it in chat_template.json."""
    folder = save_model(tmp_path, tokenizer_of("chatml"))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "processor"}), encoding="utf-8")

    template = load_model_files(folder).template

    assert template is not None
    assert template.render(_USER) == "processor"


def test_named_templates_are_chosen_by_the_presence_of_tools(tmp_path: Path) -> None:
    """Some models have one for tools."""
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    files = load_model_files(save_model(tmp_path, tokenizer_of("chatml"), chat_template=named))

    plain, with_tools = files.template_for(None), files.template_for([{}])

    assert plain is not None
    assert with_tools is not None
    assert (plain.source, with_tools.source) == ("plain", "tools")


def test_a_model_without_a_template_has_none(tmp_path: Path) -> None:
    """Its texts are not cut, because nothing says at what."""
    files = load_model_files(save_model(tmp_path, tokenizer_of("chatml")))

    assert files.template_for(None) is None
    assert files.tokenizer.anchor is None


@pytest.mark.parametrize("value", ["<|endoftext|>", {"content": "<|endoftext|>", "lstrip": False}])
def test_special_tokens_come_as_text_or_as_objects(tmp_path: Path, value: Any) -> None:
    """Both are written by some version of transformers."""
    folder = save_model(
        tmp_path, tokenizer_of("chatml"), chat_template="{{ bos_token }}{{ eos_token }}", bos_token=value
    )
    (folder / "special_tokens_map.json").write_text('{"eos_token": "<|im_end|>", "bos_token": "x"}', encoding="utf-8")

    template = load_model_files(folder).template

    assert template is not None
    assert template.render(_USER) == "<|endoftext|><|im_end|>"


def test_the_anchor_is_what_the_template_writes_most(tmp_path: Path) -> None:
    """One piece for each turn, also where every role has a token of its own."""
    source = "{% for m in messages %}{{ '[INST]' if m.role == 'user' else '' }}{{ m.content }}</s>{% endfor %}"

    files = load_model_files(save_model(tmp_path, tokenizer_of("unigram-first"), chat_template=source))

    assert files.tokenizer.anchor == "</s>"


def test_a_template_that_refuses_the_probe_is_searched_instead(tmp_path: Path) -> None:
    """Some want tools, or other roles."""
    source = "{{ raise_exception('no') if not tools }}{{ '<|im_end|>' }}"

    files = load_model_files(save_model(tmp_path, tokenizer_of("chatml"), chat_template=source))

    assert files.tokenizer.anchor == "<|im_end|>"


@pytest.mark.parametrize(
    ("bos", "eos", "expected"), [(True, False, ([1], [])), (True, True, ([1], [2])), (False, False, ([], []))]
)
def test_llama_tokenizers_follow_their_configuration(
    tmp_path: Path, *, bos: bool, eos: bool, expected: tuple[list[int], list[int]]
) -> None:
    """The class in transformers puts bos and eos there itself, whatever tokenizer.json says."""
    folder = save_model(
        tmp_path,
        tokenizer_of("unigram-first"),
        tokenizer_class="LlamaTokenizerFast",
        add_bos_token=bos,
        add_eos_token=eos,
        bos_token="<s>",
        eos_token="</s>",
    )

    assert load_model_files(folder).tokenizer.around == tuple(map(token_bytes, expected))


def test_other_tokenizers_follow_their_file(tmp_path: Path) -> None:
    """The fields mean nothing to most classes."""
    folder = save_model(
        tmp_path, tokenizer_of("chatml"), tokenizer_class="Qwen2Tokenizer", add_bos_token=True, bos_token="<|im_end|>"
    )

    assert load_model_files(folder).tokenizer.around == (b"", b"")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", "[]"),
        ("chat_template.jinja", "{% for %}"),
    ],
)
def test_a_damaged_file_is_a_settings_error_that_names_it(tmp_path: Path, file: str, content: str) -> None:
    """The operator reads where to look, before the service starts."""
    folder = save_model(tmp_path, tokenizer_of("chatml"))
    (folder / file).write_text(content, encoding="utf-8")

    with pytest.raises(SettingsError, match=str(tmp_path)):
        load_model_files(folder)


def test_a_missing_template_is_a_settings_error(tmp_path: Path) -> None:
    """It was named, so it has to be there."""
    folder = save_model(tmp_path, tokenizer_of("chatml"))

    with pytest.raises(SettingsError, match=r"none\.jinja"):
        load_model_files(folder, chat_template=folder / "none.jinja")


def test_models_and_paths_come_in_pairs() -> None:
    """MODEL=PATH, each model once; a model's name may contain what it likes but an equals sign."""
    assert model_paths(["org/model:v1=/a/b=c", "x = /y "], "--tokenizer") == {
        "org/model:v1": Path("/a/b=c"),
        "x": Path("/y"),
    }
    for wrong in (["x"], ["=p"], ["x="], ["x=1", "x=2"]):
        with pytest.raises(SettingsError, match="--tokenizer"):
            model_paths(wrong, "--tokenizer")
