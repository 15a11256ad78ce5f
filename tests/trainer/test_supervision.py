from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from trainer.dataset import ChatDataset, Conversation, Message
from trainer.errors import DatasetError, JobError
from trainer.supervision import IGNORED, Example, supervise


@pytest.fixture(scope="session")
def tokenizer(tiny: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny)


def chat(*contents: str) -> ChatDataset:
    roles = ("user", "assistant") * len(contents)
    messages = tuple(Message(role, content) for role, content in zip(roles, contents, strict=False))
    return ChatDataset("chat.jsonl", (Conversation(7, messages),), "sha256:0")


def learned(tokenizer: PreTrainedTokenizerBase, example: Example) -> str:
    return str(tokenizer.decode([label for label in example.labels if label != IGNORED]))


def test_the_answer_and_its_end_are_learned_and_the_prompt_is_not(tokenizer: PreTrainedTokenizerBase) -> None:
    (example,) = supervise(tokenizer, chat("Where is my order?", "Tomorrow."), max_length=100)
    assert learned(tokenizer, example) == "Tomorrow.<|im_end|>\n"
    assert tokenizer.decode(example.input_ids).startswith(
        "<|im_start|>user\nWhere is my order?<|im_end|>\n<|im_start|>"
    )


def test_every_answer_of_a_conversation_is_learned(tokenizer: PreTrainedTokenizerBase) -> None:
    (example,) = supervise(tokenizer, chat("a", "one", "b", "two"), max_length=100)
    assert learned(tokenizer, example) == "one<|im_end|>\ntwo<|im_end|>\n"


@given(st.lists(st.text(alphabet=st.characters(codec="utf-8"), min_size=1), min_size=2, max_size=6))
def test_the_tokens_are_the_rendered_conversation(tokenizer: PreTrainedTokenizerBase, contents: list[str]) -> None:
    contents = contents[: len(contents) // 2 * 2]
    dataset = chat(*contents)
    (example,) = supervise(tokenizer, dataset, max_length=10_000)
    turns = [{"role": message.role, "content": message.content} for message in dataset.conversations[0].messages]
    assert tokenizer.decode(example.input_ids) == tokenizer.apply_chat_template(turns, tokenize=False)
    assert learned(tokenizer, example) == "".join(f"{answer}<|im_end|>\n" for answer in contents[1::2])
    assert all(label in (IGNORED, token) for token, label in zip(example.input_ids, example.labels, strict=True))


def test_a_template_that_rewrites_earlier_answers_leaves_the_last_to_learn(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "message['content']", "(message['content'] if loop.last or message['role'] == 'user' else '…')"
    )
    (example,) = supervise(tokenizer, chat("a", "one", "b", "two"), max_length=100)
    assert learned(tokenizer, example) == "two<|im_end|>\n"


def test_an_example_that_is_too_long_is_named_not_cut(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DatasetError, match=r"chat.jsonl line 7: \d+ tokens, more than the job's max_length of 8"):
        supervise(tokenizer, chat("Where is my order?", "Tomorrow."), max_length=8)


def test_a_base_without_a_chat_template_is_refused(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.chat_template = None
    with pytest.raises(JobError, match="no chat template"):
        supervise(tokenizer, chat("a", "b"), max_length=8)
