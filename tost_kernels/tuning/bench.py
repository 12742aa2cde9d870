"""The calls that tuning times, on random tensors as a case has them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from tost_kernels.layout import as_layout
from tost_kernels.ops.masked import index_and_options
from tost_kernels.ops.masked_conv2d import masked_conv2d
from tost_kernels.ops.masked_linear import masked_linear
from tost_kernels.pattern import Pattern
from tost_kernels.plan import Case, Plan
from tost_kernels.register import op
from tost_kernels.tuning import candidates
from tost_kernels.tuning.candidates import FORWARD, INPUT_GRAD
from tost_kernels.tuning.cuda_timer import cache_bytes, inputs_past_cache
from tost_kernels.tuning.trial import WHOLE, Trial


class Bench:
    """Trials of one case. On CUDA each takes its inputs in turn, of which there are more than its L2 cache holds."""

    def __init__(self, case: Case, pattern: Pattern) -> None:
        self.case, self._pattern = case, pattern.to(case.device)
        generator = torch.Generator().manual_seed(0)  # the user's own generator is not to be touched

        def normal(shape: Sequence[int], layout: str = "contiguous") -> Tensor:
            tensor = torch.randn(tuple(shape), generator=generator).to(case.device, getattr(torch, case.dtype))
            return as_layout(tensor, layout)

        x = normal(case.input, case.layout)
        grad = normal(candidates.output_shape(case), case.layout) if case.grads else None
        self._values = normal((pattern.nnz,))
        self._bias = normal((case.weight[0],)) if case.bias else None
        smallest = min(t.numel() * t.element_size() for t in (x, grad) if t is not None)
        self._inputs = inputs_past_cache(smallest, cache_bytes(case.device))
        self._pairs = [(x, grad)] + [
            (x.clone(), None if grad is None else grad.clone()) for _ in range(self._inputs - 1)
        ]  # (x, the gradient of its output)

    def one_pass(self, which: str, plan: Plan) -> Trial:
        """One pass of a compiled backend, without autograd."""
        case, turns = self.case, itertools.cycle(self._pairs)
        resolved: list[tuple[Tensor, str]] = []

        def run() -> object:
            x, grad = next(turns)
            if not resolved:  # in the first run, as this may fail, and is not to be timed
                resolved.append(index_and_options(plan, case.op, x, self._pattern, case.geometry))
            (index, options), g = resolved[0], case.geometry
            geometry = (list(case.weight), *([list(g[:2]), list(g[2:4]), list(g[4:6]), g[6]] if g else []), options)
            if which == FORWARD:
                return op(case.op, plan.backend)(x, self._values, self._bias, index, *geometry)
            if which == INPUT_GRAD:
                kernel = op(f"{case.op}_input_grad", plan.backend)
                return kernel(grad, self._values, index, list(case.input), case.layout, *geometry)
            return op(f"{case.op}_values_grad", plan.backend)(grad, x, index, self._pattern.nnz, *geometry)

        return Trial(which, plan, run, self._inputs)

    def whole(self, plan: Plan) -> Trial:
        """Forward and the gradients wanted, by the function that layers call."""
        case, g = self.case, self.case.geometry
        values = self._values.detach().requires_grad_("values" in case.grads.split("+"))
        wants_x = "x" in case.grads.split("+")
        turns = itertools.cycle([(x.detach().requires_grad_(wants_x), grad) for x, grad in self._pairs])

        def run() -> object:
            x, grad = next(turns)
            wanted = [t for t in (x, values) if t.requires_grad]
            # Tuning may be called under anything; layers are timed as a plain step runs them.
            with torch.autocast(case.device, enabled=False), torch.set_grad_enabled(bool(wanted)):
                if g:
                    out = masked_conv2d(x, values, self._pattern, self._bias, g[:2], g[2:4], g[4:6], g[6], plan=plan)
                else:
                    out = masked_linear(x, values, self._pattern, self._bias, plan=plan)
                return torch.autograd.grad(out, wanted, grad) if wanted else out

        return Trial(WHOLE, plan, run, self._inputs)


def check_runs(case: Case, pattern: Pattern, plan: Plan) -> None:
    """Raise what the op would raise for `plan`, without its work: on an empty batch."""
    Bench(case._replace(input=(0, *case.input[1:])), pattern).whole(plan).run()
