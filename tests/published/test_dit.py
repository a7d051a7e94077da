"""DiT and SiT are read with their settings and guided by their null row."""

import json
import re

import imported
import jax
import ml_dtypes
import numpy as np
import published
import pytest

from gdistill import errors
from gdistill.convert import autoencoder as autoencoders
from gdistill.convert import dit
from gdistill.core import schedule
from gdistill.published import teachers
from gdistill.recipe import settings as recipes

pytestmark = pytest.mark.full


@pytest.fixture(autouse=True)
def exact():
  with published.exact():
    yield


def test_dit_is_told_by_its_names_and_guided_by_its_own_null_row(tmp_path):
  params = imported.dit_params()
  source = imported.save(
    tmp_path / 'dit.safetensors', dit.state_from(params, 'original', 4), 'cc-by-nc-4.0'
  )
  folder = imported.as_round(source, tmp_path, **imported.with_autoencoder(tmp_path))
  jax.tree.map(np.testing.assert_array_equal, folder.params, params)
  about = folder.card['imported']
  assert about['kind'] == 'dit' and about['null_rule'] == 'row 5 of the label table'
  assert about['licence'] == 'cc-by-nc-4.0' and about['head_order'] == 'q, k, v in thirds'
  assert about['epsilon'] == 1e-6 and folder.settings.freq_shift == 0.0
  assert folder.noise == recipes.Noise('linear_beta', beta_start=1e-4, beta_end=0.02)
  assert folder.settings.learned_sigma and folder.settings.num_classes == 5
  imported.assert_close(imported.drawn(folder), imported.one_step(folder, imported.DDPM_BETAS))


def test_dit_is_guided_in_the_channels_that_its_authors_guide(tmp_path, capsys):
  state = dit.state_from(imported.dit_params(), 'original', 4)
  source, given = imported.save(tmp_path / 'dit.safetensors', state), {'kind': 'dit'}
  given |= imported.with_autoencoder(tmp_path)
  folder = imported.as_round(source, tmp_path, guided_channels=3, **given)
  assert 'guided' not in capsys.readouterr().err
  guided, plain = (imported.one_step(folder, imported.DDPM_BETAS, w) for w in (imported.W, 0.0))
  expected = np.concatenate([guided[..., :3], plain[..., 3:]], axis=-1)
  imported.assert_close(imported.drawn(folder), expected)
  assert np.linalg.norm(guided - expected) > 0.05 * np.linalg.norm(expected)
  teachers.read(source, **given)
  assert 'guided in all 4 channels: give --guided_channels=3' in capsys.readouterr().err
  with pytest.raises(errors.ConfigError, match=r'--guided_channels=5 must be from 0, .* to 4'):
    teachers.read(source, **given, guided_channels=5)


def dit_pipeline(source, config=(), scheduler=()):
  """Writes a folder of diffusers with a DiT whose width is shared by 4 heads; its parameters."""
  params = imported.dit_params()
  config = dict(
    _class_name='Transformer2DModel', activation_fn='gelu-approximate', attention_bias=True,
    attention_head_dim=16, cross_attention_dim=None, dropout=0.0, in_channels=4,
    norm_elementwise_affine=False, norm_num_groups=32, norm_type='ada_norm_zero',
    num_attention_heads=4, num_embeds_ada_norm=5, num_layers=2, num_vector_embeds=None,
    only_cross_attention=False, out_channels=8, patch_size=2, sample_size=8,
    upcast_attention=False, use_linear_projection=False,
  ) | dict(config)  # fmt: skip
  published.put(source / 'transformer', config, dit.state_from(params, 'diffusers', 4))
  autoencoders.write(source / 'vae', published.autoencoder())
  (source / 'scheduler').mkdir()
  scheduler = dict(_class_name='DDIMScheduler', beta_schedule='linear') | dict(scheduler)
  (source / 'scheduler' / 'scheduler_config.json').write_text(json.dumps(scheduler))
  return params


def test_dit_is_read_from_diffusers_folder_as_its_settings_and_scheduler_say(tmp_path):
  said = dict(beta_start=0.002, beta_end=0.03, prediction_type='v_prediction')
  params = dit_pipeline(tmp_path / 'pipeline', dict(sample_size=[12, 12]), said)
  file = tmp_path / 'pipeline' / 'transformer' / published.WEIGHTS
  for source in (tmp_path / 'pipeline', tmp_path / 'pipeline' / 'transformer', file):
    found = teachers.read(str(source))
    jax.tree.map(np.testing.assert_array_equal, found.params, params)
    settings = found.settings
    assert settings.freq_shift == 1.0 and settings.image_size == 12 and settings.heads == 4
    assert settings.predict == 'v' and found.autoencoder.latent_channels == 4
    assert found.noise == recipes.Noise('linear_beta', beta_start=0.002, beta_end=0.03)
  folder = imported.as_round(tmp_path / 'pipeline', tmp_path)
  assert folder.net.heads == 4 and folder.net.freq_shift == 1.0


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    (dict(norm_type='ada_norm_single'), "norm_type is 'ada_norm_single': .* 'ada_norm_zero'"),
    (dict(activation_fn='gelu'), "activation_fn is 'gelu': it must be 'gelu-approximate'"),
    (dict(patch_size=4), 'patch_size is 4: it must be 2'),
    (dict(in_channels=3), 'in_channels is 3: it must be 4'),
    (dict(out_channels=4), 'out_channels is 4: it must be 8'),
    (dict(num_layers=3), 'num_layers is 3: it must be 2'),
    (dict(num_embeds_ada_norm=1000), 'num_embeds_ada_norm is 1000: it must be 5'),
    (dict(num_attention_heads=3), 'num_attention_heads is 3: .* 64 over attention_head_dim=16'),
    (dict(num_attention_heads=0), 'num_attention_heads is 0'),
    (dict(attention_head_dim='a'), "attention_head_dim='a'"),
    (dict(attention_bias=False), 'attention_bias is False: it must be True'),
    (dict(norm_eps=0.1), 'norm_eps is 0.1: it must be 1e-06'),
    (dict(caption_channels=32), 'caption_channels is 32: it must be absent'),
    (dict(sample_size=9), 'sample_size is 9: it must be a multiple of patch_size=2'),
    (dict(sample_size=[8, 12]), r'sample_size=\[8, 12\] must be a whole number'),
  ],
)
def test_a_dit_of_diffusers_that_is_another_network_by_its_settings_is_refused(
  changes, words, tmp_path
):
  dit_pipeline(tmp_path / 'pipeline', changes)
  begins = re.escape(str(tmp_path / 'pipeline' / 'transformer' / 'config.json'))
  with pytest.raises(errors.ConfigError, match=rf'^{begins}: .*{words}'):
    teachers.read(str(tmp_path / 'pipeline'))


def test_another_transformer_of_diffusers_is_refused_by_its_own_name(tmp_path):
  dit_pipeline(tmp_path / 'pipeline', dict(_class_name='PixArtTransformer2DModel'))
  with pytest.raises(
    errors.ConfigError, match=r'transformer/config\.json is PixArt, which gdistill'
  ):
    teachers.read(str(tmp_path / 'pipeline'))


def test_sit_is_no_network_with_a_scheduler_of_betas(tmp_path):
  dit_pipeline(tmp_path / 'pipeline')
  with pytest.raises(errors.ConfigError, match='use --kind=dit'):
    teachers.read(str(tmp_path / 'pipeline'), kind='sit')


@pytest.mark.parametrize('kind', [np.float16, ml_dtypes.bfloat16])
def test_dit_is_read_in_half_precision_also_where_it_was_widened_again(kind, tmp_path):
  state = dit.state_from(imported.dit_params(), 'original', 4)
  rounded = {name: a.astype(kind) for name, a in state.items()}
  given = imported.with_autoencoder(tmp_path)
  for stored in (kind, np.float32):
    half = {name: a.astype(stored) for name, a in rounded.items()}
    found = teachers.read(imported.save(tmp_path / 'half.safetensors', half), kind='dit', **given)
    np.testing.assert_array_equal(
      found.params['block1']['mlp1']['kernel'], state['blocks.1.mlp.fc2.weight'].astype(kind).T
    )
  rounded['pos_embed'] = (state['pos_embed'] + 0.02).astype(kind)  # no rounding moves them so far
  with pytest.raises(errors.ConfigError, match=r"half\.safetensors: 'pos_embed' holds other"):
    teachers.read(imported.save(tmp_path / 'half.safetensors', rounded), kind='dit', **given)


def test_sit_is_read_where_it_is_said_so_and_predicts_a_velocity(tmp_path):
  params = imported.dit_params()
  source = imported.save(tmp_path / 'sit.safetensors', dit.state_from(params, 'original', 4))
  folder = imported.as_round(source, tmp_path, kind='sit', **imported.with_autoencoder(tmp_path))
  assert folder.card['predict'] == 'flow' and folder.settings.time == 'linear'
  logsnr = -20.0  # of the cosine schedule at t = 1
  alpha, sigma = (float(a) for a in schedule.alpha_sigma(np.float32(logsnr)))
  cond, null = imported.outputs(folder, logsnr, 1.0 / (alpha + sigma))
  u = (1.0 + imported.W) * cond - imported.W * null
  y, t = np.asarray(imported.start(folder)) / (alpha + sigma), alpha / (alpha + sigma)
  imported.assert_close(imported.drawn(folder), y + (1.0 - t) * u)
