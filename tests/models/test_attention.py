"""Tests of attention: every form against the plain form; which form a platform gets."""

import functools

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from gdistill.models import attention

HEADS = (40, 64, 72, 80, 160)  # the channels of a head in the networks that gdistill knows


def inputs(queries, keys, dim, dtype='float32', hidden=0, batch=2, heads=2):
  """Returns (q, k, v, counts); the last `hidden` keys of the second example are not attended to."""
  key = jax.random.key(queries + keys + dim)
  q, k, v = (
    jax.random.normal(part, (batch, n, heads, dim), dtype)
    for part, n in zip(jax.random.split(key, 3), (queries, keys, keys), strict=True)
  )
  counts = np.ones((batch, keys), bool)
  counts[1, keys - hidden :] = hidden == 0
  return q, k, v, counts if hidden else None


def with_gradients(form, given):
  """Returns the result of a form and the gradients of a weighted sum of it, by q, k and v."""
  *qkv, counts = given
  weights = jax.random.normal(jax.random.key(1), qkv[0].shape, jnp.float32)

  def loss(*qkv):
    out = form(*qkv, counts)
    return jnp.sum(out.astype(jnp.float32) * weights), out

  grads, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*qkv)
  assert [a.dtype for a in (out, *grads)] == [qkv[0].dtype] * 4
  return [np.asarray(a, np.float32) for a in (out, *grads)]


def check(form, given, expected_form=attention.plain):
  found, expected = with_gradients(form, given), with_gradients(expected_form, given)
  for a, b in zip(found, expected, strict=True):
    if given[0].dtype == jnp.float32:
      np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6 * np.abs(b).max())
    else:
      assert np.linalg.norm(a - b) <= 2e-2 * np.linalg.norm(b)


def jax_own(q, k, v, counts, causal=False):
  mask = None if counts is None else counts[:, None, None]
  return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal)


@pytest.mark.parametrize('dtype, hidden', [('float32', 3), ('bfloat16', 0)])
def test_the_plain_form_is_that_of_jax(dtype, hidden):
  check(attention.plain, inputs(24, 17, 40, dtype, hidden), jax_own)
  causal = functools.partial(attention.attention, causal=True)
  check(causal, inputs(17, 17, 64, dtype, hidden), functools.partial(jax_own, causal=True))


def test_products_of_bfloat16_have_gradients_of_bfloat16():
  q, k, v, _ = inputs(24, 17, 64, 'bfloat16')
  text = jax.jit(jax.grad(lambda *a: attention.plain(*a).sum().astype(jnp.float32), (0, 1, 2)))
  products = [line for line in text.lower(q, k, v).as_text().splitlines() if 'dot_general' in line]
  assert len(products) >= 5
  for line in products:
    operands = line[line.rindex(' : (') :].split(') ->')[0]
    assert operands.count('bf16') == 2, line


@pytest.mark.parametrize('hidden', [0, 3])
def test_blocks_of_queries_are_the_whole(monkeypatch, hidden):
  monkeypatch.setattr(attention, 'PLAIN', 2 * 2 * 17 * 7)  # of 24 queries, 6 are the largest block
  given = inputs(24, 17, 64, hidden=hidden)
  assert 'scan' in str(jax.make_jaxpr(attention.in_blocks)(*given[:3]))
  check(attention.in_blocks, given)
  jaxpr = jax.make_jaxpr(jax.grad(lambda *a: attention.in_blocks(*a).sum(), (0, 1, 2)))(*given[:3])
  shapes = [v.aval.shape for eqn in equations(jaxpr.jaxpr) for v in eqn.outvars]
  logits = [s for s in shapes if s[-1:] == (17,) and len(s) == 4 and 64 not in s]
  assert logits and max(np.prod(s) for s in logits) <= attention.PLAIN


def equations(jaxpr):
  for eqn in jaxpr.eqns:
    yield eqn
    for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda v: hasattr(v, 'eqns')):
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        yield from equations(inner)


def test_one_query_of_many_keys_is_a_block(monkeypatch):
  monkeypatch.setattr(attention, 'PLAIN', 1)
  check(attention.in_blocks, inputs(5, 7, 40))


SPLASH = [(128, 128, d, 'float32', 0) for d in HEADS] + [
  (1024, 1024, 64, 'float32', 0),
  (640, 640, 40, 'bfloat16', 0),  # no multiple of a block
  (256, 77, 40, 'float32', 0),  # to the tokens of a prompt
  (256, 77, 80, 'bfloat16', 30),
]


def test_the_kernel_of_tpus_is_the_plain_form():
  splash = functools.partial(attention.splash, interpret=True)
  check(splash, inputs(256, 154, 64, hidden=80))  # to the tokens of two prompts


@pytest.mark.full
@pytest.mark.parametrize('queries, keys, dim, dtype, hidden', SPLASH)
def test_the_kernel_takes_all_shapes(queries, keys, dim, dtype, hidden):
  splash = functools.partial(attention.splash, interpret=True)
  check(splash, inputs(queries, keys, dim, dtype, hidden))


@pytest.mark.parametrize('queries', [256, 255])
@pytest.mark.parametrize('hidden', [0, 3])
def test_a_platform_gets_its_own_form(queries, hidden):
  q, k, v, counts = inputs(queries, 77, 40, 'bfloat16', hidden, batch=2)

  def loss(*qkv):
    return attention.attention(*qkv, counts).astype(jnp.float32).sum()

  traced = jax.jit(jax.value_and_grad(loss, (0, 1, 2))).trace(q, k, v)
  kernels = {
    platform: traced.lower(lowering_platforms=(platform,)).as_text().count('tpu_custom_call')
    for platform in ('tpu', 'cpu', 'cuda')
  }
  # The kernel's forward pass, and one kernel each for the gradients of q and of k and v.
  assert kernels == {'tpu': 3 if queries == 256 else 0, 'cpu': 0, 'cuda': 0}


@pytest.mark.full
def test_a_large_batch_is_the_same_example_by_example(monkeypatch):
  monkeypatch.setattr(attention, '_AT_ONCE', 0)
  splash = functools.partial(attention.splash, interpret=True)
  check(splash, inputs(256, 77, 40, hidden=30))
