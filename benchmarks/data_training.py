"""One fine-tuning of benchmarks/data.py: from few sequences, with a budget chosen on validation."""

import hashlib
import json
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from ablation_scoring import overlaps, success
from ablation_training import CHANNELS, Convolutions, Silent, cache_pairs, tracking_loss
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, RandomSampler
from tqdm import tqdm

from gmmt_fusion import Attachment, GenerativeFusion, attach
from gmmt_fusion.adapters import ModuleAdapter
from gmmt_fusion.files import write_atomically
from gmmt_fusion.training import CachedFeatures, Degradation, fine_tune, recipes
from gmmt_fusion.training.degradation import MIX

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from embedded.depth import DepthScene
from embedded.scene import Scene
from embedded.sequences import TRAIN_SEEDS
from embedded.siamese import SEARCH_MAP, SiameseTracker, load_tracker
from embedded.training import PairDataset, train_stage

ADAPTER = ModuleAdapter("fusion", "head", size=SEARCH_MAP)
SMALL_UNET = {"network": "unet", "network_config": {"widths": (16, 24, 32)}}  # 0.26 M parameters
WIDTH = 136  # of the plain convolutions, 0.25 M
BATCH, EVERY = 8, 48  # steps between validations
PAIRS = 16  # cached a sequence; in all at most half of what the budget sees
VALIDATED, TESTED = 90, 250  # pairs a setting
CALIBRATED = 96  # pairs
DEPTH_PAIRS = 12_800  # that the tracker of RGB and depth is trained on, from the other's weights


@dataclass(frozen=True)
class Row:
    """A kind of fine-tuning.

    fusion: arguments of GenerativeFusion. weight: λ. control: "head" trains the new head alone, on
    the host's fusion; "convolution" a network of plain ones. probability: of `Degradation`, whose
    target is the sample's own fused map before it. kinds: of it. rate, head_rate:
    of AdamW, for the network and for the head; 0 leaves the head as it is. frozen_residual: the
    path that starts as the host's fusion stays as it is. crops: pairs a sequence, times 16.
    """

    label: str
    fusion: dict[str, Any] = field(default_factory=dict)
    weight: float = 5.0
    control: str | None = None
    probability: float = 0.6
    kinds: tuple[str, ...] = MIX
    rate: float = 1e-3
    head_rate: float = 4e-4
    weight_decay: float = 1e-4
    frozen_residual: bool = False
    dropout: float = 0.0
    crops: int = 1
    ema: float | None = 0.95


@dataclass(frozen=True)
class Run:
    """One fine-tuning of a row.

    sequences: trained on, drawn by the seed, which is that of the training, too. steps: the budget.
    work: folder of all runs. depth: of RGB and depth, and not of RGB and thermal. device: that
    computes it; the noise is the same on all.
    """

    row: Row
    sequences: int
    seed: int
    steps: int
    work: Path
    depth: bool = False
    device: str = "cpu"

    @property
    def name(self) -> str:
        settings = {
            "row": asdict(self.row) | {"label": None},
            "sequences": self.sequences,
            "budget": [self.steps, self.epochs, BATCH],
            "pairs": {"validation": VALIDATED, "test": TESTED},
            **({"depth": True} if self.depth else {}),
        }
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        return f"{digest}-seed{self.seed}"

    @property
    def epochs(self) -> int:
        return max(1, self.steps // EVERY)

    @property
    def result(self) -> Path:
        """The file of its result, there or not."""
        return self.work / "results" / f"{self.name}.json"

    @property
    def folder(self) -> Path:
        """Where it is trained."""
        return self.work / "runs" / self.name


def tracker_of(run: Run) -> SiameseTracker:
    """The tracker of RGB and thermal; or that of RGB and depth, trained on first use."""
    network = load_tracker()
    path = run.work / "tracker-depth.safetensors"
    if run.depth and not path.is_file():
        pairs = PairDataset(TRAIN_SEEDS, 300, length=DEPTH_PAIRS, seed=77, scene=DepthScene)
        streams = [parts["infrared"] for parts in (network.backbones, network.necks)]
        trained, checkpoint = [*streams, network.fusion, network.head], run.work / "tracker.pt"
        train_stage(network, trained, pairs, checkpoint, report=tqdm.write)
        weights = {name: x.contiguous() for name, x in network.state_dict().items()}
        write_atomically(path, lambda to: save_file(weights, to))
    if run.depth:
        network.load_state_dict(load_file(path))
    return network.eval().to(run.device)


def build(run: Run, calibration: CachedFeatures) -> Attachment:
    """The embedded tracker with the row's fusion, calibrated: its output is the host's own."""
    row, seed = run.row, run.seed
    torch.manual_seed(seed)
    fusion = GenerativeFusion(
        CHANNELS, size=SEARCH_MAP, residual="conv3x3", **SMALL_UNET | row.fusion
    ).manual_seed(seed)
    if row.control:
        fusion.network = Convolutions(WIDTH) if row.control == "convolution" else Silent()
    for module in fusion.modules():
        if isinstance(module, nn.Dropout):
            module.p = row.dropout
    handle = attach(tracker_of(run), fusion, ADAPTER)
    batch = next(iter(DataLoader(calibration, len(calibration))))
    *maps, fused = (
        batch[name].float().to(run.device) for name in ("feature_0", "feature_1", "fused")
    )
    fusion.calibrate([(maps, fused)])
    return handle


def train(run: Run, validation: list[Path]) -> Attachment:
    """Fine-tuned in its folder, and left with the best weights; the last are in `end.pt`."""
    features, calibration = (CachedFeatures(folder) for folder in prepare(run))
    row, seed = run.row, run.seed
    handle = build(run, calibration)
    head = {id(p) for p in handle.head.parameters()}
    path = {id(p) for p in handle.fusion.residual.parameters()} if row.frozen_residual else set()

    def recipe(parameters: list[nn.Parameter], epochs: int, steps: int) -> Any:
        """The head is trained already, and learns more slowly than the network, which is not."""
        groups = [
            {
                "params": [
                    p for p in parameters if (id(p) in head) is is_head and id(p) not in path
                ],
                "lr": rate,
            }
            for is_head, rate in ((False, row.rate), (True, row.head_rate))
        ]
        kept = [g | {"weight_decay": row.weight_decay} for g in groups if g["params"] and g["lr"]]
        return recipes.adamw_optimizer(kept[row.control == "head" :], epochs, steps)

    # an epoch of few samples sees them several times
    sampler = RandomSampler(features, num_samples=run.steps * BATCH // run.epochs)
    loader = DataLoader(features, BATCH, sampler=sampler)
    torch.manual_seed(seed)

    def validate(handle: Attachment) -> float:
        state = handle.fusion.state_dict()
        write_atomically(run.folder / "end.pt", lambda path: torch.save(state, path))
        return sum(score(handle, folder)[0] for folder in validation)

    fine_tune(
        handle,
        loader,
        tracking_loss,
        run.folder / "training",
        validate=validate,
        epochs=run.epochs,
        generative_weight=row.weight,
        recipe=recipe,
        ema_decay=row.ema,
        seed=seed,
        progress=False,
        keep=1,
    )
    return handle


@torch.no_grad()
def score(handle: Attachment, folder: Path) -> tuple[float, dict[int, float]]:
    """The mean success of cached pairs, percent, and that of each of their sequences.

    The box of a pair is that of the highest score.
    """
    features = CachedFeatures(folder)
    network, training = features.network(handle), handle.network.training
    handle.network.eval()
    successes: dict[int, list[float]] = defaultdict(list)
    for batch in DataLoader(features, 32):
        cls, loc = network(batch)
        best = rearrange(cls[:, 1] - cls[:, 0], "b h w -> b (h w)").argmax(1).cpu()
        found, truth = (
            rearrange(x.float(), "b c h w -> b (h w) c").cpu()[torch.arange(len(best)), best]
            for x in (loc, batch["label_loc"])
        )
        for sequence, value in zip(
            batch["sequence"].tolist(), success(overlaps(found, truth)).tolist(), strict=True
        ):
            successes[sequence].append(value)
    handle.network.train(training)
    means = {sequence: sum(of) / len(of) for sequence, of in sorted(successes.items())}
    return sum(means.values()) / len(means), means


def prepare(run: Run) -> tuple[Path, Path]:
    """Folders of the cached maps that a run trains on, and of those that calibrate its fusion."""
    row = run.row
    pairs = min(run.steps * BATCH // 2, PAIRS * row.crops * run.sequences)
    name = f"{run.sequences}-draw{run.seed}"
    degradation = Degradation(row.probability, row.kinds) if row.probability else None
    digest = hashlib.sha256(repr(degradation).encode()).hexdigest()[:8]
    what = f"{row.probability:g}-{digest}" if degradation else "clean"
    train = f"train-{name}-{pairs}-{what}"
    options: dict[str, Any] = {"negatives": 0.08}
    seeds, draw = (TRAIN_SEEDS, run.sequences), run.seed
    return (
        write_features(run, train, *seeds, pairs, draw, degradation, **options),
        write_features(run, f"calibration-{name}", seeds[0], min(seeds[1], 12), CALIBRATED, draw),
    )


def write_features(
    run: Run,
    name: str,
    seeds: range,
    sequences: int,
    pairs: int,
    seed: int,
    degradation: Degradation | None = None,
    **scenes: Any,
) -> Path:
    """The folder with the frozen tracker's maps of pairs, cached now if they are not."""
    folder = run.work / "features" / ("depth-" * run.depth + name)
    if (folder / "complete").is_file():
        return folder
    options: dict[str, Any] = {"negatives": 0.0, "scene": DepthScene if run.depth else Scene}
    dataset = PairDataset(seeds, sequences, length=pairs, seed=1000 + seed, **options | scenes)
    cache_pairs(dataset, folder, degradation, progress=False, tracker=tracker_of(run))
    (folder / "complete").touch()
    return folder
