"""tensorboardX: its writer is PyTorch's, or an idle one where tensorboard is not installed."""

from torch.utils.tensorboard import SummaryWriter

__all__ = ["SummaryWriter"]
