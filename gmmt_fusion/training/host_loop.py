"""Fine-tuning inside a host's own training script."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributed
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..attaching.attachment import Attachment
from ..checks import check_whole_number
from .learners import call_recipe
from .recipes import Recipe, paper_optimizer
from .settings import check_attached, check_generative_weight, check_recipe


def train_in_host(
    attachment: Attachment,
    epochs: int,
    actor: Any = None,  # of the host's own class
    *,
    generative_weight: float = 5.0,
    recipe: Recipe = paper_optimizer,
) -> tuple[Optimizer, LRScheduler]:
    """Make a host's loop train the fusion and its new head with Loss_track + λ · Loss_gen (Eq. 5).

    The optimiser and the schedule that it returns take the place of the host's. λ · Loss_gen is
    added where the host sums its losses, and Loss_gen is logged there: in what
    `actor.compute_losses` returns, as "Loss/generative", or in the "total_loss" that the network
    returns, beside "generative_loss". A CGAN's discriminator has its turn after every step of the
    optimiser, at the same learning rate; its own optimiser is part of the `state_dict` of that one.

    Args:
        epochs: as many as the host will train; the schedule is stepped once an epoch.
        actor: the object whose `compute_losses(out, …)` gets what the network returned (the OSTrack
            family's); without one the network itself returns its losses (siamban).
        generative_weight: λ, at least 0.
        recipe: the optimiser and its schedule, as for `fine_tune`.

    Returns:
        (optimizer, schedule).

    Raises:
        ValueError, TypeError: λ is out of range, the attachment is detached, the actor has no
            `compute_losses`, or the recipe returns something else; named before anything changes.
    """
    check_attached(attachment, "build the optimiser")
    check_whole_number("epochs", epochs)
    check_generative_weight(generative_weight)
    check_recipe(recipe)
    if actor is not None and not callable(getattr(actor, "compute_losses", None)):
        raise ValueError(
            f"the actor is a {type(actor).__name__} without compute_losses; expected the host's "
            "actor, or none where the network returns its losses"
        )
    optimizer, schedule = call_recipe(recipe, list(attachment.parameters()), epochs, 1)
    turn = None
    if (discriminator := attachment.fusion.discriminator) is not None:
        own, _ = call_recipe(recipe, list(discriminator.parameters()), epochs, 1)
        turn = _Turn(attachment, own)
    attachment.total_loss_weight = generative_weight if actor is None else None
    if actor is not None:
        # not over an earlier one of ours, with which Loss_gen would count twice
        own = getattr(actor.compute_losses, "own", actor.compute_losses)
        actor.compute_losses = _Losses(attachment, own, generative_weight)
    if _count_processes() > 1:  # other noise in every process
        generator = attachment.fusion.generator
        attachment.fusion.manual_seed((generator.initial_seed() + distributed.get_rank()) % 2**63)
    _check_first_step(attachment, optimizer)
    if turn is not None:
        optimizer.register_step_post_hook(turn)
        optimizer.register_state_dict_post_hook(turn.save)
        optimizer.register_load_state_dict_pre_hook(turn.load)
    return optimizer, schedule


def _check_first_step(attachment: Attachment, optimizer: Optimizer) -> None:
    """Before the first step, ask whether the new head learns."""

    def check(*_: Any) -> None:  # whatever torch gives a hook
        attachment.check_gradients()
        hook.remove()

    hook = optimizer.register_step_pre_hook(check)


def _count_processes() -> int:
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return 1


class _Losses:
    """An actor's `compute_losses`, with the generative loss of the same forward.

    There is none in validation.
    """

    def __init__(self, attachment: Attachment, own: Any, weight: float) -> None:
        self.attachment, self.own, self.weight = attachment, own, weight

    def __call__(self, out: Any, *args: Any, **kwargs: Any) -> Any:
        result = self.own(out, *args, **kwargs)
        if not self.attachment.enabled:
            return result
        # not the attachment's: DDP hands on other tensors
        parts = out if isinstance(out, list | tuple) else [out]
        parts = [part for part in parts if isinstance(part, Mapping)]
        found = [part["generative_loss"] for part in parts if "generative_loss" in part]
        if not found:
            if torch.is_grad_enabled():  # a validation has them off
                if self.attachment.network.training:
                    _ = self.attachment.generative_loss  # says why there is none
                raise ValueError(
                    "the network generated in eval mode where gradients are on; call "
                    "network.train() before a training step, or torch.no_grad() around a validation"
                )
            return result
        loss, *status = result if isinstance(result, tuple) else (result,)
        generative = torch.stack(found).sum() if len(found) > 1 else found[0]
        total = loss + self.weight * generative
        if not status:
            return total
        logged = {**status[0], "Loss/total": total.item(), "Loss/generative": generative.item()}
        return total, logged, *status[1:]


class _Turn:
    """The discriminator's turn after each step of the fusion's optimiser."""

    def __init__(self, attachment: Attachment, optimizer: Optimizer) -> None:
        self.attachment, self.optimizer = attachment, optimizer
        self.parameters: list[Tensor] = [
            p for group in optimizer.param_groups for p in group["params"]
        ]
        self.clear_gradients()

    def clear_gradients(self) -> None:
        """Leave gradients that do not count when hosts clip all of them.

        Zeros and not None, as siamban shares those of all parameters among its processes.
        """
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)

    def __call__(self, optimizer: Optimizer, *_: Any) -> None:
        # by autograd.grad, as DDP would take a second backward for one of the forward that is over
        gradients = torch.autograd.grad(self.attachment.discriminator_loss(), self.parameters)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            if _count_processes() > 1:
                distributed.all_reduce(gradient)
            parameter.grad = gradient / _count_processes()
        for group in self.optimizer.param_groups:
            group["lr"] = optimizer.param_groups[0]["lr"]
        self.optimizer.step()
        self.clear_gradients()

    def save(self, _: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "discriminator": self.optimizer.state_dict()}

    def load(self, _: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        if "discriminator" not in state:
            raise ValueError(
                "this state has no 'discriminator': it is not of an optimiser that train_in_host "
                "made for a fusion of method='cgan'"
            )
        self.optimizer.load_state_dict(state["discriminator"])
        return {key: value for key, value in state.items() if key != "discriminator"}
