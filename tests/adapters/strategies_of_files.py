"""The two files of an adapter, generated wrong: the config's keys and values, the weights' header, shapes and values.

Each starts from a sound adapter for BASE and changes something, so that every check of the gate is reached, not only
the first one.
"""

import json

import numpy as np
from hypothesis import strategies as st

from tests.builders import Tensor, Tensors, adapter_config, adapter_tensors, make_base, safetensors_bytes

BASE = make_base()

# --- JSON -------------------------------------------------------------------------------------------------------------

NUMBERS = (
    st.sampled_from([0, -1, 1, 2, 4, 8, 64, 65, 2**31, 2**63, 10**400, 0.0, -0.0, 0.5, 1e38, 1e308]) | st.integers()
)
REGEXES = st.sampled_from(["(a+)+$", "(", ".*", "^", "q_proj|v_proj", "[", "(?R)", "(a|a)*b", "\\", "x" * 10_000])
STRANGE = st.sampled_from(
    ["", "\0", "\ud800", "\u202e", "../../etc/passwd", "/etc/passwd", "{{7*7}}", "\U0001f600" * 99]
)
SCALARS = st.none() | st.booleans() | NUMBERS | st.floats() | REGEXES | STRANGE | st.text(max_size=20)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(STRANGE | st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
RAW_JSON = st.sampled_from(
    [
        b"",
        b"{",
        b"[]",
        b"\xef\xbb\xbf{}",
        b"\xff\xfe{\0}\0",
        b"{}{}",
        b"[" * 60_000,
        b'{"r":' * 20_000,
        b'{"r": ' + b"9" * 5000 + b"}",
        b'{"r": NaN}',
        b'{"r": 1e999}',
        b'{"r": -Infinity}',
        b'{"r": 8, "r": 8}',
        b" " * (1 << 18),
        b"{" + b" " * (1 << 18) + b"}",
        b'{"a": [' + b"{}," * 80_000 + b"{}]}",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"<html>",
        b"\x80\x04N.",
    ]
)

# --- the config -------------------------------------------------------------------------------------------------------

PEFT_KEYS = (
    *adapter_config(),
    *("alora_invocation_tokens", "arrow_config", "corda_config", "ensure_weight_tying", "eva_config"),
    *("exclude_modules", "layer_replication", "layers_pattern", "layers_to_transform", "loftq_config", "lora_bias"),
    *("lora_ga_config", "megatron_config", "peft_version", "qalora_group_size", "revision", "target_parameters"),
    *("trainable_token_indices", "use_bdlora", "use_qalora", "auto_map", "target_r", "vllm_lora_scaling_factor"),
)
VALUES_OF_PEFT = st.sampled_from(
    [
        *("LORA", "ADALORA", "IA3", "pissa", "pissa_niter_4", "eva", "lora_only", "all", "all-linear", "SEQ_CLS"),
        *(["lm_head"], ["q_proj"], [".*"], {"q_proj": 4}, {"q_proj": 64, "v_proj": 1}, {"^q_proj": 1e9}, {"(": 1}),
        *([[0, 2]], {"rho": 2.0}, {"base_model_class": "M", "parent_library": "os"}, f"sha256:{'0' * 64}"),
    ]
)


@st.composite
def configs(draw: st.DrawFn) -> bytes:
    """The bytes of an adapter_config.json."""
    keys = st.sampled_from(PEFT_KEYS) | STRANGE | st.text(max_size=8)
    changes = draw(st.dictionaries(keys, VALUES_OF_PEFT | JSON, min_size=1, max_size=4))
    dropped = draw(st.sets(st.sampled_from(PEFT_KEYS), max_size=2))
    config = {key: value for key, value in {**adapter_config(), **changes}.items() if key not in dropped}
    right = json.dumps(config).encode()
    twice = right[:-1] + b',"r":8}'
    return draw(st.sampled_from([right, right, right, right, twice, right[:-1], right + b"\0"]) | RAW_JSON)


# --- the weights ------------------------------------------------------------------------------------------------------

GOOD = adapter_tensors(BASE)
NAMES = st.sampled_from(sorted(GOOD))
Q0 = "base_model.model.model.layers.0.self_attn.q_proj"
MISNAMES = (
    st.sampled_from(
        [
            *(
                f"{Q0}.{end}"
                for end in ("lora_A", "lora_E", "ranknum", "lora_magnitude_vector", "lora_A.default.weight")
            ),
            *(f"{Q0}.{end}" for end in ("lora_C.weight", "lora_A.weight\n", "lora_A.bias", "lora_embedding_A")),
            *(name.replace(".0.", f".{layer}.") for name in sorted(GOOD) for layer in (-1, 2, 10**30, "00")),
            *("", "__metadata__", "lm_head.weight", "base_model.model..lora_A.weight", "model.layers.0.lora_A.weight"),
            *(f"base_model.model.{'x.' * 2000}lora_A.weight", "base_model.model.\uff51.lora_A.weight"),
        ]
    )
    | STRANGE
    | st.text(max_size=12)
)
SIZES = st.sampled_from([0, 1, 4, 7, 8, 9, 16, 31, 32, 33, 64])
BITS = {
    "F32": 32,
    "F16": 16,
    "BF16": 16,
    "F64": 64,
    "I8": 8,
    "U8": 8,
    "BOOL": 8,
    "F8_E4M3": 8,
    "F4": 4,
    "I32": 32,
    "C64": 64,
}
EXTREMES = (0.0, 1e-40, 1.0, 20.0, 1e30, 3.39e38, 3.4e38, np.nan, np.inf, -np.inf)


@st.composite
def tensors(draw: st.DrawFn) -> Tensors:
    """Tensors that lie rightly in a file, and are wrong in name, number, dtype, shape or value."""
    changed = dict(GOOD)
    for name in draw(st.lists(NAMES, min_size=1, max_size=3, unique=True)):
        was = changed.pop(name)
        match draw(st.sampled_from(["drop", "name", "dtype", "shape", "transpose", "value", "cast"])):
            case "name":
                changed[draw(MISNAMES)] = was
            case "dtype":
                dtype = draw(st.sampled_from(sorted(BITS)))
                changed[name] = Tensor(dtype, was.shape, bytes(int(np.prod(was.shape)) * BITS[dtype] // 8))
            case "shape":
                shape = tuple(draw(st.lists(SIZES, max_size=4)))
                small = shape if np.prod(shape) <= 1 << 16 else (1,)
                changed[name] = Tensor.of(np.full(small, 0.01))
            case "transpose":
                changed[name] = Tensor(was.dtype, was.shape[::-1], was.raw)
            case "value":
                values = np.zeros(was.shape)
                values[-1, -1] = draw(st.sampled_from(EXTREMES) | st.floats(width=32))
                changed[name] = Tensor.of(values)
            case "cast":
                changed[name] = Tensor.of(np.full(was.shape, 0.01), draw(st.sampled_from(["F16", "BF16"])))
    return changed


DESCRIPTIONS = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*BITS, "X", "f32", "F33"]) | JSON,
        "shape": st.lists(SIZES | st.integers(-1, 2**64), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-1, 9000) | st.integers(), min_size=1, max_size=3) | JSON,
    },
    optional={"extra": JSON},
)
METADATA = st.dictionaries(st.text(max_size=4), st.text(max_size=9) | JSON, max_size=3) | JSON


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """Sound content under a header that says something else of it."""
    entries = draw(st.dictionaries(NAMES | MISNAMES, DESCRIPTIONS | JSON, max_size=3))
    if draw(st.booleans()):
        entries["__metadata__"] = draw(METADATA)
    return safetensors_bytes(GOOD, header=entries)


LENGTHS = st.sampled_from([0, 1, 2, 8, 1 << 22, (1 << 22) + 1, 1 << 31, 1 << 62, 1 << 63, (1 << 64) - 1])


@st.composite
def damaged_weights(draw: st.DrawFn) -> bytes:
    """A sound file with other bytes in it, at its end, or missing; or something else altogether."""
    right = safetensors_bytes(GOOD)
    header = right[8 : 8 + int.from_bytes(right[:8], "little")]
    content = right[8 + len(header) :]
    position = draw(st.integers(0, len(right) - 1))
    return draw(
        st.sampled_from(
            [
                right[:position],
                right + right[:position],
                right[:position] + b"\xff" + right[position + 1 :],
                draw(LENGTHS).to_bytes(8, "little") + right[8:],
                _file(header[:-1] + b',"x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}', content),
                _file(header[:-1] + b"," + header[1:], content),
                _file(b'{"a":[' + b"{}," * 200_000 + b"{}]}", b""),
                _file(header + b" " * draw(st.integers(0, 9)), content),
                _file(draw(RAW_JSON), content),
                b"PK\x03\x04" + right,
                draw(st.binary(max_size=99)),
            ]
        )
    )


def _file(header: bytes, content: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + content


def weights() -> st.SearchStrategy[bytes]:
    """The bytes of an adapter_model.safetensors."""
    return tensors().map(safetensors_bytes) | headers() | damaged_weights()
