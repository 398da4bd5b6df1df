"""Small tokenizers of every kind that models use, trained here, and the folders that they would come in."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, Unigram, WordPiece
from tokenizers.trainers import BpeTrainer, UnigramTrainer, WordPieceTrainer

__all__ = ["CHATML", "KINDS", "chatml", "save_model", "tokenizer_of", "unigram", "wordpiece"]

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's 12 o'clock, isn't it?",
    "system\nYou are a helpful assistant.\nuser\nHello, world! How are you today?",
    "def add(a, b):\n    return a + b\n\nprint(add(1, 2))  # three",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. naïve café",
    "你好 世界。今天天气很好。 こんにちは世界 🙂 🙃",
] * 8


def save_model(folder: Path, tokenizer: Tokenizer, **config: Any) -> Path:
    """Write a model's folder: tokenizer.json, and tokenizer_config.json with these fields."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def tokenizer_of(kind: str) -> Tokenizer:
    """A tokenizer of this kind, all its own: changing it changes no other."""
    return Tokenizer.from_str(_trained(kind))


@cache
def _trained(kind: str) -> str:
    return str(KINDS[kind]().to_str())


def chatml() -> Tokenizer:
    """Byte-level BPE with ChatML tokens, as Qwen and GPT models have."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    return tokenizer


def chatml_with_bos() -> Tokenizer:
    """The same with a token before every text, as Llama 3 has."""
    tokenizer = chatml()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", tokenizer.token_to_id("<|endoftext|>"))]
    )
    return tokenizer


def unigram(prepend: str = "first") -> Tokenizer:
    """Unigram with Metaspace, as T5 and newer Llama 2 conversions have."""
    tokenizer = Tokenizer(Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prepend)
    trainer = UnigramTrainer(
        vocab_size=300,
        special_tokens=["<unk>", "<s>", "</s>", "[INST]", "[/INST]"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def llama_legacy() -> Tokenizer:
    """BPE with byte fallback and a normaliser that puts a space first, as Llama 2 has."""
    tokenizer = Tokenizer(BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bytes_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = BpeTrainer(vocab_size=700, special_tokens=["<unk>", "<s>", "</s>", *bytes_tokens], show_progress=False)
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken("<|turn|>", normalized=False)])
    return tokenizer


def wordpiece() -> Tokenizer:
    """WordPiece in lower case, as BERT and its embedding models have."""
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = WordPieceTrainer(
        vocab_size=500, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", tokenizer.token_to_id("[CLS]")), ("[SEP]", tokenizer.token_to_id("[SEP]"))],
    )
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "chatml": chatml,
    "chatml-bos": chatml_with_bos,
    "unigram-first": unigram,
    "unigram-always": lambda: unigram("always"),
    "llama-legacy": llama_legacy,
    "wordpiece": wordpiece,
}
