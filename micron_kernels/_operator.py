"""What the operators' registrations with torch.library share.

An operator is opaque: one body for every device. All transforms of torch.func, forward-mode derivatives and second
orders pass through a kernel at the dispatcher's Autograd key and one for ``torch.vmap``, at each of their levels, in
eager mode and while ``torch.compile`` traces; so they compose. ``torch.library.custom_op`` has no forward mode, and
``torch.autograd.Function`` alone is no operator that a compiler sees.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C import _any_requires_grad, _are_functorch_transforms_active, _AutoDispatchBelowAutograd
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from ._implementation import autocast_off

_LIBRARY = torch.library.Library("micron_kernels", "FRAGMENT")
_BELOW_AUTOGRAD = torch._C._after_autograd_keyset
_keys_in_force = torch._C._dispatch_tls_local_include_set
#: Without a mode: compilers, vmap old and new, tracers and dispatch modes each put in a key of their own.
_PLAIN = torch._C.DispatchKeySet(torch._C.DispatchKey.BackendSelect)
_PLAIN_KEYS = (_PLAIN.add(torch._C.DispatchKey.ADInplaceOrView), _PLAIN)  # the latter in inference mode
_PLAIN_TYPES = frozenset((Tensor, torch.nn.Parameter, int, float, bool, str, tuple, torch.dtype, type(None)))
# By names of their own: looking them up would be half of what asking costs.
_is_compiling = torch.compiler.is_compiling
_autocast_enabled = torch._C._is_any_autocast_enabled
_function_modes = torch._C._len_torch_function_stack
_profiler_enabled = torch.autograd._profiler_enabled
_grad_enabled = torch.is_grad_enabled


class Operator:
    """``torch.ops.micron_kernels.<name>``, and the short way to its body.

    Args:
        schema: name, arguments and results; the first argument is a tensor.
        body: computes; its results are new tensors. None, for what was not wanted, is an empty vector of the schema.
        fake: makes results of the right shape from tensors without data, as compilers and the meta device have them.
        visible: how many results a call returns; the others are for the backward. By default, what body returns.
    """

    def __init__(self, schema: str, body: Callable, fake: Callable, visible: int | None = None):
        self.name = schema.partition("(")[0]
        self._body, self._visible = body, visible

        def registered(*args):
            with autocast_off(args[0]):  # it would cast sums in fp32 down
                results = body(*args)
            if isinstance(results, Tensor):
                return results
            return tuple(args[0].new_empty((0,)) if x is None else x for x in results)

        _LIBRARY.define(schema)
        _LIBRARY.impl(self.name, registered, "CompositeExplicitAutograd")
        torch.library.register_fake(f"micron_kernels::{self.name}", fake, lib=_LIBRARY)
        torch.library.register_vmap(f"micron_kernels::{self.name}", self._vmap, lib=_LIBRARY)
        self.overload = getattr(torch.ops.micron_kernels, self.name).default

    def __call__(self, *args: Any) -> Any:
        """What ``overload(*args)`` does; a dispatcher with nothing to do would take half the time of a small call."""
        # Whether anything but autograd has to see it: compilers, transforms, modes, subclasses, profilers.
        if (
            _is_compiling()
            or _keys_in_force() not in _PLAIN_KEYS
            or _autocast_enabled()
            or _function_modes() > 0
            or _profiler_enabled()
            or not _PLAIN_TYPES.issuperset(map(type, args))
            or not (args[0].is_cpu or args[0].is_cuda)
        ):
            results = self.overload(*args)
        elif forward_ad._current_level >= 0 or (_grad_enabled() and _any_requires_grad(*args)):
            return self._apply(None, *args)
        else:
            results = self._body(*args)
        return results if self._visible is None else results[: self._visible]

    def derivatives(
        self, *, save: Callable, gradients: Callable, tangents: Callable, outputs: int = 1
    ) -> None:
        """Of the results, the first ``outputs`` are differentiable.

        Args:
            save: (args, results) -> (tensors, others): what the other two need of these.
            gradients: (tensors, others, grads, wanted) -> the gradient of each argument, or None. Of ``grads``, those
                of the outputs, some may be None; ``wanted`` says of each argument whether its gradient is: others are
                dropped.
            tangents: (tensors, others, tangents) -> those of the outputs from those of the arguments, or None.

        ``gradients`` and ``tangents`` are differentiated for the next order: they are made of operators that can be.
        """
        overload, body, visible = self.overload, self._body, self._visible

        class Function(_SingleLevelFunction):
            @staticmethod
            def forward(ctx, keyset, *args):
                results = body(*args) if keyset is None else _below_autograd(overload, keyset, args)
                tensors, ctx.others = save(args, results)
                ctx.save_for_backward(*tensors)
                if (
                    keyset is not None or forward_ad._current_level >= 0
                ):  # a compiler's levels do not count there
                    ctx.save_for_forward(*tensors)
                ctx.set_materialize_grads(False)
                ctx.constants = 0
                if type(results) is not tuple:
                    return results
                if keyset is None and visible is not None:
                    results = results[:visible]
                    if visible == outputs:
                        return results
                # An empty vector stands for what was not wanted.
                constants = [
                    x for i, x in enumerate(results) if x is not None and (i >= outputs or x.dim() == 1)
                ]
                if constants:
                    ctx.mark_non_differentiable(*constants)
                ctx.constants = len(results) - outputs
                return results

            @staticmethod
            def backward(ctx, *grads):
                if all(grad is None for grad in grads[:outputs]):
                    return (None,) * len(ctx.needs_input_grad)
                wanted = ctx.needs_input_grad[1:]
                results = gradients(ctx.saved_tensors, ctx.others, grads[:outputs], wanted)
                return None, *(x if wants else None for x, wants in zip(results, wanted, strict=True))

            @staticmethod
            def jvp(ctx, _keyset, *given):
                # ``given`` are the tangents of this level; what is saved may have others, of the levels below.
                primals = [
                    x if x is None else torch._VF._unpack_dual(x, level=0)[0] for x in ctx.saved_tensors
                ]
                with forward_ad._set_fwd_grad_enabled(True):
                    results = tangents(primals, ctx.others, given)
                results = (*results, *(None,) * ctx.constants)
                return results if len(results) > 1 else results[0]

        apply: Callable = Function.apply  # type: ignore[attr-defined]

        def kernel(keyset, *args):
            if not _are_functorch_transforms_active():
                return apply(keyset, *args)
            with enable_single_level_autograd_function():
                return apply(keyset, *args)

        Function.__name__ = Function.__qualname__ = self.name
        self._apply = apply
        _LIBRARY.impl(self.name, kernel, "Autograd", with_keyset=True)

    def _vmap(self, info, in_dims, *args):
        """Fold the mapped axis into the batch, with which every tensor of two or more dimensions begins.

        The others are constants of a call, such as numbers a channel: where one is mapped, calls are made one by one.
        """
        size = info.batch_size

        def fold(x, dim):
            if not isinstance(x, Tensor) or (dim is None and x.dim() < 2):
                return x
            return (x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)).flatten(0, 1)

        pairs = [(x, dim if isinstance(x, Tensor) else None) for x, dim in zip(args, in_dims, strict=True)]
        if any(dim is not None and x.dim() < 3 for x, dim in pairs):
            calls = [
                self.overload(*(x if dim is None else x.select(dim, i) for x, dim in pairs))
                for i in range(size)
            ]
            if isinstance(calls[0], Tensor):
                return torch.stack(calls), 0
            return tuple(map(torch.stack, zip(*calls, strict=True))), (0,) * len(calls[0])
        results = self.overload(*(fold(x, dim) for x, dim in pairs))
        every = results if isinstance(results, tuple) else (results,)
        unfolded = [x if x.dim() < 2 else x.unflatten(0, (size, x.shape[0] // size)) for x in every]
        dims = [None if x.dim() < 2 else 0 for x in every]
        return (tuple(unfolded), tuple(dims)) if isinstance(results, tuple) else (unfolded[0], dims[0])


def _below_autograd(overload: Any, keyset: Any, args: tuple[Any, ...]) -> Any:
    """Call the levels below. A Function's forward is without gradients, but at its own level of torch.func alone."""
    with _AutoDispatchBelowAutograd():
        if not _are_functorch_transforms_active():
            return overload.redispatch(keyset & _BELOW_AUTOGRAD, *args)
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
            return overload.redispatch(keyset & _BELOW_AUTOGRAD, *args)
