from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from trainer.dataset import Completion, Conversation, Dataset, Message, PlainText, Preference, Row
from trainer.errors import DatasetError, JobError
from trainer.supervision import IGNORED, AnyExample, Example, PreferenceExample, TemplateRefusal, examples_of, supervise


@pytest.fixture(scope="session")
def tokenizer(tiny: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny)


def chat(*contents: str) -> Dataset:
    roles = ("user", "assistant") * len(contents)
    messages = tuple(Message(role, content) for role, content in zip(roles, contents, strict=False))
    return Dataset("chat.jsonl", (Conversation(7, messages),), "sha256:0")


def only_example(tokenizer: PreTrainedTokenizerBase, row: Row) -> AnyExample | TemplateRefusal:
    (example,) = examples_of(tokenizer, [row])
    return example


def learned(tokenizer: PreTrainedTokenizerBase, example: object) -> str:
    assert isinstance(example, Example)
    return str(tokenizer.decode([label for label in example.labels if label != IGNORED]))


def test_the_answer_and_its_end_are_learned_and_the_prompt_is_not(tokenizer: PreTrainedTokenizerBase) -> None:
    (example,) = supervise(tokenizer, chat("Where is my order?", "Tomorrow."), max_length=100)
    assert learned(tokenizer, example) == "Tomorrow.<|im_end|>\n"
    assert isinstance(example, Example)
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
    (row,) = dataset.rows
    assert isinstance(row, Conversation)
    assert isinstance(example, Example)
    turns = [message.as_turn() for message in row.messages]
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


def test_of_a_prompt_given_as_messages_only_the_last_answer_is_learned(tokenizer: PreTrainedTokenizerBase) -> None:
    (row,) = chat("a", "one", "b", "two").rows
    assert isinstance(row, Conversation)
    last_only = Conversation(row.line, row.messages, learns_last_only=True)
    assert learned(tokenizer, only_example(tokenizer, last_only)) == "two<|im_end|>\n"


def test_of_raw_text_the_completion_and_its_end_are_learned(tokenizer: PreTrainedTokenizerBase) -> None:
    example = only_example(tokenizer, Completion(1, "one two", " three"))
    assert isinstance(example, Example)
    assert tokenizer.decode(example.input_ids) == "one two three<|im_end|>"
    assert learned(tokenizer, example) == " three<|im_end|>"


def test_plain_text_is_learned_whole(tokenizer: PreTrainedTokenizerBase) -> None:
    assert learned(tokenizer, only_example(tokenizer, PlainText(1, "one two"))) == "one two<|im_end|>"


def test_a_pair_has_one_prompt_and_two_answers_that_end(tokenizer: PreTrainedTokenizerBase) -> None:
    example = only_example(tokenizer, Preference(1, (Message("user", "a"),), "yes", "no"))
    assert isinstance(example, PreferenceExample)
    assert tokenizer.decode(example.prompt_ids) == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(example.chosen_ids) == "yes<|im_end|>\n"
    assert tokenizer.decode(example.rejected_ids) == "no<|im_end|>\n"


def test_an_example_that_is_cut_keeps_its_beginning(tokenizer: PreTrainedTokenizerBase) -> None:
    (example,) = supervise(tokenizer, chat("a", "one"), max_length=100)
    assert isinstance(example, Example)
    assert example.cut(9) == Example(example.input_ids[:9], example.labels[:9])


def test_what_a_template_leaves_out_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    (row,) = chat("a", "b").rows
    assert isinstance(row, Conversation)
    refusal = only_example(
        tokenizer, Conversation(1, row.messages, tools='[{"type": "function", "function": {"name": "find"}}]')
    )
    assert isinstance(refusal, TemplateRefusal)
    assert refusal.message == "the chat template leaves out tools"


def test_what_a_template_raises_is_a_refusal(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    refusal = only_example(tokenizer, chat("a", "b").rows[0])
    assert isinstance(refusal, TemplateRefusal)
    assert refusal.message == "roles must alternate"
