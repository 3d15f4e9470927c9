"""A checkpoint by its folder or its name on the Hugging Face hub.

Promises to fetch weights as safetensors, settings and tokenizer, and no code. What was fetched once is used again.
"""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from shared.model.config import CheckpointError

PATTERNS = ("*.safetensors", "*.json", "*.jinja", "merges.txt")


def locate(model: str, *, offline: bool = False) -> Path:
    """The folder of ``model``; a name as in ``stepfun-ai/Step3-VL-10B`` is fetched unless ``offline``.

    Raises ``CheckpointError``.
    """
    folder = Path(model)
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model) or model.startswith("."):
        raise CheckpointError(f"{model} is no folder; give a checkpoint's folder or its name on the hub, OWNER/NAME")
    offline = offline or constants.HF_HUB_OFFLINE
    try:
        return Path(snapshot_download(model, allow_patterns=list(PATTERNS), local_files_only=offline))
    except LocalEntryNotFoundError:
        advice = (
            "leave --offline out once" if offline else "check the network, or fetch it elsewhere and give its folder"
        )
        raise CheckpointError(f"{model} is neither a folder nor in the hub's cache on this machine; {advice}") from None
    except (HfHubHTTPError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{model} cannot be fetched from the hub ({reason}); check its name and `hf auth login`"
        ) from None
