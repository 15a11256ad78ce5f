"""A model as the judge meets it: how likely it finds a text, and what it says to a prompt. Greedy, in batches.

Invariant: what it says to a prompt is what it would say alone: padding is masked, and nothing is sampled.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from trainer.errors import JudgeError
from trainer.judging.values import Answer, Likelihood, Side
from trainer.recipes.base_model import has_fast_bfloat16
from trainer.supervision import IGNORED, Example

BATCH_ROWS: Final = 32
BATCH_TOKENS: Final = 2048
BATCH_LOGITS: Final = 2**26
"""In float32: 256 MiB at once."""
Watch = Callable[[int, int], None]
"""How many are done of how many."""


@dataclass(frozen=True, slots=True)
class Speaker:
    """A model and its tokenizer, loaded."""

    model: Any
    tokenizer: Any
    stop_ids: tuple[int, ...]
    """The tokens at which a server ends an answer."""

    def likelihoods(self, examples: Sequence[Example], watch: Watch) -> tuple[Likelihood, ...]:
        """How likely the learned tokens of each example are, each after all that stands before it."""
        found: dict[int, Likelihood] = {}
        lengths = [len(example.input_ids) for example in examples]
        budget = min(BATCH_TOKENS, BATCH_LOGITS // self.model.config.get_text_config().vocab_size)
        for chosen in _batches(lengths, budget):
            found.update(zip(chosen, self._likelihoods([examples[index] for index in chosen]), strict=True))
            watch(len(found), len(examples))
        return tuple(found[index] for index in range(len(examples)))

    def answers(self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, watch: Watch) -> tuple[Answer, ...]:
        """What the model says to each prompt, until it stops or has said so many tokens."""
        found: dict[int, Answer] = {}
        lengths = [len(prompt) + max_new_tokens for prompt in prompts]
        for chosen in _batches(lengths, BATCH_ROWS * max(lengths, default=0)):
            found.update(zip(chosen, self._answers([prompts[index] for index in chosen], max_new_tokens), strict=True))
            watch(len(found), len(prompts))
        return tuple(found[index] for index in range(len(prompts)))

    @torch.inference_mode()
    def logits(self, prompt: Sequence[int]) -> torch.Tensor:
        """(tokens, vocabulary), in float32 on the CPU."""
        tokens = torch.tensor([list(prompt)], device=self.model.device)
        logits: torch.Tensor = self.model(input_ids=tokens).logits[0].float().cpu()
        return logits

    @torch.inference_mode()
    def _likelihoods(self, examples: Sequence[Example]) -> list[Likelihood]:
        # Padding is on the right, where no token looks: it needs no mask but for the models that ask for one.
        tokens = _padded_right([example.input_ids for example in examples], 0)
        labels = _padded_right([example.labels for example in examples], IGNORED)
        lengths = torch.tensor([[len(example.input_ids)] for example in examples])
        mask = (torch.arange(tokens.shape[1])[None] < lengths).long()
        # Logits only where somebody's next token is learned.
        following = labels[:, 1:]
        kept = (following != IGNORED).any(dim=0).nonzero()[:, 0]
        if not len(kept):
            return [Likelihood(log_probability=0.0, tokens=0) for _ in examples]
        device = self.model.device
        said = self.model(
            input_ids=tokens.to(device), attention_mask=mask.to(device), logits_to_keep=kept.to(device), use_cache=False
        ).logits
        right = following[:, kept].to(device)
        losses = cross_entropy(said.float().transpose(1, 2), right, ignore_index=IGNORED, reduction="none")
        counts = (right != IGNORED).sum(dim=1)
        return [
            Likelihood(log_probability=-float(loss), tokens=int(count))
            for loss, count in zip(losses.sum(dim=1), counts, strict=True)
        ]

    @torch.inference_mode()
    def _answers(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[Answer]:
        longest = max(map(len, prompts))
        padding = self.stop_ids[0]
        tokens = torch.tensor([[padding] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        device = self.model.device
        said = self.model.generate(
            input_ids=tokens.to(device),
            attention_mask=mask.to(device),
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=max_new_tokens,
                eos_token_id=list(self.stop_ids),
                pad_token_id=padding,
            ),
        )
        return [self._answer(row) for row in said[:, longest:].tolist()]

    def _answer(self, said: list[int]) -> Answer:
        end = next((place for place, token in enumerate(said) if token in self.stop_ids), None)
        text = self.tokenizer.decode(said[:end], skip_special_tokens=True)
        return Answer(text=text, has_stopped=end is not None)


def load_speaker(side: Side, precision: str) -> Speaker:
    """The side's model, with its adapter if it has one.

    Raises:
        JudgeError: transformers or PEFT can't load it.
    """
    is_short = precision == "bfloat16" or (precision != "float32" and has_fast_bfloat16())
    try:
        tokenizer = AutoTokenizer.from_pretrained(side.model, trust_remote_code=False, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            side.model,
            dtype=torch.bfloat16 if is_short else torch.float32,
            device_map="cuda" if torch.cuda.is_available() else None,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        ).eval()
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise JudgeError(f"{side.label}: transformers can't load the model: {_first_line(error)}") from error
    stop_ids = _stop_ids(tokenizer, model)
    model.generation_config = GenerationConfig()  # what a model would sample by is no matter of ours
    speaker = Speaker(model, tokenizer, stop_ids)
    return speaker if side.adapter is None else with_adapter(speaker, side)


def with_adapter(speaker: Speaker, side: Side) -> Speaker:
    """The same base with the side's adapter on it. The base is changed in place: `speaker` is not to be used after it.

    Raises:
        JudgeError: PEFT can't load it.
    """
    try:
        with warnings.catch_warnings(
            action="ignore"
        ):  # of what its config names that is not there: a folder, a version
            model = PeftModel.from_pretrained(
                speaker.model, side.adapter, use_safetensors=True, local_files_only=True
            ).eval()
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise JudgeError(f"{side.label}: PEFT can't load the adapter on this base: {_first_line(error)}") from error
    return Speaker(model, speaker.tokenizer, speaker.stop_ids)


def _stop_ids(tokenizer: Any, model: Any) -> tuple[int, ...]:  # noqa: ANN401  — transformers
    stated = model.generation_config.eos_token_id
    several = stated if isinstance(stated, list) else [stated]
    found = [token for token in (tokenizer.eos_token_id, *several) if token is not None]
    if not found:
        raise JudgeError("The base has no stop token, so no answer of its ends: give its tokenizer an eos_token.")
    return tuple(dict.fromkeys(found))


def _batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indexes, in batches of like length: as many rows as make rows × the longest fit `budget`; one at the least."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if batch and (len(batch) == BATCH_ROWS or (len(batch) + 1) * lengths[index] > budget):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _padded_right(rows: Sequence[Sequence[int]], padding: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[padding] * (longest - len(row))] for row in rows])


def _first_line(error: Exception) -> str:
    return (str(error).strip().split("\n") or [""])[0][:300]
