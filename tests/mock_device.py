"""A device "mock" that computes on the CPU, and refuses to meet the CPU's tensors as a GPU does.

`start()` registers it with PyTorch (its experimental backends in Python), for good: only in a
process of its own. `synchronisations` counts what a GPU would have to be waited for.
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._pytree import tree_flatten, tree_map

AVAILABLE = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")
FACTORIES = (
    *("empty.memory_format", "empty_strided", "zeros", "ones", "full", "eye", "scalar_tensor"),
    *("arange", "arange.start", "arange.start_step", "linspace", "rand", "randn", "randint.low"),
)
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2")
COPIES = ("_to_copy", "copy_", "_copy_from")

synchronisations: Counter[str] = Counter()


class MockTensor(torch.Tensor):
    """What is seen of a tensor on the device; `held`, on the CPU, is what it computes with."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "MockTensor":
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device="mock:0"
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def __repr__(self, **_: Any) -> str:
        return f"{self.held!r} on mock"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> "MockTensor":
        with torch.no_grad():
            copied = MockTensor(self.held.clone()).requires_grad_(self.requires_grad)
        copied._is_param = getattr(self, "_is_param", False)
        memo[id(self)] = copied
        return copied

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation on the tensors held; its results are on the device, unless it goes to the CPU.

    Raises:
        RuntimeError: it meets a tensor of the CPU, other than one number.
    """
    name = func.overloadpacket.__name__
    leaves, _ = tree_flatten((args, kwargs))
    plain = [x for x in leaves if isinstance(x, Tensor) and not isinstance(x, MockTensor)]
    indexed = name.startswith("index") and isinstance(args[0], MockTensor)  # by the CPU's: allowed
    if name not in COPIES and not indexed and any(x.ndim for x in plain):
        raise RuntimeError(f"{func} meets tensors on the device mock and on the cpu")
    device, down = kwargs.get("device"), False
    if name in COPIES:  # onto the CPU, or into one of its tensors
        down = (device is not None and device.type == "cpu") if name == "_to_copy" else bool(plain)
        down = down and (name == "_to_copy" or plain[0] is args[0])
    masks = name.startswith("index") and any(
        x.dtype == torch.bool for x in tree_flatten(args[1:2])[0] if isinstance(x, Tensor)
    )
    if down or masks or name in WAITS:
        synchronisations[name] += 1
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    kwargs.pop("pin_memory", None)
    held = tree_map(lambda x: x.held if isinstance(x, MockTensor) else x, (args, kwargs))
    result = func(*held[0], **held[1])
    if down:
        return result if name == "_to_copy" else args[0]
    written = [
        x
        for argument, x in zip(func._schema.arguments, args, strict=False)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    if written and len(func._schema.returns) <= 1:
        return written[0]
    if "out" in kwargs:
        raise RuntimeError(f"{func} with out= is not on the device mock")
    return tree_map(lambda x: MockTensor(x) if isinstance(x, Tensor) else x, result)


class Module:
    """What `torch.mock` is: as `torch.cuda`, of one device."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def set_device(self, device: Any) -> None:
        pass


def start() -> None:
    """Register the device."""
    backend_registration._setup_privateuseone_for_python_backend("mock", Module())
    aten = torch.library.Library("aten", "IMPL")
    for name in FACTORIES:
        packet, _, overload = name.partition(".")
        func = getattr(getattr(torch.ops.aten, packet), overload or "default")
        aten.impl(name, _factory(func), "PrivateUse1")
    aten.impl("_copy_from", _copy_from, "PrivateUse1")
    LIBRARIES.append(aten)  # it is gone with its object


LIBRARIES: list[Any] = []


def _factory(func: Any) -> Any:
    def make(*args: Any, **kwargs: Any) -> Tensor:
        kwargs.pop("pin_memory", None)
        return MockTensor(func(*args, **{**kwargs, "device": torch.device("cpu")}))

    return make


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """Where PyTorch copies below its dispatch to subclasses, as `torch.tensor` does."""
    held = [x.held if isinstance(x, MockTensor) else x for x in (source, target)]
    held[1].copy_(held[0])
    if not isinstance(target, MockTensor):
        synchronisations["copy_"] += 1
    return target
