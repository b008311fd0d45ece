"""One token drawn from logits, in passes that threads share. No twin: Numba. Truth: spec/sampling/reference.py.

    weigh    w_i = exp((l_i - m) / temperature), m the largest logit
    select   the least weight of the largest k, or of those that hold p of the whole: a histogram of all weights, then
             one of those in the part of it where the limit lies, until only equal ones are left (radix selection)
    cut      what is below becomes 0
    draw     the segment in which the uniform lies, then the token

All in float64. Sums are taken by segments and parts of the vocabulary, so that the number of threads changes no bit.
"""

import numpy as np
from numba import prange

from torch_impl.kernels.numba import kernel, parallel, summing
from torch_impl.kernels.numba.arithmetic import exp, row_maximum

#: Tokens whose weights are summed at a time, and parts of the vocabulary, each of which one thread takes.
SEGMENT, PARTS = 256, 4
BUCKETS = 1024
#: Weights that are looked at together: most have none of the bucket that is looked for.
BLOCK = 32
#: Weights are at most 1. As integers their bits are in the same order, and so many of the last ones fewer leave 32
#: buckets to each power of two; all below 2^-32 are in the last one.
ONE = np.float64(1.0).view(np.int64)
SHIFT = 52 - 5
#: Where not finite, or no weight is there: no token.
NO_TOKEN = -1


@kernel
def _not_finite(logit_i):
    count = 0
    for i in range(logit_i.shape[0]):
        count += not abs(logit_i[i]) < np.inf
    return count


@kernel
def _weigh(logit_i, weight_i, largest, inverse_temperature):
    for i in range(logit_i.shape[0]):
        weight_i[i] = exp((np.float64(logit_i[i]) - largest) * inverse_temperature)


@summing
def _sum(weight_i):
    total = 0.0
    for i in range(weight_i.shape[0]):
        total += weight_i[i]
    return total


@summing
def _cut(weight_i, least):
    """Weights below become 0; the sum of the others."""
    total = 0.0
    for i in range(weight_i.shape[0]):
        weight = weight_i[i] if weight_i[i] >= least else 0.0
        weight_i[i] = weight
        total += weight
    return total


@kernel
def _bucket(weight, highest, shift):
    return min((highest - np.float64(weight).view(np.int64)) >> shift, BUCKETS - 1)


@kernel
def _histogram(weight_i, amount_k, highest, shift, last, counting):
    """How much there is in each bucket, of the largest weights first: the weights' sum, or how many they are.

    The last one that has any is left out: many small weights one after the other would wait for each other's sum.
    """
    amount_k[:] = 0.0
    for i in range(weight_i.shape[0]):
        bucket = _bucket(weight_i[i], highest, shift)
        if bucket < last:
            amount_k[bucket] += 1.0 if counting else weight_i[i]


@kernel
def _reached(amount_k, last, before, needed):
    """The first bucket by which there is as much as is needed, else the last one; how much there is before it."""
    for bucket in range(last):
        if before + amount_k[bucket] >= needed:
            return bucket, before
        before += amount_k[bucket]
    return last, before


@kernel
def _count(weight_i, bucket, highest, shift):
    count = 0
    for i in range(weight_i.shape[0]):
        count += _bucket(weight_i[i], highest, shift) == bucket
    return count


@kernel
def _gather(weight_i, band_i, bucket, highest, shift):
    """Put the weights of one bucket side by side; `band_i` may be `weight_i`. Returns how many they are."""
    count = 0
    for start in range(0, weight_i.shape[0], BLOCK):
        block = weight_i[start : start + BLOCK]
        if _count(block, bucket, highest, shift) > 0:
            for i in range(block.shape[0]):
                # Without a branch, of which a processor would guess every other one wrong.
                weight = block[i]
                band_i[count] = weight
                count += _bucket(weight, highest, shift) == bucket
    return count


@kernel
def _least_kept(band_i, before, needed, counting):
    """The least weight that is needed, how many that are equal to it are, and how many there are; 0 of none.

    Args:
        band_i: weights among which it is; overwritten.
        before: how much the larger ones hold.
        needed: how much is to be held.
        counting: whether that is a number of weights, not their sum.
    """
    amount_k = np.empty(BUCKETS)
    count = band_i.shape[0]
    if count == 0:
        return 0.0, 0, 0
    while True:
        low, high = band_i[0], band_i[0]
        for i in range(1, count):
            low, high = min(low, band_i[i]), max(high, band_i[i])
        if low == high:
            break
        highest = np.float64(high).view(np.int64)
        shift = 0
        while (highest - np.float64(low).view(np.int64)) >> shift >= BUCKETS:
            shift += 1
        last = _bucket(low, highest, shift)
        _histogram(band_i[:count], amount_k, highest, shift, last, counting)
        bucket, before = _reached(amount_k, last, before, needed)
        count = _gather(band_i[:count], band_i, bucket, highest, shift)
    kept = 0
    while kept < count and (before < needed or kept == 0):  # one at least: sums are rounded
        before += 1.0 if counting else low
        kept += 1
    return low, kept, count


@kernel
def _drop_equal(weight_v, least, kept):
    """Of the weights that are equal to the least one, those after the first so many become 0."""
    for i in range(weight_v.shape[0]):
        if weight_v[i] == least:
            kept -= 1
            if kept < 0:
                weight_v[i] = 0.0


@kernel
def _token(weight_v, segment_s, target):
    """The least token up to which the weights' sum exceeds the target."""
    through, segment = 0.0, 0
    while segment < segment_s.shape[0] - 1 and through + segment_s[segment] <= target:
        through += segment_s[segment]
        segment += 1
    token = NO_TOKEN
    for i in range(segment * SEGMENT, min((segment + 1) * SEGMENT, weight_v.shape[0])):
        through += weight_v[i]
        if weight_v[i] > 0.0:
            token = i
        # The two sums are rounded apart: a target at the very end of the segment is its last token's.
        if through > target:
            break
    return token


@parallel
def sample(
    logit_v, weight_v, band_v, segment_s, amount_pk, extent_p, token, inverse_temperature, top_k, top_p, min_p, uniform
):  # fmt: skip
    """Draw one token, see `spec.sampling.sample`.

    Args:
        logit_v: logits [v], float32 or float64.
        weight_v, band_v, segment_s, amount_pk, extent_p: float64 memory to work in: [v], [v], one a SEGMENT,
            [PARTS, BUCKETS] and [PARTS].
        token: it is put here, [1], int64; NO_TOKEN where a logit is not finite.
        inverse_temperature: finite.
        top_k, top_p, min_p: as in `Sampling`.
        uniform: of [0, 1).
    """
    v, segments = logit_v.shape[0], segment_s.shape[0]
    each = -(-segments // PARTS)
    refused = np.zeros(PARTS, np.int64)
    for part in prange(PARTS):
        of_part = logit_v[part * each * SEGMENT : (part + 1) * each * SEGMENT]
        refused[part] = _not_finite(of_part)
        extent_p[part] = row_maximum(of_part)
    token[0] = NO_TOKEN
    if refused.sum() > 0:
        return
    largest = extent_p.max()
    for part in prange(PARTS):
        for segment in range(part * each, min((part + 1) * each, segments)):
            span = slice(segment * SEGMENT, (segment + 1) * SEGMENT)
            _weigh(logit_v[span], weight_v[span], largest, inverse_temperature)
            segment_s[segment] = _sum(weight_v[span])
    for limit in range(3):
        counting, least, kept, count = limit == 0, min_p, 0, 0
        if (limit == 0 and not 0 < top_k < v) or (limit == 1 and top_p >= 1.0) or (limit == 2 and min_p <= 0.0):
            continue
        if limit < 2:
            needed = np.float64(top_k) if counting else top_p * segment_s.sum()
            for part in prange(PARTS):
                of_part = weight_v[part * each * SEGMENT : (part + 1) * each * SEGMENT]
                _histogram(of_part, amount_pk[part], ONE, SHIFT, BUCKETS - 1, counting)
            for part in range(1, PARTS):
                amount_pk[0] += amount_pk[part]
            bucket, before = _reached(amount_pk[0], BUCKETS - 1, 0.0, needed)
            for part in prange(PARTS):
                span = slice(part * each * SEGMENT, (part + 1) * each * SEGMENT)
                extent_p[part] = _gather(weight_v[span], band_v[span], bucket, ONE, SHIFT)
            filled = 0
            for part in range(PARTS):
                for i in range(int(extent_p[part])):
                    band_v[filled] = band_v[part * each * SEGMENT + i]
                    filled += 1
            least, kept, count = _least_kept(band_v[:filled], before, needed, counting)
            if kept < count:
                _drop_equal(weight_v, least, kept)
        for part in prange(PARTS):
            for segment in range(part * each, min((part + 1) * each, segments)):
                segment_s[segment] = _cut(weight_v[segment * SEGMENT : (segment + 1) * SEGMENT], least)
    token[0] = _token(weight_v, segment_s, uniform * segment_s.sum())
