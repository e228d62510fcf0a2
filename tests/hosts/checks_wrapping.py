"""The adapter that docs/wrapping.md works out, on the real BAT: as good as the library's own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES, Case
from pages import read_blocks

from gmmt_fusion import attach

PAGE = Path(__file__).parents[2] / "docs" / "wrapping.md"


def adapter_of_the_page() -> Any:
    block = next(b for b in read_blocks(PAGE) if "class DualStreamAdapter" in b.code)
    namespace: dict[str, Any] = {"torch": torch}
    exec(block.code.partition("\n\n\nhandle =")[0], namespace)
    return namespace["DualStreamAdapter"]()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_pages_adapter_takes_what_the_librarys_takes(case: Case) -> None:
    seen, outputs = [], []
    for adapter in (case.adapter(), adapter_of_the_page()):
        network = case.build()
        expected = case.run(network)
        handle = attach(network, case.make_fusion(), adapter)
        outputs.append(case.run(network))
        with handle.recorded() as pairs:
            case.run(network)
        seen.append(pairs)
        case.train(network.train())["generative_loss"].backward()
        handle.detach()
        assert torch.equal(case.run(network.eval()), expected)
    assert torch.equal(*outputs)
    for (features, fused), (own_features, own_fused) in zip(*seen, strict=True):
        assert torch.equal(fused, own_fused)
        assert all(torch.equal(*pair) for pair in zip(features, own_features, strict=True))
