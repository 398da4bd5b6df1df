"""What a model's folder says about its prompts: tokenizer.json, and the chat template and special tokens beside it.

The files are the ones that Hugging Face models come with. Everything is read when the service starts; a file that is
missing or damaged is a settings error, because the operator named it. Nothing is downloaded.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from kvrouter.errors import SettingsError
from kvrouter.service.prompts.chat_template import ChatTemplate, ChatTemplateError
from kvrouter.service.prompts.conversation import Message
from kvrouter.service.prompts.text_tokenizer import TextTokenizer

__all__ = ["ModelFiles", "load_model_files", "model_paths"]

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LLAMA_CLASSES = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "CohereTokenizer")
"""Classes of transformers that add bos and eos as tokenizer_config.json says, whatever tokenizer.json says."""
_PROBE: list[Message] = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
    {"role": "assistant", "content": "four"},
    {"role": "user", "content": "five"},
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """One model's way from messages to tokens."""

    tokenizer: TextTokenizer
    template: ChatTemplate | None
    tool_template: ChatTemplate | None
    """Some models have another template for conversations with tools."""

    def template_for(self, tools: object) -> ChatTemplate | None:
        """Return the template for a conversation with or without tools."""
        return self.tool_template if tools and self.tool_template is not None else self.template


def model_paths(pairs: Iterable[str], flag: str) -> dict[str, Path]:
    """Read MODEL=PATH settings.

    Raises:
        SettingsError: one is not of that form, or names a model twice.
    """
    paths: dict[str, Path] = {}
    for pair in pairs:
        model, equals, path = pair.partition("=")
        if not equals or not model.strip() or not path.strip():
            raise SettingsError(f"{flag} {pair!r} is not MODEL=PATH")
        if model.strip() in paths:
            raise SettingsError(f"{flag} names model {model.strip()!r} twice")
        paths[model.strip()] = Path(path.strip())
    return paths


def load_model_files(
    path: Path, *, chat_template: Path | None = None, now: Callable[[], datetime] = datetime.now
) -> ModelFiles:
    """Load a tokenizer.json, or the folder that holds it; `chat_template` replaces the model's own.

    Raises:
        SettingsError: a file is missing or damaged; the text names it.
    """
    folder = path if path.is_dir() else path.parent
    tokenizer = TextTokenizer.load(path / "tokenizer.json" if path.is_dir() else path)
    config = _json_object(folder / "tokenizer_config.json")
    special_tokens = _special_tokens({**_json_object(folder / "special_tokens_map.json"), **config})
    sources = _template_sources(folder, config, chat_template)
    try:
        compiled = {
            name: ChatTemplate(source, special_tokens=special_tokens, now=now) for name, source in sources.items()
        }
    except ChatTemplateError as error:
        raise SettingsError(f"{chat_template or folder}: {error}") from None
    _follow_llama_rules(tokenizer, config, special_tokens)
    template = compiled.get("default")
    _choose_anchor(tokenizer, template)
    return ModelFiles(tokenizer=tokenizer, template=template, tool_template=compiled.get("tool_use"))


def _template_sources(folder: Path, config: Mapping[str, Any], explicit: Path | None) -> dict[str, str]:
    """Return templates by name, from the first place that has one."""
    if explicit is not None:
        return {"default": _text(explicit)}
    if (folder / "chat_template.jinja").is_file():
        return {"default": _text(folder / "chat_template.jinja")}
    given = config.get("chat_template") or _json_object(folder / "chat_template.json").get("chat_template")
    if isinstance(given, str):
        return {"default": given}
    if isinstance(given, list):
        named = [each for each in given if isinstance(each, dict) and isinstance(each.get("template"), str)]
        return {str(each.get("name")): each["template"] for each in named}
    return {}


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for name in _SPECIAL_TOKENS:
        value = config.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            found[name] = content
    return found


def _follow_llama_rules(tokenizer: TextTokenizer, config: Mapping[str, Any], special_tokens: Mapping[str, str]) -> None:
    kind = str(config.get("tokenizer_class", "")).removesuffix("Fast")
    if kind in _LLAMA_CLASSES and isinstance(config.get("add_bos_token"), bool):
        tokenizer.override_around(
            special_tokens.get("bos_token") if config["add_bos_token"] else None,
            special_tokens.get("eos_token") if config.get("add_eos_token") else None,
        )


def _choose_anchor(tokenizer: TextTokenizer, template: ChatTemplate | None) -> None:
    """Cut conversations before the safe token that the template writes most often: about one piece for each turn."""
    if template is None:
        return
    text = _probe_text(template)
    written = [(text.count(anchor), -text.find(anchor), anchor) for anchor in tokenizer.added_tokens if anchor in text]
    for _, _, anchor in sorted(written, reverse=True):
        if tokenizer.cut_before(anchor):
            return


def _probe_text(template: ChatTemplate) -> str:
    messages = _PROBE
    if template.wants_parts:
        messages = [{**each, "content": [{"type": "text", "text": each["content"]}]} for each in _PROBE]
    try:
        return template.render(messages)
    except ChatTemplateError:
        return template.source  # it wants something of its own; what it writes is in its source too


def _json_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(_text(path))
    except ValueError as error:
        raise SettingsError(f"{path}: {error}") from None
    if not isinstance(value, dict):
        raise SettingsError(f"{path}: not a JSON object")
    return value


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from None
