"""Linear layers and attention on a CPU, by whichever library is fastest there.

torch gives products in fp32 to its BLAS (MKL on x86) and attention to a flash kernel of its own. How near these come
to a processor's peak differs: on one thread of an AMD EPYC of the fifth generation MKL reached 100 GFLOP/s and oneDNN
170 to 220 of 250, on one of the third MKL 85 and oneDNN 72 of 101. No name of a vendor tells, so each product is timed
once in a process, at its first use at a size where it matters. ``MICRON_PRODUCTS`` decides instead, in full or in
part: ``MICRON_PRODUCTS=linear=onednn,attention=flash``.
"""

from __future__ import annotations

import functools
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Optional

import torch
import torch.autograd.forward_ad
import torch.nn.functional as F
from torch import Tensor, nn

from . import attention_products
from .attention_products import ATTENTION, plain_attention, plain_attention_backward, split

VARIABLE = "MICRON_PRODUCTS"
#: What is chosen, and among what: torch's own first, then what has to be faster than it by ``MARGIN``.
PRODUCTS: dict[str, tuple[str, ...]] = {
    "linear": ("torch", "onednn"),
    "linear_grad_input": ("torch", "onednn"),
    "linear_grad_weight": ("torch", "onednn"),
    "attention": ("flash", "matrices", "onednn"),
}
MARGIN = 0.95
ROUNDS = 4
#: Multiplications of a linear layer under which the call costs more than a better library gains.
SMALLEST_LINEAR = 1 << 22
#: N·E of a head under which the same holds, and a head at a time loses to the flash kernel's blocks.
SMALLEST_HEAD = 12_000


class Choice(NamedTuple):
    """Who computes a product."""

    name: str
    reason: str
    """Why, for the report: the times that were measured, or who asked for it."""


_choices: dict[str, Choice] = {}
_lock = threading.RLock()


def has_onednn() -> bool:
    """Whether torch was built with both libraries; without MKL its BLAS is not one that oneDNN stands in for here."""
    return torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()


def chosen(product: str) -> str:
    """Who computes ``product``, one of :data:`PRODUCTS`: decided at the first call, the same ever after."""
    if product not in _choices:
        with _lock:
            if product not in _choices:
                _choices[product] = _asked_for().get(product) or _measured(product)
    return _choices[product].name


def choices(all: bool = False) -> dict[str, str]:
    """What has been decided in this process so far, or ``all``, deciding what has not."""
    if all:
        return {product: chosen(product) for product in PRODUCTS}
    return {product: choice.name for product, choice in _choices.items()}


def use(names: Mapping[str, str], reason: str) -> list[str]:
    """Take ``names``, as :func:`choices` gave them, in place of what this process has chosen or would choose.

    ``MICRON_PRODUCTS`` stays above them.

    Returns:
        What could not be taken, in words.

    Raises:
        ValueError: a name that is none.
    """
    refused = []
    with _lock:
        asked = _asked_for()
        for product, name in names.items():
            _check(product, name, reason)
            if product in asked and asked[product].name != name:
                refused.append(f"{product}={asked[product].name} as {VARIABLE} says, not {name}")
            elif name not in _candidates(product):
                refused.append(f"{product}={name} is not in this build of torch")
            else:
                _choices[product] = Choice(name, reason)
    return refused


def processor() -> str:
    """The name of this machine's processor."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def facts() -> list[dict[str, Any]]:
    """Who computes each product, of whom, and why; measures what has not been needed so far."""
    return [
        {"product": product, "chosen": name, "of": PRODUCTS[product], "reason": _choices[product].reason}
        for product, name in choices(all=True).items()
    ]


def describe() -> str:
    """:func:`facts` as text, a fact a line."""
    lines = [f"{'product on a CPU':<22}{'chosen':<12}of"]
    for fact in facts():
        lines += [f"{fact['product']:<22}{fact['chosen']:<12}{', '.join(fact['of'])}"]
        lines += [f"{'':<22}{fact['reason']}"]
    return "\n".join(lines)


def _check(product: str, name: str, source: str) -> None:
    if product not in PRODUCTS:
        raise ValueError(f"{source}: {product!r} is not one of {', '.join(PRODUCTS)}")
    if name not in PRODUCTS[product]:
        raise ValueError(f"{source}: {product}={name!r} is not one of {', '.join(PRODUCTS[product])}")


def _asked_for() -> dict[str, Choice]:
    value = os.environ.get(VARIABLE, "")
    source = f"{VARIABLE}={value!r}"
    found = {}
    for part in filter(None, (part.strip() for part in value.split(","))):
        product, equals, name = (word.strip() for word in part.partition("="))
        if not equals:
            raise ValueError(f"{source}: {part!r} is not product=name; products are {', '.join(PRODUCTS)}")
        _check(product, name, source)
        if name not in _candidates(product):
            raise RuntimeError(f"{source}: this build of torch has not both MKL and oneDNN")
        found[product] = Choice(name, source)
    return found


def _candidates(product: str) -> list[str]:
    return [name for name in PRODUCTS[product] if name != "onednn" or has_onednn()]


def _measured(product: str) -> Choice:
    names = _candidates(product)
    if len(names) == 1:
        return Choice(names[0], "torch was built without MKL or oneDNN")
    # A thread of its own has none of the caller's modes: gradients, autocast, fake tensors, transforms.
    with ThreadPoolExecutor(1) as thread:
        seconds = thread.submit(_time, _trials(product, names)).result()
    best = names[0]
    for name in names[1:]:
        if seconds[name] < MARGIN * seconds[best]:
            best = name
    listed = ", ".join(f"{name} {1e3 * seconds[name]:.1f} ms" for name in names)
    return Choice(best, f"{listed} on {torch.get_num_threads()} threads")


def _time(functions: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """The least time of each in seconds over a few calls, in turn, so that a machine that is busy is so for all.

    The first call of each warms up and does not count, but who takes half as long again in it is not called again.
    """
    seconds = {}
    with torch.no_grad():
        for name, function in functions.items():
            seconds[name] = _seconds(function)
        first = min(seconds.values())
        running = {name: functions[name] for name in functions if seconds[name] < 1.5 * first}
        seconds |= dict.fromkeys(running, float("inf"))
        for _ in range(ROUNDS):
            for name, function in running.items():
                seconds[name] = min(seconds[name], _seconds(function))
    return seconds


def _seconds(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def _trials(product: str, names: Iterable[str]) -> dict[str, Callable[[], object]]:
    """A call of each at the sizes of a frame of the published model; of attention, two heads a thread."""

    def made(*shape: int) -> Tensor:
        # Not from torch's global generator: a measurement must not change what a run draws.
        generator = torch.Generator().manual_seed(0)
        return torch.rand(shape, generator=generator, device="cpu", dtype=torch.float32) - 0.5

    if product == "attention":
        heads = min(16, 2 * torch.get_num_threads())
        qkv, grad = made(1, 785, 3, heads, 128), made(1, 785, heads * 128)

        def attend(name: str) -> None:
            forward, backward = ATTENTION[name]
            out, state = forward(qkv, True)
            backward(grad, qkv, out, state)

        return {name: functools.partial(attend, name) for name in names}
    rows, weight = made(785, 512), made(512, 512)
    x, y = {
        "linear": (rows, weight),
        "linear_grad_input": (rows, weight.t()),
        "linear_grad_weight": (rows.t(), rows.t()),
    }[product]
    return {name: functools.partial(LINEAR[name], x, y, None) for name in names}


def _constant_to_compilers(function: Callable) -> Callable:
    """``torch.compiler.assume_constant_result``, which imports all of the compiler only to set this mark."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@_constant_to_compilers
def _any_by_onednn() -> bool:
    return any(chosen(product) == "onednn" for product in PRODUCTS if product.startswith("linear"))


@_constant_to_compilers
def _chosen_attention() -> str:
    return chosen("attention")


def _attention_by(qkv: Tensor) -> str:
    large = qkv.dtype == torch.float32 and qkv.shape[1] * qkv.shape[4] >= SMALLEST_HEAD
    return _chosen_attention() if large else "flash"


def _is_transformed() -> bool:
    """Inside torch.func's transforms or forward-mode differentiation, which opaque operators do not know."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


#: x (..., K) times weight (N, K) transposed, plus bias (N,). Dense operands, or transposes of dense ones: what has gaps
#: would send oneDNN to a loop without vectors.
LINEAR: dict[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    "torch": F.linear,
    "onednn": _onednn_linear,
}


@torch.library.custom_op("micron_model::linear", mutates_args=())
def _linear(x: Tensor, weight: Tensor, bias: Optional[Tensor], product: str) -> Tensor:  # noqa: UP045  (read by torch)
    return LINEAR[chosen(product)](x, weight, bias)


@_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, product: str) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _save_for_linear(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, str], output: Tensor) -> None:
    x, weight, bias, _ = inputs
    ctx.save_for_backward(x, weight)
    ctx.biased = bias is not None


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    grad_rows, rows = grad.flatten(0, -2).contiguous(), x.flatten(0, -2).contiguous()
    grad_x = _linear(grad, weight.t(), None, "linear_grad_input") if ctx.needs_input_grad[0] else None
    grad_weight = None
    if ctx.needs_input_grad[1]:  # oneDNN copies the first operand to transpose it: the narrower one
        if rows.shape[1] < grad_rows.shape[1]:
            grad_weight = _linear(rows.t(), grad_rows.t(), None, "linear_grad_weight").t()
        else:
            grad_weight = _linear(grad_rows.t(), rows.t(), None, "linear_grad_weight")
    return grad_x, grad_weight, grad_rows.sum(0) if ctx.biased else None, None


_linear.register_autograd(_linear_backward, setup_context=_save_for_linear)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``: x (..., K), weight (N, K), bias (N,); the same function up to the order of its sums."""
    if (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() * weight.shape[0] >= SMALLEST_LINEAR
        and weight.is_contiguous()
        and not torch.is_autocast_enabled("cpu")
        and not _is_transformed()
        and _any_by_onednn()
    ):
        return _linear(x, weight, bias, "linear")
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """``nn.Linear`` through :func:`linear`: the same parameters under the same names."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


# What a kind keeps for its backward depends on the kind, so a graph that was traced with one must go on with it: it is
# an argument. Where nothing is kept, "", each process decides for itself.
@torch.library.custom_op("micron_model::attention", mutates_args=())
def _attention(qkv: Tensor, kept_by: str) -> tuple[Tensor, Tensor]:
    name = kept_by or _attention_by(qkv)
    return ATTENTION[name].forward(qkv, bool(kept_by))


@_attention.register_fake
def _(qkv: Tensor, kept_by: str) -> tuple[Tensor, Tensor]:
    out = qkv.new_empty(*qkv.shape[:2], qkv.shape[3] * qkv.shape[4])
    return out, attention_products.empty_state(qkv, kept_by)


@torch.library.custom_op("micron_model::attention_backward", mutates_args=())
def _attention_backward(grad: Tensor, qkv: Tensor, out: Tensor, state: Tensor, kept_by: str) -> Tensor:
    name = kept_by or _attention_by(qkv)
    return ATTENTION[name].backward(grad, qkv, out, state)


@_attention_backward.register_fake
def _(grad: Tensor, qkv: Tensor, out: Tensor, state: Tensor, kept_by: str) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _save_for_attention(ctx: Any, inputs: tuple[Tensor, str], output: tuple[Tensor, Tensor]) -> None:
    qkv, ctx.kept_by = inputs
    ctx.save_for_backward(qkv, *output)
    ctx.set_materialize_grads(False)


def _gradient_of_attention(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, None]:
    qkv, out, state = ctx.saved_tensors
    if grad is None:
        return None, None
    if torch.is_grad_enabled():  # create_graph: this gradient will be differentiated in its turn
        return plain_attention_backward(grad, qkv), None
    return _attention_backward(grad, qkv, out, state, ctx.kept_by), None


_attention.register_autograd(_gradient_of_attention, setup_context=_save_for_attention)


def attention(qkv: Tensor) -> Tensor:
    """Multi-head attention: qkv (B, N, 3, H, E) to (B, N, H·E), scale 1/√E.

    On a CPU it can be differentiated any number of times. The first gradient is the kernel's, those of the gradient
    are of plain matrices, N×N a head. On a GPU ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`` around the forward
    pass does the same; torch's fused kernels refuse a second derivative.
    """
    if _is_transformed():
        return plain_attention(*split(qkv)).transpose(1, 2).flatten(2)
    if qkv.device.type != "cpu" or qkv.numel() == 0:
        return F.scaled_dot_product_attention(*split(qkv)).transpose(1, 2).flatten(2)
    keeps = torch.is_grad_enabled() and qkv.requires_grad and not torch.compiler.is_exporting()
    return _attention(qkv, _attention_by(qkv) if keeps else "")[0]
