"""The Triton kernels of diagonal attention. The formulas are derived in ``reference``.

Forward: the scores of a block of rows, tile by tile of keys, under a running maximum and sum. The diagonal is left
out of the tiles and made apart, so that no tile has to look for it. Backward: first what belongs to one row,
f_i = g_i / l_i, c_i = g_i (1 − p_i), dV_i and dw_i; then two passes that make the other scores again:

    dS_ii = c_i,  dS_ij = −f_i exp(s_ij − m_i)        dQ_i = scale · Σ_j dS_ij k_j
                                                      dK_j = scale · Σ_i dS_ij q_i

``rows`` names positions, a *slot* each; a position may have several. What they add to its gradients is summed in the
order of the slots, so that the result does not depend on which block runs first. Where scores or dS are stored there
are no passes: ``triton_score_kernels``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._implementation import interpreted

#: The interpreter multiplies bf16 wrongly.
UPCAST = tl.constexpr(interpreted())
#: How fp32 is multiplied.
FP32_PRODUCT = tl.constexpr("ieee")
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def head_of(x, stride_b, stride_h, head, heads):
    """The first element of one head of x (B, H, ...); ``head`` counts through all batch entries."""
    return x + (head // heads) * stride_b + (head % heads) * stride_h


@triton.jit
def load_rows(x, positions, stride_n, there, columns, WIDTH: tl.constexpr):
    """x[positions, columns], 0 where not ``there``.  # [BLOCK, COLUMNS]"""
    mask = there[:, None] & (columns < WIDTH)[None, :]
    return tl.load(x + positions.to(tl.int64)[:, None] * stride_n + columns[None, :], mask=mask, other=0.0)


@triton.jit
def positions_of(rows, slots, computed, length, batch, HAS_ROWS: tl.constexpr):
    """(position of each slot, whether there is one)."""
    there = slots < computed
    if HAS_ROWS:
        positions = tl.load(rows + batch * computed + slots, mask=there, other=-1)
        there = there & (positions >= 0) & (positions < length)  # unchecked so far: the CPU cannot see them
        positions = positions.to(tl.int32)
    else:
        positions = slots
    return positions, there


@triton.jit
def visible(key_mask, positions, there, length, batch, HAS_MASK: tl.constexpr):
    """Whether each position may be attended to."""
    if HAS_MASK:
        there = there & (tl.load(key_mask + batch * length + positions, mask=there, other=0) != 0)
    return there


@triton.jit
def multiply(a, b, sums):
    if UPCAST:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision=FP32_PRODUCT)


@triton.jit
def exp(x, PRECISE: tl.constexpr):
    """The exponential of numbers up to 0. PRECISE: x · log₂e is rounded where it is small, after whole powers of 2."""
    if PRECISE:
        # A maximum that drops NaN would take such a score for one far below.
        x = tl.maximum(x, -200.0, propagate_nan=tl.PropagateNan.ALL)
        power = tl.floor(x * LOG2_E + 0.5)
        rest = (x - power * 0.693359375) + power * 2.12194440e-4  # ln 2 in two parts, the first of few bits
        result = tl.exp2(power) * tl.exp2(rest * LOG2_E)
    else:
        result = tl.exp2(x * LOG2_E)
    return result


@triton.jit
def row_products(a, b, stride_a, stride_b, positions, there, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    """Σ_e a[n, e] · b[n, e] of each position.  # [BLOCK]"""
    products = tl.zeros([positions.shape[0], COLUMNS], tl.float32)
    for start in range(0, WIDTH, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        x = load_rows(a, positions, stride_a, there, columns, WIDTH).to(tl.float32)
        y = load_rows(b, positions, stride_b, there, columns, WIDTH).to(tl.float32)
        products += x * y
    return tl.sum(products, 1)


@triton.jit
def add_scores(maximum, total, scores, PRECISE: tl.constexpr):
    """(maximum, sum of exponentials under it) of each row, with those of some more scores."""
    higher = tl.maximum(maximum, tl.max(scores, 1))
    finite = tl.where(higher == -float("inf"), 0.0, higher)  # every key so far is masked
    return higher, total * exp(maximum - finite, PRECISE) + tl.sum(exp(scores - finite[:, None], PRECISE), 1)


@triton.jit
def finish_rows(
    own, maximum, total, value, row_weight, out, weights, row_max, row_sum,
    value_b, value_h, value_n, weight_b, weight_h, weight_n, heads, computed, head, slots, positions, there,
    VALUE_WIDTH: tl.constexpr, HAS_WEIGHT: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write what the forward gives of some slots; ``total`` is the sum of exponentials, ``own`` among them."""
    total = tl.where(total == 0.0, 1.0, total)
    p = own / total
    inside = slots < computed
    tl.store(weights + head * computed + slots, p, mask=inside)
    tl.store(row_max + head * computed + slots, maximum, mask=inside)
    tl.store(row_sum + head * computed + slots, total, mask=inside)
    if HAS_WEIGHT:
        row_weight = head_of(row_weight, weight_b, weight_h, head, heads)
        p *= tl.load(row_weight + positions.to(tl.int64) * weight_n, mask=there, other=0.0)
    value = head_of(value, value_b, value_h, head, heads)
    out += head * computed * VALUE_WIDTH
    for start in range(0, VALUE_WIDTH, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        v = load_rows(value, positions, value_n, there, columns, VALUE_WIDTH).to(tl.float32)
        mask = inside[:, None] & (columns < VALUE_WIDTH)[None, :]
        tl.store(
            out + slots.to(tl.int64)[:, None] * VALUE_WIDTH + columns[None, :], p[:, None] * v, mask=mask
        )


@triton.jit
def forward_kernel(
    query, key, value, row_weight, rows, key_mask, out, weights, row_max, row_sum,
    query_b, query_h, query_n, key_b, key_h, key_n, value_b, value_h, value_n, weight_b, weight_h, weight_n,
    scale, heads, length, computed,
    WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, HAS_ROWS: tl.constexpr, HAS_MASK: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(computed, BLOCK_M)
    PRECISE: tl.constexpr = query.dtype.element_ty == tl.float32
    head = (tl.program_id(0) // blocks).to(tl.int64)
    batch = head // heads
    slots = (tl.program_id(0) % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    positions, there = positions_of(rows, slots, computed, length, batch, HAS_ROWS)
    there = visible(key_mask, positions, there, length, batch, HAS_MASK)
    query = head_of(query, query_b, query_h, head, heads)
    key = head_of(key, key_b, key_h, head, heads)

    maximum = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    products = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    # One loop over the columns of every tile, so that loads run ahead from one tile into the next.
    chunks: tl.constexpr = max(1, (WIDTH + COLUMNS - 1) // COLUMNS)
    for step in range(tl.cdiv(length, BLOCK_N) * chunks):
        columns = (step % chunks) * COLUMNS + tl.arange(0, COLUMNS)
        keys = (step // chunks) * BLOCK_N + tl.arange(0, BLOCK_N)
        seen = visible(key_mask, keys, keys < length, length, batch, HAS_MASK)
        q = load_rows(query, positions, query_n, there, columns, WIDTH)
        k = load_rows(key, keys, key_n, seen, columns, WIDTH)
        products = multiply(q, tl.trans(k), products)
        if step % chunks == chunks - 1:
            others = seen[None, :] & (positions[:, None] != keys[None, :])
            scores = tl.where(others, products * scale, -float("inf"))
            maximum, total = add_scores(maximum, total, scores, PRECISE)
            products = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)

    diagonal = scale * row_products(query, key, query_n, key_n, positions, there, WIDTH, COLUMNS)
    higher = tl.maximum(maximum, tl.where(there, diagonal, -float("inf")))
    higher = tl.where(higher == -float("inf"), 0.0, higher)
    own = tl.where(there, exp(diagonal - higher, PRECISE), 0.0)
    finish_rows(
        own, higher, total * exp(maximum - higher, PRECISE) + own,
        value, row_weight, out, weights, row_max, row_sum,
        value_b, value_h, value_n, weight_b, weight_h, weight_n, heads, computed, head, slots, positions, there,
        VALUE_WIDTH, HAS_WEIGHT, COLUMNS,
    )  # fmt: skip


@triton.jit
def row_gradients_kernel(
    grad_out, grad_weights, value, row_weight, key_mask, weights, row_sum, first_slot, slot_order,
    slot_f, slot_c, position_f, position_c, d_value, d_weight,
    grad_b, grad_h, grad_n, value_b, value_h, value_n, weight_b, weight_h, weight_n, heads, length, computed,
    VALUE_WIDTH: tl.constexpr, HAS_GRAD_OUT: tl.constexpr, HAS_GRAD_WEIGHTS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, HAS_ROWS: tl.constexpr, HAS_MASK: tl.constexpr,
    BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """f and c of every slot, and of every position what its slots add up to: f, c, dV and dw."""
    blocks = tl.cdiv(length, BLOCK)
    head = (tl.program_id(0) // blocks).to(tl.int64)
    batch = head // heads
    positions = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = positions < length
    there = visible(key_mask, positions, inside, length, batch, HAS_MASK)

    columns = tl.arange(0, COLUMNS)
    value = head_of(value, value_b, value_h, head, heads)
    v = load_rows(value, positions, value_n, there, columns, VALUE_WIDTH).to(tl.float32)
    w = tl.full([BLOCK], 1.0, tl.float32)
    if HAS_WEIGHT:
        row_weight = head_of(row_weight, weight_b, weight_h, head, heads)
        w = tl.load(row_weight + positions.to(tl.int64) * weight_n, mask=there, other=0.0)

    if HAS_ROWS:
        first_slot += batch * (length + 1)
        first = tl.load(first_slot + positions, mask=inside, other=0)
        count = tl.load(first_slot + positions + 1, mask=inside, other=0) - first
        most = tl.max(count, 0)
    else:
        most = 1
    sum_f = tl.zeros([BLOCK], tl.float32)
    sum_c = tl.zeros([BLOCK], tl.float32)
    sum_dw = tl.zeros([BLOCK], tl.float32)
    sum_dv = tl.zeros([BLOCK, COLUMNS], tl.float32)
    for i in range(most):
        if HAS_ROWS:
            mine = i < count
            slots = tl.load(slot_order + batch * computed + first + i, mask=mine, other=0)
        else:
            mine = inside
            slots = positions
        counts = there & mine
        p = tl.load(weights + head * computed + slots, mask=counts, other=0.0)
        total = tl.load(row_sum + head * computed + slots, mask=counts, other=1.0)
        a = tl.zeros([BLOCK], tl.float32)
        if HAS_GRAD_OUT:
            rows_of_grad = head_of(grad_out, grad_b, grad_h, head, heads)
            d_out = load_rows(rows_of_grad, slots, grad_n, counts, columns, VALUE_WIDTH).to(tl.float32)
            value_grad = tl.sum(v * d_out, 1)
            a += w * value_grad
            sum_dv += (w * p)[:, None] * d_out
            sum_dw += p * value_grad
        if HAS_GRAD_WEIGHTS:
            a += tl.load(grad_weights + head * computed + slots, mask=counts, other=0.0)
        g = p * a
        c = p * (a - g)  # g (1 − p), rounded less
        sum_f += g / total
        sum_c += c
        tl.store(slot_f + head * computed + slots, g / total, mask=mine)
        tl.store(slot_c + head * computed + slots, c, mask=mine)

    if HAS_ROWS:
        tl.store(position_f + head * length + positions, sum_f, mask=inside)
        tl.store(position_c + head * length + positions, sum_c, mask=inside)
    if HAS_WEIGHT:
        tl.store(d_weight + head * length + positions, sum_dw, mask=inside)
    mask = inside[:, None] & (columns < VALUE_WIDTH)[None, :]
    d_value += head * length * VALUE_WIDTH
    tl.store(d_value + positions.to(tl.int64)[:, None] * VALUE_WIDTH + columns[None, :], sum_dv, mask=mask)


@triton.jit
def query_gradients_kernel(
    query, key, rows, key_mask, row_max, first_slot, slot_order, position_f, position_c, d_query,
    query_b, query_h, query_n, key_b, key_h, key_n, scale, heads, length, computed,
    WIDTH: tl.constexpr, HAS_ROWS: tl.constexpr, HAS_MASK: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(computed, BLOCK_M)
    PRECISE: tl.constexpr = query.dtype.element_ty == tl.float32
    head = (tl.program_id(0) // blocks).to(tl.int64)
    batch = head // heads
    slots = (tl.program_id(0) % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    positions, inside = positions_of(rows, slots, computed, length, batch, HAS_ROWS)
    there = visible(key_mask, positions, inside, length, batch, HAS_MASK)
    query = head_of(query, query_b, query_h, head, heads)
    key = head_of(key, key_b, key_h, head, heads)
    columns = tl.arange(0, COLUMNS)
    q = load_rows(query, positions, query_n, there, columns, WIDTH)
    m = tl.load(row_max + head * computed + slots, mask=there, other=0.0)
    f = tl.load(position_f + head * length + positions, mask=there, other=0.0)
    c = tl.load(position_c + head * length + positions, mask=there, other=0.0)

    d_q = tl.zeros([BLOCK_M, COLUMNS], tl.float32)
    for start in range(0, length, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        seen = visible(key_mask, keys, keys < length, length, batch, HAS_MASK)
        k = load_rows(key, keys, key_n, seen, columns, WIDTH)
        scores = multiply(q, tl.trans(k), tl.zeros([BLOCK_M, BLOCK_N], tl.float32)) * scale
        d_s = -f[:, None] * exp(scores - m[:, None], PRECISE)
        d_s = tl.where(seen[None, :], d_s, 0.0)
        d_s = tl.where(positions[:, None] == keys[None, :], c[:, None], d_s)
        d_q = multiply(d_s.to(k.dtype), k, d_q)

    if HAS_ROWS:  # the first slot of a position writes for all of them
        first = tl.load(first_slot + batch * (length + 1) + positions, mask=inside, other=0)
        inside = inside & (tl.load(slot_order + batch * computed + first, mask=inside, other=-1) == slots)
    mask = inside[:, None] & (columns < WIDTH)[None, :]
    d_query += head * length * WIDTH
    tl.store(d_query + positions.to(tl.int64)[:, None] * WIDTH + columns[None, :], scale * d_q, mask=mask)


@triton.jit
def key_gradients_kernel(
    query, key, rows, key_mask, row_max, slot_f, slot_c, d_key,
    query_b, query_h, query_n, key_b, key_h, key_n, scale, heads, length, computed,
    WIDTH: tl.constexpr, HAS_ROWS: tl.constexpr, HAS_MASK: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(length, BLOCK_M)
    PRECISE: tl.constexpr = query.dtype.element_ty == tl.float32
    head = (tl.program_id(0) // blocks).to(tl.int64)
    batch = head // heads
    keys = (tl.program_id(0) % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    seen = visible(key_mask, keys, keys < length, length, batch, HAS_MASK)
    query = head_of(query, query_b, query_h, head, heads)
    key = head_of(key, key_b, key_h, head, heads)
    columns = tl.arange(0, COLUMNS)
    k = load_rows(key, keys, key_n, seen, columns, WIDTH)

    d_k = tl.zeros([BLOCK_M, COLUMNS], tl.float32)
    for start in range(0, computed, BLOCK_N):
        slots = start + tl.arange(0, BLOCK_N)
        positions, there = positions_of(rows, slots, computed, length, batch, HAS_ROWS)
        there = visible(key_mask, positions, there, length, batch, HAS_MASK)
        q = load_rows(query, positions, query_n, there, columns, WIDTH)
        m = tl.load(row_max + head * computed + slots, mask=there, other=0.0)
        f = tl.load(slot_f + head * computed + slots, mask=there, other=0.0)
        c = tl.load(slot_c + head * computed + slots, mask=there, other=0.0)
        scores = multiply(k, tl.trans(q), tl.zeros([BLOCK_M, BLOCK_N], tl.float32)) * scale
        d_s = -f[None, :] * exp(scores - m[None, :], PRECISE)
        d_s = tl.where(positions[None, :] == keys[:, None], c[None, :], d_s)
        d_k = multiply(d_s.to(q.dtype), q, d_k)

    d_k = tl.where(seen[:, None], scale * d_k, 0.0)  # a masked key had scores of 0, which may be far above m
    mask = (keys < length)[:, None] & (columns < WIDTH)[None, :]
    d_key += head * length * WIDTH
    tl.store(d_key + keys.to(tl.int64)[:, None] * WIDTH + columns[None, :], d_k, mask=mask)
