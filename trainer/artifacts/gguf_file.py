"""A checkpoint as one GGUF file, which llama.cpp and Ollama read. One tensor at a time: memory never holds the model.

Strict: an architecture, a tensor, a kind of RoPE or a tokenizer that is not known here is refused by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from gguf import (
    GGML_QUANT_SIZES,
    MODEL_ARCH,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    get_tensor_name_map,
    quant_shape_to_byte_shape,
    quantize,
)
from numpy.typing import NDArray
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from trainer.artifacts.gguf_tokenizer import Vocabulary, read_vocabulary
from trainer.conversion.peft_folder import open_base
from trainer.conversion.tensor_files import TensorFiles
from trainer.errors import ArtifactError

ARCHITECTURES: Final[Mapping[str, MODEL_ARCH]] = {
    "LlamaForCausalLM": MODEL_ARCH.LLAMA,
    "Qwen2ForCausalLM": MODEL_ARCH.QWEN2,
    "Qwen3ForCausalLM": MODEL_ARCH.QWEN3,
}
TYPES: Final[Mapping[str, tuple[GGMLQuantizationType, LlamaFileType]]] = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q5_1": (GGMLQuantizationType.Q5_1, LlamaFileType.MOSTLY_Q5_1),
    "q5_0": (GGMLQuantizationType.Q5_0, LlamaFileType.MOSTLY_Q5_0),
    "q4_1": (GGMLQuantizationType.Q4_1, LlamaFileType.MOSTLY_Q4_1),
    "q4_0": (GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0),
}
COARSE: Final = frozenset({"q5_1", "q5_0", "q4_1", "q4_0"})
"""With these, embedding and head are held in eight bits all the same."""
SKIPPED: Final = ".rotary_emb.inv_freq"
"""Follows from the config; older checkpoints store it."""


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    source: str


def write_gguf(folder: Path, out: Path, *, type_name: str, label: str) -> dict[str, int]:
    """Write the checkpoint in `folder` to the file `out`; how many tensors there are of each type.

    Raises:
        ArtifactError: something of it has no name in GGUF here. BaseError: it can't be read.
    """
    files = open_base(folder)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    arch = _architecture(config)
    tensors = _tensors(files, config, arch, type_name)
    vocabulary = read_vocabulary(folder, config.vocab_size)

    writer = GGUFWriter(out, arch=_NAMES[arch], use_temp_file=False)
    try:
        _say_model(writer, config, label, TYPES[type_name][1])
        _say_tokenizer(writer, vocabulary)
        factors = _rope_factors(config)
        if factors is not None:
            writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
        for tensor in tensors:
            shape = quant_shape_to_byte_shape(tensor.shape, tensor.kind) if _is_packed(tensor.kind) else tensor.shape
            dtype = np.dtype(_DTYPES.get(tensor.kind, np.uint8))
            writer.add_tensor_info(tensor.name, shape, dtype, int(np.prod(shape)) * dtype.itemsize, tensor.kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(factors)
        for tensor in tensors:
            writer.write_tensor_data(_values(files, tensor, config, arch))
    finally:
        writer.close()
    kinds = [tensor.kind.name for tensor in tensors]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


_NAMES: Final = {MODEL_ARCH.LLAMA: "llama", MODEL_ARCH.QWEN2: "qwen2", MODEL_ARCH.QWEN3: "qwen3"}
_DTYPES: Final = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}


def _is_packed(kind: GGMLQuantizationType) -> bool:
    return kind not in _DTYPES


def _architecture(config: Any) -> MODEL_ARCH:  # noqa: ANN401  — transformers'
    stated = (config.architectures or ["no architecture"])[0]
    if stated not in ARCHITECTURES:
        raise ArtifactError(
            f"{stated} is not exported to GGUF: known are {', '.join(sorted(ARCHITECTURES))}; take --to folder, which "
            "llama.cpp's own converter reads."
        )
    if getattr(config, "use_sliding_window", False):
        raise ArtifactError("A sliding window is not exported to GGUF; take --to folder.")
    return ARCHITECTURES[stated]


def _tensors(files: TensorFiles, config: Any, arch: MODEL_ARCH, type_name: str) -> list[_Tensor]:  # noqa: ANN401
    names = get_tensor_name_map(arch, config.num_hidden_layers)
    tensors = []
    for source in sorted(files.names):
        if source.endswith(SKIPPED) or (source == "lm_head.weight" and config.tie_word_embeddings):
            continue  # a tied head is the embedding
        name = names.get_name(source, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ArtifactError(f"The tensor {source} has no name in GGUF's {_NAMES[arch]}; take --to folder.")
        shape = files.shape(source)
        tensors.append(_Tensor(name, shape, _kind(name, shape, type_name), source))
    return tensors


def _kind(name: str, shape: tuple[int, ...], type_name: str) -> GGMLQuantizationType:
    if len(shape) < 2:  # noqa: PLR2004  — a vector
        return GGMLQuantizationType.F32
    is_outer = name in {"token_embd.weight", "output.weight"}
    kind = GGMLQuantizationType.Q8_0 if is_outer and type_name in COARSE else TYPES[type_name][0]
    # A row that is no multiple of the block can't be cut into blocks.
    return kind if shape[-1] % GGML_QUANT_SIZES[kind][0] == 0 else GGMLQuantizationType.F16


def _values(files: TensorFiles, tensor: _Tensor, config: Any, arch: MODEL_ARCH) -> NDArray[Any]:  # noqa: ANN401
    values = files.read(tensor.source)
    module = tensor.source.rpartition(".")[0].rpartition(".")[2]
    if arch is MODEL_ARCH.LLAMA and module in {"q_proj", "k_proj"}:
        values = _interleaved(values, config.num_attention_heads if module == "q_proj" else config.num_key_value_heads)
    if tensor.kind is GGMLQuantizationType.F16 and float(values.abs().max()) > np.finfo(np.float16).max:
        raise ArtifactError(f"{tensor.source}: has values that float16 can't hold; take --type bf16.")
    packed: NDArray[Any] = quantize(values.contiguous().numpy(), tensor.kind)
    return packed


def _interleaved(values: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows in the order of llama.cpp's RoPE: pairs side by side, where transformers has them half a head apart."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def _rope(config: Any) -> Mapping[str, Any]:  # noqa: ANN401
    rope: Mapping[str, Any] = config.rope_parameters
    if rope.get("rope_type", "default") not in {"default", "llama3"}:
        raise ArtifactError(f"RoPE of the kind {rope['rope_type']} is not exported to GGUF; take --to folder.")
    return rope


def _rope_factors(config: Any) -> NDArray[np.float32] | None:  # noqa: ANN401
    """How much slower each frequency turns, as Llama 3.1 has it; None: as it is."""
    rope = _rope(config)
    if rope.get("rope_type", "default") == "default":
        return None
    turned, _ = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"))
    width = _head_width(config)
    plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    factors: NDArray[np.float32] = (plain / turned.float()).numpy()
    return factors


def _head_width(config: Any) -> int:  # noqa: ANN401
    width = getattr(config, "head_dim", None)
    return int(width or config.hidden_size // config.num_attention_heads)


def _say_model(writer: GGUFWriter, config: Any, label: str, file_type: LlamaFileType) -> None:  # noqa: ANN401
    width = _head_width(config)
    writer.add_type("model")
    writer.add_name(label)
    writer.add_file_type(file_type)
    writer.add_quantization_version(2)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(_rope(config)["rope_theta"])


def _say_tokenizer(writer: GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.split)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    writer.add_token_merges(vocabulary.merges)
    add = {
        "bos": writer.add_bos_token_id,
        "eos": writer.add_eos_token_id,
        "eot": writer.add_eot_token_id,
        "pad": writer.add_pad_token_id,
    }
    for name, number in vocabulary.special.items():
        add[name](number)
    writer.add_add_bos_token(vocabulary.starts_with_bos)
    if vocabulary.template is not None:
        writer.add_chat_template(vocabulary.template)
