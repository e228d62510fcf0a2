"""What a fusion costs on this machine: alone, in a training step, and in a tracker's frame.

    python benchmarks/speed.py --out benchmarks/results

measures row after row, each in a process of its own, and writes speed.json after each and speed.md
from it; started again with the same settings, it goes on where it was. What is compared is
interleaved. A time is the fastest, a ratio is that of the fastest and, in brackets, the median over
the rounds. Memory on a CPU is read from Linux's /proc. HOSTS=DIR adds frames of the real trackers,
from checkouts in DIR/TBSI, DIR/ViPT and DIR/siamban.
"""

import argparse
import ctypes
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import (
    REAL_HOSTS,
    Host,
    Kept,
    Mean,
    MeanFusion,
    build_host,
    has_bfloat16,
    machine,
    now,
)
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gmmt_fusion import Attachment, GenerativeFusion
from gmmt_fusion.files import write_atomically
from gmmt_fusion.model.config import PRESETS
from gmmt_fusion.model.fast_path import optimize
from gmmt_fusion.model.methods import METHODS

Row = dict[str, Any]
Functions = dict[str, Callable[[], Any]]
TINY = {"uvit": {"width": 32, "heads": 2}, "unet": {"widths": (32,), "depth": 1}}


def kilobytes(file: str, field: str) -> int:
    """A line of Linux's /proc."""
    line = next(x for x in Path("/proc", file).read_text().splitlines() if x.startswith(field))
    return int(line.split()[1])


class Bench:
    """Times and memory on one device."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.device = options, torch.device(options.device)
        self.quick, self.seconds = options.quick, options.seconds
        torch.set_num_threads(options.threads)
        torch.set_float32_matmul_precision(
            "high" if self.device.type == "cuda" else "highest"
        )  # tf32 on a GPU
        torch.manual_seed(0)

    def once(self, function: Callable[[], Any]) -> float:
        self.synchronize()
        start = time.perf_counter()
        function()
        self.synchronize()
        return time.perf_counter() - start

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def interleave(self, functions: Functions, least: int = 3) -> dict[str, list[float]]:
        """Seconds of every function in every round, after one that warms up.

        There are as many rounds as the time allows, but at least `least`; or one, where a round
        alone takes longer than twice the time.
        """
        for function in functions.values():
            self.once(function)
        round_time = sum([self.once(function) for function in functions.values()])
        times: dict[str, list[float]] = {name: [] for name in functions}
        order = list(functions.items())
        for _ in range(
            min(
                2000,
                max(1 if round_time > 2 * self.seconds else least, int(self.seconds / round_time)),
            )
        ):
            for name, function in order:
                times[name].append(self.once(function))
            order.reverse()  # none is always after the same one
        return times

    def peak(self, function: Callable[[], Any]) -> float:
        """The most memory during a call beyond what was held before it, MB."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            function()
            return (torch.cuda.max_memory_allocated() - before) / 1e6
        ctypes.CDLL(None).malloc_trim(0)  # else what was freed is used again, and not seen
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = kilobytes("self/status", "VmRSS")
        function()
        return (kilobytes("self/status", "VmHWM") - before) * 1024 / 1e6

    def matrix_product(self, dtype: torch.dtype) -> tuple[Callable[[], Any], float]:
        """The square product with the highest rate, and its FLOP."""
        sizes = (
            (256, 512)
            if self.quick
            else (1024, 2048, 4096)
            if self.device.type == "cpu"
            else (4096, 8192, 16384)
        )
        best: tuple[float, Callable[[], Any], float] | None = None
        for size in sizes:
            a, b = (torch.randn(size, size, device=self.device).to(dtype) for _ in range(2))

            def product(a: Tensor = a, b: Tensor = b) -> Tensor:
                return a @ b

            rate = 2 * size**3 / min(self.once(product) for _ in range(3))
            if best is None or rate > best[0]:
                best = rate, product, 2.0 * size**3
        assert best is not None
        return best[1:]

    def copy(self) -> tuple[Callable[[], Any], float]:
        """A copy in memory, too large for any cache, and the bytes that it moves."""
        source = torch.ones(
            2 ** (20 if self.quick else 28 if self.device.type == "cuda" else 26),
            device=self.device,
        )
        target = torch.empty_like(source)
        return lambda: target.copy_(source), 2.0 * source.nbytes

    def fusion(
        self, preset: str, method: str = "diffusion", shape: tuple[int, int] | None = None
    ) -> GenerativeFusion:
        channels, size = shape or ((64, 8) if self.quick else (768, 16))
        tiny = {"network_config": TINY[PRESETS[preset]["network"]]} if self.quick else {}
        fusion = (
            GenerativeFusion.preset(preset, channels, size, method=method, **tiny)
            .to(self.device)
            .eval()
        )
        for parameter in fusion.network.last_layer.parameters():
            nn.init.normal_(parameter, std=0.02)
        return fusion

    def maps(self, batch: int, number: int = 2) -> list[Tensor]:
        """Feature maps of the size that TBSI and ViPT have."""
        shape = (batch, *((64, 8, 8) if self.quick else (768, 16, 16)))
        return [torch.randn(shape, device=self.device) for _ in range(number)]

    def images(self, *sides: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        return [torch.rand(1, 6, side, side, device=self.device).to(dtype) for side in sides]

    def paths(self, fusion: GenerativeFusion) -> Functions:
        """By name, what switches the fusion to an inference path."""
        ways: dict[str, Row] = {"plain": {"enabled": False}, "optimised": {}}
        if has_bfloat16(self.device):
            ways["bfloat16"] = {"dtype": torch.bfloat16}
        if self.device.type == "cuda":
            ways["CUDA graph"] = {"compile": "reduce-overhead"}
            ways["bfloat16, CUDA graph"] = {"dtype": torch.bfloat16, "compile": "reduce-overhead"}
        paths = {}
        for name, arguments in ways.items():
            optimize(fusion, **arguments)
            paths[name] = lambda made=fusion.fast_path: setattr(fusion, "fast_path", made)
        return paths


def summary(times: dict[str, list[float]], against: str) -> dict[str, Any]:
    """Milliseconds, and ratios to one of them."""
    return {
        name: {
            "fastest_ms": 1e3 * min(t),
            "median_ms": 1e3 * statistics.median(t),
            "rounds": len(t),
            "fastest_ratio": min(t) / min(times[against]),
            "median_ratio": statistics.median(
                a / b for a, b in zip(t, times[against], strict=True)
            ),
        }
        for name, t in times.items()
    }


def inference(bench: Bench, preset: str, method: str) -> Row:
    """The fusion alone: every path at every batch, beside matrix rate and bandwidth just then."""
    fusion = bench.fusion(preset, method)
    row: Row = {"parameters": sum(p.numel() for p in fusion.trainable_parameters()), "batches": {}}
    with FlopCounterMode(display=False) as counter:
        fusion(*bench.maps(1))
    product, product_flop = bench.matrix_product(torch.float32)
    copying, copied = bench.copy()
    for batch in bench.options.batches:
        flop, maps = batch * counter.get_total_flops(), bench.maps(batch)
        functions: Functions = {
            name: lambda switch=switch, maps=maps: (switch(), fusion(*maps))[1]
            for name, switch in bench.paths(fusion).items()
        }
        plain = functions["plain"]()
        errors = {
            name: float((path() - plain).norm() / plain.norm()) for name, path in functions.items()
        }
        functions |= {"matrix product": product, "copy": copying}
        if has_bfloat16(bench.device):
            functions["bfloat16 matrix product"], _ = bench.matrix_product(torch.bfloat16)
        times = bench.interleave(functions)
        optimize(fusion, False)
        # of few rounds none may be undisturbed, and these are short
        rate, bandwidth = (
            work / min(*times[name], *(bench.once(function) for _ in range(20)))
            for name, function, work in (
                ("matrix product", product, product_flop),
                ("copy", copying, copied),
            )
        )
        row["batches"][str(batch)] = {
            "gflop": flop / 1e9,
            "matrix_gflops": rate / 1e9,
            "bandwidth_gb_s": bandwidth / 1e9,
            "relative_error": errors,
            "paths": summary(times, "plain"),
        }
    return row


def peak(bench: Bench, preset: str, method: str) -> Row:
    """The memory of a pass at every batch."""
    fusion = bench.fusion(preset, method)
    fusion(*bench.maps(1))  # what is set up once
    batches = [(str(batch), bench.maps(batch)) for batch in bench.options.batches]
    return {
        "peak_mb": {batch: bench.peak(lambda maps=maps: fusion(*maps)) for batch, maps in batches}
    }


def training(bench: Bench, preset: str, method: str) -> Row:
    """A step of the generative loss with AdamW, and a CGAN's discriminator in its turn."""
    batch = 2 if bench.quick else 8
    fusion = bench.fusion(preset, method).train()
    needed = (
        12 * 1.25 * sum(p.numel() for p in fusion.parameters()) / 1e9
    )  # gradients and two moments
    free = (
        torch.cuda.mem_get_info()[0]
        if bench.device.type == "cuda"
        else 1024 * kilobytes("meminfo", "MemAvailable")
    ) / 1e9
    if needed > free:
        return {"skipped": f"needs about {needed:.0f} GB more, {free:.0f} GB are free"}
    optimizer = torch.optim.AdamW(fusion.parameters(), 1e-4, foreach=False)
    maps = bench.maps(batch, 3)

    def step() -> None:
        optimizer.zero_grad()
        output = fusion.loss(maps[:2], maps[2])
        (output.loss + output.fused.square().mean()).backward()
        if method == "cgan":
            fusion.discriminator_loss(maps[:2], maps[2]).backward()
        optimizer.step()

    memory = bench.peak(step)
    return {
        "batch": batch,
        "peak_mb": memory,
        **summary(bench.interleave({"step": step}), "step")["step"],
    }


def frame(bench: Bench, name: str, preset: str, dtype: str) -> Row:
    """A frame of the host untouched, without any fusion, and attached, by every path."""
    kind = getattr(torch, dtype)

    def attached() -> tuple[Host, Attachment]:
        host = build_host(bench, name, kind)
        return host, host.attach(bench.fusion(preset, shape=(host.channels, host.size)))

    functions: Functions = {"untouched": build_host(bench, name, kind).run}
    host, handle = attached()
    if host.point:
        without = build_host(bench, name, kind)
        setattr(without.tracker, host.point, Mean())
        functions["no fusion"] = without.run
    for way, switch in bench.paths(handle.fusion).items():
        functions[way] = lambda switch=switch: (switch(), host.run())
    if bench.device.type == "cuda" and name == "vit_b":
        whole, (whole_attached, whole_handle) = build_host(bench, name, kind), attached()
        whole_handle.optimize()
        for compiled in (whole, whole_attached):
            compiled.tracker.compile(mode="reduce-overhead")
        functions |= {"untouched, compiled": whole.run, "optimised, compiled": whole_attached.run}
    times = bench.interleave(
        functions, 1 if bench.quick else 20
    )  # ratios of few per cent want many
    row = {"frames": summary(times, "untouched")}
    return row | ({"to_no_fusion": summary(times, "no fusion")} if host.point else {})


def attaching(bench: Bench, name: str) -> Row:
    """What the swapped classes cost: hosts that fuse by the mean, one through an attachment.

    Two are untouched: how far they are apart is what this measurement cannot tell.
    """
    functions: Functions = {}
    for way in ("untouched", "attached", "untouched as well"):
        host = build_host(bench, name, torch.float32)
        setattr(host.tracker, str(host.point), Mean())
        if way == "attached":
            tiny = {"network_config": TINY["uvit"], "residual": None, "method": "raw"}
            host.attach(MeanFusion(host.channels, size=host.size, **tiny).eval())
        functions[way] = host.run
    return summary(bench.interleave(functions, 1 if bench.quick else 20), "untouched")


def memory(bench: Bench, way: str) -> Row:
    """Peak of a training step on the ViT-B host, attached or with the host's graph kept."""
    host = build_host(bench, "vit_b", torch.float32)
    fusion, batch = bench.fusion("small", shape=(host.channels, host.size)), 2 if bench.quick else 8
    network = host.tracker.train()
    if way == "attached":
        holder: Any = host.attach(fusion)
        trained = list(holder.parameters())
    else:
        holder = Kept(network.fuse, fusion.train())
        network.fuse = holder
        trained = [*fusion.parameters(), *network.head.parameters()]
    optimizer = torch.optim.AdamW(trained, 1e-4)
    images = [x.repeat(batch, 1, 1, 1) for x in bench.images(128, 256)]

    def step() -> None:
        loss = network(*images).square().mean()
        (loss + holder.generative_loss).backward()
        optimizer.step()

    return {"batch": batch, "peak_mb": bench.peak(step), "step_ms": 1e3 * bench.once(step)}


def importing(bench: Bench) -> Row:
    """Seconds of the import, on top of torch's, in processes of their own."""
    code = (
        "import time, torch; start = time.perf_counter(); import gmmt_fusion; whole = "
        "time.perf_counter(); "
        "from gmmt_fusion import GenerativeFusion, attach; print(whole - start, "
        "time.perf_counter() - start)"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True
        ).stdout.split()
        for _ in range(1 if bench.quick else 5)
    ]
    package, used = (min(map(float, column)) for column in zip(*runs, strict=True))
    return {"package_s": package, "used_s": used}


def limits(bench: Bench) -> Row:
    """What the machine can do."""
    (product, flop), (copying, copied) = bench.matrix_product(torch.float32), bench.copy()
    functions = {"float32 GFLOP/s": (product, flop), "copy GB/s": (copying, copied)}
    if has_bfloat16(bench.device):
        functions["bfloat16 GFLOP/s"] = bench.matrix_product(torch.bfloat16)
    times = bench.interleave({name: function for name, (function, _) in functions.items()})
    return {name: work / min(times[name]) / 1e9 for name, (_, work) in functions.items()}


MEASURES: dict[str, Callable[..., Row]] = {
    "inference": inference,
    "training": training,
    "peak": peak,
    "frame": frame,
    "attaching": attaching,
    "memory": memory,
    "importing": importing,
    "limits": limits,
}


def plan(options: argparse.Namespace) -> list[tuple[str, ...]]:
    """The rows: what is measured and its arguments."""
    dtypes = ["float32", *(["bfloat16"] if has_bfloat16(torch.device(options.device)) else [])]
    rows: list[tuple[str, ...]] = []
    for kind in options.measure:
        if kind in ("inference", "training", "peak"):
            rows += [(kind, *row) for row in itertools.product(options.presets, options.methods)]
        elif kind == "frame":
            rows += [
                (kind, "vit_b", preset, dtype) for preset in options.presets for dtype in dtypes
            ]
            rows += [(kind, "embedded", preset, "float32") for preset in ("small", "small-unet")]
            if "HOSTS" in os.environ and not options.quick:
                rows += [
                    (kind, name, "small-unet" if "siamban" in name else "small", "float32")
                    for name in REAL_HOSTS
                ]
        else:
            names = {"attaching": ("vit_b", "embedded", "empty"), "memory": ("attached", "kept")}
            rows += [(kind, name) for name in names[kind]] if kind in names else [(kind,)]
    return rows


def measure(options: argparse.Namespace, row: tuple[str, ...]) -> Row:
    """One row in a process of its own: its peak memory is its own, and nothing warms it up."""
    command = [sys.executable, __file__, *sys.argv[1:], "--row", *row]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=options.limit)
    except subprocess.TimeoutExpired:
        return {"skipped": f"took more than {options.limit} s (--limit)"}
    return (
        json.loads(done.stdout.splitlines()[-1])
        if done.returncode == 0
        else {"skipped": f"ended with {done.returncode}; see the messages above"}
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--measure", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--seconds", type=float, default=10, help="for each comparison (default: %(default)s)"
    )
    parser.add_argument(
        "--limit", type=float, default=1800, help="seconds for a row (default: %(default)s)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, to see that everything runs"
    )
    parser.add_argument("--row", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    bench = Bench(options)
    if options.row:
        kind, *arguments = options.row
        with torch.set_grad_enabled(kind in ("training", "memory")):
            print(json.dumps({**MEASURES[kind](bench, *arguments), **now()}))
        return

    from speed_tables import tables
    from tqdm import tqdm

    options.out.mkdir(parents=True, exist_ok=True)
    kinds = [bench.device.type] * (bench.device.type != "cpu") + ["quick"] * bench.quick
    path = options.out / f"{'_'.join(['speed', *kinds])}.json"
    settings = {
        "format": 2,
        "machine": machine(bench.device),
        "quick": options.quick,
        "seconds": options.seconds,
        "batches": options.batches,
    }
    report = json.loads(path.read_text()) if path.is_file() else {}
    if {
        key: report.get(key) for key in settings
    } != settings:  # of another machine, or measured otherwise
        report = {**settings, "rows": {}}
    rows = [
        row
        for row in plan(options)
        if "skipped" in report["rows"].get(" ".join(row), {"skipped": ""})
    ]
    for row in tqdm(rows, unit="row"):
        report["rows"][" ".join(row)] = measure(options, row)
        write_atomically(path, lambda file: file.write_text(json.dumps(report, indent=1) + "\n"))
    text = tables(report)
    write_atomically(path.with_suffix(".md"), lambda file: file.write_text(text))
    print(text)


if __name__ == "__main__":
    main()
