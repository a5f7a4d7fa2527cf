"""A stand-in for a GPU that tells where code would wait for it.

Tensors on the device `meta` have no values, so an operation that reads one raises an error by itself. `Waits` raises an
error at what PyTorch does by a copy from ordinary memory, for which a GPU is waited for too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

META = torch.device("meta")


class Waits(TorchFunctionMode):
    """While it is active, what would wait for a GPU raises AssertionError."""

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        options = options or {}
        if function in (torch.tensor, torch.as_tensor) and str(options.get("device", "cpu")) != "cpu":
            raise AssertionError("a tensor of Python's numbers is made on the device")
        if function in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and arguments[0].is_meta:
            keys = arguments[1] if isinstance(arguments[1], tuple) else (arguments[1],)
            if any(isinstance(key, list) or (isinstance(key, torch.Tensor) and not key.is_meta) for key in keys):
                raise AssertionError("the index lies in the CPU's memory")
            is_item = len(keys) == arguments[0].ndim and all(isinstance(key, int) for key in keys)
            if function is torch.Tensor.__setitem__ and is_item and isinstance(arguments[2], int | float):
                raise AssertionError("one of Python's numbers is assigned to an item")
        return function(*arguments, **options)
