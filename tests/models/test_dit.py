import jax
import numpy as np
import pytest
from jax import numpy as jnp

from gdistill.models import dit

TINY = dict(width=32, depth=2, heads=2, patch=2, num_classes=3)


def inputs(count=4, size=8, channels=2):
  z = jax.random.normal(jax.random.key(1), (count, size, size, channels))
  cond = {'label': jnp.arange(count) % 4 - 1}
  return z, jnp.linspace(-9.0, 9.0, count), cond, jnp.linspace(0.0, 4.0, count)


def shapes_of(net, *given):
  return jax.eval_shape(lambda: net.init(jax.random.key(0), *given))['params']


def filled(net, seed=0):
  """Returns random parameters without zeros, so that every path carries signal."""
  rng = np.random.default_rng(seed)
  shapes = shapes_of(net, *inputs(1))
  return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) * 0.2, jnp.float32), shapes)


@pytest.mark.parametrize(
  ('width', 'depth', 'heads', 'patch', 'millions'),
  [(384, 12, 6, 2, 33), (768, 12, 12, 4, 130), (1024, 24, 16, 8, 459), (1152, 28, 16, 2, 675)],
)
def test_sizes_have_the_printed_counts(width, depth, heads, patch, millions):
  # Peebles & Xie, 2212.09748, table 4: S/2, B/4, L/8, XL/2, with the fixed positions counted.
  net = dit.DiT(width, depth, heads, patch, 1000, learned_sigma=True)
  count = sum(a.size for a in jax.tree.leaves(shapes_of(net, *inputs(1, 32, 4))))
  count += (32 // patch) ** 2 * width
  assert abs(count / 1e6 - millions) < 0.6


def test_positions_tell_columns_in_the_first_half_and_rows_in_the_second():
  found = dit.positions(2, 3, 8)
  for row in range(2):
    for column in range(3):
      expected = [part(a * f) for a in (column, row) for part in (np.sin, np.cos)
                  for f in (1.0, 10_000**-0.5)]  # fmt: skip
      np.testing.assert_allclose(found[3 * row + column], expected, atol=1e-6)


def test_a_patch_goes_out_where_it_came_in():
  # With blocks at zero and a final layer that copies, each patch must come out where it came in.
  net = dit.DiT(**{**TINY, 'patch': 4}, time=lambda logsnr: 0.0 * logsnr)
  params = jax.tree.map(jnp.zeros_like, filled(net))
  normed = lambda a: (a - a.mean(-1, keepdims=True)) / a.std(-1, keepdims=True)
  params['patch']['kernel'] = params['patch']['kernel'].at[:, :, 0, 0].set(100.0)
  kernel = jnp.zeros((32, 4, 4, 2)).at[0].set(jnp.arange(32.0).reshape(4, 4, 2))
  params['final']['kernel'] = kernel.reshape(32, 32)
  z = jax.random.normal(jax.random.key(0), (1, 8, 12, 2))
  apply = jax.jit(net.apply)
  found = apply({'params': params}, z, jnp.ones(1), {'label': jnp.zeros(1, int)}, jnp.ones(1))
  for row in range(2):
    for column in range(3):
      cut = np.s_[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
      h = dit.positions(2, 3, 32)[3 * row + column]
      h[0] += 100.0 * float(z[cut][..., 0].sum())
      expected = normed(h)[0] * np.arange(32.0).reshape(4, 4, 2)
      np.testing.assert_allclose(found[cut], expected, rtol=1e-3, atol=1e-3)


def test_a_fresh_student_is_the_teacher_bit_for_bit_and_moves_with_w_once_it_learns():
  teacher, student = dit.DiT(**TINY), dit.DiT(**TINY, w_features=16, w_scale=50.0)
  params, (z, logsnr, cond, _) = filled(teacher), inputs()
  expected = jax.jit(teacher.apply)({'params': params}, z, logsnr, cond, jnp.zeros(4))
  fresh = jax.jit(student.init)(jax.random.key(3), *inputs(1))['params']
  apply = jax.jit(student.apply)
  for w in (0.0, 1.7):
    found = apply({'params': {**fresh, **params}}, z, logsnr, cond, jnp.full(4, w))
    np.testing.assert_array_equal(found, expected)
  moved = {'params': {**params, 'w_proj': {'kernel': jnp.ones((16, 256))}}}
  found = [apply(moved, z, logsnr, cond, jnp.full(4, w)) for w in (0.0, 1.0)]
  assert np.abs(found[0] - found[1]).max() > 1e-3


def test_no_label_is_the_last_row_of_the_table_and_not_class_zero():
  net = dit.DiT(**TINY)
  params, (z, logsnr, _, w) = filled(net), inputs()
  apply = jax.jit(net.apply)

  def at(label, table):
    given = {'params': {**params, 'label': {'embedding': table}}}
    return apply(given, z, logsnr, {'label': jnp.full(4, label)}, w)

  table = params['label']['embedding']
  assert table.shape == (4, 32)
  np.testing.assert_array_equal(at(-1, table), at(0, table.at[0].set(table[3])))
  assert np.abs(at(-1, table) - at(0, table)).max() > 1e-3


def test_rows_do_not_see_each_other():
  net = dit.DiT(**TINY, w_features=8)
  params, (z, logsnr, cond, w) = {'params': filled(net)}, inputs()
  apply = jax.jit(net.apply)
  whole = apply(params, z, logsnr, cond, w)
  alone = apply(params, z[2:3], logsnr[2:3], {'label': cond['label'][2:3]}, w[2:3])
  np.testing.assert_allclose(whole[2:3], alone, atol=2e-5)


def test_a_fresh_network_says_zero_and_a_fresh_block_is_the_identity():
  net = dit.DiT(**TINY)
  fresh = jax.jit(net.init)(jax.random.key(0), *inputs(1))
  np.testing.assert_array_equal(jax.jit(net.apply)(fresh, *inputs()), 0.0)
  block, h = dit.Block(2, 4), jax.random.normal(jax.random.key(0), (2, 3, 8))
  emb = jnp.ones((2, 8))
  fresh = jax.jit(block.init)(jax.random.key(0), h, emb)
  np.testing.assert_array_equal(jax.jit(block.apply)(fresh, h, emb), h)


def test_a_learned_sigma_is_computed_and_left_out():
  plain, both = dit.DiT(**TINY), dit.DiT(**TINY, learned_sigma=True)
  params = filled(both)
  kernel = params['final']['kernel'].reshape(32, 4, 4)[..., :2].reshape(32, 8)
  bias = params['final']['bias'].reshape(4, 4)[..., :2].reshape(8)
  halved = {**params, 'final': {'kernel': kernel, 'bias': bias}}
  expected = jax.jit(plain.apply)({'params': halved}, *inputs())
  found = jax.jit(both.apply)({'params': params}, *inputs())
  np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.full
def test_a_teacher_cast_once_says_what_one_cast_at_every_use_says():
  net = dit.DiT(**TINY, w_features=8, dtype=jnp.bfloat16)
  params = filled(net)
  cast = dit.as_teacher(params, jnp.bfloat16)
  assert cast['block0']['q']['kernel'].dtype == jnp.bfloat16
  expected = net.apply({'params': params}, *inputs())
  assert expected.dtype == jnp.float32
  np.testing.assert_array_equal(net.apply({'params': cast}, *inputs()), expected)
  exact = dit.DiT(**TINY, w_features=8).apply({'params': params}, *inputs())
  assert 0 < np.abs(exact - expected).max() < 0.1 * np.abs(exact).max()
  lost = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
  assert (net.apply({'params': lost}, *inputs()) != expected).any()


@pytest.mark.full
def test_checkpointed_blocks_have_the_same_parameters_outputs_and_gradients():
  nets = [dit.DiT(**{**TINY, 'depth': 1}, remat=remat) for remat in (False, True)]
  params = {'params': filled(nets[0])}
  assert shapes_of(nets[0], *inputs()) == shapes_of(nets[1], *inputs())
  found = [
    jax.jit(jax.value_and_grad(lambda p, net=net: jnp.sum(net.apply(p, *inputs()) ** 2)))(params)
    for net in nets
  ]
  for a, b in zip(*map(jax.tree.leaves, found), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
  forwards = [str(jax.make_jaxpr(jax.grad(lambda p, net=net: jnp.sum(net.apply(p, *inputs()))))(
    params)).count('dot_general') for net in nets]  # fmt: skip
  assert forwards[1] > forwards[0]
