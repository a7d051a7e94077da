"""Our pixel U-Net equals its export in diffusers, with random weights."""

import chex
import jax
import numpy as np
import pytest
from jax import numpy as jnp

from gdistill import errors
from gdistill.convert import pixel_unet as convert
from gdistill.core import schedule
from gdistill.models import embeddings
from gdistill.models import unet
from gdistill.recipe import settings as recipes

torch = pytest.importorskip('torch', reason='bash launch/test.sh parity installs torch')
diffusers = pytest.importorskip('diffusers', reason='bash launch/test.sh parity installs diffusers')
pytestmark = pytest.mark.parity

FIELDS = dict(
  channels=32, multipliers=(1, 2), num_blocks=1, attention_resolutions=(4,), num_classes=3,
  emb_channels=48, heads=2, head_dim=None, groups=8, w_scale=1000.0,
)  # fmt: skip
TIMESTEPS = np.array([0.0, 249.0, 612.0, 999.0, 499.5], np.float32)
LABELS = np.array([0, -1, 2, 1, -1])
WS = np.array([0.0, 0.5, 4.0, 2.0, 1.0], np.float32)


def settings(**changed):
  return recipes.Model(
    image_size=8, image_channels=3, dropout=0.0, w_features=16, dtype='float32', predict='v',
    **{**FIELDS, **changed},
  )  # fmt: skip


def network(takes_w=True, **changed):
  return unet.UNet(**{**FIELDS, **changed}, w_features=16 if takes_w else 0)


def images():
  return np.random.default_rng(0).normal(size=(5, 8, 8, 3)).astype(np.float32)


def params_of(net):
  """Returns random parameters without zeros; scales of norms are around one."""
  one, cond = jnp.ones(1), {'label': jnp.zeros(1, int)}
  shapes = jax.eval_shape(net.init, jax.random.key(0), images()[:1], one, cond, one)['params']
  rng = np.random.default_rng(1)

  def drawn(path, a):
    name = path[-1].key
    spread = 1.0 / np.sqrt(a.size / a.shape[-1]) if name == 'kernel' else 0.2
    return (rng.normal(size=a.shape) * spread + (name == 'scale')).astype(np.float32)

  return jax.tree_util.tree_map_with_path(drawn, shapes)


def theirs(config, state):
  config = {k: v for k, v in config.items() if k != '_class_name'}
  net = diffusers.UNet2DConditionModel(**config).eval()
  net.load_state_dict({name: torch.from_numpy(a.copy()) for name, a in state.items()})
  return net


def said(net, x, timesteps, labels, ws=None):
  """Returns the output that a caller of the exported network gets."""
  cond = None
  if ws is not None:
    features = np.array(embeddings.w_features(jnp.asarray(ws), 16, 1000.0))
    cond = torch.from_numpy(features)
  with torch.no_grad():
    out = net(
      torch.from_numpy(np.moveaxis(x, -1, 1).copy()), torch.from_numpy(timesteps),
      torch.zeros(len(x), 0, 1), torch.from_numpy(np.where(labels < 0, 3, labels)), cond,
    ).sample  # fmt: skip
  return np.moveaxis(out.numpy(), 1, -1)


def ours(net, params, x, logsnr):
  with jax.default_matmul_precision('highest'):
    return np.array(jax.jit(net.apply)({'params': params}, x, logsnr, {'label': LABELS}, WS))


def distance(found, expected):
  assert expected.std() > 0.1
  return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize(
  ('takes_w', 'changed'),
  [
    (True, {}),
    (False, {}),
    (True, dict(multipliers=(1, 2, 3), heads=1, attention_resolutions=(4, 2))),
    (True, dict(heads=None, head_dim=16, attention_resolutions=(8, 4))),
    (False, dict(multipliers=(1, 1), num_blocks=2, attention_resolutions=())),
  ],
  ids=['w', 'no w', 'three levels', 'all levels', 'middle alone'],
)
def test_an_export_says_what_the_network_says(takes_w, changed):
  net = network(takes_w, **changed)
  params, x = params_of(net), images()
  exported = theirs(*convert.state_from(params, settings(**changed)))
  expected = ours(net, params, x, convert.logsnr_at(jnp.asarray(TIMESTEPS)))
  found = said(exported, x, TIMESTEPS, LABELS, WS if takes_w else None)
  assert distance(found, expected) <= 1e-4
  # The exported network depends on each of its inputs.
  for moved in (
    said(exported, x, TIMESTEPS - 30.0, LABELS, WS if takes_w else None),
    said(exported, x, TIMESTEPS, (LABELS + 2) % 3, WS if takes_w else None),
  ):
    assert distance(moved, expected) > 1e-2
  if takes_w:
    assert distance(said(exported, x, TIMESTEPS, LABELS, WS + 1.0), expected) > 1e-2


def test_there_and_back_is_bit_for_bit_but_for_what_was_rotated():
  params = params_of(network())
  config, state = convert.state_from(params, settings())
  found = convert.params_from(config, state)
  chex.assert_trees_all_close(found, params, rtol=1e-5, atol=1e-6)
  for name in params.keys() - {'time0', 'w_proj'}:
    chex.assert_trees_all_equal(found[name], params[name])
  short = {name: a for name, a in state.items() if name != 'mid_block.resnets.1.norm2.bias'}
  with pytest.raises(errors.ConfigError, match=r"norm2.bias' is missing"):
    convert.params_from(config, short)
  words = "'surplus' is not an array of gdistill's pixel U-Net"
  with pytest.raises(errors.ConfigError, match=words):
    convert.params_from(config, {**state, 'surplus': np.zeros(1)})


def test_a_row_of_its_own_for_no_label_is_taken_in():
  net = network()
  params, x = params_of(net), images()
  config, state = convert.state_from(params, settings())
  state['class_embedding.weight'] += np.float32(0.3)  # the null row is not zero, as after training
  level = convert.logsnr_at(jnp.asarray(TIMESTEPS))
  expected = said(theirs(config, state), x, TIMESTEPS, LABELS, WS)
  assert distance(ours(net, convert.params_from(config, state), x, level), expected) <= 1e-4
  assert distance(ours(net, params, x, level), expected) > 1e-2


@pytest.mark.parametrize(
  ('changed', 'message'),
  [
    (dict(multipliers=(2, 2)), r'model.multipliers=\(2, 2\) must begin with 1'),
    (dict(heads=1, attention_resolutions=(8, 4)), r'heads of \[32, 64\] channels'),
  ],
)
def test_what_diffusers_does_not_have_is_refused(changed, message):
  with pytest.raises(errors.ConfigError, match=message):
    convert.state_from(params_of(network(**changed)), settings(**changed))


def test_timesteps_are_levels_of_the_cosine_schedule():
  i = np.arange(1000)
  phi = schedule.angle(convert.logsnr_at(jnp.asarray(i, jnp.float32)))
  np.testing.assert_allclose(phi, 0.5 * np.pi * (i + 1) / 1000, atol=1e-6)
  ours = schedule.angle(schedule.cosine()(jnp.asarray((i + 1) / 1000, jnp.float32)))
  np.testing.assert_allclose(phi, ours, atol=5e-5)
  assert np.abs(phi - ours).max() > 4e-5  # the docstring of logsnr_at promises 5e-5
