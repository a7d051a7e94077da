import functools

import chex
import jax
import numpy as np
import pytest
from jax import numpy as jnp

from gdistill import errors
from gdistill.core import condition
from gdistill.models import latent_unet

TINY = dict(
  channels=(8,), num_blocks=1, attention=(False,), heads=(2,), groups=4, context_dim=6,
)  # fmt: skip
TEXT = dict(TINY, context='text', context_length=3)
CLASS = dict(TINY, context='class', num_classes=3)
NONE = dict(TINY, context='none', num_classes=3)
TWO_LEVELS = dict(TEXT, channels=(8, 16), attention=(False, True), heads=(1, 2))
KINDS = {'text': TEXT, 'class': CLASS, 'none': NONE}


def inputs(net, count=4):
  rng = np.random.default_rng(1)
  z, logsnr, cond, w = jax.tree.map(
    lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype), latent_unet.example(net, 8, 5, count)
  )
  return z, 4.0 * logsnr, {**cond, 'label': jnp.arange(count) % 4 - 1}, w


def filled(net, seed=0):
  """Returns random parameters without zeros, so that every path carries signal."""
  shapes = jax.eval_shape(net.init, jax.random.key(0), *inputs(net, 1))['params']
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) * 0.2, jnp.float32), shapes)


# Compiling takes most of these tests' time; unoptimised code compiles faster and runs fast enough.
jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


@functools.lru_cache
def applied(net):
  return jit(lambda params, *given: net.apply({'params': params}, *given))


@pytest.mark.parametrize('fields', [TWO_LEVELS, CLASS, NONE])
def test_rows_do_not_see_each_other(fields):
  net = latent_unet.LatentUNet(**fields, w_features=8)
  params, given = filled(net), inputs(net)
  whole = applied(net)(params, *given)
  assert whole.shape == (4, 8, 8, 5) and whole.dtype == jnp.float32
  others = jax.tree.map(lambda a: a.at[np.array([0, 1, 3])].set(a[np.array([1, 3, 1])]), given)
  alone = applied(net)(params, *others)
  np.testing.assert_allclose(whole[2], alone[2], atol=2e-5)
  assert np.abs(whole[0] - alone[0]).max() > 1e-3


def test_the_null_label_is_null_text_given_as_text():
  net = latent_unet.LatentUNet(**TEXT)
  params = filled(net)
  z, logsnr, cond, w = inputs(net)
  null = jnp.broadcast_to(params['null_text'][None], (4, 3, 6))
  one = jnp.ones(4, jnp.int32)
  found = applied(net)(params, z, logsnr, condition.null(cond), w)
  as_text = applied(net)(params, z, logsnr, {'text': null, 'label': one}, w)
  np.testing.assert_array_equal(found, as_text)
  with_text = applied(net)(params, z, logsnr, {**cond, 'label': one}, w)
  assert np.abs(found - with_text).max() > 1e-3
  some = applied(net)(params, z, logsnr, {**cond, 'label': jnp.array([0, -1, 2, -1])}, w)
  np.testing.assert_array_equal(some, jnp.stack([with_text[0], found[1], with_text[2], found[3]]))


def test_all_tokens_of_null_text_count_whatever_the_mask_of_the_text():
  net = latent_unet.LatentUNet(**TEXT)
  params = filled(net)
  z, logsnr, cond, w = inputs(net)
  masks = [jnp.broadcast_to(jnp.arange(3) < n, (4, 3)) for n in (1, 3)]
  short, whole = (applied(net)(params, z, logsnr, {**cond, 'text_mask': m}, w) for m in masks)
  np.testing.assert_array_equal(short[0], whole[0])  # row 0 has label -1
  assert np.abs(short[1:] - whole[1:]).max(axis=(1, 2, 3)).min() > 1e-4
  np.testing.assert_allclose(whole, applied(net)(params, z, logsnr, cond, w), atol=1e-6)
  cut = {**cond, 'text': cond['text'].at[:, 1:].set(7.0), 'text_mask': masks[0]}
  np.testing.assert_array_equal(short, applied(net)(params, z, logsnr, cut, w))


def test_the_null_class_is_the_last_row_of_the_table_and_not_a_class():
  net = latent_unet.LatentUNet(**CLASS)
  params = filled(net)
  z, logsnr, cond, w = inputs(net)

  def at(label, table=params['class_table']):
    given = {'label': jnp.full(4, label)}
    return applied(net)({**params, 'class_table': table}, z, logsnr, given, w)

  null = at(-1)
  for label in range(3):
    swapped = params['class_table'].at[label].set(params['class_table'][3])
    np.testing.assert_array_equal(null, at(label, swapped))
    assert np.abs(null - at(label)).max() > 1e-3
  np.testing.assert_array_equal(applied(net)(params, z, logsnr, condition.null(cond), w), null)


def test_without_context_the_null_class_is_a_zero_one_hot():
  net = latent_unet.LatentUNet(**NONE)
  params = filled(net)
  z, logsnr, cond, w = inputs(net)
  null = applied(net)(params, z, logsnr, condition.null(cond), w)
  none = {**params, 'label': {'kernel': jnp.zeros_like(params['label']['kernel'])}}
  two = {'label': jnp.full(4, 2)}
  np.testing.assert_array_equal(null, applied(net)(none, z, logsnr, two, w))
  assert np.abs(null - applied(net)(params, z, logsnr, two, w)).max() > 1e-3
  assert 'attn2' not in params['mid_attn']['layer0']


def test_a_fresh_student_is_the_conditional_teacher_bit_for_bit_at_every_w():
  teacher = latent_unet.LatentUNet(**TEXT)
  student = latent_unet.LatentUNet(**TEXT, w_features=16, w_scale=50.0)
  params = filled(teacher)
  fresh = jit(student.init)(jax.random.key(3), *inputs(student, 1))['params']
  assert set(fresh) - set(params) == {'w_proj'}
  z, logsnr, cond, _ = inputs(teacher)
  expected = applied(teacher)(params, z, logsnr, cond, jnp.zeros(4))
  grown = {**fresh, **params}
  for w in (0.0, 0.3, 4.0):
    found = applied(student)(grown, z, logsnr, cond, jnp.full(4, w))
    np.testing.assert_array_equal(found, expected)
  moved = {**grown, 'w_proj': {'kernel': jnp.ones((16, 8))}}
  w1, w2 = (applied(student)(moved, z, logsnr, cond, jnp.full(4, w)) for w in (0.0, 1.0))
  assert np.abs(w1 - w2).max() > 1e-3


def test_a_fresh_network_says_zero_and_every_block_is_its_shortcut():
  net = latent_unet.LatentUNet(**TEXT)
  params = jit(net.init)(jax.random.key(0), *inputs(net, 1))['params']
  np.testing.assert_array_equal(applied(net)(params, *inputs(net)), 0.0)
  h, emb = jax.random.normal(jax.random.key(1), (1, 4, 4, 8)), jnp.ones((1, 16))
  block = latent_unet.ResBlock(8, 4, 1e-5)
  fresh = jit(block.init)(jax.random.key(0), h, emb, None)
  found = jit(block.apply)(fresh, h, emb, None)
  np.testing.assert_array_equal(found, h)
  transformer = latent_unet.Transformer(2, 1, 4)
  text = jnp.ones((1, 3, 6))
  fresh = jit(transformer.init)(jax.random.key(0), h, text)
  found = jit(transformer.apply)(fresh, h, text)
  np.testing.assert_array_equal(found, h)


def test_everything_is_learned_but_null_text():
  net = latent_unet.LatentUNet(**TEXT)
  gradient = jit(jax.grad(lambda p: jnp.sum(net.apply({'params': p}, *inputs(net)) ** 2)))(
    filled(net)
  )
  np.testing.assert_array_equal(gradient.pop('null_text'), 0.0)
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
    assert np.abs(leaf).max() > 0, path


@pytest.mark.full
def test_checkpointed_blocks_have_the_same_parameters_outputs_and_gradients():
  nets = [latent_unet.LatentUNet(**CLASS, remat=remat) for remat in (False, True)]
  given = inputs(nets[0])
  shapes = [jax.eval_shape(net.init, jax.random.key(0), *given) for net in nets]
  assert shapes[0] == shapes[1]
  params = filled(nets[0])
  losses = [lambda p, net=net: jnp.sum(net.apply({'params': p}, *given) ** 2) for net in nets]
  found = [jit(jax.value_and_grad(loss))(params) for loss in losses]
  chex.assert_trees_all_close(*found, rtol=1e-4, atol=1e-4)
  plain, again = (str(jax.make_jaxpr(jax.grad(loss))(params)) for loss in losses)
  # The first operation is in residual blocks, the second in the transformers' softmax.
  for in_a_block in ('conv_general_dilated', ' exp '):
    assert again.count(in_a_block) > plain.count(in_a_block)


@pytest.mark.full
@pytest.mark.parametrize('fields', [TWO_LEVELS, CLASS])
def test_a_teacher_cast_once_says_what_one_cast_at_every_use_says(fields):
  net = latent_unet.LatentUNet(**fields, w_features=8, dtype=jnp.bfloat16)
  params, given = filled(net), inputs(net)
  cast = latent_unet.as_teacher(params, jnp.bfloat16)
  a, b = (applied(net)(p, *given) for p in (params, cast))
  np.testing.assert_array_equal(a, b)
  assert a.dtype == jnp.float32
  exact = applied(latent_unet.LatentUNet(**fields, w_features=8))(params, *given)
  assert 0 < np.abs(exact - a).max() < 0.05 * np.abs(exact).max() + 0.05


@pytest.mark.parametrize('kind', KINDS)
def test_a_teacher_keeps_in_float32_what_is_used_in_float32(kind):
  cast = latent_unet.as_teacher(
    filled(latent_unet.LatentUNet(**KINDS[kind], w_features=8)), jnp.bfloat16
  )
  kept = {
    path[0].key
    for path, leaf in jax.tree_util.tree_leaves_with_path(cast)
    if leaf.dtype == jnp.float32 and not any(entry.key.startswith('norm') for entry in path)
  }
  table = {'text': 'null_text', 'class': 'class_table', 'none': 'label'}[kind]
  assert kept == {'time0', 'time1', 'w_proj', 'conv_out', table}
  for norm in (cast['mid_attn']['norm'], cast['mid_attn']['layer0']['norm1'], cast['norm_out']):
    assert {leaf.dtype for leaf in jax.tree.leaves(norm)} == {jnp.dtype('float32')}


def test_dropout_belongs_to_the_example_and_acts_in_training_only():
  net = latent_unet.LatentUNet(**TEXT, dropout=0.5)
  params, given, ids = filled(net), inputs(net), jnp.array([7, 3, 9, 3])
  rngs = {'dropout': jax.random.key(5)}
  trained = jit(lambda ids, *given: net.apply({'params': params}, *given, ids, rngs=rngs))
  a = trained(ids, *given)
  plain = applied(latent_unet.LatentUNet(**TEXT))(params, *given)
  np.testing.assert_allclose(plain, applied(net)(params, *given), atol=2e-5)
  assert np.abs(a - plain).max(axis=(1, 2, 3)).min() > 1e-3
  b = trained(ids[::-1], *jax.tree.map(lambda x: x[::-1], given))
  np.testing.assert_allclose(a, b[::-1], atol=2e-5)


def test_extra_channels_are_read_and_their_number_is_checked():
  net = latent_unet.LatentUNet(**TEXT, extra_channels=2)
  params = filled(net)
  assert params['conv_in']['kernel'].shape == (3, 3, 7, 8)
  z, logsnr, cond, w = inputs(net)
  found = applied(net)(params, z, logsnr, cond, w)
  assert found.shape == z.shape
  other = applied(net)(params, z, logsnr, {**cond, 'extra': cond['extra'] + 1.0}, w)
  assert np.abs(found - other).max(axis=(1, 2, 3)).min() > 1e-3
  # z's channels come before those of extra, as in Stable Diffusion's inpainting network.
  plain = latent_unet.LatentUNet(**TEXT)
  kernel = params['conv_in']['kernel'][:, :, :5]
  without = {**params, 'conv_in': {**params['conv_in'], 'kernel': kernel}}
  text = {name: cond[name] for name in ('label', 'text')}
  zero = {**cond, 'extra': jnp.zeros_like(cond['extra'])}
  np.testing.assert_allclose(
    applied(net)(params, z, logsnr, zero, w),
    applied(plain)(without, z, logsnr, text, w), atol=2e-5,
  )  # fmt: skip
  with pytest.raises(errors.ConfigError, match=r'has 2 channels .* extra_channels is 0'):
    plain.apply({'params': without}, z, logsnr, cond, w)
  with pytest.raises(errors.ConfigError, match=r'has 0 channels .* extra_channels is 2'):
    net.apply({'params': params}, z, logsnr, text, w)


def test_attention_is_softmax_over_the_context_by_head():
  layer = latent_unet.Attention(heads=2)
  rng = np.random.default_rng(0)
  h, context = (rng.normal(size=s).astype(np.float32) for s in ((2, 5, 8), (2, 3, 6)))
  shapes = jax.eval_shape(layer.init, jax.random.key(0), h, context)['params']
  params = jax.tree.map(lambda a: np.asarray(rng.normal(size=a.shape), np.float32), shapes)
  q, k, v = (x @ params[n]['kernel'] for n, x in (('q', h), ('k', context), ('v', context)))
  out = np.zeros_like(h)
  for head in (slice(0, 4), slice(4, 8)):
    scores = q[..., head] @ k[..., head].swapaxes(1, 2) / 2.0
    p = np.exp(scores - scores.max(-1, keepdims=True))
    out[..., head] = p / p.sum(-1, keepdims=True) @ v[..., head]
  expected = out @ params['out']['kernel'] + params['out']['bias']
  np.testing.assert_allclose(layer.apply({'params': params}, h, context), expected, atol=2e-4)


def test_time_is_the_given_function_of_logsnr():
  index = latent_unet.LatentUNet(**CLASS, time=lambda index: index)
  scaled = latent_unet.LatentUNet(**CLASS, time=lambda logsnr: 3.0 * logsnr + 1.0)
  params = filled(index)
  z, logsnr, cond, w = inputs(index)
  found = applied(scaled)(params, z, logsnr, cond, w)
  np.testing.assert_allclose(
    found, applied(index)(params, z, 3.0 * logsnr + 1.0, cond, w), atol=2e-5
  )
  assert np.abs(found - applied(index)(params, z, logsnr, cond, w)).max() > 1e-3
