import torch

torch.set_num_threads(1)  # for networks as small as the tests', threads only wait for one another
