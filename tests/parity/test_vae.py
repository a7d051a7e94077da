"""Autoencoders equal diffusers', with random weights, both ways; names and sizes agree."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from gdistill.convert import autoencoder as convert
from gdistill.models import vae

torch = pytest.importorskip('torch', reason='bash launch/test.sh parity installs torch')
diffusers = pytest.importorskip('diffusers', reason='bash launch/test.sh parity installs it')
pytestmark = pytest.mark.parity
RNG = np.random.default_rng(0)
KL = dict(block_out_channels=(32, 48, 64), layers_per_block=1, norm_num_groups=8, latent_channels=4)
TINY = dict(
  encoder_block_out_channels=(16,) * 4, decoder_block_out_channels=(16,) * 4, latent_channels=5,
)  # fmt: skip


def blocks_of(config):
  return dict(
    down_block_types=('DownEncoderBlock2D',) * len(config['block_out_channels']),
    up_block_types=('UpDecoderBlock2D',) * len(config['block_out_channels']), **config,
  )  # fmt: skip


def randomised(net):
  """Fills `net` with random parameters, scaled so that branches are as large as their shortcuts."""
  torch.manual_seed(0)
  for name, value in net.named_parameters():
    if name == 'quantize.embedding.weight':
      torch.nn.init.normal_(value)
    elif value.ndim > 1:
      # Some layers are so small that the epsilon of the next norm changes the output.
      small = 0.01 if name.endswith('resnets.0.conv1.weight') else 1.0
      torch.nn.init.normal_(value, 0.0, 1.5 * small / np.sqrt(value[0].numel()))
    else:
      scale = 'norm' in name and name.endswith('weight')
      small = 0.01 if name.endswith('resnets.0.conv1.bias') else 1.0
      torch.nn.init.normal_(value, 1.0 if scale else 0.0, 0.3 * small)
  return net.eval().requires_grad_(False)


def saved(net, folder):
  net.save_pretrained(folder, safe_serialization=True)
  return convert.read(folder)


def torch_of(x):
  return torch.from_numpy(np.moveaxis(np.array(x), -1, 1).copy())


def close(found, expected):
  expected = np.moveaxis(expected.numpy(), 1, -1)
  assert found.shape == expected.shape
  assert np.linalg.norm(found - expected) <= 1e-4 * np.linalg.norm(expected - expected.mean(0))


def both(found, x, z):
  """Returns our mean, std and images, without the scale and shift of latents."""
  apply = jax.jit(found.net.apply, static_argnames='method')
  with jax.default_matmul_precision('highest'):
    mean, std = apply({'params': found.params}, x, method='encode')
    return mean, std, apply({'params': found.params}, z, method='decode')


@pytest.mark.parametrize(
  'extra',
  [
    {},
    {
      'use_quant_conv': False,
      'use_post_quant_conv': False,
      'mid_block_add_attention': False,
      'block_out_channels': (24, 32),
      'layers_per_block': 2,
    },
  ],
  ids=['whole', 'bare'],
)
def test_kl_is_that_of_diffusers_both_ways(tmp_path, extra):
  net = randomised(diffusers.AutoencoderKL(**blocks_of({**KL, **extra}), shift_factor=0.1))
  found = saved(net, tmp_path)
  factor = 2 ** (len(net.config.block_out_channels) - 1)
  assert (found.kind, found.factor, found.latent_channels) == ('kl', factor, 4)
  assert (found.scale, found.shift) == (0.18215, 0.1)
  x = RNG.uniform(-1, 1, (2, 32, 48, 3)).astype(np.float32)
  z = RNG.normal(size=(2, 8, 12, 4)).astype(np.float32)
  with jax.default_matmul_precision('highest'):
    mean, std = jax.jit(found.encode)(found.params, x)
    images = jax.jit(found.decode)(found.params, z)
  posterior = net.encode(torch_of(x)).latent_dist
  # diffusers' pipelines shift and scale the latents outside the autoencoder.
  close(mean, (posterior.mean - 0.1) * 0.18215)
  close(std, posterior.std * 0.18215)
  close(images, net.decode(torch_of(z) / 0.18215 + 0.1).sample)


def test_vq_is_that_of_diffusers_both_ways(tmp_path):
  sizes = {**KL, 'latent_channels': 3, 'num_vq_embeddings': 50, 'scaling_factor': 1.0}
  net = randomised(diffusers.VQModel(**blocks_of(sizes)))
  found = saved(net, tmp_path)
  assert (found.kind, found.factor, found.latent_channels) == ('vq', 4, 3)
  assert (found.scale, found.shift) == (1.0, 0.0)
  x = RNG.uniform(-1, 1, (2, 32, 48, 3)).astype(np.float32)
  z = RNG.normal(size=(2, 8, 12, 3)).astype(np.float32)
  mean, std, images = both(found, x, z)
  close(mean, net.encode(torch_of(x)).latents)
  assert not np.any(std)
  close(images, net.decode(torch_of(z)).sample)
  entries = found.net.apply({'params': found.params}, z, method='quantise')
  close(entries, net.quantize(torch_of(z))[0])


def test_tiny_is_that_of_diffusers_both_ways(tmp_path):
  net = randomised(diffusers.AutoencoderTiny(**TINY, scaling_factor=0.5, shift_factor=0.2))
  found = saved(net, tmp_path)
  assert (found.kind, found.factor, found.latent_channels) == ('tiny', 8, 5)
  assert (found.scale, found.shift) == (0.5, 0.2)
  x = RNG.uniform(-1, 1, (2, 32, 48, 3)).astype(np.float32)
  z = 4 * RNG.normal(size=(2, 4, 6, 5)).astype(np.float32)
  mean, std, images = both(found, x, z)
  close(mean, net.encode(torch_of(x)).latents)
  assert not np.any(std)
  close(images, net.decode(torch_of(z)).sample)


def by_name(state, prefix, x):
  """Applies TAESD with a `pool` by the names of the file's arrays: {'3.conv.0.weight': ...}."""
  functional = torch.nn.functional
  take = lambda name: torch.from_numpy(state[name]) if name in state else None
  conv = lambda h, name, **how: functional.conv2d(
    h, take(f'{name}.weight'), take(f'{name}.bias'), **how
  )
  layers = sorted({int(name.split('.')[1]) for name in state if name.startswith(f'{prefix}.')})
  h, before = x, layers[0] - 1
  for layer in layers:
    name = f'{prefix}.{layer}'
    if f'{name}.conv.0.weight' in state:
      if f'{name}.pool.0.weight' in state:
        a = conv(h, f'{name}.pool.0')
        a = functional.group_norm(a, 4, take(f'{name}.pool.1.weight'), take(f'{name}.pool.1.bias'))
        h = h + conv(torch.relu(a), f'{name}.pool.3')
      a = h
      for i in (0, 2):
        a = torch.relu(conv(a, f'{name}.conv.{i}', padding=1))
      h = torch.relu(h + conv(a, f'{name}.conv.4', padding=1))
    elif f'{name}.bias' in state:
      h = conv(h, name, padding=1)
      if prefix == 'decoder' and layer == 1:
        h = torch.relu(h)
    elif prefix == 'encoder':
      h = conv(h, name, padding=1, stride=2)
    else:
      assert layer == before + 2  # the upsampling layer has a number but no array
      h = conv(functional.interpolate(h, scale_factor=2, mode='nearest'), name, padding=1)
    before = layer
  return h


def test_tiny_with_a_pool_is_what_its_files_names_say(tmp_path):
  import safetensors.numpy

  net = vae.Tiny(6, pool=True)
  shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))['params']
  params = jax.tree.map(
    lambda leaf: 1.2 * RNG.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1])), shapes
  )
  params = jax.tree.map(np.float32, params)
  for layer in (*params['encoder'].values(), *params['decoder'].values()):
    if 'pool_0' in layer:  # so small that the next norm's epsilon changes the output
      layer['pool_0']['kernel'] *= 0.01
  state = {}
  for name, value in convert.state_from(net, params).items():
    half, _, layer, rest = name.split('.', 3)
    state[f'{half}.{int(layer) + (half == "decoder")}.{rest}'] = value
  for half in ('encoder', 'decoder'):
    part = {n.removeprefix(f'{half}.'): v for n, v in state.items() if n.startswith(half)}
    safetensors.numpy.save_file(part, tmp_path / f'net_{half}.safetensors')
  found = convert.read(tmp_path / 'net')
  assert found.net == net
  assert found.digest == convert.read(tmp_path).digest
  x = RNG.uniform(-1, 1, (2, 32, 48, 3)).astype(np.float32)
  z = 4 * RNG.normal(size=(2, 4, 6, 6)).astype(np.float32)
  mean, std, images = both(found, x, z)
  close(mean, by_name(state, 'encoder', (torch_of(x) + 1) / 2))
  assert not np.any(std)
  close(images, 2 * by_name(state, 'decoder', 3 * torch.tanh(torch_of(z) / 3)) - 1)


@pytest.mark.parametrize('kind', ['kl', 'vq', 'tiny'])
def test_what_is_written_loads_strictly_and_bit_for_bit(tmp_path, kind):
  theirs, config = {
    'kl': (diffusers.AutoencoderKL, blocks_of(KL)),
    'vq': (diffusers.VQModel, blocks_of({**KL, 'latent_channels': 3})),
    'tiny': (diffusers.AutoencoderTiny, TINY),
  }[kind]
  net = randomised(theirs(**config))
  convert.write(tmp_path / 'b', saved(net, tmp_path / 'a'))
  back, loading = theirs.from_pretrained(tmp_path / 'b', output_loading_info=True)
  assert not any(loading.values())
  for name, value in net.state_dict().items():
    assert torch.equal(back.state_dict()[name], value), name
  # Our config.json states these values, which diffusers leaves to its defaults.
  spelt = {'kl': {'shift_factor': 0.0}, 'vq': {'vq_embed_dim': 3}, 'tiny': {}}[kind]
  plain = lambda config: {
    k: list(v) if isinstance(v, tuple) else v for k, v in config.items() if k[0] != '_'
  }
  assert plain(back.config) == plain({**net.config, **spelt})


def test_names_of_latent_diffusion_become_those_that_diffusers_makes_of_them():
  single_file = pytest.importorskip('diffusers.loaders.single_file_utils')
  theirs = randomised(diffusers.AutoencoderKL(**blocks_of(KL)))
  original = latent_diffusion(theirs.state_dict())
  config = dict(theirs.config)
  expected = single_file.convert_ldm_vae_checkpoint(
    {name: torch.from_numpy(value) for name, value in original.items()}, config
  )
  found = convert.renamed({**original, 'model.diffusion_model.out.0.bias': np.zeros(3)})
  assert found.keys() == expected.keys() == theirs.state_dict().keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(found[name], value)


def latent_diffusion(state):
  """Renames diffusers' arrays to latent diffusion's names, written by hand from its modules."""
  levels, result = 3, {}
  for name, value in state.items():
    parts, value = name.split('.'), value.numpy()
    if parts[1] in ('down_blocks', 'up_blocks'):
      side, level = parts[1].removesuffix('_blocks'), int(parts[2])
      level = level if side == 'down' else levels - 1 - level
      tail = {'resnets': ['block', parts[4]], f'{side}samplers': [f'{side}sample']}[parts[3]]
      parts = [parts[0], side, str(level), *tail, *parts[5:]]
    elif parts[1] == 'mid_block' and parts[2] == 'resnets':
      parts = [parts[0], 'mid', f'block_{int(parts[3]) + 1}', *parts[4:]]
    elif parts[1] == 'mid_block':
      layer = {'group_norm': 'norm', 'to_q': 'q', 'to_k': 'k', 'to_v': 'v', 'to_out': 'proj_out'}
      if parts[-1] == 'weight' and parts[4] != 'group_norm':
        value = value[:, :, None, None]
      parts = [parts[0], 'mid', 'attn_1', layer[parts[4]], parts[-1]]
    names = {'conv_shortcut': 'nin_shortcut', 'conv_norm_out': 'norm_out'}
    result['.'.join(['first_stage_model', *(names.get(part, part) for part in parts)])] = value
  return result


@pytest.mark.parametrize(
  ('net', 'theirs', 'config'),
  [
    (vae.KL(), 'AutoencoderKL',
     blocks_of(dict(block_out_channels=(128, 256, 512, 512), layers_per_block=2))),
    (vae.VQ(), 'VQModel', blocks_of(
      dict(block_out_channels=(128, 256, 512), layers_per_block=2, num_vq_embeddings=8192))),
    (vae.Tiny(), 'AutoencoderTiny', {}),
    (vae.Tiny(16), 'AutoencoderTiny', {'latent_channels': 16}),
  ],
  ids=['kl', 'vq', 'tiny', 'tiny16'],
)  # fmt: skip
def test_full_sizes_have_the_arrays_of_diffusers(net, theirs, config):
  with torch.device('meta'):
    expected = getattr(diffusers, theirs)(**config).state_dict()
  shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))['params']
  found = convert.state_from(
    net, jax.tree.map(lambda s: np.broadcast_to(np.int8(0), s.shape), shapes)
  )
  assert {n: v.shape for n, v in found.items()} == {n: tuple(v.shape) for n, v in expected.items()}
