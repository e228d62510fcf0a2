"""The README's code is what runs."""

import re
from pathlib import Path

import torch
from cases import CASES, images
from tiny_hosts import SumTracker

import gmmt_fusion

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_worked_adapter_runs_as_printed() -> None:
    block = next(
        b for b in re.findall(r"```python\n(.*?)```", README, re.S) if "class SumAdapter" in b
    )
    code = block[block.index("class SumAdapter") : block.index("\n\n\nhandle")]
    assert len(code.splitlines()) <= 30
    namespace = {
        "tracker": SumTracker().eval(),
        "attach": gmmt_fusion.attach,
        "GenerativeFusion": gmmt_fusion.GenerativeFusion,
    }
    exec(block, namespace)
    handle, case = namespace["handle"], CASES[3]
    assert not torch.equal(case.run(handle.network), case.run(case.build()))
    out = handle.network.train()(*images())
    assert out["generative_loss"] is handle.generative_loss


def test_names_in_the_readme_exist() -> None:
    from gmmt_fusion import adapters

    for line in re.findall(r"^from gmmt_fusion(\.\w+)? import (.*)$", README, re.M):
        home = {"": gmmt_fusion, ".adapters": adapters}.get(line[0])
        if home is not None:
            assert all(hasattr(home, name.strip()) for name in line[1].split(","))
