import functools

import chex
import jax
import numpy as np
import pytest
from jax import numpy as jnp

from gdistill.models import blocks
from gdistill.models import unet

# Compiled without optimisation, because compiling takes longer than running.
jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
TINY = dict(
  channels=8, multipliers=(1, 2), num_blocks=1, attention_resolutions=(4,), num_classes=3,
  emb_channels=16, groups=4,
)  # fmt: skip


def inputs(count=4, size=8, channels=1):
  z = jax.random.normal(jax.random.key(1), (count, size, size, channels))
  cond = {'label': jnp.arange(count) % 4 - 1}
  return z, jnp.linspace(-9.0, 9.0, count), cond, jnp.linspace(0.0, 4.0, count)


def filled(net, seed=0):
  """Returns random parameters without zeros, so that every path carries signal."""
  shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), *inputs(1)))['params']
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) * 0.2, jnp.float32), shapes)


def counted(net, size):
  shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), *inputs(1, size, 3)))['params']
  return sum(
    a.size for name, part in shapes.items() if name not in ('w_proj', 'label')
    for a in jax.tree.leaves(part)
  )  # fmt: skip


def test_cifar10_settings_have_60_million_parameters():
  net = unet.UNet(256, (1, 1, 1), 3, (8, 16), 10, 1024, heads=1, w_features=256)
  assert round(counted(net, 32) / 1e6, 1) == 60.0


def test_imagenet64_settings_have_the_printed_count():
  # The published 295.9 M include the label layer, 1000 x 768 and a bias; without it, 295.13 M.
  net = unet.UNet(
    192, (1, 2, 3, 4), 3, (8, 16, 32), 1000, 768, heads=None, head_dim=64, w_features=256
  )
  count = counted(net, 64)
  assert round((count + 1000 * 768) / 1e6, 1) == 295.9
  assert round(count / 1e6, 1) == 295.1


def test_a_fresh_student_is_the_conditional_teacher_bit_for_bit_at_every_w():
  teacher, student = unet.UNet(**TINY), unet.UNet(**TINY, w_features=16, w_scale=50.0)
  params = filled(teacher)
  fresh = jit(student.init)(jax.random.key(3), *inputs(1))['params']
  z, logsnr, cond, _ = inputs()
  expected = jit(teacher.apply)({'params': params}, z, logsnr, cond, jnp.zeros(4))
  grown = {'params': {**fresh, **params}}
  apply = jit(student.apply)
  for w in (0.0, 0.3, 1.7, 4.0):
    found = apply(grown, z, logsnr, cond, jnp.full(4, w))
    np.testing.assert_array_equal(found, expected)
  moved = {'params': {**grown['params'], 'w_proj': {'kernel': jnp.ones((16, 8))}}}
  w1, w2 = (apply(moved, z, logsnr, cond, jnp.full(4, w)) for w in (0.0, 1.0))
  assert np.abs(w1 - w2).max() > 1e-3


def test_the_null_label_is_a_zero_one_hot_and_not_class_zero():
  net = unet.UNet(**TINY)
  params, apply = filled(net), jit(net.apply)
  z, logsnr, _, w = inputs()

  def at(params, label):
    return apply({'params': params}, z, logsnr, {'label': jnp.full(4, label)}, w)

  null = at(params, -1)
  assert np.abs(null - at(params, 0)).max() > 1e-3
  no_labels = {**params, 'label': {'kernel': jnp.zeros_like(params['label']['kernel'])}}
  np.testing.assert_array_equal(null, at(no_labels, 2))


def test_rows_do_not_see_each_other():
  net = unet.UNet(**TINY, w_features=8)
  params = {'params': filled(net)}
  z, logsnr, cond, w = inputs()
  whole = jit(net.apply)(params, z, logsnr, cond, w)
  alone = jit(net.apply)(params, z[2:3], logsnr[2:3], {'label': cond['label'][2:3]}, w[2:3])
  np.testing.assert_allclose(whole[2:3], alone, atol=2e-5)


def test_a_fresh_network_says_zero_and_every_block_is_its_shortcut():
  net = unet.UNet(**TINY)
  params = jit(net.init)(jax.random.key(0), *inputs(1))
  np.testing.assert_array_equal(jit(net.apply)(params, *inputs()), 0.0)
  block = blocks.ResBlock(8, 4)
  h, emb = jnp.ones((1, 4, 4, 8)), jnp.ones((1, 16))
  found = block.apply(block.init(jax.random.key(0), h, emb, False), h, emb, False)
  np.testing.assert_array_equal(found, h)


@pytest.mark.full
def test_bfloat16_computes_close_to_float32_and_returns_float32():
  net, half = unet.UNet(**TINY), unet.UNet(**TINY, dtype=jnp.bfloat16)
  params = {'params': filled(net)}
  exact, rounded = net.apply(params, *inputs()), half.apply(params, *inputs())
  assert rounded.dtype == jnp.float32
  assert 0 < np.abs(exact - rounded).max() < 0.05 * np.abs(exact).max() + 0.05
  assert {a.dtype for a in jax.tree.leaves(half.init(jax.random.key(0), *inputs(1)))} == {
    jnp.dtype('float32')
  }


@pytest.mark.full
def test_dropout_acts_in_training_only():
  net = unet.UNet(**TINY, dropout=0.5)
  params = {'params': filled(net)}
  a = net.apply(params, *inputs())
  np.testing.assert_array_equal(a, net.apply(params, *inputs()))
  ids = np.arange(len(a))
  b = net.apply(params, *inputs(), ids, rngs={'dropout': jax.random.key(5)})
  assert np.abs(a - b).max() > 1e-3


@pytest.mark.full
def test_checkpointed_blocks_have_the_same_parameters_outputs_and_gradients():
  nets = [unet.UNet(**TINY, remat=remat) for remat in (False, True)]
  params = {'params': filled(nets[0])}
  shapes = [jax.eval_shape(net.init, jax.random.key(0), *inputs()) for net in nets]
  assert shapes[0] == shapes[1]
  found = [
    jax.jit(jax.value_and_grad(lambda p, net=net: jnp.sum(net.apply(p, *inputs()) ** 2)))(params)
    for net in nets
  ]
  chex.assert_trees_all_close(*found, rtol=1e-4, atol=1e-4)
  forwards = [str(jax.make_jaxpr(jax.grad(lambda p, net=net: jnp.sum(net.apply(p, *inputs()))))(
    params)).count('conv_general_dilated') for net in nets]  # fmt: skip
  assert forwards[1] > forwards[0]


@pytest.mark.full
def test_a_teacher_cast_once_says_what_one_cast_at_every_use_says():
  net = unet.UNet(**{**TINY, 'attention_resolutions': (4,)}, dtype=jnp.bfloat16)
  params = filled(net)
  cast = unet.as_teacher(params, jnp.bfloat16)
  kinds = {str(a.dtype) for a in jax.tree.leaves(cast)}
  assert kinds == {'float32', 'bfloat16'}
  for name in ('time0', 'time1', 'label', 'norm_out', 'conv_out'):
    assert {str(a.dtype) for a in jax.tree.leaves(cast[name])} == {'float32'}
  assert cast['mid_block0']['conv1']['kernel'].dtype == jnp.bfloat16
  assert cast['mid_block0']['norm1']['scale'].dtype == jnp.float32
  a, b = (net.apply({'params': p}, *inputs()) for p in (params, cast))
  np.testing.assert_array_equal(a, b)
  # Casting the parameters that stay float32 would change the outputs.
  lost = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
  assert (net.apply({'params': lost}, *inputs()) != a).any()
