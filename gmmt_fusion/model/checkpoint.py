"""A saved fusion: `config.json` and `model.safetensors`, without pickle, and the hub.

The weights' file holds the config as well, and is the one that counts: a reader beside a writer, or
after a kill between the two files, gets the config that its weights were saved with.
"""

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..files import differences, write_atomically, write_tensors
from .config import FusionConfig

CONFIG, WEIGHTS = "config.json", "model.safetensors"
DOWNLOAD_OPTIONS = ("revision", "cache_dir", "force_download", "local_files_only", "token")
UPLOAD_OPTIONS = ("token", "private", "revision", "commit_message")


def save(
    folder: str | Path,
    config: FusionConfig,
    state: Mapping[str, Tensor],
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write config, tensors and what is known of their making, as JSON, into `folder`.

    It is made where it is missing.

    Raises:
        OSError: of the disk, with the path; what was there before is whole still.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = config.to_json()
    # clones: safetensors refuses tensors that share storage, as tied weights do
    tensors = {name: x.detach().cpu().contiguous().clone() for name, x in state.items()}
    header = {"format": "pt", "config": text, "sha256": weights_digest(tensors)}
    header["config_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    header["about"] = json.dumps(about or {})
    write_tensors(folder / WEIGHTS, tensors, header)
    text = _with_checksum(text)
    write_atomically(folder / CONFIG, lambda path: path.write_text(text, encoding="utf-8"))


def find(name: str | Path, subfolder: str = "", **options: Any) -> Path:  # of huggingface_hub
    """The folder of a path or a hub id, which is downloaded with these options.

    Raises:
        OSError: there is no such folder, here or on the hub. TypeError: an unknown option.
    """
    if unknown := sorted(set(options) - set(DOWNLOAD_OPTIONS)):
        raise TypeError(
            f"unknown option {unknown[0]!r}; expected subfolder, or for a hub id one of "
            f"{', '.join(DOWNLOAD_OPTIONS)}"
        )
    text = os.path.expanduser(os.fspath(name))
    if _is_path(name):
        if not (Path(text) / subfolder).is_dir():
            raise OSError(
                f"{Path(text) / subfolder} is missing; expected a folder written by save_pretrained"
            )
        return Path(text) / subfolder
    from huggingface_hub import snapshot_download

    patterns = [os.path.join(subfolder, file) for file in (CONFIG, WEIGHTS)]
    try:
        folder = snapshot_download(text, allow_patterns=patterns, **options)
    except (OSError, ValueError) as error:
        raise OSError(
            f"{text!r} is neither a folder here nor a fusion on the hub: {error}"
        ) from error
    return Path(folder) / subfolder


def _is_path(name: str | Path) -> bool:
    """Whether a name means a local folder and not a hub id ("name" or "owner/name")."""
    text = os.fspath(name)
    if os.path.isdir(text) or not isinstance(name, str) or os.path.isabs(text):
        return True
    beside = os.path.isdir(os.path.dirname(text)) if os.path.dirname(text) else False
    return text.startswith((".", "~")) or text.count("/") != 1 or beside


def upload(repo_id: str, write: Callable[[Path], None], **options: Any) -> str:
    """Let `write` fill a folder, and upload it to the hub; its address there."""
    from huggingface_hub import HfApi

    if unknown := sorted(set(options) - set(UPLOAD_OPTIONS)):
        raise TypeError(f"unknown option {unknown[0]!r}; expected {', '.join(UPLOAD_OPTIONS)}")
    api = HfApi(token=options.pop("token", None))
    repo = api.create_repo(repo_id, private=options.pop("private", None), exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        api.upload_folder(repo_id=repo.repo_id, folder_path=folder, **options)
    return str(repo)


class SavedFusion:
    """A folder that `save` wrote, opened once: config and weights are of the same moment.

    Attributes:
        config: what the weights were saved with; source: the file that says so.
        about: what is known of their making; {} of a file that says nothing.

    Raises:
        OSError: a file is missing, cut off, of something else, or was changed.
    """

    def __init__(self, folder: str | Path) -> None:
        from safetensors import SafetensorError, safe_open

        folder = Path(folder)
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise OSError(f"{folder / name} is missing; expected what save_pretrained writes")
        self.path = folder / WEIGHTS
        try:
            # safe_open opens its path twice, and a writer may put another file there in between
            with self.path.open("rb") as handle:
                same = f"/dev/fd/{handle.fileno()}"
                opened = same if os.path.exists(same) else self.path
                self._file = cast(Any, safe_open)(opened, framework="pt")
            self._header: dict[str, str] = self._file.metadata() or {}
            parts = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise self._damaged(error) from error
        self.shapes = {name: tuple(part.get_shape()) for name, part in parts.items()}
        self._floating = {n: part.get_dtype().startswith(("F", "BF")) for n, part in parts.items()}
        self.config, self.source = self._read_config(folder)
        self.about = self._read_about()

    def check_fit(self, module: nn.Module, apart: str) -> list[str]:
        """Compare names, shapes and kinds of numbers with a module's, before anything is read.

        Returns:
            The names that begin with `apart`, which are not of the module.

        Raises:
            OSError: it does not fit.
        """
        others = [name for name in self.shapes if name.startswith(apart)]
        own = module.state_dict()
        shapes = {name: shape for name, shape in self.shapes.items() if name not in others}
        _check_names(shapes, module, self.path)
        for name, tensor in own.items():
            if self._floating[name] is not tensor.is_floating_point():
                raise OSError(f"{self.path} has {name} in another kind of numbers than its own")
        return others

    def read(self) -> dict[str, Tensor]:
        """All tensors, on the CPU.

        Raises:
            OSError: they are not those that were written.
        """
        from safetensors import SafetensorError

        try:
            state = {name: self._file.get_tensor(name).clone() for name in self.shapes}
        except SafetensorError as error:
            raise self._damaged(error) from error
        written = self._header.get("sha256")
        if written is not None and written != weights_digest(state):
            raise OSError(
                f"{self.path} has changed since it was written (sha256 differs); save the fusion "
                "again"
            )
        return state

    def _damaged(self, error: Exception) -> OSError:
        return OSError(
            f"{self.path} is cut off or not safetensors ({error}); save the fusion again"
        )

    def _read_about(self) -> dict[str, Any]:
        try:
            about = json.loads(self._header.get("about", "{}"))
        except (ValueError, RecursionError):
            about = None
        if not isinstance(about, dict):
            raise OSError(f"{self.path} has no JSON under 'about'; save the fusion again")
        return about

    def _read_config(self, folder: Path) -> tuple[FusionConfig, Path]:
        text = (folder / CONFIG).read_bytes()
        beside, source = _parse(folder / CONFIG, text), folder / CONFIG
        config = beside
        if "config" in self._header:
            own = self._header["config"].encode()
            if self._header.get("config_sha256") not in (None, hashlib.sha256(own).hexdigest()):
                raise OSError(
                    f"{self.path} has changed since it was written (sha256 of its config differs)"
                )
            config, source = _parse(self.path, own), self.path
            changed = differences(beside.to_dict(), config.to_dict())
            if changed and _checksum(text) not in text.decode("utf-8"):
                raise OSError(
                    f"{folder / CONFIG} was changed, and {WEIGHTS} beside it was not: {changed}. "
                    "Load the fusion, change it, and save it again"
                )
        self._check_bounds(config, source)
        return config, source

    def _check_bounds(self, config: FusionConfig, source: Path) -> None:
        """Raise OSError where the config asks for more than there are weights: it is built next."""
        sizes = [len(self.shapes), *(side for shape in self.shapes.values() for side in shape)]
        numbers: dict[str, float] = {
            "channels": config.channels,
            "modalities": config.modalities,
            "out_channels": config.fused_channels,
        }
        for key, value in config.network_config.items():
            entries = value if isinstance(value, tuple) else (value,)
            numbers[key] = max((n for n in entries if isinstance(n, int | float)), default=0)
        for key, number in numbers.items():
            if number > max(sizes):
                raise OSError(f"{source} has {key}={number}, which does not fit {self.path}")


def load(folder: str | Path) -> tuple[FusionConfig, dict[str, Tensor]]:
    """The config and all tensors of a saved fusion; OSError as `SavedFusion`."""
    saved = SavedFusion(folder)
    return saved.config, saved.read()


def load_state(module: nn.Module, state: Mapping[str, Tensor], source: object) -> None:
    """Strict `load_state_dict`, before which everything that does not fit is named.

    Raises:
        OSError: keys are missing, unknown, or of another shape.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    _check_names(shapes, module, source)
    module.load_state_dict(state)


def _check_names(shapes: Mapping[str, tuple[int, ...]], module: nn.Module, source: object) -> None:
    own = module.state_dict()
    problems = [f"missing {name}" for name in own if name not in shapes]
    problems += [f"unknown {name}" for name in shapes if name not in own]
    problems += [
        f"{name} has shape {shapes[name]}, expected {tuple(own[name].shape)}"
        for name in own
        if name in shapes and shapes[name] != tuple(own[name].shape)
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise OSError(
            f"{source} does not fit {type(module).__name__}: {'; '.join(problems[:3])}{more}"
        )


def _parse(path: Path, text: bytes) -> FusionConfig:
    try:
        config, warning = FusionConfig.from_json(text.decode("utf-8"))
    except (ValueError, TypeError) as error:  # a UnicodeDecodeError is a ValueError
        raise OSError(f"{path} {error}") from error
    if warning:
        warnings.warn(f"{path} {warning}", stacklevel=5)
    return config


def _checksum(text: bytes) -> str:
    """Of a config's text, all but the line that holds it."""
    lines = [line for line in text.splitlines() if b'"_sha256"' not in line]
    return hashlib.sha256(b"\n".join(lines)).hexdigest()


def _with_checksum(text: str) -> str:
    """The text of a `config.json` that tells an old one from one that somebody has changed."""
    checksum = _checksum(text.encode())
    return text.replace("{\n", f'{{\n  "_sha256": "{checksum}",\n', 1)


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
