"""Published arrays become ours: norms folded by algebra, names all used, nothing left over."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from gdistill import errors
from gdistill.convert import files
from gdistill.convert import folding
from gdistill.models import efficientnet
from gdistill.models import inception

RNG = np.random.default_rng(0)


def norm(name, channels):
  return {
    f'{name}.weight': RNG.uniform(0.5, 2, channels), f'{name}.bias': RNG.normal(size=channels),
    f'{name}.running_mean': RNG.normal(size=channels),
    f'{name}.running_var': RNG.uniform(0.5, 2, channels),
    f'{name}.num_batches_tracked': np.array(3),
  }  # fmt: skip


def test_a_folded_norm_is_the_norm_after_the_convolution():
  kernel = RNG.normal(size=(5, 3, 1, 1))  # [O, I, H, W]
  state = {'c.weight': kernel, **norm('n', 5)}
  given = dict(state)
  found = folding.conv(state, 'c', 'n', 1e-3, 'a network')
  x = RNG.normal(size=(7, 3))
  y = x @ kernel[:, :, 0, 0].T
  expected = given['n.weight'] * (y - given['n.running_mean'])
  expected = expected / np.sqrt(given['n.running_var'] + 1e-3) + given['n.bias']
  np.testing.assert_allclose(x @ found['kernel'][0, 0] + found['bias'], expected, rtol=1e-5)
  assert not state


def published(net, shape, names):
  """{torch name: array} that gives every parameter of a network; `names` maps our layers."""
  shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(shape))['params']
  state = {}
  for layer, leaf in shapes.items():
    if layer not in ('fc_kernel', 'fc_bias', 'logits'):
      conv, after = names(layer)
      height, width, inside, outside = leaf['kernel'].shape
      state[f'{conv}.weight'] = RNG.normal(size=(outside, inside, height, width)).astype(np.float32)
      state |= norm(after, outside)
  return state, shapes


def of_inception(layer):
  for block in ('Mixed_5b', 'Mixed_5c', 'Mixed_5d', 'Mixed_6a', 'Mixed_6b', 'Mixed_6c', 'Mixed_6d',
                'Mixed_6e', 'Mixed_7a', 'Mixed_7b', 'Mixed_7c'):  # fmt: skip
    if layer.startswith(f'{block}_'):
      layer = f'{block}.{layer.removeprefix(f"{block}_")}'
  return f'{layer}.conv', f'{layer}.bn'


def of_efficientnet(layer):
  if layer in ('stem', 'head'):
    return f'_conv_{layer}', {'stem': '_bn0', 'head': '_bn1'}[layer]
  _, block, part = layer.split('_')
  number = {'expand': 0, 'depthwise': 1, 'project': 2}[part]
  return f'_blocks.{block}._{part}_conv', f'_blocks.{block}._bn{number}'


@pytest.mark.parametrize(
  ('network', 'net', 'shape', 'names', 'last', 'layer'),
  [
    ('inception', inception.Inception(), (1, 299, 299, 3), of_inception,
     {'fc.weight': (1008, 2048), 'fc.bias': (1008,)}, 'Mixed_6c.branch_pool'),
    ('lite0', efficientnet.EfficientNetLite0(), (1, 64, 64, 3), of_efficientnet,
     {'_fc.weight': (1000, 1280), '_fc.bias': (1000,)}, '_blocks.15.'),
  ],
  ids=['inception', 'efficientnet'],
)  # fmt: skip
def test_every_published_array_finds_its_place(network, net, shape, names, last, layer):
  state, shapes = published(net, shape, names)
  state |= {name: np.zeros(size, np.float32) for name, size in last.items()}
  params = files.params_from(network, state)
  expected = jax.tree.map(lambda leaf: leaf.shape, shapes)
  assert jax.tree.map(lambda leaf: leaf.shape, params) == expected
  missing = dict(state)
  needed = sorted(n for n in missing if 'num_batches_tracked' not in n)  # torch's own counter
  name = needed[len(needed) // 2]
  del missing[name]
  with pytest.raises(errors.ConfigError, match=r'is missing|is no array of'):
    files.params_from(network, missing)
  with pytest.raises(errors.ConfigError, match="'surplus' is no array of"):
    files.params_from(network, {**state, 'surplus': np.zeros(1)})
  short = {name: value for name, value in state.items() if not name.startswith(layer)}
  with pytest.raises(errors.ConfigError, match=r'is missing, and in .* another network'):
    files.params_from(network, short)
  name = next(n for n in last if 'weight' in n)
  other = {**state, name: state[name][:10], name.replace('weight', 'bias'): np.zeros(10)}
  with pytest.raises(errors.ConfigError, match=r'\(10,\), and in .* another network'):
    files.params_from(network, other)


def test_two_arrays_are_no_clip():
  state = {'text_model.final_layer_norm.weight': np.ones(512),
           'vision_model.post_layernorm.weight': np.ones(768)}  # fmt: skip
  with pytest.raises(errors.ConfigError, match='is missing, and in clip_b32 it is'):
    files.params_from('clip_b32', state)


def test_parameters_are_counted_as_published():
  count = lambda net, shape: sum(
    np.prod(leaf.shape)
    for leaf in jax.tree.leaves(jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(shape)))
  )
  # 4.652 M of EfficientNet-Lite0 counts two numbers of each norm where folding leaves one bias.
  assert count(efficientnet.EfficientNetLite0(), (1, 64, 64, 3)) == 4_652_008 - 21_008
  # torchvision's Inception-v3 has 23.83 M with 1,000 classes and without the auxiliary head
  assert abs(count(inception.Inception(), (1, 299, 299, 3)) / 23.85e6 - 1) < 0.01
