"""Fine-tuning the fusion and its new head, with everything that a long training on any machine
needs.
"""

import contextlib
import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.data import Subset

from ..attaching.attachment import Attachment
from ..checks import check_share, check_terms, check_whole_number
from ..files import remove_folder_atomically, write_atomically, write_folder_atomically
from ..model import checkpoint
from ..model.fusion import GenerativeFusion
from .feature_cache import CachedFeatures
from .recipes import Recipe, adamw_optimizer, paper_optimizer
from .repeatable import RepeatableLoader, random_state, set_random_state

__all__ = ["adamw_optimizer", "fine_tune", "paper_optimizer"]


def fine_tune(
    attachment: Attachment,
    loader: Any,
    tracking_loss: Callable[[nn.Module, Any], Tensor | Mapping[str, Tensor]],
    folder: Any,
    *,
    epochs: int = 100,
    generative_weight: float = 5.0,
    optimizer: Recipe = adamw_optimizer,
    max_gradient_norm: float | None = 1.0,
    accumulation: int = 1,
    mixed_precision: str | None = None,
    ema_decay: float | None = None,
    validate: Callable[[Attachment], float] | None = None,
    save_every: int | None = None,
    keep: int = 3,
    seed: int = 0,
    tensorboard: bool = False,
    progress: bool = True,
) -> dict[str, float]:
    """Train the fusion and its new head with Loss = Loss_track + λ · Loss_gen (Eq. 5); the host
    stays as it is.

    Killed, and started again with the same folder, it goes on from the last checkpoint; on one
    process, to the same bits. The folder gets `checkpoints/step-*`, `log.jsonl`, the `best` weights
    where there is a `validate`, and the
    `final` ones: each of these folders can be given to `attach`.

    On several devices the script is the same, started as `accelerate launch --multi_gpu
    --num_processes 2 script.py`, which also starts several processes on CPUs, or with torchrun. On
    several machines it is started on each, with `--num_machines 2 --machine_rank 0` (or 1),
    `--main_process_ip`, `--main_process_port` and `--num_processes` of all of them together; all
    must see the folder. The loader's batch size is that of one process.

    Args:
        loader: a torch DataLoader, of the host's inputs or over a `CachedFeatures`. Its batches are
            shared out over the processes, its order and augmentations drawn from `seed`.
        tracking_loss: called with the network, which it calls once, and a batch on its device.
            Returns Loss_track, or its terms by name, which are summed and logged. From a cache, the
            network returns what the head returns.
        epochs: in all; a finished run goes on if it is started again with more.
        generative_weight: λ.
        optimizer: `adamw_optimizer`, `paper_optimizer`, or a function of your own (parameters,
            epochs, steps_per_epoch) to (optimizer, scheduler). It is called once more for the
            discriminator of a CGAN.
        max_gradient_norm: gradients are clipped to it; None does not clip.
        accumulation: batches a step.
        mixed_precision: "no", "fp16" or "bf16"; default what `accelerate launch` or `accelerate
            config` says.
        ema_decay: of a moving average of the weights, 0.999 say: those are validated, and left in
            the end.
        validate: called with the attachment in eval mode after every epoch, on the main process;
            more is better.
        save_every: steps between checkpoints; there is one after every epoch anyway. The last
            `keep` are kept.
        seed: of everything random; Python's, NumPy's and PyTorch's own generators are set to it.
        tensorboard: log there too, below the folder.

    Returns:
        The last step's losses, gradient norm and learning rate, and, with `validate`, `validation`
        and `best`.

    Raises:
        ValueError, TypeError: something does not fit, named before anything is computed.
        FloatingPointError: a loss or gradient is not finite; names step, terms and last checkpoint,
        and writes nothing.
    """
    if not isinstance(attachment, Attachment) or not attachment.attached:
        raise ValueError("the attachment is detached; attach the fusion again, and train that")
    for name, number in (
        ("epochs", epochs),
        ("accumulation", accumulation),
        ("keep", keep),
        ("save_every", 1 if save_every is None else save_every),
    ):
        check_whole_number(name, number)
    if not 0 <= generative_weight < math.inf:
        raise ValueError(
            f"generative_weight={generative_weight} is out of range; expected λ of at least 0"
        )
    if max_gradient_norm is not None and not max_gradient_norm > 0:
        raise ValueError(
            f"max_gradient_norm={max_gradient_norm} is out of range; expected above 0, or None"
        )
    check_share("ema_decay", ema_decay or 0)
    from accelerate.state import AcceleratorState, is_initialized

    users = is_initialized()
    try:
        run = _Run(
            attachment, loader, Path(folder), mixed_precision, accumulation, keep, seed, tensorboard
        )
        with run.started(optimizer, epochs, ema_decay):
            return run.train(
                epochs,
                tracking_loss,
                generative_weight,
                max_gradient_norm or math.inf,
                validate,
                save_every or run.steps_per_epoch,
                progress,
            )
    finally:
        if not users:  # the next training may have another mixed_precision
            AcceleratorState._reset_state()


class _Run:
    """A training under way: everything that a checkpoint holds."""

    def __init__(
        self,
        attachment: Attachment,
        loader: Any,
        folder: Path,
        mixed_precision: str | None,
        accumulation: int,
        keep: int,
        seed: int,
        tensorboard: bool,
    ) -> None:
        from accelerate import Accelerator
        from accelerate.utils import (
            DistributedDataParallelKwargs,
            InitProcessGroupKwargs,
            is_tensorboard_available,
        )

        if tensorboard and not is_tensorboard_available():
            raise ImportError("tensorboard=True needs tensorboard; pip install tensorboard")
        # a head may leave parameters unused, and a discriminator has a turn of its own
        unused = DistributedDataParallelKwargs(find_unused_parameters=True)
        patience = InitProcessGroupKwargs(
            timeout=timedelta(days=1)
        )  # the others wait while the first one validates
        # where there are processes and no device, accelerate would look for one all the same
        self.accelerator = Accelerator(
            cpu=not getattr(torch, "accelerator", torch.cuda).is_available(),
            mixed_precision=mixed_precision,
            kwargs_handlers=[unused, patience],
            project_dir=folder,
            log_with="tensorboard" if tensorboard else None,
        )
        self.device, self.main = self.accelerator.device, self.accelerator.is_main_process
        self.process = self.accelerator.process_index
        self.loader = RepeatableLoader(loader, seed, self.process, self.accelerator.num_processes)
        self.accumulation, self.steps_per_epoch = accumulation, -(-len(self.loader) // accumulation)
        self.attachment, self.folder, self.keep, self.seed = attachment, folder, keep, seed
        dataset = loader.dataset
        while isinstance(dataset, Subset):
            dataset = dataset.dataset
        self.network = (
            dataset.network(attachment)
            if isinstance(dataset, CachedFeatures)
            else attachment.network
        )
        self.parameters = list(attachment.parameters())
        self.discriminator = list(
            getattr(attachment.fusion, "discriminator", nn.Module()).parameters()
        )
        self.step, self.best = 0, -math.inf
        self.record: dict[str, float] = {}

    @contextlib.contextmanager
    def started(self, recipe: Recipe, epochs: int, ema_decay: float | None) -> Iterator[None]:
        """Network, optimisers and random numbers as they go on; in the end the network is as it
        was.
        """
        from accelerate.utils import set_seed

        network, training = self.attachment.network, self.attachment.network.training
        device = next(network.parameters()).device
        patches = {"forward", "_original_forward", "_is_accelerate_prepared"} - vars(
            network
        ).keys()  # accelerate's
        plugin = self.attachment._plugin
        total_weight, plugin.total_weight = plugin.total_weight, None  # λ is applied here, once
        try:
            network.to(self.device).train()
            set_seed(self.seed + self.process)
            self.attachment.fusion.manual_seed(
                self.seed + self.process
            )  # other noise on every process
            built = [
                recipe(p, epochs, self.steps_per_epoch)
                for p in (self.parameters, self.discriminator)
                if p
            ]
            self.optimizers = [
                self.accelerator.prepare_optimizer(optimizer) for optimizer, _ in built
            ]
            self.schedulers = [scheduler for _, scheduler in built]
            self.ema: Any = None
            if ema_decay is not None:
                from diffusers.training_utils import EMAModel

                self.ema = EMAModel(self.parameters, decay=ema_decay)
            self.wrapped = self.accelerator.prepare_model(self.network)
            self.resume()
            yield
        finally:
            for name in patches & vars(network).keys():
                delattr(network, name)
            plugin.total_weight = total_weight
            network.to(device).train(training)

    def train(
        self,
        epochs: int,
        tracking_loss: Callable,
        weight: float,
        max_norm: float,
        validate: Callable | None,
        save_every: int,
        progress: bool,
    ) -> dict[str, float]:
        from accelerate.utils import tqdm

        total = epochs * self.steps_per_epoch
        with tqdm(total=total, initial=self.step, desc="fine-tune", disable=not progress) as bar:
            while self.step < total:
                epoch, first = divmod(self.step, self.steps_per_epoch)
                batches = self.loader.epoch(epoch, first * self.accumulation)
                while group := list(itertools.islice(batches, self.accumulation)):
                    values = self.train_step(group, tracking_loss, weight, max_norm)
                    self.step += 1
                    self.log({"epoch": epoch, **values})
                    bar.update()
                    bar.set_postfix(
                        {name: f"{value:.3g}" for name, value in values.items() if "loss" in name}
                    )
                    if self.step % save_every == 0 and self.step % self.steps_per_epoch:
                        self.save()
                if validate is not None:
                    self.validate(validate)
                self.save()
        if self.ema is not None:
            self.ema.copy_to(self.parameters)
        if self.main:
            self.attachment.save_pretrained(self.folder / "final")
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.accelerator.wait_for_everyone()
        return self.record

    def train_step(
        self, batches: list[Any], tracking_loss: Callable, weight: float, max_norm: float
    ) -> dict[str, float]:
        """One step of the optimisers. The losses are means over batches and processes."""
        from accelerate.utils import send_to_device

        optimizer, maps = self.optimizers[0], []
        sums: dict[str, Tensor] = {}
        optimizer.zero_grad()
        for number, batch in enumerate(batches, 1):
            batch = send_to_device(batch, self.device, non_blocking=True)
            # processes share their gradients once a step
            with (
                contextlib.nullcontext()
                if number == len(batches)
                else self.accelerator.no_sync(self.wrapped)
            ):
                terms = check_terms(tracking_loss(self.wrapped, batch))
                generative = self.attachment.generative_loss
                if generative is None:
                    raise ValueError(
                        "tracking_loss has not called the network that it got; Loss_gen is of its "
                        "forward"
                    )
                loss = sum(terms.values()) + weight * generative
                self.accelerator.backward(loss / len(batches))
            for name, value in {"loss": loss, **terms, "generative_loss": generative}.items():
                sums[name] = sums.get(name, 0) + value.detach().float() / len(batches)
            maps.append(self.attachment._plugin.last_maps)
        values = self.means(sums)
        values["gradient_norm"] = float(self.accelerator.clip_grad_norm_(self.parameters, max_norm))
        if self.accelerator.scaler is None:  # which skips such steps, and lowers its scale
            self.check_finite(values)
        values["learning_rate"] = float(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if self.discriminator:
            values.update(self.discriminator_step(maps))
        if not optimizer.step_was_skipped:
            for scheduler in self.schedulers:
                scheduler.step()
            if self.ema is not None:
                self.ema.step(self.parameters)
        return values

    def discriminator_step(self, maps: list[Any]) -> dict[str, float]:
        """The discriminator's turn on the maps of this step's forwards."""
        optimizer, total = self.optimizers[1], torch.zeros((), device=self.device)
        optimizer.zero_grad()
        for features, fused in maps:
            with self.accelerator.autocast():
                loss = self.attachment.fusion.discriminator_loss(features, fused) / len(maps)
            self.accelerator.backward(loss)
            total += loss.detach()
        values = self.means({"discriminator_loss": total})
        for parameter in (
            self.discriminator
        ):  # shared by hand: the wrapped forward knows nothing of this backward
            parameter.grad = self.accelerator.reduce(parameter.grad, "mean")
        optimizer.step()
        return values

    def means(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Over the processes, so that all of them stop where one is not finite."""
        means = self.accelerator.reduce(torch.stack(list(values.values())), "mean").tolist()
        self.check_finite(named := dict(zip(values, means, strict=True)))
        return named

    def check_finite(self, values: Mapping[str, float]) -> None:
        if not all(map(math.isfinite, values.values())):
            named = ", ".join(f"{name} {value:g}" for name, value in values.items())
            last = next(iter(self.checkpoints[::-1]), "none yet")
            raise FloatingPointError(
                f"step {self.step + 1} is not finite: {named}. Nothing was written; the last good "
                f"checkpoint is {last}. Look at its batch, or lower the learning rate"
            )

    def validate(self, validate: Callable[[Attachment], float]) -> None:
        from accelerate.utils import broadcast_object_list

        if self.ema is not None:
            self.ema.store(self.parameters)
            self.ema.copy_to(self.parameters)
        self.attachment.network.eval()
        value = [0.0]
        if self.main:
            with torch.no_grad():
                value = [float(validate(self.attachment))]
            if value[0] > self.best:
                self.attachment.save_pretrained(self.folder / "best")
        value = broadcast_object_list(value)
        self.best = max(self.best, value[0])
        if self.ema is not None:
            self.ema.restore(self.parameters)
        self.attachment.network.train()
        self.log({"validation": value[0], "best": self.best})

    def log(self, values: Mapping[str, float]) -> None:
        self.record = {**self.record, "step": self.step, **values}
        self.accelerator.log(dict(values), step=self.step)
        if self.main:
            with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": self.step, **values}) + "\n")

    @property
    def checkpoints(self) -> list[Path]:
        return sorted((self.folder / "checkpoints").glob("step-*"))

    @property
    def parts(self) -> dict[str, Any]:
        """What has a state_dict of its own beside the weights."""
        parts = {"ema": self.ema, "scaler": self.accelerator.scaler}
        for i, (optimizer, scheduler) in enumerate(
            zip(self.optimizers, self.schedulers, strict=True)
        ):
            parts.update({f"optimizer_{i}": optimizer, f"scheduler_{i}": scheduler})
        return {name: part for name, part in parts.items() if part is not None}

    @property
    def setting(self) -> dict[str, int]:
        """Where a step is in the loader depends on these."""
        return {
            "seed": self.seed,
            "batches": self.loader.batches,
            "accumulation": self.accumulation,
            "processes": self.accelerator.num_processes,
        }

    def save(self) -> None:
        from accelerate.utils import gather_object

        random_states = gather_object([random_state(self.device, self.attachment.fusion.generator)])
        if self.main:
            state = {
                "step": self.step,
                "best": None if self.best == -math.inf else self.best,
                "record": self.record,
                **self.setting,
                "random_states": random_states,
            }

            def write(path: Path) -> None:
                self.attachment.save_pretrained(path)
                # a schedule of NumPy's numbers must not make a checkpoint that cannot be read back
                states = tree_map(
                    lambda x: x.item() if isinstance(x, np.generic) else x,
                    {name: part.state_dict() for name, part in self.parts.items()},
                )
                torch.save(states, path / "optimizer.pt")
                (path / "state.json").write_text(json.dumps(state) + "\n", encoding="utf-8")

            write_folder_atomically(self.folder / "checkpoints" / f"step-{self.step:08d}", write)
            for old in self.checkpoints[: -self.keep]:
                remove_folder_atomically(old)
        self.accelerator.wait_for_everyone()

    def resume(self) -> None:
        if self.main:
            (self.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            for left in (self.folder / "checkpoints").glob(
                ".step-*"
            ):  # by a process that was killed
                shutil.rmtree(left)
        self.accelerator.wait_for_everyone()
        self.accelerator.init_trackers("tensorboard")
        if self.checkpoints:
            self.load(self.checkpoints[-1])
        if self.main and (path := self.folder / "log.jsonl").is_file():
            lines = [
                line
                for line in path.read_text(encoding="utf-8").splitlines()
                if _step(line) <= self.step
            ]
            write_atomically(
                path, lambda temporary: temporary.write_text("".join(f"{line}\n" for line in lines))
            )

    def load(self, path: Path) -> None:
        """Everything from a checkpoint.

        Raises:
            ValueError, OSError: it is of another fusion or training, or damaged.
        """
        config, weights = checkpoint.load(path, GenerativeFusion)
        if other := _other(
            config, json.loads(json.dumps(self.attachment.fusion.config, default=checkpoint.plain))
        ):
            raise ValueError(
                f"{path} is of another fusion, with {other}; give another folder, or that fusion"
            )
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if other := _other(state, self.setting):
            raise ValueError(
                f"{path} is of another training, with {other}; give another folder, or train as "
                "before"
            )
        saved = torch.load(path / "optimizer.pt", weights_only=True, map_location=self.device)
        if saved.keys() != self.parts.keys():
            raise ValueError(
                f"{path} has the states of {', '.join(saved)}; expected {', '.join(self.parts)}. "
                "Give "
                "another folder, or ema_decay and mixed_precision as before"
            )
        checkpoint.load_state(self.attachment.fusion, weights, path)
        for name, part in self.parts.items():
            part.load_state_dict(saved[name])
        self.step, self.record = state["step"], state["record"]
        self.best = -math.inf if state["best"] is None else state["best"]
        set_random_state(
            state["random_states"][self.process], self.device, self.attachment.fusion.generator
        )


def _other(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key}={there.get(key)!r}, not {here[key]!r}"
        for key in here
        if there.get(key) != here[key]
    )


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return math.inf  # cut off when the process was killed
