"""What is said when training goes wrong: which layer first made a number that is not finite, and which batch fits.

Both are found by running again the step that failed, so that a healthy training pays nothing for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from backdrift.errors import UserError
from backdrift.train.distributed import local


class NonFinite(UserError):
    """A loss or gradient became infinite or NaN. step: counted from 1; pictures: numbers in the training part."""

    def __init__(self, step: int, pictures: Sequence[int], culprit: str):
        self.step, self.pictures, self.culprit = step, list(pictures), culprit
        shown = ", ".join(map(str, self.pictures[:8])) + (", ..." if len(self.pictures) > 8 else "")
        super().__init__(
            f"Training stopped at step {step}, before its update: {culprit} is not finite "
            f"(batch of {len(self.pictures)} training pictures: {shown}); a lower lr, or precision fp32, may help."
        )


def first_bad(net: nn.Module, again: Callable[[], None]) -> str | None:
    """Words for the first thing in `net` that is not finite while `again` runs one forward and backward pass."""
    for name, parameter in net.named_parameters():
        if not _finite(parameter):
            again()  # the other processes of the job, if there are any, wait for this pass
            return f"the weight {name}"
    found: list[str] = []
    layers = [(name, module) for name, module in net.named_modules() if not any(module.children())]
    hooks = [module.register_forward_hook(_watch(name or type(net).__name__, found)) for name, module in layers]
    hooks += [p.register_hook(_check(f"the gradient of the weight {name}", found)) for name, p in _trained(net)]
    try:
        again()
    finally:
        for hook in hooks:
            hook.remove()
        net.zero_grad(set_to_none=True)
    return found[0] if found else None


def _watch(name: str, found: list[str]):
    def hook(module, inputs, output):
        if not isinstance(output, Tensor):
            return
        _check(f"the output of the layer {name}", found)(output)
        if output.requires_grad:
            output.register_hook(_check(f"the gradient at the output of the layer {name}", found))

    return hook


def _check(words: str, found: list[str]):
    def check(values: Tensor) -> None:
        if not found and not _finite(values):
            found.append(words)

    return check


def _finite(values: Tensor) -> bool:
    return bool(local(values.detach()).isfinite().all())


def _trained(net: nn.Module):
    return [(name, p) for name, p in net.named_parameters() if p.requires_grad]


def out_of_memory(error: BaseException) -> bool:
    """Whether the error says that memory ran out, on an accelerator or on the CPU."""
    text = str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text.lower())
    )


def batch_that_fits(batch: int, trial: Callable[[int], None]) -> int:
    """The largest of batch / 2, batch / 4, ... that `trial` gets through; 0 if not even 1 does."""
    while batch := batch // 2:
        try:
            trial(batch)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        else:
            return batch
    return 0


def memory_sentence(batch: int, at_once: int, fits: int, processes: int = 1) -> str:
    """What to tell the user. at_once, fits: pictures that should, and that do pass through the network at once."""
    if not fits:
        return "Memory ran out, and not even a batch of 1 picture fits; use a smaller network or smaller pictures."
    together = fits * processes
    return (
        f"Memory ran out with {at_once} pictures at once; {fits} fit: use a batch of {together}, "
        f"or keep the batch of {batch} and pass it in {-(-batch // together)} parts."
    )
