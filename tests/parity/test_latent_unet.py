"""The latent U-Net equals diffusers' UNet2DConditionModel, with random weights."""

import json

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from gdistill import errors
from gdistill.convert import stable_diffusion_unet as unet2d
from gdistill.models import latent_unet

torch = pytest.importorskip('torch', reason='bash launch/test.sh parity installs torch')
diffusers = pytest.importorskip('diffusers', reason='bash launch/test.sh parity installs it')
safetensors = pytest.importorskip('safetensors.numpy', reason='pip install safetensors')
single_file = pytest.importorskip('diffusers.loaders.single_file_utils')
pytestmark = pytest.mark.parity

DOWN, UP = ['DownBlock2D', 'CrossAttnDownBlock2D'], ['UpBlock2D', 'CrossAttnUpBlock2D']
# The published config.json of Stable Diffusion 1.5, 2.1 and the inpainting network, and one for
# latent diffusion's ImageNet network. LAYOUTS are small versions of these four.
SD1 = dict(
  _class_name='UNet2DConditionModel', _diffusers_version='0.6.0', act_fn='silu',
  attention_head_dim=8, block_out_channels=[320, 640, 1280, 1280], center_input_sample=False,
  cross_attention_dim=768, down_block_types=[DOWN[1]] * 3 + [DOWN[0]], downsample_padding=1,
  flip_sin_to_cos=True, freq_shift=0, in_channels=4, layers_per_block=2, mid_block_scale_factor=1,
  norm_eps=1e-05, norm_num_groups=32, out_channels=4, sample_size=64,
  up_block_types=[UP[0]] + [UP[1]] * 3,
)  # fmt: skip
SD2 = dict(
  SD1, attention_head_dim=[5, 10, 20, 20], cross_attention_dim=1024, use_linear_projection=True,
  dual_cross_attention=False, num_class_embeds=None, only_cross_attention=False, sample_size=96,
  upcast_attention=True,
)  # fmt: skip
INPAINTING = dict(SD1, in_channels=9)
CIN256 = dict(
  SD1, attention_head_dim=1, block_out_channels=[192, 384, 576, 960], cross_attention_dim=512,
  down_block_types=[DOWN[0]] + [DOWN[1]] * 3, up_block_types=[UP[1]] * 3 + [UP[0]], in_channels=3,
  out_channels=3,
)  # fmt: skip
SMALL = dict(block_out_channels=[32, 64, 64, 64], sample_size=8)
LAYOUTS = {
  'sd1': dict(SD1, **SMALL, cross_attention_dim=24),
  'sd2': dict(SD2, **SMALL, cross_attention_dim=40, attention_head_dim=[1, 2, 4, 4],
              layers_per_block=1),
  'inpainting': dict(INPAINTING, **SMALL, cross_attention_dim=24, layers_per_block=1,
                     transformer_layers_per_block=2),
  'cin256': dict(CIN256, **{**SMALL, 'block_out_channels': [32, 64, 96, 160]},
                 cross_attention_dim=24, layers_per_block=1),
}  # fmt: skip
QUIET = (
  '.conv_in.', '.conv2.', '.proj_in.', '.proj_out.', 'conv_shortcut.bias', 'samplers.0.conv.bias',
)  # fmt: skip
CLASSES = 5
INDEX = np.array([1, 437, 999])


def theirs(config):
  """Returns diffusers' network with random weights, in which every path carries signal.

  Branches that are added to the pixels are small, so that the norms' epsilons change the outputs.
  """
  torch.manual_seed(0)
  net = diffusers.UNet2DConditionModel.from_config(config).eval()
  for name, value in net.named_parameters():
    if value.ndim > 1:
      torch.nn.init.normal_(value, 0.0, value[0].numel() ** -0.5)
    else:
      torch.nn.init.normal_(value, float('norm' in name and name.endswith('weight')), 0.2)
    if any(part in f'.{name}' for part in QUIET):
      value.data *= 0.01
  return net, {name: value.numpy() for name, value in net.state_dict().items()}


def ours(config, layout):
  settings = unet2d.settings_from(config, CLASSES if layout == 'cin256' else 0)
  # The tests pass the timestep index as `logsnr`.
  return latent_unet.LatentUNet(**settings, time=lambda index: index, context_length=6)


def inputs(net, config):
  rng = np.random.default_rng(0)
  z, _, cond, _ = latent_unet.example(net, 16, config['out_channels'], len(INDEX))
  z = rng.normal(size=z.shape).astype(np.float32)
  cond = {k: rng.normal(size=v.shape).astype(np.float32) for k, v in cond.items()}
  cond['label'] = np.array([0, 4, 2])
  return z, INDEX.astype(np.float32), cond, np.array([0.0, 1.5, 4.0], np.float32)


def close(found, expected):
  expected = np.moveaxis(expected.detach().numpy(), 1, -1)
  assert np.linalg.norm(expected - expected.mean(0)) > 0.5 * np.linalg.norm(expected)
  assert np.linalg.norm(found - expected) <= 1e-4 * np.linalg.norm(expected)


def applied(net, params, *given):
  """Applies the network, compiled without optimisation: compiling takes longer than running."""
  with jax.default_matmul_precision('highest'):
    unoptimised = {'xla_backend_optimization_level': 0}
    return jax.jit(net.apply, compiler_options=unoptimised)({'params': params}, *given)


def called(net, state, z, logsnr, cond, w, table=None, w_features=0):
  """Returns the outputs of diffusers' network for our arguments."""
  x = np.concatenate([z, cond['extra']], axis=-1) if 'extra' in cond else z
  given = {}
  if w_features:
    embedded = diffusers.StableDiffusionPipeline.get_guidance_scale_embedding(
      None, torch.tensor(w), w_features
    )
    given['timestep_cond'] = embedded
  tokens = cond['text'] if table is None else table[cond['label']][:, None]
  if 'text_mask' in cond:
    given['encoder_attention_mask'] = torch.tensor(cond['text_mask'])
  with torch.no_grad():
    return net(
      torch.tensor(np.moveaxis(x, -1, 1).copy()), torch.tensor(logsnr).long(),
      torch.tensor(tokens), **given,
    ).sample  # fmt: skip


@pytest.mark.parametrize(
  ('layout', 'w_features'), [('sd1', 16), ('sd2', 0), ('inpainting', 0), ('cin256', 16)]
)
def test_the_network_is_that_of_diffusers_and_weights_go_both_ways(layout, w_features):
  config = {**LAYOUTS[layout], 'time_cond_proj_dim': w_features or None}
  net, (reference, state) = ours(config, layout), theirs(config)
  table = None
  if layout == 'cin256':
    table = np.random.default_rng(1).normal(size=(CLASSES + 1, 24)).astype(np.float32)
    state[unet2d.CLASSES] = table
  params = unet2d.params_from(state, net)
  z, logsnr, cond, w = inputs(net, config)
  found = applied(net, params, z, logsnr, cond, w)
  close(found, called(reference, state, z, logsnr, cond, w, table, w_features))

  back = unet2d.state_from(params, net)
  assert back.keys() == state.keys()
  for name, array in back.items():
    np.testing.assert_array_equal(array, state[name])
  written = unet2d.config_from(net, 8)
  fresh = diffusers.UNet2DConditionModel.from_config(json.loads(json.dumps(written)))
  back.pop(unet2d.CLASSES, None)
  fresh.load_state_dict({k: torch.tensor(v) for k, v in back.items()}, strict=True)
  close(found, called(fresh.eval(), state, z, logsnr, cond, w, table, w_features))
  again = unet2d.settings_from(written, CLASSES if layout == 'cin256' else 0)
  assert again == unet2d.settings_from(config, CLASSES if layout == 'cin256' else 0)


def test_tokens_that_do_not_count_are_masked_as_in_diffusers():
  config = dict(
    LAYOUTS['sd1'], block_out_channels=[32, 64], down_block_types=DOWN[::-1], up_block_types=UP,
    layers_per_block=1,
  )  # fmt: skip
  net, (reference, state) = ours(config, 'sd1'), theirs(config)
  params = unet2d.params_from(state, net)
  z, logsnr, cond, w = inputs(net, config)
  cond['text_mask'] = np.arange(6)[None] < np.array([[2], [6], [1]])
  found, unmasked = (
    applied(net, params, z, logsnr, {**cond, 'text_mask': mask}, w)
    for mask in (cond['text_mask'], np.ones((3, 6), bool))
  )
  close(found, called(reference, state, z, logsnr, cond, w))
  assert np.linalg.norm(found - unmasked) > 0.01 * np.linalg.norm(found)


def test_a_written_folder_is_loaded_by_diffusers_with_nothing_missing_or_left_over(tmp_path):
  net = latent_unet.LatentUNet(
    **{**latent_unet.SD1, 'channels': (32, 32, 64, 64), 'context_dim': 24}, w_features=16
  )
  params = filled(net)
  safetensors.save_file(
    unet2d.state_from(params, net), tmp_path / 'diffusion_pytorch_model.safetensors'
  )
  (tmp_path / 'config.json').write_text(json.dumps(unet2d.config_from(net, 64)))
  loaded, info = diffusers.UNet2DConditionModel.from_pretrained(tmp_path, output_loading_info=True)
  assert not any(info.values())
  read = unet2d.params_from({k: v.numpy() for k, v in loaded.state_dict().items()}, net)
  params['null_text'] = np.zeros((77, 24), np.float32)
  jax.tree.map(np.testing.assert_array_equal, read, params)


@pytest.mark.parametrize(
  ('config', 'count', 'fields'),
  [
    (SD1, 859_520_964, latent_unet.SD1),
    (SD2, 865_910_724, latent_unet.SD2),
    (INPAINTING, 859_535_364, {**latent_unet.SD1, 'extra_channels': 5}),
    (CIN256, 400_920_579, latent_unet.CIN256),  # published: 400.9 M, without the class table
  ],
)
def test_published_sizes_have_the_published_counts(config, count, fields):
  classes = fields.get('num_classes', 0)
  net = latent_unet.LatentUNet(**unet2d.settings_from(config, classes))
  assert net == latent_unet.LatentUNet(**fields)
  given = latent_unet.example(net, 8, net.out_channels)
  shapes = jax.eval_shape(net.init, jax.random.key(0), *given)['params']
  found = {name: sum(a.size for a in jax.tree.leaves(part)) for name, part in shapes.items()}
  assert sum(found.values()) - found.get('null_text', 0) - found.get('class_table', 0) == count
  with torch.device('meta'):
    reference = diffusers.UNet2DConditionModel.from_config(config)
  assert sum(p.numel() for p in reference.parameters()) == count
  with torch.device('meta'):
    expected = {name: tuple(value.shape) for name, value in reference.state_dict().items()}
  if classes:
    expected[unet2d.CLASSES] = (1001, 512)
  assert unet2d.state_shapes(net) == expected


@pytest.mark.parametrize(
  ('layout', 'upsamplers'),
  [
    # An upsampler is the third entry of its block, or the second if there is no transformer.
    # diffusers reads both names, so the expected names are those of the published files.
    ('sd1', {'output_blocks.2.1.conv', 'output_blocks.5.2.conv', 'output_blocks.8.2.conv'}),
    ('sd2', {'output_blocks.1.1.conv', 'output_blocks.3.2.conv', 'output_blocks.5.2.conv'}),
    ('inpainting', {'output_blocks.1.1.conv', 'output_blocks.3.2.conv', 'output_blocks.5.2.conv'}),
    ('cin256', {'output_blocks.1.2.conv', 'output_blocks.3.2.conv', 'output_blocks.5.2.conv'}),
  ],
)
def test_original_names_are_renamed_as_diffusers_renames_them(layout, upsamplers):
  config = LAYOUTS[layout]
  net = ours(config, layout)
  names = unet2d.ldm_names(net)
  assert {name.removesuffix('.bias') for name in names if name.endswith('conv.bias')} == upsamplers
  state = {name: np.full(1, i) for i, name in enumerate(names.values())}
  reference = diffusers.UNet2DConditionModel.from_config(config).state_dict()
  assert state.keys() == reference.keys() and len(names) == len(state)
  original = {f'model.diffusion_model.{ldm}': state[name] for ldm, name in names.items()}
  means = {
    'model_ema.diffusion_model' + ldm.replace('.', ''): 0.5 + state[name]
    for ldm, name in names.items()
  }
  rest = {'betas': np.ones(3), 'first_stage_model.post_quant_conv.bias': np.ones(3)}
  for given, ema in ((original, False), ({**original, **means}, True)):
    expected = single_file.convert_ldm_unet_checkpoint(dict(given), config, extract_ema=ema)
    found = unet2d.ldm_renamed({**given, **rest}, net)
    assert found.keys() == expected.keys() == state.keys()
    for name in found:
      np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('addition_embed_type', 'text_time'), ('class_embed_type', 'timestep'),
    ('num_class_embeds', 1000), ('dual_cross_attention', True), ('encoder_hid_dim', 64),
    ('resnet_time_scale_shift', 'scale_shift'), ('only_cross_attention', [True, True, True, False]),
    ('mid_block_type', None), ('freq_shift', 1), ('flip_sin_to_cos', False), ('act_fn', 'gelu'),
    ('down_block_types', ['AttnDownBlock2D', *SD1['down_block_types'][1:]]),
    ('up_block_types', [UP[1]] * 4), ('layers_per_block', [2, 2, 2, 1]),
    ('cross_attention_dim', [768, 768, 768, 512]), ('transformer_layers_per_block', [1, 2, 10, 1]),
    ('norm_num_groups', None), ('attention_head_dim', 7), ('attention_head_dim', [8, 8]),
    ('in_channels', 3), ('a_field_of_tomorrow', 'x'),
  ],
)  # fmt: skip
def test_what_the_network_has_no_place_for_is_refused_by_name(field, value):
  with pytest.raises(errors.ConfigError, match=rf'^{field} is .+: it must be '):
    unet2d.settings_from({**SD1, field: value})


def test_a_config_that_diffusers_cannot_express_is_not_written():
  for given, match in (
    (dict(context='none'), 'context is'),
    (dict(out_channels=0), 'out_channels is 0'),
    (dict(w_features=16, w_scale=50.0), r'w_scale is 50\.0: it must be 1000\.0'),
  ):
    with pytest.raises(errors.ConfigError, match=match):
      unet2d.config_from(latent_unet.LatentUNet(**{**latent_unet.SD1, **given}), 64)


def test_arrays_that_do_not_fit_are_listed_with_their_shapes():
  net = ours(LAYOUTS['inpainting'], 'inpainting')
  state = {name: np.zeros(shape) for name, shape in unet2d.state_shapes(net).items()}
  unet2d.params_from(state, net)
  state['conv_in.weight'] = np.zeros((32, 4, 3, 3))
  state['time_embedding.cond_proj.weight'] = np.zeros((32, 16))
  del state['mid_block.resnets.1.conv2.bias']
  for i in range(11):
    state[f'other{i}'] = np.zeros(1)
  with pytest.raises(errors.ConfigError) as e:
    unet2d.params_from(state, net)
  text = str(e.value)
  assert '1 missing: mid_block.resnets.1.conv2.bias (64,);' in text
  assert '12 not expected: time_embedding.cond_proj.weight (32, 16), other0 (1,)' in text
  assert 'other8 (1,), ...;' in text and 'other9' not in text
  assert '1 of another shape: conv_in.weight (32, 4, 3, 3) for (32, 9, 3, 3)' in text


def test_an_original_checkpoint_becomes_the_parameters_and_foreign_arrays_are_listed():
  net = ours(LAYOUTS['cin256'], 'cin256')
  params = jax.tree.map(np.asarray, filled(net))
  state = unet2d.state_from(params, net)
  original = {
    f'model.diffusion_model.{o}': state[name] for o, name in unet2d.ldm_names(net).items()
  }
  original[unet2d.CLASSES] = state[unet2d.CLASSES]
  original['alphas_cumprod'] = np.ones(3)
  jax.tree.map(np.testing.assert_array_equal, unet2d.ldm_params_from(original, net), params)
  original['model.diffusion_model.label_emb.weight'] = np.ones((2, 3))
  with pytest.raises(
    errors.ConfigError, match=r'1 not expected: model\.diffusion_model\.label_emb'
  ):
    unet2d.ldm_params_from(original, net)


def filled(net):
  """Returns random parameters without zeros, so that every path carries signal."""
  given = latent_unet.example(net, 8, net.out_channels)
  shapes = jax.eval_shape(net.init, jax.random.key(0), *given)['params']
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), jnp.float32), shapes)
