"""What a published folder's files say, and what is said of those that cannot be read."""

import json
import re
import shutil

import numpy as np
import published
import pytest
import safetensors.numpy

from gdistill import errors
from gdistill.convert import autoencoder as autoencoders
from gdistill.convert import stable_diffusion_unet as unet2d
from gdistill.models import latent_unet
from gdistill.published import common
from gdistill.published import schedulers
from gdistill.published import stable_diffusion
from gdistill.published import teachers
from gdistill.recipe import settings as recipes
from gdistill.rounds import network as networks

DDIM = dict(_class_name='DDIMScheduler')


@pytest.mark.parametrize(
  ('config', 'noise', 'predict'),
  [
    (DDIM, recipes.Noise('linear_beta', beta_start=1e-4, beta_end=0.02), 'eps'),
    (
      dict(_class_name='PNDMScheduler', beta_schedule='scaled_linear', beta_start=0.00085,
           beta_end=0.012, prediction_type='v_prediction', trained_betas=None, steps_offset=1),
      recipes.Noise('scaled_linear', beta_start=0.00085, beta_end=0.012), 'v',
    ),
    (
      dict(_class_name='EulerDiscreteScheduler', beta_schedule='squaredcos_cap_v2',
           prediction_type='sample', use_karras_sigmas=True, num_train_timesteps=1000),
      recipes.Noise('squared_cosine', beta_start=1e-4, beta_end=0.02), 'x',
    ),
  ],
)  # fmt: skip
def test_a_scheduler_says_the_noise_and_what_is_predicted(config, noise, predict):
  assert schedulers.noise_from(config) == (noise, predict)


@pytest.mark.parametrize(
  ('more', 'words'),
  [
    (dict(_class_name='FlowMatchEulerDiscreteScheduler'), "'FlowMatch.* of an unknown kind"),
    (dict(_class_name=None), 'of an unknown kind'),
    (dict(num_train_timesteps=4000), 'num_train_timesteps=4000 must be 1000'),
    (dict(trained_betas=[0.1, 0.2]), r'trained_betas=\[0.1, 0.2\] must be None'),
    (dict(rescale_betas_zero_snr=True), 'rescale_betas_zero_snr=True must be False'),
    (dict(use_flow_sigmas=True), 'use_flow_sigmas=True must be False'),
    (dict(beta_start=None), 'beta_start=None must be a number between 0 and 1'),
    (dict(beta_end=1.5), 'beta_end=1.5 must be a number between 0 and 1'),
    (dict(beta_end='0.02'), "beta_end='0.02' must be a number between 0 and 1"),
    (dict(prediction_type=['epsilon']), r"prediction_type=\['epsilon'\] must be one of epsilon, "),
    (dict(beta_schedule='sigmoid'), "beta_schedule='sigmoid' must be one of linear, "),
    (dict(prediction_type='flow'), "prediction_type='flow' must be one of epsilon, "),
  ],
)
def test_a_scheduler_that_there_is_no_place_for_is_refused_by_name(more, words):
  with pytest.raises(errors.ConfigError, match=rf'^here: .*{words}'):
    schedulers.noise_from({**DDIM, **more}, 'here')


@pytest.mark.parametrize(
  ('fields', 'context', 'heads', 'head_dim'),
  [
    (latent_unet.SD1, 'text', 8, None), (latent_unet.SD2, 'text', None, 64),
    (latent_unet.CIN256, 'class', 1, None),
  ],
)  # fmt: skip
def test_published_networks_are_the_same_by_the_recipes_section(fields, context, heads, head_dim):
  net = latent_unet.LatentUNet(**fields)
  read = unet2d.settings_from(unet2d.config_from(net, 64), fields.get('num_classes', 0))
  settings = stable_diffusion.latent_settings(read, 64, 'eps')
  assert (settings.context, settings.heads, settings.head_dim) == (context, heads, head_dim)
  again = networks.build(settings, False, noise_settings=published.SD_NOISE)
  for name in ('channels', 'heads', 'attention', 'linear_projection', 'context_dim', 'groups'):
    assert getattr(again, name) == getattr(net, name), name
  assert again.emb_channels == 4 * net.channels[0] and again.epsilon == 1e-5


def test_widths_and_heads_without_a_place_are_refused():
  fields = unet2d.settings_from(unet2d.config_from(latent_unet.LatentUNet(**latent_unet.SD1), 64))
  with pytest.raises(errors.ConfigError, match='not multiples of the first'):
    stable_diffusion.latent_settings({**fields, 'channels': (32, 48, 64, 64)}, 64, 'eps')
  with pytest.raises(errors.ConfigError, match='neither one number of heads nor one size'):
    stable_diffusion.latent_settings({**fields, 'heads': (1, 8, 8, 8)}, 64, 'eps')


def test_the_digest_sees_names_types_shapes_and_numbers():
  state = {'a': np.zeros(2, np.float32), 'b': np.ones((1, 2), np.float32)}
  others = (
    {**state, 'c': np.zeros(0)}, {**state, 'a': np.zeros(2, np.int32)},
    {**state, 'b': np.ones((2, 1), np.float32)}, {**state, 'a': np.array([0, 1e-45], np.float32)},
  )  # fmt: skip
  found = {common.digest(s) for s in (state, *others)}
  assert len(found) == 5 and common.digest(dict(reversed(state.items()))) in found


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  return published.stable_diffusion(tmp_path_factory.mktemp('published') / 'sd')


def edited(file, **changes):
  file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def odd_arrays(folder):
  file = folder / 'unet' / published.WEIGHTS
  state = safetensors.numpy.load_file(file)
  del state['conv_out.bias']
  state['conv_in.bias'] = np.zeros(7, np.float32)
  safetensors.numpy.save_file({**state, 'surplus': np.ones(1)}, file)


def torch_alone(folder):
  (folder / 'unet' / published.WEIGHTS).rename(folder / 'unet' / 'diffusion_pytorch_model.bin')


@pytest.mark.parametrize(
  ('spoil', 'error', 'words'),
  [
    (odd_arrays, errors.ConfigError,
     r'^\S+/unet: .*1 missing: conv_out.bias .* 1 not expected: surplus \(1,\); '
     r'1 of another shape: conv_in.bias \(7,\) for \(32,\)'),
    (torch_alone, errors.ConfigError,
     r"unet/diffusion_pytorch_model.bin is one of torch's files.* gdistill convert checkpoint "
     r'--source=\S+\.bin --out=\S+\.safetensors'),
    (lambda f: (f / 'unet' / published.WEIGHTS).unlink(), errors.DataError,
     r'no \.safetensors file; put diffusion_pytorch_model'),
    (lambda f: (f / 'scheduler' / 'scheduler_config.json').unlink(), errors.DataError,
     r'scheduler_config\.json cannot be read'),
    (lambda f: (f / 'unet' / 'config.json').write_text('{'), errors.DataError, 'is damaged'),
    (lambda f: (f / 'unet' / 'config.json').write_text('[]'), errors.DataError, 'no settings'),
    (lambda f: edited(f / 'unet' / 'config.json', time_cond_proj_dim=16), errors.ConfigError,
     'takes w already, so it is a student'),
    (lambda f: edited(f / 'unet' / 'config.json', cross_attention_dim=40), errors.ConfigError,
     'attends to 40 channels, and the text encoder has 32'),
    (lambda f: shutil.rmtree(f / 'vae'), errors.DataError, 'holds no autoencoder'),
  ],
)  # fmt: skip
def test_a_folder_of_stable_diffusions_that_is_not_whole_is_refused(
  whole, tmp_path, spoil, error, words
):
  shutil.copytree(whole, tmp_path / 'sd')
  spoil(tmp_path / 'sd')
  with pytest.raises(error, match=words):
    teachers.read(str(tmp_path / 'sd'))


@pytest.mark.parametrize(
  ('field', 'value', 'words'),
  [
    ('sample_size', [8, 4], r'sample_size=\[8, 4\] must be a whole number of at least 1, or twice'),
    ('sample_size', 0, 'sample_size=0 must be a whole number'),
    ('sample_size', '8', "sample_size='8' must be a whole number"),
    ('sample_size', 9, 'sample_size=9 must be divisible by 2: 2 levels halve it 1 times'),
    ('attention_head_dim', None, r'attention_head_dim is \(None, None\): it must be numbers of'),
    ('attention_head_dim', 0, r'attention_head_dim is \(0, 0\): it must be numbers of heads'),
    ('block_out_channels', None, 'block_out_channels is None: it must be a list of whole numbers'),
    ('block_out_channels', [32, '64'], r"block_out_channels is \[32, '64'\]: it must be a list of"),
    ('down_block_types', None, 'down_block_types is None: it must be a list'),
    ('up_block_types', 7, 'up_block_types is 7: it must be a list'),
    ('in_channels', None, 'in_channels is None: it must be a whole number of at least 1'),
    ('layers_per_block', True, 'layers_per_block is True: it must be one whole number'),
    ('cross_attention_dim', 0, 'cross_attention_dim is 0: it must be one whole number'),
    ('norm_eps', None, 'norm_eps is None: it must be a number above 0'),
    ('norm_eps', float('nan'), 'norm_eps is nan: it must be a number above 0'),
    ('dropout', 'none', "dropout is 'none': it must be a number of at least 0"),
    ('use_linear_projection', 3, 'use_linear_projection is 3: it must be true or false'),
    ('time_embedding_dim', 'x', "time_embedding_dim is 'x': it must be null or a whole number"),
    ('norm_num_groups', 5, 'model.groups=5 must divide the width 32'),  # as the recipe says it
  ],
)  # fmt: skip
def test_settings_of_a_network_that_make_no_sense_are_refused_in_a_line(
  whole, tmp_path, field, value, words
):
  shutil.copytree(whole, tmp_path / 'sd')
  file = tmp_path / 'sd' / 'unet' / 'config.json'
  edited(file, **{field: value})
  with pytest.raises(errors.ConfigError, match=f'^{re.escape(str(file))}: {words}'):
    teachers.read(str(tmp_path / 'sd'))


def test_images_of_a_size_in_a_list_are_read_with_text_from_elsewhere(whole, tmp_path):
  shutil.copytree(whole, tmp_path / 'sd')
  for name in ('text_encoder', 'tokenizer'):
    shutil.rmtree(tmp_path / 'sd' / name)
  edited(tmp_path / 'sd' / 'unet' / 'config.json', sample_size=[8, 8])
  found, of_whole = teachers.read(str(tmp_path / 'sd'), text=str(whole)), teachers.read(str(whole))
  assert found.kind == 'stable_diffusion' and found.settings == of_whole.settings
  assert found.text.digest == of_whole.text.digest
  np.testing.assert_array_equal(found.params['null_text'], of_whole.params['null_text'])


@pytest.mark.parametrize(
  ('file', 'array', 'words'),
  [
    ('unet/diffusion_pytorch_model', 'conv_out.bias', r'\S+/unet/\S+: conv_out.bias is'),
    (
      'vae/diffusion_pytorch_model',
      'decoder.conv_in.bias',
      r"\S+'s autoencoder: decoder.conv_in.b",
    ),
    ('text_encoder/model', 'text_model.final_layer_norm.bias', r'\S+: \S*final_layer_norm.bias is'),
  ],
)
def test_weights_that_are_not_finite_are_refused_by_name(whole, tmp_path, file, array, words):
  shutil.copytree(whole, tmp_path / 'sd')
  file = tmp_path / 'sd' / f'{file}.safetensors'
  state = safetensors.numpy.load_file(file)
  state[array][2] = np.nan
  safetensors.numpy.save_file(state, file)
  with pytest.raises(errors.DataError, match=f'^{words}.* not finite'):
    teachers.read(str(tmp_path / 'sd'))


def test_an_autoencoder_of_other_latents_is_refused_at_once(whole, tmp_path):
  autoencoders.write(tmp_path / 'six', published.autoencoder(channels=6))
  shutil.copytree(whole, tmp_path / 'sd')
  shutil.rmtree(tmp_path / 'sd' / 'vae')
  shutil.copytree(tmp_path / 'six', tmp_path / 'sd' / 'vae')
  for source, given in ((tmp_path / 'sd', ''), (whole, str(tmp_path / 'six'))):
    with pytest.raises(errors.ConfigError, match=r'latents of 6 channels, .* works on 4'):
      teachers.read(str(source), autoencoder=given)


@pytest.mark.parametrize(
  ('kind', 'flag', 'words'),
  [
    ('adm64', 'autoencoder', 'is for stable_diffusion, cin256, dit, sit: adm64 draws pixels'),
    ('adm256', 'text', 'is for stable_diffusion: adm256 is conditioned on classes'),
    ('dit', 'text', 'is for stable_diffusion: dit is conditioned on classes'),
    ('cin256', 'text', 'is for stable_diffusion: cin256 is conditioned on classes'),
    ('stable_diffusion', 'null', 'is for adm64, adm256: stable_diffusion has a null condition'),
  ],
)
def test_arguments_that_a_kind_has_no_use_for_are_refused(whole, kind, flag, words):
  with pytest.raises(errors.ConfigError, match=f'^--{flag}=x .*{words}'):
    teachers.read(str(whole), kind, **{flag: 'x'})


def save(file, *names):
  safetensors.numpy.save_file({name: np.zeros(1, np.float32) for name in names}, file)
  return str(file)


def test_sources_that_are_nothing_are_refused(tmp_path):
  (tmp_path / 'empty').mkdir()
  for source, given, error, words in (
    ('nowhere', {}, errors.DataError, 'does not exist'),
    (tmp_path / 'empty', {}, errors.DataError, r'no \.safetensors file'),
    (save(tmp_path / 'a.safetensors', 'x'), {}, errors.ConfigError, r'say --kind=stable_diff'),
    (tmp_path / 'a.safetensors', dict(kind='gan'), errors.ConfigError, "--kind='gan' must be"),
    (tmp_path / 'a.safetensors', dict(kind='dit', null='b'), errors.ConfigError, '--null=b is for'),
    (save(tmp_path / 'b.safetensors', 'model.diffusion_model.input_blocks.0.0.weight'), {},
     errors.ConfigError, 'the table of classes'),
    (tmp_path, {}, errors.DataError, r'2 \.safetensors files'),
  ):  # fmt: skip
    with pytest.raises(error, match=words):
      teachers.read(str(source), **given)
  (tmp_path / 'model.ckpt').write_bytes(b'')
  with pytest.raises(errors.ConfigError, match=r'model\.ckpt is one of torch'):
    teachers.read(str(tmp_path / 'model.ckpt'))
  (tmp_path / 'c.safetensors').write_bytes(b'nothing')
  with pytest.raises(errors.DataError, match='holds no readable weights'):
    teachers.read(str(tmp_path / 'c.safetensors'))


def test_the_licence_is_that_of_the_card_or_what_is_said(whole, tmp_path):
  assert teachers._licence(whole) == 'creativeml-openrail-m'
  assert teachers._licence(whole / 'README.md') == 'creativeml-openrail-m'
  assert teachers._licence(tmp_path) == 'not stated'
  found = teachers.read(str(whole), licence='mine')
  assert found.about['licence'] == 'mine' and found.null == 'trained'
  assert found.about['null_rule'] == "the text ''" and found.kind == 'stable_diffusion'
  assert found.params['null_text'].shape == (77, 32) and found.params['null_text'].std() > 0.1
