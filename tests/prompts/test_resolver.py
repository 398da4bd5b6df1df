"""Bodies become the prompts that the engine will see: token ids, texts, conversations."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors

from kvrouter.blocks import Prompt
from tests.prompts.desk import CHAT, COMPLETIONS, RESPONSES, Desk, chat, rendered, words_of
from tests.prompts.models import save_model, tokenizer_of


def test_token_ids_are_used_as_they_are(desk: Desk) -> None:
    """In every mode, long or short, known or not."""
    for count in (1, 40, 5000, 5000):
        ids = random.Random(count).choices(range(100_000), k=count)
        assert desk.tokens(COMPLETIONS, {"prompt": ids}) == ids
        assert desk.tokens(COMPLETIONS, {"prompt": ids}, model="unknown") == ids

    assert desk.resolver.statistics.token_ids == 8


def test_salt_and_adapter_are_part_of_the_prompt(desk: Desk) -> None:
    """Two tenants, or two adapters, never share a block; they may share a tokenizer."""
    desk.resolver.set_adapters({"lora": "m"})
    ids = list(range(64))

    prompt = desk.prompt(COMPLETIONS, {"prompt": ids, "cache_salt": "tenänt"}, model="lora")
    talk = desk.prompt(CHAT, chat("hi", cache_salt="s"), model="lora")

    assert prompt is not None
    assert (prompt.salt, prompt.lora) == ("tenänt".encode(), "lora")
    assert prompt.hash_list(16) == Prompt(ids, salt="tenänt".encode(), lora="lora").hash_list(16)
    assert talk is not None
    assert (talk.salt, talk.lora, talk.exact) == (b"s", "lora", True)
    assert desk.resolver.mode("lora") == "tokenizer"


def test_a_body_without_a_prompt_has_none(desk: Desk) -> None:
    """The least loaded worker refuses it."""
    assert desk.prompt(CHAT, {"model": "m"}) is None
    assert desk.prompt("/v1/models", b"") is None


def test_batches_are_counted(desk: Desk) -> None:
    """They are routed by their first prompt."""
    assert desk.tokens(COMPLETIONS, {"prompt": [[1, 2], [3]]}) == [1, 2]
    assert desk.resolver.statistics.batches == 1


@pytest.mark.parametrize(("most", "expected"), [(3, [7, 8, 9]), (10, list(range(10))), (100, list(range(10)))])
def test_a_truncated_prompt_keeps_its_end(desk: Desk, most: int, expected: list[int]) -> None:
    """As vLLM truncates."""
    assert desk.tokens(COMPLETIONS, {"prompt": list(range(10)), "truncate_prompt_tokens": most}) == expected


def test_a_conversation_has_the_tokens_of_its_renderedwords_of(desk: Desk, plain: Tokenizer) -> None:
    """Short and long, new and repeated, and grown by a turn."""
    turns: list[str] = []
    for number in range(12):
        turns.append(words_of(20 + 400 * (number % 3), number))
        body = chat(*turns)
        expected = plain.encode(rendered(body), add_special_tokens=False).ids
        for _ in range(2):
            assert desk.tokens(CHAT, body) == expected

    assert desk.resolver.statistics.tokenizer == 24
    assert desk.fallbacks == {}
    assert desk.resolver.counts()["repeats"] == 12


def test_a_new_turn_costs_the_new_turn_only(desk: Desk) -> None:
    """What was tokenised is not tokenised again."""
    long = [words_of(800, number) for number in range(6)]
    desk.prompt(CHAT, chat(*long))
    before = desk.resolver._thread.encoded_characters

    found = desk.resolver.resolve(
        desk.reader.read(CHAT, json.dumps(chat(*long, "short answer", "next question")).encode()), model_profile="m"
    )

    assert isinstance(found, Prompt)  # at once: nothing long was left to do
    assert before > 20_000
    assert desk.resolver._thread.encoded_characters == before


@given(
    contents=st.lists(
        st.one_of(st.text(max_size=30), st.sampled_from(["<|im_start|>", "a<|im_end|>\n", " ", "<think>"])),
        min_size=1,
        max_size=6,
    ),
    cut=st.integers(0, 6),
    last=st.booleans(),
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_cached_and_uncached_tokens_are_the_same(
    desk: Desk, plain: Tokenizer, contents: list[str], cut: int, *, last: bool
) -> None:
    """Whatever is said, also the names of special tokens, in whatever order it becomes known."""
    for body in (chat(*contents[:cut], "x"), chat(*contents, add_generation_prompt=last), chat(*contents[:cut])):
        if body["messages"]:
            text = rendered(body, add_generation_prompt=body.get("add_generation_prompt", True))
            assert desk.tokens(CHAT, body) == plain.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("kind", ["chatml-bos", "unigram-first", "llama-legacy", "wordpiece"])
def test_texts_have_special_tokens_unless_the_body_says_otherwise(tmp_path: Path, kind: str) -> None:
    """As completions of vLLM have; conversations have those of their template only."""
    anchor = {"unigram-first": "</s>", "llama-legacy": "<|turn|>", "wordpiece": "[SEP]"}.get(kind, "<|im_end|>")
    template = f"{{% for m in messages %}}{{{{ m.content }}}}{anchor}{{% endfor %}}"
    desk, plain = Desk(), tokenizer_of(kind)
    desk.resolver.add_model("m", tokenizer=save_model(tmp_path, plain, chat_template=template))
    text = f"Hello{anchor} world {anchor}{words_of(700)}"
    for _ in range(2):
        assert desk.tokens(COMPLETIONS, {"prompt": text}) == plain.encode(text).ids
        without = desk.tokens(COMPLETIONS, {"prompt": text, "add_special_tokens": False})
        assert without == plain.encode(text, add_special_tokens=False).ids
        rendered = f"{text}{anchor}"
        assert desk.tokens(CHAT, chat(text)) == plain.encode(rendered, add_special_tokens=False).ids
        assert desk.tokens(CHAT, chat(text, add_special_tokens=True)) == plain.encode(rendered).ids
    desk.resolver.close()


def test_a_model_without_a_template_still_has_texts(tmp_path: Path, plain: Tokenizer) -> None:
    """Its conversations fall back."""
    desk = Desk()
    desk.resolver.add_model("m", tokenizer=save_model(tmp_path, tokenizer_of("chatml")))
    for text in ("short", words_of(3000), words_of(3000)):
        assert desk.tokens(COMPLETIONS, {"prompt": text}) == plain.encode(text).ids

    prompt = desk.prompt(CHAT, chat("hi"))

    assert prompt is not None
    assert not prompt.exact
    assert desk.fallbacks == {"no_template": 1}
    desk.resolver.close()


def test_a_tokenizer_that_adds_tokens_by_the_text_is_asked_for_the_whole(tmp_path: Path) -> None:
    """A rare kind; it is only slower."""
    tokenizer = tokenizer_of("chatml")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_end|> $A",
        special_tokens=[("<|im_end|>", 2)],
    )
    desk = Desk()
    desk.resolver.add_model("m", tokenizer=save_model(tmp_path, tokenizer))
    desk.resolver._local["m"].tokenizer.around = None

    assert desk.tokens(COMPLETIONS, {"prompt": "text"}) == tokenizer.encode("text").ids
    desk.resolver.close()


def test_options_of_the_request_reach_the_template(tmp_path: Path, plain: Tokenizer) -> None:
    """chat_template_kwargs, documents, tools, effort: as vLLM passes them."""
    source = (
        "{{ x }}|{{ documents }}|{{ tools | tojson }}|{{ enable_thinking }}|{{ reasoning_effort }}|{{ y is defined }}"
    )
    desk = Desk()
    desk.resolver.add_model("m", tokenizer=save_model(tmp_path, tokenizer_of("chatml"), chat_template=source))
    body = chat(
        "hi",
        chat_template_kwargs={"x": 1},
        documents=[{"text": "d"}],
        tools=[{"type": "function", "function": {"name": "f"}}],
        reasoning_effort="none",
    )
    tool = '{"type": "function", "function": {"name": "f", "description": null, "parameters": null}}'
    expected = f"1|[{{'text': 'd'}}]|[{tool}]|False|none|False"

    assert desk.tokens(CHAT, body) == plain.encode(expected).ids
    desk.resolver.close()


def test_an_open_conversation_ends_with_its_last_message(desk: Desk, plain: Tokenizer) -> None:
    """continue_final_message, as vLLM has it."""
    body = chat("hi", "The answer is", continue_final_message=True, add_generation_prompt=False)

    text = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nThe answer is"
    assert desk.tokens(CHAT, body) == plain.encode(text).ids


def test_content_parts_are_text_and_media_are_counted(desk: Desk, plain: Tokenizer) -> None:
    """What precedes an image is exact; the rest is what the template writes."""
    content = [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 5000}},
        {"type": "text", "text": "here"},
    ]
    body = {"model": "m", "messages": [{"role": "user", "content": content}]}

    assert desk.tokens(CHAT, body) == plain.encode(rendered(chat("look\nhere"))).ids
    assert desk.resolver.statistics.media == 1


def test_responses_are_conversations(desk: Desk, plain: Tokenizer) -> None:
    """Instructions first, then the input."""
    body = {"model": "m", "input": "hi", "instructions": "be brief"}

    text = "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert desk.tokens(RESPONSES, body) == plain.encode(text).ids


def test_a_template_that_asks_for_the_time_is_rendered_each_time(tmp_path: Path) -> None:
    """The same conversation is another prompt tomorrow."""
    source = "{{ strftime_now('%Y') }} {{ messages[0].content }}"
    desk = Desk()
    desk.resolver.add_model("m", tokenizer=save_model(tmp_path, tokenizer_of("chatml"), chat_template=source))

    assert desk.tokens(CHAT, chat("hi")) == desk.tokens(CHAT, chat("hi"))
    assert desk.resolver.counts()["repeats"] == 0
    desk.resolver.close()


def test_a_body_without_a_model_means_the_only_one(desk: Desk, plain: Tokenizer) -> None:
    """Engines serve it, so its tokens are known."""
    assert desk.tokens(COMPLETIONS, {"prompt": "hi"}, model=None) == plain.encode("hi").ids
    assert desk.resolver.mode(None) == "tokenizer"
