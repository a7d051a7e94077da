"""Autoencoders are read and written bit for bit and scaled; other networks are refused by field."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
import safetensors.numpy
from jax import numpy as jnp

from gdistill import errors
from gdistill.convert import autoencoder as convert
from gdistill.models import vae

pytestmark = pytest.mark.full

RNG = np.random.default_rng(0)
NETS = {
  'kl': vae.KL(widths=(32, 64), layers=1),
  'kl_bare': vae.KL(8, (32, 64), 2, 16, False, False, False),
  'vq': vae.VQ(widths=(32, 64), layers=2, entries=30),
  'tiny': vae.Tiny(5, width=8, blocks_down=(1, 2), blocks_up=(2, 1)),
  'pool': vae.Tiny(5, width=8, blocks_down=(1, 2), blocks_up=(2, 1), pool=True),
}


def drawn(name, scale=0.5, shift=0.0):
  net = NETS[name]
  shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))['params']
  params = jax.tree.map(lambda s: RNG.normal(size=s.shape).astype(np.float32), shapes)
  kind = {'kl_bare': 'kl', 'pool': 'tiny'}.get(name, name)
  return convert.Autoencoder(kind, net, params, scale, shift)


def same(one, two):
  assert jax.tree.structure(one) == jax.tree.structure(two)
  jax.tree.map(np.testing.assert_array_equal, one, two)


def edited(folder, **changes):
  config = json.loads((folder / 'config.json').read_text())
  (folder / 'config.json').write_text(json.dumps(config | changes))


@pytest.mark.parametrize('name', NETS)
def test_what_is_written_is_read_bit_for_bit(tmp_path, name):
  given = drawn(name, shift=0.0 if name == 'vq' else 0.25)
  convert.write(tmp_path / 'new' / 'folder', given)
  found = convert.read(tmp_path / 'new' / 'folder')
  same(found.params, given.params)
  for field in ('kind', 'net', 'scale', 'shift', 'digest', 'factor', 'latent_channels'):
    assert getattr(found, field) == getattr(given, field), field


def test_latents_are_shifted_and_then_scaled_and_deviations_scaled_alone():
  given = drawn('kl', scale=0.5, shift=0.25)
  plain = dataclasses.replace(given, scale=1.0, shift=0.0)
  x = RNG.uniform(-1, 1, (1, 16, 16, 3)).astype(np.float32)
  mean, std = jax.jit(plain.encode)(given.params, x)
  scaled, spread = jax.jit(given.encode)(given.params, x)
  np.testing.assert_allclose(scaled, (mean - 0.25) * 0.5, rtol=1e-5)
  np.testing.assert_allclose(spread, std * 0.5, rtol=1e-5)
  images = jax.jit(plain.decode)(given.params, mean)
  back = jax.jit(given.decode)(given.params, scaled)
  np.testing.assert_allclose(back, images, atol=1e-4 * np.abs(images).max())


def test_the_digest_sees_every_number_and_name_and_nothing_else():
  given = drawn('tiny')
  copy = jax.tree.map(np.array, given.params)
  assert len(given.digest) == 16
  assert dataclasses.replace(given, params=copy, scale=2.0).digest == given.digest
  bias = copy['decoder']['layers_0']['bias']
  bias[-1] = np.nextafter(bias[-1], 9, dtype=np.float32)
  assert dataclasses.replace(given, params=copy).digest != given.digest
  moved = dict(given.params, dec=given.params['decoder'])  # in the same order as before
  del moved['decoder']
  assert dataclasses.replace(given, params=moved).digest != given.digest


@pytest.mark.parametrize(('pool', 'channels', 'scale'), [(False, 4, 1.0), (True, 32, 1 / 0.85)])
def test_a_pair_of_files_by_taesds_names_is_a_tiny_one(tmp_path, pool, channels, scale):
  net = vae.Tiny(channels, pool=pool)
  shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))['params']
  params = jax.tree.map(lambda s: RNG.normal(size=s.shape).astype(np.float32), shapes)
  halves = {'encoder': {}, 'decoder': {}}
  for name, value in convert.state_from(net, params).items():
    half, _, layer, rest = name.split('.', 3)
    halves[half][f'{int(layer) + (half == "decoder")}.{rest}'] = value
  for half, state in halves.items():
    safetensors.numpy.save_file(state, tmp_path / f'small_{half}.safetensors')
  for path in (tmp_path, tmp_path / 'small', str(tmp_path / 'small')):
    found = convert.read(path)
    assert (found.kind, found.net, found.scale, found.shift) == ('tiny', net, scale, 0.0)
    same(found.params, params)
  del halves['decoder']['1.weight']
  safetensors.numpy.save_file(halves['decoder'], tmp_path / 'small_decoder.safetensors')
  with pytest.raises(
    errors.ConfigError, match=r'small_\* does not hold .*: decoder.layers.0.weight is mis'
  ):
    convert.read(tmp_path)
  (tmp_path / 'small_decoder.safetensors').unlink()
  with pytest.raises(
    errors.DataError, match=r'small_decoder\.safetensors holds no readable weights'
  ):
    convert.read(tmp_path)


def original(state, levels):
  """Renames the arrays of these small networks from diffusers to latent diffusion."""
  result = {}
  for name, value in state.items():
    for level in range(levels):
      name = name.replace(f'up_blocks.{level}.', f'up.{levels - 1 - level}.')
      name = name.replace(f'down_blocks.{level}.', f'down.{level}.')
    for new, old in (
      ('mid_block.resnets.0', 'mid.block_1'), ('mid_block.resnets.1', 'mid.block_2'),
      ('resnets.', 'block.'), ('downsamplers.0', 'downsample'), ('upsamplers.0', 'upsample'),
      ('mid_block.attentions.0', 'mid.attn_1'), ('group_norm', 'norm'), ('to_out.0', 'proj_out'),
      ('to_', ''), ('conv_shortcut', 'nin_shortcut'), ('conv_norm_out', 'norm_out'),
    ):  # fmt: skip
      name = name.replace(new, old)
    matrix = value.ndim == 2 and 'quantize' not in name
    result[name] = value[:, :, None, None] if matrix else value
  return result


@pytest.mark.parametrize(('name', 'scale'), [('kl', 0.18215), ('vq', 1.0)])
def test_a_file_by_the_names_of_latent_diffusion_needs_no_config(tmp_path, name, scale):
  given = drawn(name)
  state = original(convert.state_from(given.net, given.params), levels=2)
  assert 'decoder.up.1.upsample.conv.weight' in state
  assert 'encoder.mid.attn_1.proj_out.weight' in state
  alone = {**state, 'loss.logvar': np.zeros(1, np.float32)}
  whole = {f'first_stage_model.{name}': value for name, value in alone.items()}
  whole['model.diffusion_model.out.2.bias'] = np.zeros(4, np.float32)
  measured = {**whole, 'scale_factor': np.array(0.3, np.float32)}
  for content, expected in ((alone, scale), (whole, scale), (measured, 0.3)):
    safetensors.numpy.save_file(content, tmp_path / 'a.safetensors')
    found = convert.read(tmp_path / 'a.safetensors')
    assert (found.kind, found.net, found.shift) == (given.kind, given.net, 0.0)
    assert found.scale == pytest.approx(expected)
    same(found.params, given.params)


def test_attention_by_the_names_of_before_2023_is_read(tmp_path):
  given = drawn('kl')
  convert.write(tmp_path, given)
  state = {}
  for name, value in convert.state_from(given.net, given.params).items():
    for new, old in (('q', 'query'), ('k', 'key'), ('v', 'value')):
      name = name.replace(f'attentions.0.to_{new}.', f'attentions.0.{old}.')
    state[name.replace('attentions.0.to_out.0.', 'attentions.0.proj_attn.')] = value
  assert 'decoder.mid_block.attentions.0.proj_attn.bias' in state
  safetensors.numpy.save_file(state, tmp_path / 'diffusion_pytorch_model.safetensors')
  same(convert.read(tmp_path).params, given.params)


def test_a_codebook_without_a_scale_goes_unscaled_and_a_gaussian_by_stable_diffusions(tmp_path):
  for name, scale in (('vq', 1.0), ('kl', 0.18215), ('tiny', 1.0)):
    convert.write(tmp_path / name, drawn(name))
    edited(tmp_path / name, scaling_factor=None)
    assert convert.read(tmp_path / name).scale == scale


def test_all_arrays_that_do_not_fit_are_listed_at_once(tmp_path):
  given = drawn('kl')
  convert.write(tmp_path, given)
  state = convert.state_from(given.net, given.params)
  del state['encoder.conv_in.bias']
  state['surplus'] = np.zeros(2, np.float32)
  state['quant_conv.weight'] = state['quant_conv.weight'][:, :3]
  safetensors.numpy.save_file(state, tmp_path / 'diffusion_pytorch_model.safetensors')
  with pytest.raises(errors.ConfigError) as e:
    convert.read(tmp_path)
  assert str(tmp_path) in str(e.value)
  for part in ('encoder.conv_in.bias is missing', 'surplus is not expected',
               'quant_conv.weight is (8, 3, 1, 1) and should be (8, 8, 1, 1)'):  # fmt: skip
    assert part in str(e.value)
  state = {name: value for name, value in state.items() if not name.startswith('encoder')}
  with pytest.raises(errors.ConfigError, match=r'is missing; and \d+ more; download the weights'):
    convert.params_from(given.net, state)


@pytest.mark.parametrize(
  ('name', 'key', 'value'),
  [
    ('kl', '_class_name', 'AutoencoderDC'),
    ('kl', '_class_name', None),
    ('kl', '_class_name', ['AutoencoderKL']),
    ('kl', 'block_out_channels', 8),
    ('kl', 'block_out_channels', [8, '8', 8]),
    ('kl', 'layers_per_block', 0),
    ('kl', 'norm_num_groups', 3),
    ('vq', 'latent_channels', True),
    ('kl', 'scaling_factor', 0),
    ('kl', 'scaling_factor', '0.18'),
    ('kl', 'shift_factor', float('inf')),
    ('tiny', 'num_encoder_blocks', [1, 0]),
    ('kl', 'act_fn', 'gelu'),
    ('kl', 'down_block_types', ['DownEncoderBlock2D', 'AttnDownEncoderBlock2D']),
    ('kl', 'latents_mean', [0.1]),
    ('kl', 'in_channels', 1),
    ('vq', 'norm_type', 'spatial'),
    ('vq', 'vq_embed_dim', 8),
    ('tiny', 'upsampling_scaling_factor', 4),
    ('tiny', 'decoder_block_out_channels', [8, 16]),
  ],
)
def test_a_network_that_is_none_of_ours_is_refused_by_the_key(tmp_path, name, key, value):
  convert.write(tmp_path, drawn(name))
  edited(tmp_path, **{key: value})
  with pytest.raises(errors.ConfigError, match=re.escape(f'config.json: {key} is {value!r}')):
    convert.read(tmp_path)


def test_files_that_cannot_be_read_are_named(tmp_path):
  with pytest.raises(errors.DataError, match='nothing holds no autoencoder; give a folder'):
    convert.read(tmp_path / 'nothing')
  with pytest.raises(errors.DataError, match='holds no autoencoder'):
    convert.read(tmp_path)
  convert.write(tmp_path, drawn('tiny'))
  weights = tmp_path / 'diffusion_pytorch_model.safetensors'
  weights.write_bytes(weights.read_bytes()[:-7])
  with pytest.raises(errors.DataError, match='safetensors holds no readable weights'):
    convert.read(tmp_path)
  for content in ('{', '[]'):
    (tmp_path / 'config.json').write_text(content)
    with pytest.raises(errors.DataError, match=r'config\.json is unreadable'):
      convert.read(tmp_path)
  safetensors.numpy.save_file({'a': np.zeros(1)}, tmp_path / 'a.safetensors')
  with pytest.raises(errors.ConfigError, match=r'has no array decoder\.conv_in\.weight'):
    convert.read(tmp_path / 'a.safetensors')
