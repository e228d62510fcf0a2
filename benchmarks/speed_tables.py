"""The rows of speed.py as Markdown, and what they say about the goals."""

from collections.abc import Iterator
from typing import Any

Report = dict[str, Any]
GOALS = {"tbsi": 1.05, "vipt": 1.03, "siamban": 1.03}  # of the real hosts
ON_A_GPU = {"small": 1.05, "paper-uvit": 1.25, "paper-unet": 1.6}  # of the ViT-B host's frame
NOT_PATHS = ("matrix product", "copy", "bfloat16 matrix product")


def tables(report: Report) -> str:
    rows = {tuple(name.split()): row for name, row in report["rows"].items()}
    done = {name: row for name, row in rows.items() if "skipped" not in row}
    parts = [
        "# What a fusion costs",
        "",
        *inference(done),
        *training(done),
        *frames(done),
        *attaching(done),
        *memory(done),
        *others(done),
        *goals(done, report["quick"], report["machine"]["device"] != "cpu"),
    ]
    parts += [
        f"- {' '.join(name)}: not measured, {row['skipped']}"
        for name, row in rows.items()
        if "skipped" in row
    ]
    dates = [row["date"] for row in done.values()]
    loads = [
        row["load"] for name, row in done.items() if name[0] != "peak"
    ]  # memory does not depend on it
    about = ", ".join(f"{key} {value}" for key, value in report["machine"].items())
    if loads:
        about += f", {min(dates)} to {max(dates)}, load {min(loads)} to {max(loads)}"
    return (
        "\n".join([*parts, "", about + (", tiny sizes (--quick)" if report["quick"] else "")])
        + "\n"
    )


def table(title: str, heads: list[str], body: list[list[str]]) -> list[str]:
    if not body:
        return []
    lines = [heads, ["---"] * len(heads), *body]
    return [f"## {title}", "", *("| " + " | ".join(line) + " |" for line in lines), ""]


def ratio(path: Report) -> str:
    return f"{path['fastest_ratio']:.3f} ({path['median_ratio']:.3f})"


def of_kind(rows: Report, kind: str) -> Iterator[tuple[Any, Report]]:
    return ((name[1:], row) for name, row in rows.items() if name[0] == kind)


def fractions(rows: Report, row: Report, at: Report, path: str) -> tuple[float, float]:
    """Fractions of the matrix rate and of the roofline that a path reaches.

    The roofline is no faster than the products at full rate, nor than reading the weights once.
    Both limits are the highest of the whole run, as in one row they may have been disturbed.
    """
    batches = [at for _, other in of_kind(rows, "inference") for at in other["batches"].values()]
    rate, bandwidth = (
        max(at[limit] for at in batches) for limit in ("matrix_gflops", "bandwidth_gb_s")
    )
    seconds = at["paths"][path]["fastest_ms"] / 1e3
    fraction = at["gflop"] / rate / seconds
    return fraction, max(fraction, 4e-9 * row["parameters"] / bandwidth / seconds)


def fraction_of_bfloat16(at: Report, path: str) -> float:
    return at["gflop"] / at["bfloat16_gflops"] / (at["paths"][path]["fastest_ms"] / 1e3)


def inference(rows: Report) -> list[str]:
    body, memory = [], dict(of_kind(rows, "peak"))
    for name, row in of_kind(rows, "inference"):
        for batch, at in row["batches"].items():
            paths = {k: v for k, v in at["paths"].items() if k not in NOT_PATHS and k != "plain"}
            body.append(
                [
                    *name,
                    f"{row['parameters'] / 1e6:.1f} M",
                    batch,
                    f"{at['gflop']:.1f}",
                    f"{at['paths']['plain']['fastest_ms']:.2f} ms",
                    str(at["paths"]["plain"]["rounds"]),
                    "; ".join(
                        f"{k} {v['fastest_ms']:.2f} ms, {ratio(v)} ×, off by "
                        f"{at['relative_error'][k]:.0e}"
                        for k, v in paths.items()
                    ),
                    f"{at['matrix_gflops']:.0f} GFLOP/s",
                    *(
                        f"{plain:.0%}, {optimised:.0%}"
                        for plain, optimised in zip(
                            *(fractions(rows, row, at, path) for path in ("plain", "optimised")),
                            strict=True,
                        )
                    ),
                    f"{memory[name]['peak_mb'][batch]:.0f} MB" if name in memory else "",
                ]
            )
    return table(
        "A pass of the fusion",
        [
            "preset",
            "method",
            "parameters",
            "batch",
            "GFLOP",
            "plain",
            "rounds",
            "other paths",
            "matrix product",
            "of its best rate: plain, optimised",
            "of the roofline: plain, optimised",
            "peak beyond the weights",
        ],
        body,
    )


def training(rows: Report) -> list[str]:
    heads = ["preset", "method", "batch", "step", "peak beyond the weights"]
    return table(
        "A step of training (Loss_gen, AdamW)",
        heads,
        [
            [
                *name,
                str(row["batch"]),
                "; ".join(f"{way} {t['fastest_ms']:.0f} ms" for way, t in row["ways"].items()),
                f"{row['peak_mb']:.0f} MB",
            ]
            for name, row in of_kind(rows, "training")
        ],
    )


def frames(rows: Report) -> list[str]:
    body = [
        [
            *host,
            *name,
            path,
            str(times["rounds"]),
            f"{times['fastest_ms']:.2f} ms",
            f"{1e3 / times['fastest_ms']:.1f}",
            ratio(times),
            ratio(row["to_no_fusion"][path]) if "to_no_fusion" in row else "",
        ]
        for kind, host in (("frame", ()), ("compiled", ("vit_b",)))
        for name, row in of_kind(rows, kind)
        for path, times in row["frames"].items()
    ]
    return table(
        "A frame of a tracker",
        [
            "host",
            "preset",
            "dtype",
            "fusion",
            "rounds",
            "frame",
            "frames/s",
            "× untouched",
            "× no fusion at all",
        ],
        body,
    )


def attaching(rows: Report) -> list[str]:
    heads = ["host", "frame untouched", "attached", "× untouched", "another untouched, × untouched"]
    return table(
        "Attaching alone, a fusion that does nothing",
        heads,
        [
            [
                *name,
                *(f"{row[way]['fastest_ms']:.3f} ms" for way in ("untouched", "attached")),
                *(ratio(row[way]) for way in ("attached", "untouched as well")),
            ]
            for name, row in of_kind(rows, "attaching")
        ],
    )


def memory(rows: Report) -> list[str]:
    return table(
        "A training step on the ViT-B host",
        ["host", "batch", "step", "peak beyond the weights"],
        [
            [*name, str(row["batch"]), f"{row['step_ms']:.0f} ms", f"{row['peak_mb']:.0f} MB"]
            for name, row in of_kind(rows, "memory")
        ],
    )


def others(rows: Report) -> list[str]:
    lines = [
        f"- {name}: {value:.0f}"
        for row in (rows.get(("limits",), {}),)
        for name, value in row.items()
        if name.endswith("/s")
    ]
    lines += [
        f"- `import gmmt_fusion` {row['package_s']:.3f} s on top of `import torch`, with "
        "`GenerativeFusion` and "
        f"`attach` {row['used_s']:.3f} s"
        for row in (rows.get(("importing",)),)
        if row
    ]
    return ["## The machine, and the import", "", *lines, ""] if lines else []


def never_slower(rows: Report) -> list[tuple[str, float, float]]:
    """The optimised path against the plain one, by preset: the method and batch it helps least."""
    slowest: dict[str, tuple[float, str]] = {}
    for (preset, method), row in of_kind(rows, "inference"):
        for batch, at in row["batches"].items():
            measured = at["paths"]["optimised"]["median_ratio"], f"{method}, batch {batch}"
            slowest[preset] = max(slowest.get(preset, measured), measured)
    return [
        (f"{preset}, optimised × plain, the slowest ({where})", measured, 1.0)
        for preset, (measured, where) in slowest.items()
    ]


Goal = tuple[str, float, float]
"""What, measured, at most; a goal of "at least" is negative."""


def goals(rows: Report, quick: bool, on_gpu: bool = False) -> list[str]:
    """Each goal against what was measured: ratios of frames by the median, else by the fastest."""
    checks: list[Goal] = [*frame_goals(rows, on_gpu), *attaching_goals(rows)]
    checks += [*rate_goals(rows), *never_slower(rows)]
    if ("importing",) in rows:
        checks.append(("import of both names, seconds", rows["importing",]["used_s"], 0.1))
    lines = [
        f"- {what}: {abs(measured):.3f}, goal at {'least' if goal < 0 else 'most'} {abs(goal):.2f}"
        f"{'' if measured <= goal else ', MISSED'}"
        for what, measured, goal in checks
    ]
    return ["## Goals", "", *lines] if lines and not quick else []


def frame_goals(rows: Report, on_gpu: bool) -> Iterator[Goal]:
    for (host, preset, dtype), row in of_kind(rows, "frame"):
        ways = row["frames"]
        if host == "vit_b" and on_gpu and preset in ON_A_GPU:
            what = f"{preset} on the ViT-B host in {dtype}"
            ours = [way for way in ways if way not in ("untouched", "no fusion", "plain")]
            best = min(ours, key=lambda way: ways[way]["median_ratio"])
            yield f"{what}, {best}, × untouched", ways[best]["median_ratio"], ON_A_GPU[preset]
            yield f"{what}, {best}, frames/s", -1e3 / ways[best]["fastest_ms"], -80
        elif (host, preset, dtype) == ("vit_b", "small", "float32"):
            for path in ("plain", "optimised"):
                for against, key in (("untouched", "frames"), ("no fusion", "to_no_fusion")):
                    what = f"small on the ViT-B host, {path}, × {against}"
                    yield what, row[key][path]["median_ratio"], 1.10
        elif host in GOALS:
            for path in ("plain", "optimised"):
                what = f"{preset} on the real {host}, {path}, × untouched"
                yield what, ways[path]["median_ratio"], GOALS[host]


def attaching_goals(rows: Report) -> Iterator[Goal]:
    attached = {host: row for (host,), row in of_kind(rows, "attaching")}
    empty = attached.pop("empty", None)
    for host, row in attached.items():
        yield f"attaching, {host}", row["attached"]["median_ratio"], 1.01
        if empty:
            added = empty["attached"]["fastest_ms"] - empty["untouched"]["fastest_ms"]
            what = f"attaching, {host}, by the {1e3 * added:.0f} µs that it adds to an empty host"
            yield what, 1 + added / row["untouched"]["fastest_ms"], 1.01


def rate_goals(rows: Report) -> Iterator[Goal]:
    """Of the processor's own rate."""
    for (preset, method), row in of_kind(rows, "inference"):
        what, batches = f"{preset}, {method}, batch", row["batches"]
        at, largest = batches.get("8", {"paths": {}}), batches.get("32", {})
        if at["paths"] and preset.startswith("paper"):
            for path in ("plain", "optimised"):
                fraction = fractions(rows, row, at, path)[0]
                yield f"{what} 8, {path}, fraction of the matrix rate", -fraction, -0.6
        if "bfloat16_gflops" in largest and preset.startswith("paper"):
            for path in [p for p in ("bfloat16", "bfloat16, compiled") if p in largest["paths"]]:
                fraction = fraction_of_bfloat16(largest, path)
                yield f"{what} 32, {path}, fraction of bfloat16's matrix rate", -fraction, -0.6
        if "bfloat16" in at["paths"]:
            faster = at["paths"]["optimised"]["fastest_ms"] / at["paths"]["bfloat16"]["fastest_ms"]
            yield f"{what} 8, bfloat16 faster than float32", -faster, -1.8
