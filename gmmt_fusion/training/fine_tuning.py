"""Fine-tuning the fusion and its new head in the library's own loop, on any machine."""

import contextlib
import inspect
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..attaching.attachment import Attachment
from ..checks import check_terms, check_whole_number
from .datasets import describe_loader
from .feature_cache import describe_caches, find_caches, network_of_caches, verify_caches
from .identity import Identity, describe_run
from .learners import Learner, call_recipe, describe_learner
from .logging import Images, choose_shown, log_images
from .placement import put_in_training, start_accelerator
from .repeatable import Batch, RepeatableLoader
from .run_state import RunState
from .settings import FineTuningSettings, check_attached, check_callables
from .validation import Validate, leave_best, validate_start, validate_weights

if TYPE_CHECKING:  # takes a second to import
    from accelerate import Accelerator

TrackingLoss = Callable[[nn.Module, Batch], Tensor | Mapping[str, Tensor]]
"""(network, batch) -> Loss_track, or its terms by name."""


def fine_tune(
    attachment: Attachment,
    loader: DataLoader[Any],
    tracking_loss: TrackingLoss,
    folder: str | os.PathLike[str],
    *,
    validate: Validate | None = None,
    patience: int | None = None,
    images: Callable[[Attachment], Images] | None = None,
    save_every: int | None = None,
    keep: int = 3,
    log_with: Any = None,  # of accelerate
    progress: bool = True,
    **settings: Any,  # the fields of FineTuningSettings, which checks them
) -> dict[str, float]:
    """Train the fusion and its new head with Loss = Loss_track + λ · Loss_gen (Eq. 5).

    The host stays as it is. Killed, and started again with the same folder, the run goes on from
    its last checkpoint; on one process, to the same bits. Started again it must be the same run:
    settings, what the recipe returns, batch size, sampler and length of the data, cache, host,
    adapter, degradation and number of processes are compared. `epochs` may grow, and the schedule
    is then that of the new number; workers, `validate`, `patience`, `images`, `save_every`, `keep`,
    `log_with` and `progress` may differ; `tracking_loss` and the samples themselves cannot be
    compared.

    With `validate` the attachment is left with the best weights: those of an epoch, or, with a
    warning, those of the start where no epoch is better. Without, with the last ones.

    One run at a time writes into the folder. It gets `checkpoints/step-*`,
    `log.jsonl`, the `best` weights so far where there is a `validate`, and the `final` ones, with
    which the attachment is left: each of these folders can be given to `attach`.

    On several devices the script is the same, started as `accelerate launch --multi_gpu
    --num_processes 2 script.py`, which also starts several processes on CPUs, or with torchrun. On
    several machines it is started on each, with `--num_machines 2 --machine_rank 0` (or 1),
    `--main_process_ip`, `--main_process_port` and `--num_processes` of all of them together; all
    must see the folder. The loader's batch size is that of one process.

    Args:
        loader: a torch DataLoader, of the host's inputs or over a `CachedFeatures`. Its batches are
            dealt out to the processes, its order and augmentations drawn from `seed`.
        tracking_loss: called with the network, which it calls once, and a batch on its device.
            Returns Loss_track, or its terms by name, which are summed and logged. From a cache, the
            network returns what the head returns.
        validate: called with the attachment in eval mode, on the main process; more is better.
            Before the first step it is called twice, with the host's own fusion and with the
            start, and then after every epoch.
        patience: stop after so many epochs in a row that `validate` finds no better.
        images: called as `validate` after every epoch, for trackers of `log_with` that take images;
            returns {name: image (H, W, 3), uint8, RGB}, of a validation frame say.
        save_every: steps between checkpoints; there is one after every epoch anyway.
        keep: checkpoints, the last ones.
        log_with: log there too: "tensorboard" (below the folder), "wandb" or another name that
            accelerate knows, one of its trackers (`accelerate.tracking.GeneralTracker`), or a list.
        progress: show a bar with the losses and the time left.
        settings: epochs, generative_weight, recipe and whatever else changes the result: see
            `FineTuningSettings`.

    Returns:
        The last step's losses, gradient norm and learning rate, and, with `validate`, `base` (of
        the host's own fusion), `validation`, `best` and `best_step`, 0 for the start.

    Raises:
        ValueError, TypeError: something does not fit, or the folder holds another run; named
            before anything is computed.
        OSError: another process trains in the folder, a file in it is damaged, or the disk full.
        ImportError: what `log_with` names is not installed.
        FloatingPointError: a loss or gradient is not finite; names step, terms and last checkpoint,
            and writes nothing.
    """
    check_attached(attachment, "train")
    check_callables(tracking_loss=tracking_loss, validate=validate, images=images)
    chosen = FineTuningSettings(**settings)
    check_whole_number("keep", keep)
    for name, number in (("save_every", save_every), ("patience", patience)):
        if number is not None:
            check_whole_number(name, number)
    if patience is not None and validate is None:
        raise ValueError(
            f"patience={patience} counts epochs that validate finds no better; give it"
        )
    folder = Path(folder).resolve()  # once: the working directory may change
    with start_accelerator(chosen.mixed_precision, folder, log_with) as accelerator:
        batches = RepeatableLoader(
            loader, chosen.seed, accelerator.process_index, accelerator.num_processes
        )
        network = _choose_network(attachment, loader)
        with put_in_training(attachment, accelerator.device):
            state = _build_state(accelerator, attachment, loader, batches, folder, keep, chosen)
            with state.owned():
                model = accelerator.prepare_model(network)
                loop = _Loop(state, batches, model, tracking_loss, chosen)
                state.on_main(lambda: verify_caches(find_caches(loader.dataset)))
                state.resume()
                try:
                    return loop.run(validate, patience, images, save_every, progress)
                except KeyboardInterrupt as interrupt:
                    last = next(iter(state.checkpoints[::-1]), "its start: no checkpoint yet")
                    if hasattr(interrupt, "add_note"):  # Python 3.11
                        interrupt.add_note(f"started again, fine_tune goes on from {last}")
                    raise


def _show_settings(function: Callable[..., Any]) -> None:
    """Let help() and inspect show the settings among the function's own arguments."""
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    settings = inspect.signature(FineTuningSettings).parameters.values()
    shown = [*own, *(p.replace(kind=p.KEYWORD_ONLY) for p in settings)]
    # inspect reads this attribute of any function; types do not know it
    cast(Any, function).__signature__ = signature.replace(parameters=shown)


_show_settings(fine_tune)


def _choose_network(attachment: Attachment, loader: DataLoader[Any]) -> nn.Module:
    """The host, or over a cache the fusion and its head alone."""
    caches = find_caches(loader.dataset)
    return network_of_caches(caches, attachment) if caches else attachment.network


def _build_state(
    accelerator: "Accelerator",
    attachment: Attachment,
    loader: DataLoader[Any],
    batches: RepeatableLoader,
    folder: Path,
    keep: int,
    settings: FineTuningSettings,
) -> RunState:
    """The state of a run that has not begun, its random numbers included."""
    from accelerate.utils import set_seed

    seed = settings.seed + accelerator.process_index  # other noise on every process
    set_seed(seed)
    attachment.fusion.manual_seed(seed)
    parameters = {"fusion": list(attachment.parameters())}
    if attachment.fusion.discriminator is not None:
        parameters["discriminator"] = list(attachment.fusion.discriminator.parameters())
    per_epoch = _count_steps(batches, settings)
    made = {
        name: call_recipe(settings.recipe, own, settings.epochs, per_epoch)
        for name, own in parameters.items()
    }
    about = describe_run(accelerator, attachment, settings)
    about |= {"batches": batches.batches, **describe_loader(loader)}
    about["cache"] = describe_caches(find_caches(loader.dataset))

    def identify(epochs: int) -> Identity:
        learners = {
            name: describe_learner(
                *made[name]
                if epochs == settings.epochs
                else call_recipe(settings.recipe, own, epochs, per_epoch),
                steps=epochs * per_epoch,
            )
            for name, own in parameters.items()
        }
        return {**about, "epochs": epochs, **learners}

    average = None
    if settings.ema_decay is not None:
        from diffusers.training_utils import EMAModel

        average = EMAModel(parameters["fusion"], decay=settings.ema_decay)
    learners = {
        name: Learner(parameters[name], accelerator.prepare_optimizer(optimizer), schedule)
        for name, (optimizer, schedule) in made.items()
    }
    return RunState(
        accelerator, attachment, folder, keep, settings.epochs, identify, learners, average
    )


def _count_steps(batches: RepeatableLoader, settings: FineTuningSettings) -> int:
    """Steps of an epoch."""
    return -(-len(batches) // settings.accumulation)


class _Loop:
    """Epochs and steps of a run.

    network: what `tracking_loss` gets, wrapped by accelerate.
    """

    def __init__(
        self,
        state: RunState,
        batches: RepeatableLoader,
        network: nn.Module,
        tracking_loss: TrackingLoss,
        settings: FineTuningSettings,
    ) -> None:
        self.state, self.batches, self.network = state, batches, network
        self.tracking_loss, self.settings = tracking_loss, settings
        self.accelerator, self.attachment = state.accelerator, state.attachment
        self.fusion = state.learners["fusion"]
        self.discriminator = state.learners.get("discriminator")

    def run(
        self,
        validate: Validate | None,
        patience: int | None,
        images: Callable[[Attachment], Images] | None,
        save_every: int | None,
        progress: bool,
    ) -> dict[str, float]:
        """All steps that are left; returns the last values of everything that was logged."""
        from accelerate.utils import tqdm

        state, per_epoch = self.state, _count_steps(self.batches, self.settings)
        total, first_step = self.settings.epochs * per_epoch, True
        if validate is not None and state.step == 0:
            validate_start(state, validate)

        def is_stale() -> bool:
            return patience is not None and state.step - state.best_step >= patience * per_epoch

        bar = tqdm(
            total=total, initial=state.step, desc="fine-tune", unit="step", disable=not progress
        )
        with bar:
            while state.step < total and not is_stale():
                epoch, first = divmod(state.step, per_epoch)
                for group in self._group_batches(epoch, first):
                    values = self.train_step(group)
                    state.step += 1
                    if first_step:  # the optimiser has a state now
                        state.check_states()
                        first_step = False
                    state.log({"epoch": epoch, **values})
                    bar.set_postfix(choose_shown(state.record), refresh=False)
                    bar.update()
                    if save_every and state.step % save_every == 0 and state.step % per_epoch:
                        state.save()
                if validate is not None:
                    validate_weights(state, validate)
                if images is not None:
                    log_images(self.accelerator, self.attachment, images, state.step)
                state.save()
        self.finish(validated=validate is not None)
        return state.record

    def finish(self, *, validated: bool) -> None:
        """Leave the attachment with the weights to keep, and save them."""
        state, steps = self.state, self.state.step
        scores: Mapping[str, float] = {}
        if state.average is not None:
            state.average.copy_to(self.fusion.parameters)
        if validated and (scores := leave_best(state)):
            steps = state.best_step
        if self.accelerator.is_main_process:
            state.save_fusion(state.folder / "final", steps, **scores)
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.accelerator.wait_for_everyone()

    def _group_batches(self, epoch: int, first: int) -> Iterator[list[Batch]]:
        """The batches of each step of an epoch, from step `first` on."""
        accumulation = self.settings.accumulation
        batches = self.batches.load_epoch(epoch, first * accumulation)
        while group := list(itertools.islice(batches, accumulation)):
            yield group

    def train_step(self, batches: list[Batch]) -> dict[str, float]:
        """One step of the optimisers. The losses are means over batches and processes."""
        optimizer, maps = self.fusion.optimizer, []
        sums: dict[str, Tensor] = {}
        optimizer.zero_grad()
        for number, batch in enumerate(batches, 1):
            # processes share their gradients once a step
            last = number == len(batches)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.network):
                losses = self.compute_losses(batch)
                self.accelerator.backward(losses["loss"] / len(batches))
            for name, value in losses.items():
                part = value.detach().float() / len(batches)
                sums[name] = sums[name] + part if name in sums else part
            if self.discriminator is not None:
                maps += self.attachment.fused_maps
        if self.state.step == 0:
            self.attachment.check_gradients()
        most = self.settings.max_gradient_norm or math.inf
        norm = self.accelerator.clip_grad_norm_(self.fusion.parameters, most)
        # read at once: a GPU is waited for a single time in a step, and the norm is all processes'
        values = self.reduce_to_means({**sums, "gradient_norm": norm.float()})
        # the scaler skips steps whose gradients are not, and lowers its scale
        scaled = self.accelerator.scaler is not None
        self.check_finite({k: v for k, v in values.items() if not scaled or k in sums})
        values["learning_rate"] = float(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if self.discriminator is not None:
            values.update(self.train_discriminator(self.discriminator, maps))
        if not optimizer.step_was_skipped:
            for learner in self.state.learners.values():
                learner.schedule.step()
            if self.state.average is not None:
                self.state.average.step(self.fusion.parameters)
        return values

    def compute_losses(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of a batch by name: "loss", the terms of Loss_track and "generative_loss"."""
        from accelerate.utils import send_to_device

        batch = send_to_device(batch, self.accelerator.device, non_blocking=True)
        terms = check_terms(self.tracking_loss(self.network, batch))
        generative = self.attachment.generative_loss
        if generative is None:
            raise ValueError(
                "tracking_loss has not called the network that it got; Loss_gen is of its forward"
            )
        loss = sum(terms.values()) + self.settings.generative_weight * generative
        return {"loss": loss, **terms, "generative_loss": generative}

    def train_discriminator(self, learner: Learner, maps: list[Any]) -> dict[str, float]:
        """The discriminator's turn, on the (features, fused) of this step's forwards."""
        total = torch.zeros((), device=self.accelerator.device)
        learner.optimizer.zero_grad()
        for features, fused in maps:
            with self.accelerator.autocast():
                loss = self.attachment.fusion.discriminator_loss(features, fused) / len(maps)
            self.accelerator.backward(loss)
            total += loss.detach()
        values = self.reduce_to_means({"discriminator_loss": total})
        self.check_finite(values)
        # shared by hand: the wrapped forward knows nothing of this backward
        for parameter in learner.parameters:
            parameter.grad = self.accelerator.reduce(parameter.grad, "mean")
        learner.optimizer.step()
        return values

    def reduce_to_means(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Means over the processes, so that all of them stop where one is not finite."""
        means = self.accelerator.reduce(torch.stack(list(values.values())), "mean").tolist()
        return dict(zip(values, means, strict=True))

    def check_finite(self, values: Mapping[str, float]) -> None:
        """Raise FloatingPointError, which names step, values and checkpoint, unless all are."""
        if not all(map(math.isfinite, values.values())):
            named = ", ".join(f"{name} {value:g}" for name, value in values.items())
            last = next(iter(self.state.checkpoints[::-1]), "none yet")
            raise FloatingPointError(
                f"step {self.state.step + 1} is not finite: {named}. Nothing was written; the last "
                f"good checkpoint is {last}. Look at its batch, or lower the learning rate"
            )
