"""The measurements of benchmarks/speed.py, each a row of its tables."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from bench import TINY, Bench, Functions, Row, kilobytes, name_of, summary
from measuring import (
    Host,
    Kept,
    Mean,
    MeanFusion,
    build_host,
    has_bfloat16,
)
from torch.utils.flop_counter import FlopCounterMode

from gmmt_fusion import Attachment
from gmmt_fusion.model.fast_path import optimize


def in_tf32(bench: Bench, function: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        bench.round_to_tf32(True)
        try:
            return function()
        finally:
            bench.round_to_tf32(False)

    return run


def measure_inference(bench: Bench, preset: str, method: str) -> Row:
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
            for name, switch in bench.paths(fusion, compiled=True).items()
        }
        if bench.device.type == "cuda":
            functions["TF32"] = in_tf32(bench, functions["plain"])
        plain = functions["plain"]()
        errors = {
            name: float((path() - plain).norm() / plain.norm()) for name, path in functions.items()
        }
        functions |= {"matrix product": product, "copy": copying}
        if has_bfloat16(bench.device):
            functions["bfloat16 matrix product"], half_flop = bench.matrix_product(torch.bfloat16)
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
        halves = times.get("bfloat16 matrix product")
        row["batches"][str(batch)] = {
            "gflop": flop / 1e9,
            "matrix_gflops": rate / 1e9,
            **({"bfloat16_gflops": half_flop / min(halves) / 1e9} if halves else {}),
            "bandwidth_gb_s": bandwidth / 1e9,
            "relative_error": errors,
            "paths": summary(times, "plain"),
        }
    return row


def measure_peak(bench: Bench, preset: str, method: str) -> Row:
    """The memory of a pass at every batch."""
    fusion = bench.fusion(preset, method)
    fusion(*bench.maps(1))  # what is set up once
    batches = [(str(batch), bench.maps(batch)) for batch in bench.options.batches]
    return {
        "peak_mb": {batch: bench.peak(lambda maps=maps: fusion(*maps)) for batch, maps in batches}
    }


def measure_training(bench: Bench, preset: str, method: str) -> Row:
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

    def step(dtype: torch.dtype | None = None) -> None:
        optimizer.zero_grad()
        with torch.autocast(bench.device.type, dtype, enabled=dtype is not None):
            output = fusion.loss(maps[:2], maps[2])
        (output.loss + output.fused.square().mean()).backward()
        if method == "cgan":
            fusion.discriminator_loss(maps[:2], maps[2]).backward()
        optimizer.step()

    memory = bench.peak(step)
    ways: Functions = {"float32": step}
    if bench.device.type == "cuda":
        ways["TF32"] = in_tf32(bench, step)
        ways |= {
            f"{name_of(dtype)} by autocast": lambda dtype=dtype: step(dtype)
            for dtype in (torch.bfloat16, torch.float16)
        }
    return {
        "batch": batch,
        "peak_mb": memory,
        "ways": summary(bench.interleave(ways), "float32"),
    }


def measure_frame(bench: Bench, name: str, preset: str, dtype: str) -> Row:
    """A frame of the host untouched, without any fusion, and attached, by every path."""
    bench.round_to_tf32(dtype == "TF32")
    kind = getattr(torch, dtype.replace("TF32", "float32"))

    def build_attached() -> tuple[Host, Attachment]:
        host = build_host(bench, name, kind)
        return host, host.attach(bench.fusion(preset, shape=(host.channels, host.size)))

    functions: Functions = {"untouched": build_host(bench, name, kind).run}
    host, handle = build_attached()
    if host.point:
        without = build_host(bench, name, kind)
        setattr(without.tracker, host.point, Mean())
        functions["no fusion"] = without.run
    for way, switch in bench.paths(handle.fusion).items():
        functions[way] = lambda switch=switch: (switch(), host.run())
    times = bench.interleave(
        functions, 1 if bench.quick else 20
    )  # ratios of few per cent want many
    row = {"frames": summary(times, "untouched")}
    return row | ({"to_no_fusion": summary(times, "no fusion")} if host.point else {})


def measure_compiled(bench: Bench, preset: str, dtype: str) -> Row:
    """A frame of the ViT-B host compiled as a whole, CUDA graphs on a GPU, and of it attached."""
    kind = getattr(torch, dtype)
    whole, attached = (build_host(bench, "vit_b", kind) for _ in range(2))
    attached.attach(bench.fusion(preset, shape=(whole.channels, whole.size))).optimize()
    for host in (whole, attached):
        host.tracker.compile(mode="reduce-overhead")
    functions = {"untouched, compiled": whole.run, "optimised, compiled": attached.run}
    for function in functions.values():  # compiled in the first call, recorded in the second
        for _ in range(4):
            function()
    times = bench.interleave(functions, 1 if bench.quick else 20)
    return {"frames": summary(times, "untouched, compiled")}


def measure_attaching(bench: Bench, name: str) -> Row:
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


def measure_memory(bench: Bench, way: str) -> Row:
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


def measure_importing(bench: Bench) -> Row:
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


def measure_limits(bench: Bench) -> Row:
    """What the machine can do."""
    (product, flop), (copying, copied) = bench.matrix_product(torch.float32), bench.copy()
    functions = {"float32 GFLOP/s": (product, flop), "copy GB/s": (copying, copied)}
    if has_bfloat16(bench.device):
        functions["bfloat16 GFLOP/s"] = bench.matrix_product(torch.bfloat16)
    times = bench.interleave({name: function for name, (function, _) in functions.items()})
    return {name: work / min(times[name]) / 1e9 for name, (_, work) in functions.items()}


MEASURES: dict[str, Callable[..., Row]] = {
    "inference": measure_inference,
    "training": measure_training,
    "peak": measure_peak,
    "frame": measure_frame,
    "compiled": measure_compiled,
    "attaching": measure_attaching,
    "memory": measure_memory,
    "importing": measure_importing,
    "limits": measure_limits,
}
