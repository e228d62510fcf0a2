"""The paper's experiments as commands: every row of its tables, by the hosts' own scripts.

    python benchmarks/paper.py > docs/paper.md

tests/test_paper.py keeps the page and this table together.
"""

from dataclasses import dataclass, field
from pathlib import Path

LASHER, GTOT, RGBT234, RGBD1K = "lasher", "gtot", "rgbt234", "rgbd1k"
FOLDERS = {  # of the sequences to track, in $DATA
    LASHER: "LasHeR/testingset",
    GTOT: "GTOT",
    RGBT234: "RGBT234",
    RGBD1K: "RGBD1K/test",
}
NAMES = {LASHER: "LasHeR", GTOT: "GTOT", RGBT234: "RGBT234", RGBD1K: "RGBD1K"}
VIPT_PATHS = {  # that its test script names, and what is there
    "LasHeR": ("/media/jiawen/Datasets/Tracking/DATASET/LasHeR", "LasHeR"),
    "RGBT234": ("/media/jiawen/Datasets/Tracking/DATASET_TEST/RGBT234", "RGBT234"),
    "GTOT": ("/home/lz/Videos/GTOT", "GTOT"),
}
LASHER_DATA = "--set lasher_dir=$DATA/renamed/trainingset"
RGBD1K_DATA = "--set depthtrack_dir=$DATA/RGBD1K/train --path depthtrack_%s.txt=$DATA/RGBD1K/%s.txt"
SNAPSHOT = "$SIAMBAN/experiments/siamban_r50_l3_rgbt/snapshot/checkpoint_e20.pth"


@dataclass(frozen=True)
class Fusion:
    """One fine-tuning: stage 2 of the paper.

    Attributes:
        host: "siamban", "vipt", "vipt-d" or "tbsi".
        network: "unet" or "uvit".
        blocks: the paper's n; None as in the preset.
        weight: λ.
    """

    host: str
    network: str = "unet"
    method: str = "diffusion"
    blocks: int | None = None
    weight: float = 5

    @property
    def name(self) -> str:
        """Of its folder in $RUNS."""
        parts = [self.host, {"diffusion": self.network}.get(self.method, self.method)]
        if self.blocks is not None:
            parts.append(f"n{self.blocks}")
        if self.weight != 5:
            parts.append(f"l{self.weight:g}")
        return "-".join(parts)

    @property
    def options(self) -> str:
        """What the launcher is told of it."""
        told = [f"--preset paper-{self.network}"]
        told += [f"--method {self.method}"] if self.method != "diffusion" else []
        told += [f"--blocks {self.blocks}"] if self.blocks is not None else []
        told += [f"--generative-weight {self.weight:g}"] if self.weight != 5 else []
        return " ".join(told)


@dataclass(frozen=True)
class Row:
    """A row of a table: what was tracked with, and what the paper has for it, in per cent."""

    host: str
    benchmark: str
    fusion: Fusion | None
    published: str
    steps: int = 1


def lines(*parts: str) -> str:
    """A command over several lines, as a shell reads it."""
    return " \\\n    ".join(part for part in parts if part)


def train(fusion: Fusion) -> str:
    """Fine-tunes it, on top of the host's published weights."""
    run = f"python -m gmmt_fusion run --train $RUNS/{fusion.name} {fusion.options}"
    if fusion.host == "siamban":  # batch, epochs and rates are in the config
        return "cd $SIAMBAN/experiments/siamban_r50_l3_gmmt\n" + lines(
            run,
            f"--weights {SNAPSHOT}",
            f"--set TRAIN.SNAPSHOT_DIR=$RUNS/{fusion.name}/host "
            f"--set TRAIN.LOG_DIR=$RUNS/{fusion.name}/logs",
            "../../tools/train.py --cfg config.yaml",
        )
    settings = "--set TRAIN.EPOCH=100 --set TRAIN.BATCH_SIZE=32"
    saved = f"--save_dir $RUNS/{fusion.name}/host --mode single"
    if fusion.host == "tbsi":
        checkpoint = "checkpoints/train/tbsi_track/$TBSI_CONFIG/TBSITrack_ep0015.pth.tar"
        return "cd $TBSI\n" + lines(
            run,
            f"--weights output/$TBSI_CONFIG/{checkpoint}",
            "--set lasher_train_dir=$DATA/LasHeR/trainingset "
            "--set lasher_test_dir=$DATA/LasHeR/testingset",
            f"{settings} --set MODEL.PRETRAIN_FILE=",
            f"tracking/train.py --script tbsi_track --config $TBSI_CONFIG {saved}",
        )
    depth = fusion.host == "vipt-d"
    config = "deep_rgbd" if depth else "deep_rgbt"
    return "cd $VIPT\n" + lines(
        run,
        f"--weights models/ViPT_{config}.pth",
        RGBD1K_DATA if depth else LASHER_DATA,
        f"{settings} --set MODEL.PRETRAIN_FILE=",
        f"tracking/train.py --script vipt --config {config} {saved}",
    )


def test(row: Row) -> tuple[str, str]:
    """The commands that track, and that score the results."""
    name = row.fusion.name if row.fusion else f"{row.host}-base"
    name += f"-s{row.steps}" if row.steps > 1 else ""
    fused = f" --fusion $RUNS/{row.fusion.name}" if row.fusion else ""
    steps = f" --steps {row.steps}" if row.steps > 1 else ""
    run, benchmark = f"python -m gmmt_fusion run{fused}{steps}", NAMES[row.benchmark]
    here = f"mkdir -p $RUNS/{name} && cd $RUNS/{name}\n"
    if row.host == "siamban":
        results = f"results/OTB-{row.benchmark}/checkpoint_e20"
        track = here + lines(
            f"{run} $SIAMBAN/tools/test.py --snapshot {SNAPSHOT}",
            f"--dataset OTB-{row.benchmark} "
            "--config $SIAMBAN/experiments/siamban_r50_l3_rgbt/config.yaml",
        )
    elif row.host == "vipt":
        old, new = VIPT_PATHS[benchmark]
        results = f"RGBT_workspace/results/{benchmark}/deep_rgbt"
        track = here + lines(
            f"{run} --path {old}=$DATA/{new}",
            "$VIPT/RGBT_workspace/test_rgbt_mgpus.py --script_name vipt "
            f"--dataset_name {benchmark} --yaml_name deep_rgbt",
        )
    elif row.host == "tbsi" and row.benchmark == LASHER:
        results = "results/tbsi_track/${TBSI_CONFIG}_15"
        track = here + lines(
            f"{run} --set lasher_path=$DATA/LasHeR --set results_path=$RUNS/{name}/results",
            "$TBSI/tracking/test.py tbsi_track $TBSI_CONFIG --dataset_name lasher_test "
            "--runid 15 --threads 4 --num_gpus 1",
        )
    else:  # of which the host has no class
        host = "VIPT" if row.host == "vipt-d" else "TBSI"
        function = "vipt_rgbd" if row.host == "vipt-d" else "tbsi"
        results = row.benchmark
        tracker = f"$GMMT/examples/host_trackers.py:{function}"
        track = f"HOST=${host} " + lines(
            f"python -m gmmt_fusion track --tracker {tracker}{fused}",
            f"--benchmark {row.benchmark} --data $DATA/{FOLDERS[row.benchmark]} "
            f"--out $RUNS/{name}/{results}",
        )
    score = lines(
        f"python -m gmmt_fusion evaluate --benchmark {row.benchmark} "
        f"--truth $DATA/{FOLDERS[row.benchmark]}",
        f"--results $RUNS/{name}/{results}",
    )
    return track, score


@dataclass(frozen=True)
class Table:
    title: str
    about: str
    rows: list[Row] = field(default_factory=list)


DM = Fusion("siamban")
VIPT_UNET, VIPT_UVIT = Fusion("vipt"), Fusion("vipt", "uvit")
TBSI_UNET, TBSI_UVIT = Fusion("tbsi"), Fusion("tbsi", "uvit")
WEIGHTS = {  # λ: SR on GTOT, SR on LasHeR
    1: (68.7, 42.9),
    2: (68.8, 44.0),
    3: (69.3, 44.3),
    5: (68.6, 44.9),
    10: (67.9, 44.2),
    100: (68.1, 42.8),
}
UVIT_BLOCKS = {1: 53.2, 2: 53.9, 3: 54.2, 4: 55.4, 5: 54.8, 6: 54.9, 7: 54.7, 8: 57.4}
UNET_BLOCKS = {3: 55.0, 6: 55.5, 9: 56.2, 12: 55.0}  # 9 are the preset's
STEPS = {1: "85.7 / 69.3", 2: "84.5 / 68.4", 5: "84.9 / 68.5", 10: "about 84.5 / 68.3"}
TABLES = [
    Table(
        "Table 1: LasHeR and RGBT234",
        "PR / NPR / SR on LasHeR, PR / SR on RGBT234. The paper's ViPT* has retrained prompts.",
        [
            Row("vipt", LASHER, None, "65.0 / 61.6 / 52.4"),
            Row("vipt", RGBT234, None, "83.5 / 61.7"),
            Row("tbsi", LASHER, None, "69.2 / 65.7 / 55.6"),
            Row("tbsi", RGBT234, None, "87.1 / 63.8"),
            Row("vipt", LASHER, VIPT_UVIT, "66.4 / 63.0 / 53.0"),
            Row("vipt", RGBT234, VIPT_UVIT, "84.3 / 61.5"),
            Row("tbsi", LASHER, TBSI_UNET, "70.7 / 67.0 / 56.6"),
            Row("tbsi", RGBT234, TBSI_UNET, "87.9 / 64.7"),
        ],
    ),
    Table(
        "Table 2: what is generated, on GTOT and LasHeR",
        "PR / SR on GTOT, PR / NPR / SR on LasHeR, of the Siamese tracker with the UNet.",
        [
            Row("siamban", GTOT, None, "84.0 / 67.0"),
            Row("siamban", LASHER, None, "50.9 / 47.4 / 39.8"),
            Row("siamban", GTOT, Fusion("siamban", method="raw"), "81.9 / 67.4"),
            Row("siamban", LASHER, Fusion("siamban", method="raw"), "51.8 / 50.7 / 42.5"),
            Row("siamban", GTOT, Fusion("siamban", method="cgan"), "81.4 / 67.5"),
            Row("siamban", LASHER, Fusion("siamban", method="cgan"), "54.1 / 49.3 / 41.9"),
            Row("siamban", GTOT, DM, "85.7 / 69.3"),
            Row("siamban", LASHER, DM, "57.1 / 53.0 / 44.9"),
        ],
    ),
    Table(
        "Table 3: RGBD1K",
        "PR / RE / F. The base is ViPT-D retrained on RGBD1K.",
        [
            Row("vipt-d", RGBD1K, None, "49.2 / 52.0 / 50.6"),
            Row("vipt-d", RGBD1K, Fusion("vipt-d"), "54.7 / 57.9 / 56.2"),
            Row("vipt-d", RGBD1K, Fusion("vipt-d", "uvit", blocks=8), "55.9 / 59.0 / 57.4"),
        ],
    ),
    Table(
        "Networks in both trackers, on LasHeR, and TBSI on GTOT",
        "PR / NPR / SR on LasHeR, PR / SR on GTOT.",
        [
            Row("vipt", LASHER, VIPT_UNET, "65.9 / 62.4 / 52.7"),
            Row("tbsi", LASHER, TBSI_UVIT, "70.5 / 66.6 / 56.3"),
            Row("tbsi", GTOT, None, "91.5 / 75.9"),
            Row("tbsi", GTOT, TBSI_UNET, "93.6 / 78.5"),
        ],
    ),
    Table(
        "Supplement: the number of blocks n, on RGBD1K",
        "F. In a UNet n is the number of residual blocks over its three levels.",
        [
            *(
                Row("vipt-d", RGBD1K, Fusion("vipt-d", "uvit", blocks=n), str(f))
                for n, f in UVIT_BLOCKS.items()
            ),
            *(
                Row("vipt-d", RGBD1K, Fusion("vipt-d", blocks=None if n == 9 else n), str(f))
                for n, f in UNET_BLOCKS.items()
            ),
        ],
    ),
    Table(
        "Supplement: sampling steps s, on GTOT",
        "PR / SR. s is a matter of tracking: nothing is trained again.",
        [Row("siamban", GTOT, DM, text, steps=s) for s, text in STEPS.items()],
    ),
    Table(
        "Supplement: the weight λ, on GTOT and LasHeR",
        "SR on GTOT, SR on LasHeR.",
        [
            Row("siamban", benchmark, Fusion("siamban", weight=weight), str(published))
            for weight, pair in WEIGHTS.items()
            for benchmark, published in zip((GTOT, LASHER), pair, strict=True)
        ],
    ),
]


def page() -> str:
    """docs/paper.md."""
    parts, trained = [(Path(__file__).parent / "paper_intro.md").read_text().rstrip()], set()
    for table in TABLES:
        parts += [f"## {table.title}", f"Published: {table.about}", "```bash"]
        block = []
        for row in table.rows:
            label = f"{row.host}, {row.fusion.name if row.fusion else 'its own fusion'}"
            steps = f", s = {row.steps}" if row.steps > 1 else ""
            commands = list(test(row))
            if row.fusion and row.fusion not in trained:
                trained.add(row.fusion)
                commands.insert(0, train(row.fusion))
            about = f"# {label}{steps}, on {NAMES[row.benchmark]}: {row.published}"
            block.append("\n".join([about, *commands]))
        parts[-1] += "\n" + "\n\n".join(block) + "\n```"
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    print(page(), end="")
