"""A tracker's repository of OSTrack's shape, as small as it can be: what its files hold.

It has the family's habits: a `lib`, a configuration in a global, folders in a local.py, a sampler
and a trainer that swallow errors, scripts that start others, packages and names of 2020.
"""

from pathlib import Path

AUTHORS = "/home/authors/Tiny"

FILES = {
    "lib/__init__.py": "",
    "experiments/tiny/base.yaml": "TRAIN: {EPOCH: 2, BATCH_SIZE: 2}\n",
    "lib/config/tiny/config.py": """
import yaml

cfg = {"MODEL": {"PRETRAIN_FILE": "none"}, "TRAIN": {"EPOCH": 9, "BATCH_SIZE": 9}}


def update_config_from_file(filename, base_cfg=None):
    with open(filename) as f:
        for part, entries in yaml.safe_load(f).items():
            cfg[part].update(entries)
""",
    "lib/models/tiny.py": """
import torch
from torch import nn


class Center(nn.Module):
    feat_sz = 8

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 4, 1)

    def forward(self, x, gt_score_map=None):
        return self.conv(x)


class TinyTrack(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Conv2d(3, 8, 4, stride=4)
        self.tbsi_fuse_search = nn.Sequential(nn.Conv2d(16, 8, 3, padding=1), nn.ReLU())
        self.box_head = Center()

    def forward(self, template, search):
        maps = torch.cat([self.backbone(x) for x in search.chunk(2, dim=1)], dim=1)
        out = self.box_head(self.tbsi_fuse_search(maps))
        return {"pred_boxes": out.flatten(2).mean(2)}


def build(training=True):
    return TinyTrack()
""",
    "lib/train/admin/__init__.py": """
import importlib


def env_settings():
    try:
        return importlib.import_module("lib.train.admin.local").EnvironmentSettings()
    except:
        raise RuntimeError("YOU HAVE NOT SETUP YOUR local.py!!!")


class Settings:
    def __init__(self):
        self.env = env_settings()


class AverageMeter:
    def __init__(self):
        self.history = []

    def update(self, value):
        self.history.append(value)
""",
    "lib/test/evaluation/__init__.py": "",
    "lib/test/evaluation/local.py": f"""
class EnvSettings:
    pass


def local_env_settings():
    settings = EnvSettings()
    settings.prj_dir = '{AUTHORS}'
    settings.check_dir = '{AUTHORS}/models'
    return settings
""",
    "lib/train/data.py": """
import collections
import os
import jpeg4py
import numpy as np
import torch
import torchvision.transforms.functional as tvisf
from torch._six import string_classes
from torch.utils.data import DataLoader, Dataset


class Pairs(Dataset):
    def __init__(self, root):
        self.root = root

    def get_sequence_info(self, seq_id):
        return {}

    def get_frames(self, seq_id, frame_ids):
        return [jpeg4py.JPEG(os.path.join(self.root, "%06d.jpg" % i)).decode() for i in frame_ids]


class Processing:
    def __call__(self, frames):
        out = [torch.from_numpy(f.astype(np.float).transpose(2, 0, 1).copy()) for f in frames]
        return torch.cat([tvisf.normalize(x / 255, [0.5] * 3, [0.5] * 3) for x in out]).float()


class Sampler(Dataset):
    def __init__(self, dataset, processing, length):
        self.dataset, self.processing, self.length = dataset, processing, length

    def __len__(self):
        return self.length

    def sample_seq_from_dataset(self, dataset, is_video):
        return 0

    def __getitem__(self, index):
        valid = False
        while not valid:
            seq_id = self.sample_seq_from_dataset(self.dataset, True)
            try:
                search = self.processing(self.dataset.get_frames(seq_id, [0, 1]))
                data = {"search": search}
                valid = True
            except:
                valid = False
        return data


class Batch(dict):
    def to(self, device):
        return Batch({k: v.to(device) for k, v in self.items()})


def collate(batch):
    assert isinstance(batch[0], collections.Mapping) and not isinstance(batch[0], string_classes)
    return Batch(search=torch.stack([x["search"] for x in batch]))


def loader(root, size):
    loader = DataLoader(Sampler(Pairs(root), Processing(), 2 * size), size, collate_fn=collate)
    loader.name, loader.training = "train", True
    return loader
""",
    "lib/train/actor.py": """
class Actor:
    def __init__(self, net):
        self.net = net

    def __call__(self, data):
        return self.compute_losses(self.forward_pass(data), data)

    def forward_pass(self, data):
        return self.net(None, data["search"])

    def compute_losses(self, out, data, return_status=True):
        loss = out["pred_boxes"].square().mean()
        return loss, {"Loss/total": loss.item()}
""",
    "lib/train/trainer.py": """
import glob
import os
import torch
from torch.utils.tensorboard import SummaryWriter
from lib.train.admin import AverageMeter


class BaseTrainer:
    def __init__(self, actor, loaders, optimizer, settings, lr_scheduler):
        self.actor, self.loaders, self.optimizer = actor, loaders, optimizer
        self.settings, self.lr_scheduler, self.epoch = settings, lr_scheduler, 0
        self.stats, self.device = {"train": AverageMeter()}, torch.device("cuda:0")
        self.actor.net.to(self.device)
        self.writer = SummaryWriter(os.path.join(settings.save_dir, "tensorboard"))

    def train(self, max_epochs, load_latest=False, fail_safe=True):
        epoch = -1
        try:
            if load_latest:
                self.load_checkpoint()
            for epoch in range(self.epoch + 1, max_epochs + 1):
                self.epoch = epoch
                self.train_epoch()
                self.lr_scheduler.step()
                self.save_checkpoint()
        except:
            print("Training crashed at epoch {}".format(epoch))
            if not fail_safe:
                raise
        print("Finished training!")

    def train_epoch(self):
        self.actor.net.train()
        for data in self.loaders[0]:
            data = data.to(self.device)
            loss, status = self.actor(data)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.stats["train"].update(status)
            self.writer.add_scalar("loss", loss.item(), self.epoch)
        print("epoch", self.epoch, sorted(status), len(self.stats["train"].history))

    def save_checkpoint(self):
        if self.settings.local_rank > 0:
            return
        net = getattr(self.actor.net, "module", self.actor.net)
        state = {"epoch": self.epoch, "net": net.state_dict(), "stats": self.stats}
        state.update(optimizer=self.optimizer.state_dict(), settings=self.settings)
        state.update(net_type=type(net).__name__)
        torch.save(state, "%s/TinyTrack_ep%04d.pth.tar" % (self.settings.save_dir, self.epoch))

    def load_checkpoint(self):
        found = sorted(glob.glob(self.settings.save_dir + "/TinyTrack_ep*.pth.tar"))
        if found:
            saved = torch.load(found[-1], map_location="cpu")
            assert saved["net_type"] == type(self.actor.net).__name__
            self.actor.net.load_state_dict(saved["net"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.epoch = self.lr_scheduler.last_epoch = saved["epoch"]
            self.stats = saved["stats"]
""",
    "lib/train/run_training.py": """
import argparse
import os
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", ".."))
from lib.config.tiny import config
from lib.models.tiny import build
from lib.train.actor import Actor
from lib.train.admin import Settings
from lib.train.data import loader
from lib.train.trainer import BaseTrainer

parser = argparse.ArgumentParser()
parser.add_argument("--save_dir")
parser.add_argument("--local_rank", type=int, default=-1)
args = parser.parse_args()
if args.local_rank != -1:
    dist.init_process_group(backend="nccl")
torch.cuda.set_device(max(args.local_rank, 0))
settings = Settings()
settings.save_dir, settings.local_rank = args.save_dir, args.local_rank
os.makedirs(args.save_dir, exist_ok=True)
config.update_config_from_file("experiments/tiny/base.yaml")
train = config.cfg["TRAIN"]
net = build().cuda()
if args.local_rank != -1:
    net = DistributedDataParallel(net, device_ids=[args.local_rank], find_unused_parameters=True)
actor = Actor(net)
optimizer = torch.optim.SGD([p for n, p in net.named_parameters() if "prompt" in n] or [
    torch.nn.Parameter(torch.zeros(1))], lr=0.1)
for name, p in net.named_parameters():
    p.requires_grad = "prompt" in name
schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5)
loaders = [loader(settings.env.lasher_dir, train["BATCH_SIZE"])]
trainer = BaseTrainer(actor, loaders, optimizer, settings, schedule)
trainer.train(train["EPOCH"], load_latest=True, fail_safe=True)
""",
    "tracking/train.py": """
import os
import sys

port = sys.argv[2:]
script = "lib/train/run_training.py --save_dir " + sys.argv[1]
if port:
    script = "-m torch.distributed.launch --nproc_per_node 2 --master_port %s " % port[0] + script
os.system("python " + script)
""",
    "workspace/test.py": f"""
import multiprocessing
import os
import sys

prj = os.path.join(os.path.dirname(__file__), "..")
sys.path.append(prj)
import jpeg4py
import torch
import visdom
import vot
from lib.models.tiny import build
from lib.test.evaluation.local import local_env_settings


class Tracker:
    def __init__(self, checkpoint):
        network = build(training=False)
        network.load_state_dict(torch.load(checkpoint, map_location="cpu")["net"], strict=True)
        self.network = network.cuda().eval()


def run_sequence(name, home):
    tracker = Tracker(os.path.join(local_env_settings().check_dir, "tiny.pth"))
    frames = [torch.from_numpy(jpeg4py.JPEG(os.path.join(home, f)).decode().transpose(2, 0, 1))
              for f in sorted(os.listdir(home))[:2]]
    with torch.no_grad():
        out = tracker.network.forward(None, torch.cat(frames)[None].cuda() / 255.0)
    print(name, type(tracker.network).__name__, hasattr(tracker.network, "gmmt_fusion"),
          tuple(out["pred_boxes"].shape), flush=True)


if __name__ == "__main__":
    home = "{AUTHORS}/LasHeR/testingset"
    if sys.argv[1:] == ["parallel"]:
        multiprocessing.set_start_method("spawn", force=True)
        with multiprocessing.Pool(processes=1) as pool:
            pool.starmap(run_sequence, [("one", home)])
    else:
        run_sequence("one", home)
""",
    "tracking/evaluate.py": """
import os
import sys

sys.path.append(os.path.join(os.path.dirname(__file__), ".."))
from lib.test.evaluation.running import Tracker, run_dataset

run_dataset(["car"], Tracker())
""",
    "lib/test/evaluation/running.py": """
class Tracker:
    def create_tracker(self, params):
        raise RuntimeError("no such box")

    def run_sequence(self, seq):
        return self.create_tracker(None)


def run_dataset(sequences, tracker):
    for seq in sequences:
        try:
            tracker.run_sequence(seq)
        except Exception as e:
            print(e)
    print("Done")
""",
}


def write_checkout(folder: Path) -> Path:
    """The repository in a folder, which is returned."""
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.lstrip("\n"))
    return folder
