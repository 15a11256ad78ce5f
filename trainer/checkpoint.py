"""What is asked of transformers when a base is prepared: unpack a GGUF, and list a model's linear layers.

Heavy to import: `base.py` does so only when there is work.
"""

from pathlib import Path
from types import MappingProxyType
from typing import Final

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils.logging import disable_progress_bar

from adapters import Module
from trainer.errors import BaseError

LOCAL: Final = MappingProxyType({"trust_remote_code": False, "local_files_only": True})
"""Code that lies beside weights is never run, nor asked about."""


def unpack_gguf(gguf: Path, folder: Path) -> None:
    """Write the plain bfloat16 checkpoint that a GGUF file holds into `folder`."""
    disable_progress_bar()
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name} | LOCAL
    model = AutoModelForCausalLM.from_pretrained(
        **where, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)


def module_table(folder: Path) -> dict[str, Module]:
    """Every linear layer but the head, by its full path. Built on the meta device: no weights are read.

    Raises:
        BaseError: transformers can't build a causal language model from the folder's config.json.
    """
    try:
        config = AutoConfig.from_pretrained(folder, **LOCAL)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise BaseError(
            f"{folder}: not a causal language model that transformers knows: {_first_line(error)}"
        ) from error
    head = model.get_output_embeddings()
    return {
        name: Module(module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
