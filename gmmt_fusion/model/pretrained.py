"""Saving, loading and sharing of a fusion: a folder, or a repository of the Hugging Face hub."""

import importlib
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from . import checkpoint
from .card import write_card
from .config import FusionConfig

Self = TypeVar("Self", bound="Pretrained")


class Pretrained(nn.Module):
    """What a `GenerativeFusion` is as files.

    Attributes:
        about: what is known of its making, as JSON holds it: "host", "training", "scores" and
            "license", each where there is one. It is saved and loaded, changes nothing, and may be
            written into.
    """

    config: FusionConfig
    head_state: dict[str, Tensor] | None
    about: dict[str, Any]  # JSON

    def save_pretrained(self, folder: str | Path, *, license: str | None = None) -> None:
        """Write `config.json`, `model.safetensors` and a model card, `README.md`, into `folder`.

        The weights' file holds the config too, so that the two cannot come apart; pickle is not
        used.

        Args:
            license: of the weights, by its name on the hub, "apache-2.0" say; kept in `about`.
        """
        self._save(Path(folder), license)

    def push_to_hub(self, repo_id: str, *, license: str | None = None, **options: Any) -> str:
        """Upload what `save_pretrained` writes to the Hugging Face hub, and return its address.

        Args:
            repo_id: "owner/name"; made where it is missing.
            license: of the weights, as `save_pretrained` takes it.
            options: of the upload: token, private, revision, commit_message.
        """

        write = partial(self._save, license=license, name=repo_id)
        return checkpoint.upload(repo_id, write, **options)

    @classmethod
    def from_pretrained(
        cls: type[Self], folder_or_hub_id: str | Path, *, subfolder: str = "", **options: Any
    ) -> Self:
        """Load from a folder that `save_pretrained` wrote, or from the hub, on the CPU.

        Args:
            folder_or_hub_id: a path, or a Hugging Face hub id.
            subfolder: of either, "best" say.
            options: of the hub, for an id: revision, cache_dir, force_download, local_files_only,
                token.

        Raises:
            OSError: a file is missing, cut off or of something else.
            TypeError: an unknown option.
        """
        saved = checkpoint.SavedFusion(checkpoint.find(folder_or_hub_id, subfolder, **options))
        if saved.config.method == "diffusion" or saved.config.network == "unet":
            # not below, where PyTorch 2.6 cannot be imported whole, as diffusers does
            importlib.import_module("diffusers.schedulers.scheduling_ddim")
        try:
            with torch.device("meta"):  # nothing is allocated, and nothing random drawn
                fusion = cls(**vars(saved.config))
        except (TypeError, ValueError) as error:
            raise OSError(f"{saved.source} does not describe a fusion: {error}") from error
        heads = saved.check_fit(fusion, apart="head.")
        state = saved.read()
        fusion.to_empty(device="cpu")
        fusion.head_state = {name.removeprefix("head."): state.pop(name) for name in heads} or None
        fusion.load_state_dict(state)
        fusion.noise = fusion._starting_noise(fusion.config.size)
        fusion.about = saved.about
        return fusion

    def _save(self, folder: Path, license: str | None, name: str | None = None) -> None:
        """`save_pretrained`; name: by which the card says to load it, if not a placeholder."""
        if license is not None:
            self.about = {**self.about, "license": license}
        state = dict(self.state_dict())
        state.update({f"head.{name}": x for name, x in (self.head_state or {}).items()})
        checkpoint.save(folder, self.config, state, self.about)
        shapes = {name: x.shape for name, x in state.items()}
        write_card(folder, self.config, self.about, shapes, name)

    def _starting_noise(self, size: tuple[int, int]) -> Tensor:
        raise NotImplementedError
