"""tensorboardX, and torch.utils.tensorboard without tensorboard: a writer that writes nothing, and
says so.
"""

import sys
from typing import Any

METHODS = (
    "add_audio add_custom_scalars add_embedding add_figure add_graph add_histogram add_hparams "
    "add_image add_image_with_boxes add_images add_mesh add_onnx_graph add_pr_curve add_scalar "
    "add_scalars add_tensor add_text add_video close flush"
)


class SummaryWriter:
    """Takes what tensorboard's writer takes."""

    told = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # as tensorboard's
        if not SummaryWriter.told:
            SummaryWriter.told = True
            print(
                "note: tensorboard is not installed, so no curves are written for it; "
                "pip install tensorboard",
                file=sys.stderr,
            )

    def __getattr__(self, name: str) -> Any:
        if name not in METHODS.split():
            raise AttributeError(f"SummaryWriter has no {name!r}")
        return self._drop

    def _drop(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __enter__(self) -> "SummaryWriter":
        return self

    def __exit__(self, *args: Any) -> None:
        pass
