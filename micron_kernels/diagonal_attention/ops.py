"""Registration of diagonal attention with torch.library: one opaque operator forward, one backward."""

from __future__ import annotations

import torch
from torch import Tensor

from .._extension import register
from .._implementation import Chooser, TritonModule, accumulate_dtype
from .._operator import Operator
from . import native, reference
from .arguments import Inputs, Saved, Tangents, Wanted, keeps_exponentials

_TRITON = TritonModule(
    "diagonal_attention", torch.float32, torch.bfloat16, torch.float16, width=512, value_width=512
)
IMPLEMENTATIONS = register({"reference": reference, "triton": _TRITON}, native)
_choose = Chooser("diagonal_attention", IMPLEMENTATIONS, "width", "value_width")


def _check_rows(rows: Tensor, length: int) -> None:
    """Positions are data, so they are checked where data is at hand, and not on a GPU: that would stop it."""
    if rows.device.type != "cpu" or rows.numel() == 0:
        return
    low, high = (int(x) for x in rows.aminmax())
    if low < 0 or high >= length:
        wrong = low if low < 0 else high
        raise ValueError(f"rows holds {wrong}; positions must lie in [0, N) = [0, {length})")


def _forward(query, key, value, scale, row_weight, rows, key_mask, impl, keep):
    if rows is not None:
        _check_rows(rows, query.shape[2])
    implementation = _choose(impl, query.device, query.dtype, query.shape[3], value.shape[3])
    inputs = Inputs(query, key, value, scale, row_weight, rows, key_mask)
    out, saved = implementation.forward(inputs, keep and keeps_exponentials(query, rows, impl))
    return out, *saved


def _forward_fake(query, key, value, scale, row_weight, rows, key_mask, impl, keep):
    batch, heads, length, _ = query.shape
    computed = length if rows is None else rows.shape[1]
    dtype = accumulate_dtype(query.dtype)
    out = query.new_empty((batch, heads, computed, value.shape[3]))
    statistics = [query.new_empty((batch, heads, computed), dtype=dtype) for _ in range(3)]
    exponentials = query.new_empty((0,))
    if keep and keeps_exponentials(query, rows, impl):
        exponentials = query.new_empty((batch, heads, computed, length), dtype=dtype)
    return out, *statistics, exponentials


#: (out, *Saved); ``keep`` the exponentials, if the rule allows it.
diagonal_attention = Operator(
    "diagonal_attention(Tensor query, Tensor key, Tensor value, float scale, Tensor? row_weight, Tensor? rows, "
    "Tensor? key_mask, str? impl, bool keep) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
    visible=2,
)


def _backward(
    query, key, value, scale, row_weight, rows, key_mask, grad_out, grad_weights,
    weights, row_max, row_sum, exponentials, wanted, impl,
):  # fmt: skip
    inputs = Inputs(query, key, value, scale, row_weight, rows, key_mask)
    saved, which = Saved(weights, row_max, row_sum, exponentials), Wanted(*wanted)
    implementation = (
        reference  # without the gradient of a score there is no product of matrices to be fast at
    )
    if which.query or which.key:
        implementation = _choose(impl, query.device, query.dtype, query.shape[3], value.shape[3])
    return implementation.backward(grad_out, grad_weights, inputs, saved, which)


def _backward_fake(query, key, value, scale, row_weight, *rest):
    wanted = rest[-2]
    return tuple(
        query.new_empty((0,)) if x is None or not wants else x.new_empty(x.shape)
        for x, wants in zip((query, key, value, row_weight), wanted, strict=True)
    )


#: Gradients of query, key, value and row_weight, empty where not ``wanted`` or without a row_weight.
diagonal_attention_backward = Operator(
    "diagonal_attention_backward(Tensor query, Tensor key, Tensor value, float scale, Tensor? row_weight, "
    "Tensor? rows, Tensor? key_mask, Tensor? grad_out, Tensor? grad_weights, Tensor weights, Tensor row_max, "
    "Tensor row_sum, Tensor? exponentials, bool[4] wanted, str? impl) -> (Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)


def _of_inputs(x):
    """What is given for each differentiable one of the inputs."""
    query, key, value, _, row_weight, *_ = x
    return query, key, value, row_weight


def _save(args, results):
    query, key, value, scale, row_weight, rows, key_mask, impl, _ = args
    _, weights, row_max, row_sum, exponentials = results
    tensors = (query, key, value, row_weight, rows, key_mask, weights, row_max, row_sum, exponentials)
    return tensors, (scale, impl)


def _gradients(tensors, others, grads, wanted):
    query, key, value, row_weight, rows, key_mask, *saved, exponentials = tensors
    scale, impl = others
    if exponentials is not None and exponentials.dim() == 1:
        exponentials = None  # not kept: an empty vector of the schema
    which = _of_inputs(wanted)
    d_query, d_key, d_value, d_weight = diagonal_attention_backward(
        query, key, value, scale, row_weight, rows, key_mask, *grads, *saved, exponentials, which, impl
    )
    return d_query, d_key, d_value, None, d_weight, None, None, None, None


def _tangents(tensors, others, tangents):
    query, key, value, row_weight, rows, key_mask, *_ = tensors
    inputs = Inputs(query, key, value, others[0], row_weight, rows, key_mask)
    return reference.forward_tangent(inputs, Tangents(*_of_inputs(tangents)))


diagonal_attention.derivatives(save=_save, gradients=_gradients, tangents=_tangents, outputs=2)


def _backward_save(args, results):
    query, key, value, scale, row_weight, rows, key_mask, grad_out, grad_weights, *_, wanted, _ = args
    return (query, key, value, row_weight, rows, key_mask, grad_out, grad_weights), (scale, wanted)


def _backward_gradients(tensors, others, grads, wanted):
    query, key, value, row_weight, rows, key_mask, grad_out, grad_weights = tensors
    scale, given = others
    inputs = Inputs(query, key, value, scale, row_weight, rows, key_mask)
    direction = Tangents(*(grad if is_given else None for grad, is_given in zip(grads, given, strict=True)))
    d_query, d_key, d_value, d_weight = reference.backward_tangent(
        grad_out, grad_weights, inputs, None, None, direction, Wanted(*_of_inputs(wanted))
    )
    d_out, d_weights = None, None
    if wanted[7] or wanted[8]:
        d_out, d_weights = reference.forward_tangent(inputs, direction)
    return d_query, d_key, d_value, None, d_weight, None, None, d_out, d_weights, *(None,) * 6


def _backward_tangents(tensors, others, tangents):
    query, key, value, row_weight, rows, key_mask, grad_out, grad_weights = tensors
    scale, given = others
    inputs = Inputs(query, key, value, scale, row_weight, rows, key_mask)
    t_grad_out, t_grad_weights = tangents[7:9]
    direction = Tangents(*_of_inputs(tangents))
    return reference.backward_tangent(
        grad_out, grad_weights, inputs, t_grad_out, t_grad_weights, direction, Wanted(*given)
    )


diagonal_attention_backward.derivatives(
    save=_backward_save, gradients=_backward_gradients, tangents=_backward_tangents, outputs=4
)
