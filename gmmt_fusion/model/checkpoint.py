"""Reading and writing `config.json` + `model.safetensors`, atomically and without pickle."""

import hashlib
import inspect
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import write_atomically
from ..version import __version__

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save(folder: Any, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Write config, with the library's version, and tensors into `folder`, which is made where it
    is missing.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(
        {"_class_name": "GenerativeFusion", "_version": __version__, **config},
        indent=2,
        default=plain,
    )
    # clones: safetensors refuses tensors that share storage, as tied weights do
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    write_atomically(folder / WEIGHTS, lambda path: save_file(tensors, path))
    write_atomically(folder / CONFIG, lambda path: path.write_text(text + "\n", encoding="utf-8"))


def plain(value: Any) -> Any:
    """NumPy's and PyTorch's numbers and arrays as Python's, for JSON; of anything else a list."""
    return value.tolist() if hasattr(value, "tolist") else list(value)


def is_folder(folder: Any) -> bool:
    """Whether a name means a local folder and not a hub id ("name" or "owner/name")."""
    text = os.fspath(folder)
    return (
        os.path.isdir(text)
        or not isinstance(folder, str)
        or os.path.isabs(text)
        or text.startswith(".")
        or text.count("/") > 1
    )


def download(hub_id: str, **options: Any) -> Path:
    """The folder in the hub's cache with both files of `hub_id`."""
    from huggingface_hub import snapshot_download

    known = ("revision", "cache_dir", "force_download", "local_files_only", "token")
    return Path(
        snapshot_download(
            hub_id,
            allow_patterns=[CONFIG, WEIGHTS],
            **{key: options[key] for key in known if key in options},
        )
    )


def load(folder: Any, cls: type) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The constructor's arguments for `cls` and all tensors of `folder`.

    Raises:
        OSError: a file is missing, cut off or of something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise OSError(
                f"{folder / name} is missing; expected a folder written by save_pretrained"
            )
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise OSError(f"{folder / CONFIG} is not JSON ({error}); save the fusion again") from error
    if not isinstance(config, dict) or config.pop("_class_name", None) != "GenerativeFusion":
        raise OSError(f"{folder / CONFIG} is not the config of a GenerativeFusion")
    version = config.pop("_version", "unknown")
    known = inspect.signature(cls).parameters
    unknown = sorted(set(config) - set(known))
    if unknown:
        warnings.warn(
            f"{folder / CONFIG} was written by gmmt-fusion {version}, this is {__version__}; "
            "ignored unknown "
            f"keys: {', '.join(unknown)}",
            stacklevel=4,
        )
    try:
        state = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise OSError(
            f"{folder / WEIGHTS} is cut off or not safetensors ({error}); save the fusion again"
        ) from error
    return {name: value for name, value in config.items() if name in known}, state


def load_state(module: nn.Module, state: Mapping[str, Tensor], source: Any) -> None:
    """Strict `load_state_dict`, before which everything that does not fit is named.

    Raises:
        OSError: keys are missing, unknown, or of another shape.
    """
    own = module.state_dict()
    problems = [f"missing {name}" for name in own if name not in state]
    problems += [f"unknown {name}" for name in state if name not in own]
    problems += [
        f"{name} has shape {tuple(state[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise OSError(
            f"{source} does not fit {type(module).__name__}: {'; '.join(problems[:3])}{more}"
        )
    module.load_state_dict(state)


def weights_digest(state: Mapping[str, object]) -> str:
    """The SHA-256 of a state's tensors, in hexadecimal; what is no tensor does not count.

    Over the names in sorted order: "name dtype shape", then the bytes, of every dtype. Where the
    tensors are stored, and in which order the state lists them, makes no difference.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items(), key=lambda item: item[0]):
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)  # NumPy has no bfloat16
    return digest.hexdigest()
