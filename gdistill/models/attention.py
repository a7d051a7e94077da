"""Attention of all networks: softmax(q k / sqrt(d)) v, with temporaries that stay small."""

import math

import jax
import numpy as np
from jax import numpy as jnp

# Number of logits of one layer up to which the plain form is used: 128 MiB in float32.
PLAIN = 2**25
# Tokens of a TPU kernel's block, and the fewest queries for which a kernel is used on a TPU.
_BLOCK, _FEWEST = 512, 256
# Bytes of a token's head above which blocks are halved: a TPU has 16 MiB for a kernel.
_WIDE = 1024
_LANES = 128
# Most bytes of the numbers that the backward pass needs for all queries of a batch at once.
_AT_ONCE = 2**26
# Logit of a token that is not attended to: finite, so that a row of such tokens gives no NaN.
_HIDDEN = np.float32(-0.7 * np.finfo(np.float32).max)


def attention(
  q: jax.Array, k: jax.Array, v: jax.Array, counts: jax.Array | None = None, causal: bool = False
) -> jax.Array:
  """Returns softmax(q k / sqrt(d)) v of every head, [B, N, H, d], in the dtype of `v`.

  `q` is [B, N, H, d], `k` and `v` are [B, L, H, d]; the softmax is computed in float32. `counts`
  [B, L] is True for the tokens that are attended to; in a row without such a token the result has
  no meaning. With `causal`, which is for the short sequences of text encoders, token n attends to
  the tokens 0..n.

  The form is chosen when a program is lowered for a platform, so that a program for chips that are
  not here is the program which these chips would run. From 256 queries on this is JAX's `splash`
  kernel on TPU and `cudnn` on NVIDIA GPUs; elsewhere, and for fewer queries, it is `in_blocks`.
  """
  if causal:
    return plain(q, k, v, counts, causal)
  if q.shape[1] < _FEWEST:
    return in_blocks(q, k, v, counts)
  given = (q, k, v) if counts is None else (q, k, v, counts)
  return jax.lax.platform_dependent(*given, tpu=splash, cuda=cudnn, default=in_blocks)


def plain(
  q: jax.Array, k: jax.Array, v: jax.Array, counts: jax.Array | None = None, causal: bool = False
) -> jax.Array:
  """Returns `attention` by two products whose logits [B, H, N, L] are held in float32."""
  logits = _logits(q, k) * np.float32(1 / math.sqrt(q.shape[-1]))
  if counts is not None:
    logits = jnp.where(counts[:, None, None], logits, _HIDDEN)
  if causal:
    seen = np.tri(q.shape[1], k.shape[1], dtype=bool)
    logits = jnp.where(seen[None, None], logits, _HIDDEN)
  return jnp.einsum('bhnl,blhd->bnhd', jax.nn.softmax(logits).astype(v.dtype), v)


@jax.custom_vjp
def _logits(q, k):
  return jnp.einsum('bnhd,blhd->bhnl', q, k, preferred_element_type=jnp.float32)


def _logits_fwd(q, k):
  return _logits(q, k), (q, k)


def _logits_bwd(given, g):
  # Without the cast, the gradient's two products would multiply float32 by bfloat16.
  q, k = given
  g = g.astype(q.dtype)
  return jnp.einsum('bhnl,blhd->bnhd', g, k), jnp.einsum('bhnl,bnhd->blhd', g, q)


_logits.defvjp(_logits_fwd, _logits_bwd)


def in_blocks(
  q: jax.Array, k: jax.Array, v: jax.Array, counts: jax.Array | None = None
) -> jax.Array:
  """Returns `attention`, by `plain` for one block of queries after the other.

  A block has at most `PLAIN` logits, or one query; the backward pass computes them again. If all
  queries fit into one block, this is `plain`.
  """
  b, n, h, d = q.shape
  rows = _divisor(n, PLAIN // (b * h * k.shape[1]))
  if rows == n:
    return plain(q, k, v, counts)

  @jax.checkpoint
  def block(part):
    return plain(part, k, v, counts)

  parts = q.reshape(b, n // rows, rows, h, d).swapaxes(0, 1)
  return jax.lax.map(block, parts).swapaxes(0, 1).reshape(b, n, h, v.shape[-1])


def _divisor(count: int, most: int) -> int:
  """Returns the largest divisor of `count` that is at most `most`, or 1."""
  return max(r for r in range(1, max(1, min(count, most)) + 1) if count % r == 0)


def splash(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  counts: jax.Array | None = None,
  interpret: bool = False,
) -> jax.Array:
  """Returns `attention` by the splash kernel for TPU that JAX ships.

  The kernel takes whole blocks of tokens, so zeros are appended, and appended keys are not attended
  to. It holds q, k and v with the tokens last: a TPU pads the last axis to a multiple of 128, which
  a head of 40 channels would more than triple. Its backward pass needs 128 copies of a number for
  each query, so the examples of a large batch follow one another. With `interpret`, the kernel runs
  on any platform, slowly.
  """
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

  b, n, h, d = q.shape
  most = _BLOCK if d * q.dtype.itemsize <= _WIDE else _BLOCK // 2
  queries, keys = (_padded(a.shape[1], most) for a in (q, k))
  block_q, block_kv = (min(most, tokens) for tokens in (queries, keys))
  tokens_last = kernels.QKVLayout.SEQ_MINOR
  kernel = kernels.make_splash_mha_single_device(
    masks.MultiHeadMask([masks.FullMask((queries, keys))] * h),
    block_sizes=kernels.BlockSizes(
      block_q=block_q, block_kv=block_kv, block_q_dkv=block_q, block_kv_dkv=block_kv,
      block_q_dq=block_q, block_kv_dq=block_kv, q_layout=tokens_last, k_layout=tokens_last,
      v_layout=tokens_last,
    ),
    interpret=interpret,
  )  # fmt: skip
  scaled = (q.astype(jnp.float32) * np.float32(1 / math.sqrt(d))).astype(q.dtype)
  given = [
    jnp.pad(a.swapaxes(1, 2), ((0, 0), (0, 0), (0, tokens - a.shape[1]), (0, 0)))
    for a, tokens in ((scaled, queries), (k, keys), (v, keys))
  ]
  if counts is not None or keys != k.shape[1]:
    # A query attends to the keys whose number is its own: 1, and 0 for keys that are not there.
    counts = jnp.ones(k.shape[:2], bool) if counts is None else counts
    own = jnp.pad(counts.astype(jnp.int32), ((0, 0), (0, keys - k.shape[1])))
    given.append(kernels.SegmentIds(jnp.ones((b, queries), jnp.int32), own))
  call = lambda example: kernel(*example)
  small = b * h * queries * _LANES * 4 <= _AT_ONCE
  out = jax.vmap(call)(tuple(given)) if small else jax.lax.map(call, tuple(given))
  return out[:, :, :n].swapaxes(1, 2)


def _padded(tokens: int, most: int) -> int:
  """Returns the number of tokens, at least `tokens`, that blocks of at most `most` divide."""
  block = min(most, -(-tokens // _LANES) * _LANES)
  return -(-tokens // block) * block


def cudnn(q: jax.Array, k: jax.Array, v: jax.Array, counts: jax.Array | None = None) -> jax.Array:
  """Returns `attention` by cuDNN's kernel, or `in_blocks` where cuDNN does not take the inputs.

  cuDNN takes bfloat16 and float16, and heads of a multiple of 8 up to 128 (256 from Hopper on). A
  process without cuDNN gets `in_blocks` also when it compiles for a GPU that is elsewhere.
  """
  odd = (q.shape[1] | k.shape[1]) % 2
  if counts is None or not odd:
    mask = None if counts is None else counts[:, None, None]
    try:
      return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation='cudnn')
    except (RuntimeError, NotImplementedError, ValueError):
      pass  # the message would tell users of a CPU that they have no cuDNN
  return in_blocks(q, k, v, counts)
