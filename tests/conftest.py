"""Set before anything else is imported: this file is the first that pytest reads."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, at import; without it a missing name is asked for

import torch

torch.set_num_threads(1)  # for networks as small as the tests', threads only wait for one another
