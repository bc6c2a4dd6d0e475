"""Several weights as one matrix without a second copy: the parameters become views of its rows."""

import threading
from collections import Counter
from collections.abc import Sequence

import torch

_MERGING = threading.Lock()


def merge(parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """The parameters, (n_i, ...) each, as one tensor (sum of n_i, ...), which shares memory with them.

    The parameters remain the same objects with the same values, each now a view of the tensor's memory: changes in
    place reach it, and it needs no bookkeeping, since it is found again by the addresses. What gives a parameter new
    memory (`.to()`, `load_state_dict(assign=True)`) ends the sharing until the next call. Raises ValueError if the
    parameters' memory is in use under other names, which would no longer see their changes.
    """
    with _MERGING:
        if not _is_merged(parameters):
            if _is_aliased(parameters):
                raise ValueError("other tensors share the memory of its projections")
            whole = torch.cat([parameter.detach() for parameter in parameters])
            rows = whole.split([len(parameter) for parameter in parameters])
            for parameter, own in zip(parameters, rows, strict=True):
                parameter.data = own
    first = parameters[0].detach()
    return first.as_strided((sum(map(len, parameters)), *first.shape[1:]), first.stride())


def _is_merged(parameters: Sequence[torch.Tensor]) -> bool:
    """Whether the parameters lie in the same memory one after the other."""
    end = parameters[0].storage_offset()
    for parameter in parameters:
        if _memory(parameter) != _memory(parameters[0]) or parameter.storage_offset() != end:
            return False
        end += parameter.numel()
    return True


def _memory(parameter: torch.Tensor) -> int:
    return parameter.untyped_storage().data_ptr()


def _is_aliased(parameters: Sequence[torch.Tensor]) -> bool:
    """Whether other tensors than these parameters use their memory."""
    alone = _uses(torch.empty(1))
    together = Counter(map(_memory, parameters))
    return any(_uses(each) >= alone + together[_memory(each)] for each in parameters)


def _uses(tensor: torch.Tensor) -> int:
    return torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)
