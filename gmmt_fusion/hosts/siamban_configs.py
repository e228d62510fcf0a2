"""The paper's Siamese tracker as configs of siamban: one level, a stream for each modality.

Stages 1.1 (RGB, then thermal), 1.2 (fusion and head) and 2 (the generative fusion), by Table 2 of
the paper's supplement. What it does not tell is siamban's own, and of the pairs an epoch ViPT's.
"""

from collections.abc import Mapping
from string import Template
from types import MappingProxyType

_CONFIG = Template("""\
# The Siamese tracker of the paper "GMMT" (AAAI 2024). $about
META_ARC: "$name"

BACKBONE:
    TYPE: "$backbone"
    KWARGS:
        used_layers: [3]
    PRETRAINED: '$imagenet'
    TRAIN_LAYERS: ['layer2', 'layer3']
    TRAIN_EPOCH: $train_epoch
    LAYERS_LR: 0.1

ADJUST:
    ADJUST: True
    TYPE: "$neck"
    KWARGS:
        in_channels: 1024
        out_channels: 256$frozen

BAN:
    BAN: True
    TYPE: "OneLevelBAN"
    KWARGS:
        cls_out_channels: 2

TRAIN:
    EPOCH: $epochs
    START_EPOCH: 0  # or that of RESUME
    BATCH_SIZE: $batch
    BASE_LR: 0.005
    RESUME: ''  # or snapshot/checkpoint_e1.pth
    PRETRAINED: '$weights'
    LR:
        TYPE: 'log'
        KWARGS:
            start_lr: 0.005
            end_lr: 0.00005
    LR_WARMUP:
        TYPE: 'step'
        EPOCH: $warm_up
        KWARGS:
            start_lr: 0.001
            end_lr: 0.005
            step: 1

DATASET:
    NAMES: ['RGBT']
    RGBT:
        ROOT: 'training_dataset/BENCHMARK/$images'
        ANNO: 'training_dataset/BENCHMARK/train.json'
        FRAME_RANGE: 100
        NUM_USE: -1
    # an odd number: the last epoch's checkpoint is saved only if a step follows it
    VIDEOS_PER_EPOCH: 60001
    SEARCH:
        BLUR: 0.2
""")
_ONE_STREAM = {
    "backbone": "resnet50",
    "imagenet": "pretrained_models/resnet50.model",
    "train_epoch": 10,
    "neck": "AdjustLayer",
    "frozen": "",
    "epochs": 20,
    "batch": 28,
    "weights": "",
    "warm_up": 5,
}
_TWO_STREAMS = {
    **_ONE_STREAM,
    "backbone": "two_stream_resnet50",
    "imagenet": "",
    "neck": "TwoStreamAdjustLayer",
    "images": "{visible,infrared}",
}
_LAST = "snapshot/checkpoint_e20.pth"
_STAGES: dict[str, dict[str, object]] = {
    "siamban_r50_l3_rgb": {
        **_ONE_STREAM,
        "about": "Stage 1.1: SiamBAN of one level, on RGB images alone.",
        "images": "visible",
    },
    "siamban_r50_l3_tir": {
        **_ONE_STREAM,
        "about": "Stage 1.1: SiamBAN of one level, on thermal images alone.",
        "images": "infrared",
    },
    "siamban_r50_l3_rgbt": {
        **_TWO_STREAMS,
        "about": "Stage 1.2: the fusion and the head of both modalities, the rest frozen. Also "
        "what tests use.",
        "train_epoch": "20  # never: the backbones are frozen",
        "frozen": "\n        frozen: True",
        "weights": f"{{../siamban_r50_l3_rgb/{_LAST},../siamban_r50_l3_tir/{_LAST}}}",
    },
    "siamban_r50_l3_gmmt": {
        **_TWO_STREAMS,
        "about": "Stage 2: the generative fusion and its head; the tracker is frozen.",
        "train_epoch": "100  # never: the tracker is frozen",
        "epochs": 100,
        "batch": 8,
        "warm_up": 20,
    },
}
CONFIGS: Mapping[str, str] = MappingProxyType(
    {name: _CONFIG.substitute(stage, name=name) for name, stage in _STAGES.items()}
)
"""{name of the experiment: its config.yaml}, where BENCHMARK stands for the training set's name."""
