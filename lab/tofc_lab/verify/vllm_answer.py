"""The answer of vLLM's own StepVL about a picture, for `tofc-lab verify --vllm FILE` to compare with.

    python -m tofc_lab.verify.vllm_answer MODEL PICTURE --out vllm.json

Runs where vLLM is installed (its CPU build is enough), which may be another environment: only torch, transformers and
vLLM are imported. Promises to run no code from the checkpoint: a configuration class here replaces the released one.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

# The engine must run in this process, because vLLM is patched below.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GB
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

from tofc_lab.verify.step3p7 import import_torchvision

import_torchvision()  # before transformers

from PIL import Image  # noqa: E402
from transformers import PreTrainedConfig, Qwen3Config  # noqa: E402

from tofc import json_text  # noqa: E402

TOKENS = 8
LIKELIEST = 300  # candidates for the first token whose probabilities are kept


class VisionConfig(PreTrainedConfig):
    """The vision configuration with the settings that the released file leaves out and vLLM reads."""

    model_type = "step_vision"

    def __init__(self, **given: Any) -> None:
        rules = {"use_abs_posemb": True, "use_rope2d": True, "use_ln_pre": True}
        lacks = {"use_cls_token": False, "use_ln_post": False, "output_dim": None, "hidden_act": "quick_gelu"}
        initialise: Any = super().__init__  # typed by field
        initialise(**rules, **lacks, **given)


class StepConfig(PreTrainedConfig):
    """The configuration of `step_robotics`, without the checkpoint's own code."""

    model_type = "step_robotics"

    def __init__(self, vision_config: dict[str, Any] | None = None, **given: Any) -> None:
        text = {key: value for key, value in given.pop("text_config", {}).items() if key != "model_type"}
        self.vision_config = VisionConfig(**(vision_config or {}))
        self.text_config = Qwen3Config(**{**text, "architectures": ["Qwen3ForCausalLM"]})
        self.hidden_size = self.text_config.hidden_size
        initialise: Any = super().__init__
        initialise(**given)

    def get_text_config(self, *_: Any, **__: Any) -> Qwen3Config:
        """Return the decoder's configuration."""
        return self.text_config


def engine(model: Path, dtype: str) -> Any:
    """Load the checkpoint into vLLM's StepVL."""
    from vllm import LLM
    from vllm.model_executor.models.step_vl import PerceptionEncoder
    from vllm.transformers_utils import config

    config._CONFIG_REGISTRY["step_robotics"] = StepConfig
    forward = PerceptionEncoder.forward
    # The features are a transposed view. The CPU's linear layer keeps such strides, and a later view() rejects them.
    PerceptionEncoder.forward = lambda self, pixels: forward(self, pixels).contiguous()
    return LLM(
        str(model),
        dtype=dtype,
        enforce_eager=True,
        max_model_len=4096,
        limit_mm_per_prompt={"image": 1},
        enable_prefix_caching=False,
        max_logprobs=LIKELIEST,
    )


def main() -> None:
    """Read the command line, ask vLLM, and write the answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL", help="a whole checkpoint")
    parser.add_argument("picture", type=Path, metavar="PICTURE")
    parser.add_argument("--question", default="What is in the picture?", help="default: the question of `verify`")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--out", type=Path, default=Path("vllm.json"))
    chosen = parser.parse_args()

    import vllm
    from vllm import SamplingParams

    running = engine(chosen.model, chosen.dtype)
    turns = [{"role": "user", "content": f"<im_patch>{chosen.question}"}]
    text = running.get_tokenizer().apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    sampling = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, logprobs=LIKELIEST)
    with Image.open(chosen.picture) as picture:
        asked = {"prompt": text, "multi_modal_data": {"image": picture.convert("RGB")}}
    (result,) = running.generate(asked, sampling)
    found = {
        "vllm": vllm.__version__,
        "prompt": list(result.prompt_token_ids),
        "answer": list(result.outputs[0].token_ids),
        "log probabilities": {str(key): one.logprob for key, one in result.outputs[0].logprobs[0].items()},
    }
    json_text.write(chosen.out, found)
    print(f"{chosen.out}: {len(found['prompt'])} tokens of prompt, answer {found['answer']}")


if __name__ == "__main__":
    main()
