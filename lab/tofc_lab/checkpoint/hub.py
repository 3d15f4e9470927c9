"""A checkpoint by its folder, or by its name on the Hugging Face hub.

Promises to download only weights as safetensors, settings and tokenizer, never code. Leaves the cache to the hub's
client.
"""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from tofc.errors import CheckpointError

PATTERNS = ("*.safetensors", "*.json", "*.jinja", "merges.txt")


def locate(model: str, *, offline: bool = False) -> Path:
    """Return the folder of `model`; a name such as `stepfun-ai/Step3-VL-10B` is downloaded unless `offline`.

    Raises `CheckpointError`.
    """
    folder = Path(model)
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model) or model.startswith("."):
        raise CheckpointError(f"{model} is not a folder; give a checkpoint's folder or its name on the hub, OWNER/NAME")
    offline = offline or constants.HF_HUB_OFFLINE
    try:
        return Path(snapshot_download(model, allow_patterns=list(PATTERNS), local_files_only=offline))
    except LocalEntryNotFoundError:
        advice = (
            "run once without --offline"
            if offline
            else "check the network, or download it elsewhere and give its folder"
        )
        raise CheckpointError(f"{model} is neither a folder nor in the hub's cache on this machine; {advice}") from None
    except (HfHubHTTPError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{model} cannot be fetched from the hub ({reason}); check its name and `hf auth login`"
        ) from None
