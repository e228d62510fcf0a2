"""The table of hosts over which the law of patching is tested; a host needs no more than a row
here.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import stand_ins_siamban
import torch
from stand_ins import TBSITrack, ViPTrack
from stand_ins_dual import BATrack, MixingBlock, SDSTrack
from stand_ins_more import SEQTRACKV2, SUTRACK, CAFormer, STTrack
from tiny_hosts import CHANNELS, ConcatTracker, MapsTracker, SiameseTracker, SumAdapter, SumTracker
from torch import Tensor, nn
from unknown_hosts import Pruned

from gmmt_fusion import GenerativeFusion
from gmmt_fusion.adapters import ConcatAdapter, EncoderAdapter, ModuleAdapter, Tap, TapAdapter


@dataclass(frozen=True)
class Case:
    """A host and how it is used.

    build: a fresh network, always with the same weights, in eval mode. run: one frame at inference,
    one tensor out; hosts of the OSTrack family take a seed, for another frame.
    train: one training forward, whatever the host returns. adapter: for `attach`. fusion: arguments
    of GenerativeFusion. fused_in: a submodule that only the host's own fusion runs, or "" where
    there is none. fullgraph: whether the host compiles as one graph. fusions: of one training
    forward. apart: whether the host computes something between its fusion and its head. staged:
    whether its forward is called in stages.
    """

    name: str
    build: Callable[[], nn.Module]
    run: Callable[..., Tensor]
    train: Callable[[nn.Module], Any]
    adapter: Callable[[], Any]
    fusion: dict[str, Any] = field(default_factory=dict)
    fused_in: str = ""
    fullgraph: bool = True
    fusions: int = 1
    apart: bool = False
    staged: bool = False

    def make_fusion(self, **options: Any) -> GenerativeFusion:
        """A fusion whose output differs visibly from the host's: its last layer is not at zero."""
        state = torch.get_rng_state()
        torch.manual_seed(7)
        fusion = GenerativeFusion(**{**self.fusion, **options})
        nn.init.normal_(fusion.network.last_layer.weight, std=0.1)
        torch.set_rng_state(state)
        return fusion


def images(batch: int = 2) -> tuple[Tensor, Tensor]:
    """Template (B, 6, 4, 4) and search (B, 6, 8, 8), always the same."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, 6, 4, 4, generator=generator), torch.rand(
        batch, 6, 8, 8, generator=generator
    )


def seeded(cls: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        state = torch.get_rng_state()
        torch.manual_seed(0)
        network = cls().eval()
        torch.set_rng_state(state)
        return network

    return build


def scores(network: nn.Module) -> Tensor:
    out = network(*inputs(network))
    return out["scores"] if isinstance(out, dict) else out[0]


def inputs(network: nn.Module) -> list[Tensor]:
    """The images in the network's own dtype and device."""
    like = next(network.parameters())
    return [x.to(like) for x in images()]


def track(network: nn.Module) -> Tensor:
    template, search = inputs(network)
    network.template(template)
    return network.track(search)["cls"]


def train(network: nn.Module) -> Any:
    return network(*inputs(network))


def ostrack(
    name: str,
    build: Callable[[], nn.Module],
    fused_in: str,
    *,
    lists: bool = False,
    search: int = 32,
    fullgraph: bool = True,
    paths: bool = False,
    **fusion: Any,
) -> Case:
    """A host of the OSTrack family.

    lists: TBSI's two images, in place of one of six channels. search: the side of the search image.
    paths: SDSTrack's two dicts out in training.
    """
    sides = search // 2, search

    def run(network: nn.Module, seed: int = 1, **options: Any) -> Any:
        like = next(network.parameters())
        generator = torch.Generator().manual_seed(seed)
        images = [torch.randn(2, 6, side, side, generator=generator) for side in sides]
        template, search = (
            list(x.to(like).split(3, dim=1)) if lists else x.to(like) for x in images
        )
        # where it eliminated candidates ViPT pads with zeros in float32, which its norms refuse in
        # half precision
        out = network(
            template=template,
            search=search,
            ce_keep_rate=1.0 if like.dtype == torch.float16 else None,
            **options,
        )
        return [with_scores(part) for part in out] if isinstance(out, list) else with_scores(out)

    infer = {"infer": True} if paths else {}
    return Case(
        name,
        build,
        lambda network, seed=1: run(network, seed, **infer)["scores"],
        run,
        lambda: "auto",
        {**TINY, **fusion},
        fused_in,
        fullgraph,
        fusions=2 if paths else 1,
    )


def frame(network: nn.Module) -> list[Tensor]:
    """A template (2, 6, 16, 16) and a search image (2, 6, 32, 32), always the same."""
    generator, like = torch.Generator().manual_seed(1), next(network.parameters())
    return [torch.randn(2, 6, side, side, generator=generator).to(like) for side in (16, 32)]


def of_sttrack(network: nn.Module) -> list[dict[str, Any]]:
    template, search = frame(network)
    return [with_scores(out) for out in network(template, [search])]


def of_pruned(network: nn.Module) -> tuple[Tensor]:
    return (network(*frame(network))["scores"],)


def of_caformer(network: nn.Module) -> dict[str, Any]:
    return with_scores(network(*([*x.split(3, dim=1)] for x in frame(network))))


def of_sutrack(network: nn.Module) -> dict[str, Any]:
    template, search = frame(network)
    feature = network(template_list=[template], search_list=[search], mode="encoder")
    out, task = network(feature=feature, mode="decoder")
    return with_scores({**out, "task_class": task})


START = torch.ones(2, 1, dtype=torch.long)  # of a sequence that is a box


def of_seqtrack(network: nn.Module) -> tuple[Tensor]:
    template, search = frame(network)
    xz = network(template_list=[template], search_list=[search], mode="encoder")
    return (network(xz=xz, seq=START.to(search.device).expand(-1, 4), mode="decoder"),)


def inferred(network: nn.Module) -> Tensor:
    """SeqTrackv2 at test time: a method of the network that calls one of its head."""
    template, search = frame(network)
    xz = network(template_list=[template], search_list=[search], mode="encoder")
    return network.inference_decoder(xz, START.to(search.device))["confidence"]


def with_scores(out: dict[str, Any]) -> dict[str, Any]:
    maps = [out[f"{part}_map"].flatten(1) for part in ("score", "size")]
    return {**out, "scores": torch.cat(maps, dim=1)}


def scores_in(out: Any) -> Tensor:
    """The scores in what a training forward returned: a dict, several, or a tuple."""
    first = out if isinstance(out, dict) else out[0]
    return first["scores"] if isinstance(first, dict) else first


TINY = {"channels": CHANNELS, "size": 8, "network_config": {"width": 16, "heads": 2}}
CASES = [
    Case(
        "concat",
        seeded(ConcatTracker),
        scores,
        train,
        lambda: ModuleAdapter("fuse", "box_head"),
        TINY,
        "fuse.0",
    ),
    Case(
        "maps",
        seeded(MapsTracker),
        scores,
        train,
        lambda: ModuleAdapter("neck.fusion", "heads.0"),
        {**TINY, "modalities": 3},
        "neck.fusion.mix",
    ),
    Case(
        "siamese",
        seeded(SiameseTracker),
        track,
        train,
        lambda: ModuleAdapter("fusion", "head", size=8),
        TINY,
    ),
    Case("sum", seeded(SumTracker), scores, train, SumAdapter, TINY),
    Case(
        "taps",
        seeded(Pruned),
        lambda network: of_pruned(network)[0],
        of_pruned,
        lambda: TapAdapter(
            "predictor",
            taps=[Tap("final", call=-2), Tap("final")],
            places=[Tap("prune", (1,), call=-2), Tap("prune", (1,))],
        ),
        TINY,
        fullgraph=not torch.__version__.startswith("2.6"),  # which compiles no named tuples
    ),
    ostrack("vipt", seeded(ViPTrack), "backbone.blocks.2.attn"),
    ostrack(
        "vipt without elimination",
        seeded(partial(ViPTrack, eliminate=False)),
        "backbone.blocks.2.attn",
    ),
    ostrack("tbsi", seeded(TBSITrack), "tbsi_fuse_search.0", lists=True),
    ostrack("bat", seeded(BATrack), ""),
    ostrack("xtrack", seeded(partial(BATrack, block=MixingBlock)), ""),
    ostrack("sdstrack", seeded(SDSTrack), "", paths=True),
    Case(
        "sttrack",
        seeded(STTrack),
        lambda network: of_sttrack(network)[0]["scores"],
        of_sttrack,
        lambda: ModuleAdapter("MambaFusion", "box_head", size=8, tokens=(16, 80)),
        TINY,
        apart=True,
    ),
    Case(
        "caformer",
        seeded(CAFormer),
        lambda network: of_caformer(network)["scores"],
        of_caformer,
        ConcatAdapter,
        {**TINY, "out_channels": 2 * CHANNELS},
    ),
    Case(
        "sutrack",
        seeded(SUTRACK),
        lambda network: of_sutrack(network)["scores"],
        of_sutrack,
        lambda: EncoderAdapter("encoder", "decoder", tokens=(1, 65)),
        TINY,
        staged=True,
    ),
    Case(
        "seqtrack",
        seeded(SEQTRACKV2),
        inferred,
        of_seqtrack,
        lambda: ModuleAdapter("encoder.body.interface_blocks.1", "decoder", size=8),
        TINY,
        apart=True,
        staged=True,
    ),
    *(
        Case(
            name,
            partial(stand_ins_siamban.build, levels),
            stand_ins_siamban.run,
            stand_ins_siamban.train,
            lambda: "auto",
            {**TINY, "size": 31, "channels": CHANNELS * levels},
        )
        for name, levels in (("siamban", 1), ("siamban three levels", 3))
    ),
]
if "REAL_HOST" in os.environ:  # tests/hosts/test_ostrack_real.py holds real hosts to the same law
    from hosts.harness import law_cases

    CASES = [ostrack(**row) for row in law_cases()]
