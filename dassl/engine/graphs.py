"""TRAIN.CUDA_GRAPHS: a computation of many tiny kernels, started all at once.

A small step leaves a GPU waiting for Python, which starts a kernel after the other. A CUDA graph is
a recording of all kernels of a call, with the addresses that they read and write: to run it again
is one call. So inputs are copied to where they were at the recording, and what comes out lies where
it lay then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dassl.engine.parallel import trained_parameters
from dassl.engine.step import StepOutput
from dassl.utils.distributed import world_size

if TYPE_CHECKING:
    from dassl.engine.trainer_x import TrainerX

__all__ = ["CUDAGraph", "GraphedStep", "Replayed", "graphed_step", "has_graphs", "why_eager"]

Results = Sequence[Any]  # tensors; None is the gradient of an unused parameter


class CUDAGraph:
    """PyTorch's graph of one function; tests put another class of this form here."""

    device_type = "cuda"

    def capture(self, function: Callable[[], Results]) -> Results:
        """Record a function; return its results, which have no values before `replay`."""
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(3):  # libraries make their workspaces in their first calls
                function()
        current.wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        # By thread, since another one may be pinning the next batch's memory.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            return function()

    def replay(self) -> None:
        """Run what was recorded."""
        self._graph.replay()


class Replayed:
    """A function of tensors that is recorded in its first call, and then replayed.

    Args:
        function: Does the same to all inputs of the same shapes, and changes nothing else.
        notes: Gets a remark if it cannot be recorded, see `dassl.engine.record.Notes`.
    """

    def __init__(self, function: Callable[..., Results], notes: Any) -> None:
        self._function, self._notes = function, notes
        self._graph: CUDAGraph | None = None
        self._failed = False
        self._inputs: list[Tensor] = []
        self._results: Results = ()

    def takes(self, *inputs: Tensor) -> bool:
        """Whether calls with such inputs are replayed; records the function if it is the first.

        Others, such as an epoch's last, shorter batch, are for the caller to compute.
        """
        if self._graph is None and not self._failed:
            self._record(inputs)
        return not self._failed and all(
            x.shape == own.shape and x.dtype == own.dtype and x.device == own.device
            for x, own in zip(inputs, self._inputs, strict=True)
        )

    def __call__(self, *inputs: Tensor) -> Results:
        """Replay; the results' tensors are overwritten by the next call."""
        if self._graph is None:
            raise RuntimeError("ask takes() first, which records the function")
        for own, x in zip(self._inputs, inputs, strict=True):
            own.copy_(x, non_blocking=True)
        self._graph.replay()
        return self._results

    def _record(self, inputs: Sequence[Tensor]) -> None:
        graph = CUDAGraph()
        self._inputs = [x.clone() for x in inputs]
        try:
            with torch.cuda.device_of(self._inputs[0]):  # the current GPU may be another one
                self._results = graph.capture(lambda: self._function(*self._inputs))
        except RuntimeError as error:
            self._failed = True
            # The end of a recording that has failed is an error too, which hides the cause.
            reason = str(error.__context__ or error).splitlines()[0]
            self._notes.add(f"TRAIN.CUDA_GRAPHS: not recorded: {reason}")
            return
        self._graph = graph


class GraphedStep:
    """A method's ``forward_loss`` whose forward and backward pass are one graph.

    To be called in its place: the loss has the gradients already and hands them out in its backward
    pass, so that the rest of a step (checks, accumulation, clipping, optimiser, schedule) is as
    always. A loss's backward pass must come before the next call.

    Args:
        model: With the weights to train, which stay where they are in memory.
        forward_loss: With the same operations for all batches of a shape; parts are tensors.
        notes: See `Replayed`.
    """

    def __init__(
        self, model: nn.Module, forward_loss: Callable[[Tensor, Tensor], StepOutput], notes: Any
    ) -> None:
        self._forward_loss = forward_loss
        self._trained = trained_parameters(model)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._names: list[str] = []  # of the parts
        self.passes = Replayed(self._both_passes, notes)

    def __call__(self, image: Tensor, label: Tensor) -> StepOutput:
        """Return the outcome of ``forward_loss``."""
        if not self.passes.takes(image, label):
            return self._forward_loss(image, label)
        loss, logits, *parts = _Replay.apply(self, image, label, *self._parameters)
        return StepOutput(loss, logits, dict(zip(self._names, parts, strict=True)))

    def fits(self, model: nn.Module) -> bool:
        """Tell whether the recorded gradients are those of all parameters that train now."""
        return self._trained == trained_parameters(model)

    def replay(self, image: Tensor, label: Tensor) -> tuple[Results, Results]:
        """Return loss, logits and parts; and the gradients of the parameters."""
        results = self.passes(image, label)
        outcome = len(results) - len(self._parameters)
        return results[:outcome], results[outcome:]

    def _both_passes(self, image: Tensor, label: Tensor) -> Results:
        with torch.enable_grad():
            out = self._forward_loss(image, label)
            grads = torch.autograd.grad(out.loss, self._parameters, allow_unused=True)
        self._names = list(out.parts)
        outcome: list[Any] = [out.loss, out.logits, *out.parts.values()]
        return *(None if x is None else x.detach() for x in outcome), *grads


class _Replay(torch.autograd.Function):
    """Runs a step's graph; its backward pass gives away the gradients that the graph computed."""

    @staticmethod
    def forward(
        ctx: Any, step: GraphedStep, image: Tensor, label: Tensor, *parameters: Tensor
    ) -> tuple[Tensor | None, ...]:
        outcome, ctx.grads = step.replay(image, label)
        # Copies: what is kept for the log must not change with the next batch.
        own = [None if x is None else x.clone() for x in outcome]
        ctx.mark_non_differentiable(*(x for x in own[1:] if x is not None))
        ctx.set_materialize_grads(False)
        return tuple(own)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        found = [x for x in ctx.grads if x is not None]
        # The factor is 1, or what an accumulated batch multiplies its parts' losses by.
        scaled = iter(torch._foreach_mul(found, grad))
        return (None, None, None, *(None if x is None else next(scaled) for x in ctx.grads))


def has_graphs(device: torch.device, notes: Any) -> bool:
    """Whether a device can replay graphs; if not, a remark says so."""
    if device.type != CUDAGraph.device_type:
        notes.add(f"TRAIN.CUDA_GRAPHS has no effect: there are no CUDA graphs on {device}")
        return False
    return True


def why_eager(trainer: TrainerX) -> str:
    """Return why a trainer's steps cannot be graphs; "" if they can."""
    if not trainer.static_step:
        return f"steps of {type(trainer).__name__} differ from each other, or are no small ones"
    if trainer.precision in ("amp", "bf16"):
        # Autocast keeps weights that it has cast, at addresses that a graph may not rely on.
        return f"in {trainer.precision}, PyTorch casts weights in every step; set PREC fp32"
    if world_size() > 1:
        return "several processes exchange gradients in every step"
    return ""


def graphed_step(trainer: TrainerX, current: GraphedStep | None) -> GraphedStep | None:
    """Return the step that replays a graph, ``current`` if it still fits; None to run as always."""
    if not (trainer.cfg.TRAIN.CUDA_GRAPHS and has_graphs(trainer.device, trainer.notes)):
        return None
    reason = why_eager(trainer)
    if reason:
        trainer.notes.add(f"TRAIN.CUDA_GRAPHS has no effect: {reason}")
        return None
    if current is not None and current.fits(trainer.model):
        return current
    return GraphedStep(trainer.model, trainer.forward_loss, trainer.notes)
