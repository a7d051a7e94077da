"""Published teachers become rounds: read back, sampled from, guided as their kind is guided."""

import json
import pathlib
import re

import jax
import ml_dtypes
import numpy as np
import published
import pytest
import safetensors.numpy

from gdistill import errors
from gdistill.cli import edge
from gdistill.convert import adm
from gdistill.convert import autoencoder as autoencoders
from gdistill.convert import dit
from gdistill.convert import stable_diffusion_unet as unet2d
from gdistill.core import schedule
from gdistill.drawing import sampling
from gdistill.frozen import networks as frozen_networks
from gdistill.models import latent_unet
from gdistill.published import adm as adm_teacher
from gdistill.published import cin256 as cin256_teacher
from gdistill.published import common
from gdistill.published import importing
from gdistill.published import stable_diffusion
from gdistill.published import teachers
from gdistill.recipe import reading
from gdistill.recipe import settings as recipes
from gdistill.rounds import folder as folders
from gdistill.rounds import network as networks
from gdistill.samplers import noise as image_noise
from gdistill.training import checks as run_checks
from gdistill.workdir import finished as finished_rounds
from gdistill.workdir import storage

SMALL_CIN256 = dict(
  channels=(32, 64), num_blocks=1, attention=(False, True), heads=(1, 1), context='class',
  context_dim=24, num_classes=1000, out_channels=3,
)  # fmt: skip
SEEDS, LABELS, W = np.array([3, 11]), np.array([4, 1]), 1.5
LINEAR = np.linspace(1e-4, 0.02, 1000)  # the betas of DDPM
LATENT = np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2  # and of latent diffusion


@pytest.fixture(autouse=True)
def exact():
  with published.exact():
    yield


def save(file, state, licence=''):
  file.parent.mkdir(parents=True, exist_ok=True)
  safetensors.numpy.save_file(state, file)
  if licence:
    (file.parent / 'README.md').write_text(f'---\nlanguage: en\nlicense: {licence}\n---\n')
  return str(file)


def imported(source, tmp_path, **given):
  card = importing.run(str(source), storage.path(tmp_path / 'round'), **given)
  folder = folders.read_folder(tmp_path / 'round')
  assert folder.card == card
  return folder


def start(folder):
  return image_noise.start(image_noise.image_keys(SEEDS), networks.image_shape(folder.settings))


def outputs(folder, logsnr, scale=1.0):
  """What the network says at t = 1, of z_1 times `scale`: with its labels, and without."""
  net, w = folder.net, np.zeros(2, np.float32)
  level = np.full(2, logsnr, np.float32)
  said = jax.jit(net.apply)
  null = folder.params if folder.null_params is None else folder.null_params
  return tuple(
    np.asarray(said({'params': params}, start(folder) * scale, level, {'label': label}, w))
    for params, label in ((folder.params, LABELS), (null, np.full(2, -1)))
  )


def drawn(folder, w=W, num_steps=1):
  sampler = sampling.Sampler(folder, 'ddim', 2)
  pixels, x = sampler.draw_both(SEEDS, LABELS, np.full(2, w), num_steps)
  assert pixels.dtype == np.uint8 and np.asarray(pixels).std() > 1
  return np.asarray(x)


def one_step(folder, betas, w=W):
  """x_hat at t = 1 of eps_c + w (eps_c - eps_null), from the betas."""
  abar = np.prod(1.0 - betas)
  cond, null = outputs(folder, np.log(abar / (1.0 - abar)))
  assert np.linalg.norm(cond - null) > 0.05 * np.linalg.norm(cond)
  eps = (1.0 + w) * cond - w * null
  return (np.asarray(start(folder)) - np.sqrt(1.0 - abar) * eps) / np.sqrt(abar)


def close(found, expected):
  assert np.linalg.norm(found - expected) <= 1e-3 * np.linalg.norm(expected)


def cin256(monkeypatch):
  """Arrays of a small network by diffusers' names, and its autoencoder's."""
  monkeypatch.setattr(latent_unet, 'CIN256', SMALL_CIN256)
  net = latent_unet.LatentUNet(**SMALL_CIN256)
  state = published.random_state(unet2d.state_shapes(net))
  return net, state, published.autoencoder('vq', 3, 32, 32)


def test_latent_diffusion_is_read_by_its_own_names_from_one_file(tmp_path, monkeypatch):
  net, state, vq = cin256(monkeypatch)
  whole = {f'model.diffusion_model.{o}': state[name] for o, name in unet2d.ldm_names(net).items()}
  of_vq = autoencoders.state_from(vq.net, vq.params)
  whole |= {f'first_stage_model.{name}': a for name, a in of_vq.items()}
  whole |= {unet2d.CLASSES: state[unet2d.CLASSES], 'betas': np.ones(3, np.float32)}
  folder = imported(save(tmp_path / 'a' / 'model.safetensors', whole, 'mit'), tmp_path)
  jax.tree.map(np.testing.assert_array_equal, folder.params, unet2d.params_from(state, net))
  jax.tree.map(
    np.testing.assert_array_equal, frozen_networks.read_frozen(folder).autoencoder.params, vq.params
  )
  about = folder.card['imported']
  assert about == {
    'kind': 'cin256', 'null': 'trained', 'digest': common.digest(whole), 'licence': 'mit',
    'null_rule': 'row 1000 of the class table', 'head_order': 'q, k, v apart', 'epsilon': 1e-5,
    'source': 'model.safetensors',
  }  # fmt: skip
  assert folder.card['predict'] == 'eps' and folder.card['licence'] == 'mit'
  assert folder.noise == recipes.Noise('scaled_linear', beta_start=0.0015, beta_end=0.0195)
  assert len(folder.card['class_names']) == 1000 and folder.settings.image_size == 64
  close(drawn(folder), one_step(folder, LATENT))


def test_latent_diffusion_is_read_by_diffusers_names_from_a_folder(tmp_path, monkeypatch):
  net, state, vq = cin256(monkeypatch)
  table = state.pop(unet2d.CLASSES)
  source = tmp_path / 'cin'
  published.put(source / 'unet', unet2d.config_from(net, 64), state)
  save(source / 'class_embedder' / published.WEIGHTS, {'embedding.weight': table})
  autoencoders.write(source / 'vqvae', vq)
  (source / 'scheduler').mkdir()
  (source / 'scheduler' / 'scheduler_config.json').write_text(json.dumps(dict(
    _class_name='DDIMScheduler', beta_schedule='scaled_linear', beta_start=0.0015, beta_end=0.0195,
    clip_sample=False,
  )))  # fmt: skip
  folder = imported(source, tmp_path)
  expected = unet2d.params_from({**state, unet2d.CLASSES: table}, net)
  jax.tree.map(np.testing.assert_array_equal, folder.params, expected)
  assert folder.card['imported']['kind'] == 'cin256' and folder.card['licence'] == 'not stated'
  assert folder.noise == recipes.Noise('scaled_linear', beta_start=0.0015, beta_end=0.0195)
  assert folder.settings.attention_resolutions == (32,) and folder.settings.channels == 32


def of_dit(learned_sigma=True):
  settings = recipes.Model(**{
    **published.LATENT, 'network': 'dit', 'channels': 64, 'multipliers': (1,), 'groups': 1,
    'attention_resolutions': (), 'emb_channels': 64, 'heads': 1, 'num_blocks': 2,
    'num_classes': 5, 'learned_sigma': learned_sigma,
  })  # fmt: skip
  return published.params_of(settings, published.SD_NOISE)


def with_autoencoder(tmp_path):
  autoencoders.write(tmp_path / 'vae', published.autoencoder())
  return {'autoencoder': str(tmp_path / 'vae')}


def test_dit_is_told_by_its_names_and_guided_by_its_own_null_row(tmp_path):
  params = of_dit()
  source = save(tmp_path / 'dit.safetensors', dit.state_from(params, 'original', 4), 'cc-by-nc-4.0')
  folder = imported(source, tmp_path, **with_autoencoder(tmp_path))
  jax.tree.map(np.testing.assert_array_equal, folder.params, params)
  about = folder.card['imported']
  assert about['kind'] == 'dit' and about['null_rule'] == 'row 5 of the label table'
  assert about['licence'] == 'cc-by-nc-4.0' and about['head_order'] == 'q, k, v in thirds'
  assert about['epsilon'] == 1e-6 and folder.settings.freq_shift == 0.0
  assert folder.noise == recipes.Noise('linear_beta', beta_start=1e-4, beta_end=0.02)
  assert folder.settings.learned_sigma and folder.settings.num_classes == 5
  close(drawn(folder), one_step(folder, LINEAR))


def dit_pipeline(source, config=(), scheduler=()):
  """A folder of diffusers' with of_dit in it, whose width is shared by 4 heads; its parameters."""
  params = of_dit()
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
  folder = imported(tmp_path / 'pipeline', tmp_path)
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
    (dict(_class_name='PixArtTransformer2DModel'), "_class_name is 'PixArt.* DiTTransformer2D"),
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


def test_sit_is_no_network_with_a_scheduler_of_betas(tmp_path):
  dit_pipeline(tmp_path / 'pipeline')
  with pytest.raises(errors.ConfigError, match='say --kind=dit'):
    teachers.read(str(tmp_path / 'pipeline'), kind='sit')


def test_what_may_be_sit_is_said_to_be_taken_for_dit(tmp_path, capsys):
  file = save(tmp_path / 'a.safetensors', dit.state_from(of_dit(), 'original', 4))
  given = with_autoencoder(tmp_path)
  for kind, lines in (('', 1), ('dit', 0), ('sit', 0)):
    teachers.read(file, kind=kind, **given)
    said = capsys.readouterr().err
    assert said.count('\n') == lines and ('--kind=sit is for SiT' in said) == bool(lines)


@pytest.mark.parametrize('kind', [np.float16, ml_dtypes.bfloat16])
def test_dit_is_read_in_half_precision_also_where_it_was_widened_again(kind, tmp_path):
  state = dit.state_from(of_dit(), 'original', 4)
  rounded = {name: a.astype(kind) for name, a in state.items()}
  given = with_autoencoder(tmp_path)
  for stored in (kind, np.float32):
    half = {name: a.astype(stored) for name, a in rounded.items()}
    found = teachers.read(save(tmp_path / 'half.safetensors', half), kind='dit', **given)
    np.testing.assert_array_equal(
      found.params['block1']['mlp1']['kernel'], state['blocks.1.mlp.fc2.weight'].astype(kind).T
    )
  rounded['pos_embed'] = (state['pos_embed'] + 0.02).astype(kind)  # no rounding moves them so far
  with pytest.raises(errors.ConfigError, match=r"half\.safetensors: 'pos_embed' holds other"):
    teachers.read(save(tmp_path / 'half.safetensors', rounded), kind='dit', **given)


@pytest.mark.parametrize(
  ('spoil', 'name'),
  [
    (np.nan, 'blocks.0.attn.proj.weight'),
    (np.inf, 'final_layer.linear.bias'),
  ],
)
def test_weights_that_are_not_finite_are_the_sources_fault(spoil, name, tmp_path):
  state = dit.state_from(of_dit(), 'original', 4)
  state[name].reshape(-1)[3] = spoil
  file = save(tmp_path / 'a.safetensors', state)
  with pytest.raises(errors.DataError, match=rf'^{re.escape(file)}: {name} is not finite'):
    importing.run(file, storage.path(tmp_path / 'round'), kind='dit', **with_autoencoder(tmp_path))


def test_an_autoencoder_of_other_latents_is_refused(tmp_path):
  file = save(tmp_path / 'a.safetensors', dit.state_from(of_dit(), 'original', 4))
  autoencoders.write(tmp_path / 'vq', published.autoencoder('vq', 3))
  with pytest.raises(errors.ConfigError, match=r'/vq makes latents of 3 channels, .* works on 4'):
    teachers.read(file, kind='dit', autoencoder=str(tmp_path / 'vq'))


def test_sit_is_read_where_it_is_said_so_and_predicts_a_velocity(tmp_path):
  params = of_dit()
  source = save(tmp_path / 'sit.safetensors', dit.state_from(params, 'original', 4))
  folder = imported(source, tmp_path, kind='sit', **with_autoencoder(tmp_path))
  assert folder.card['predict'] == 'flow' and folder.settings.time == 'linear'
  logsnr = -20.0  # of the cosine schedule at t = 1
  alpha, sigma = (float(a) for a in schedule.alpha_sigma(np.float32(logsnr)))
  cond, null = outputs(folder, logsnr, 1.0 / (alpha + sigma))
  u = (1.0 + W) * cond - W * null
  y, t = np.asarray(start(folder)) / (alpha + sigma), alpha / (alpha + sigma)
  close(drawn(folder), y + (1.0 - t) * u)


def small_adm(monkeypatch, kind='adm64'):
  _, _, order, noise = adm_teacher._ADM[kind]
  monkeypatch.setitem(adm_teacher._ADM, kind, (published.SMALL_ADM, 8, order, noise))


def test_adm_is_guided_by_the_unconditional_network_beside_it(tmp_path, monkeypatch):
  small_adm(monkeypatch, 'adm256')
  state, params = published.adm_state(8, 'legacy')
  other, null_params = published.adm_state(8, 'legacy', seed=1)
  del other['label_emb.weight']
  source = save(tmp_path / 'cond.safetensors', state, 'mit')
  null = save(tmp_path / 'uncond.safetensors', other)
  folder = imported(source, tmp_path, kind='adm256', null=null)
  jax.tree.map(np.testing.assert_array_equal, folder.params, params)
  null_params['label']['kernel'] = np.zeros((5, 64), np.float32)
  jax.tree.map(np.testing.assert_array_equal, folder.null_params, null_params)
  about = folder.card['imported']
  assert about['null_rule'] == 'another network' and about['null_digest'] == common.digest(other)
  assert about['head_order'] == 'q, k, v of each head in turn' and about['epsilon'] == 1e-5
  assert folder.card['null'] == 'network' and folder.card['p_uncond'] is None
  close(drawn(folder), np.clip(one_step(folder, LINEAR), -1.0, 1.0))


def test_adms_two_networks_are_told_apart_by_their_labels(tmp_path, monkeypatch):
  small_adm(monkeypatch)
  state, _ = published.adm_state(8, 'new')
  with_labels = save(tmp_path / 'cond.safetensors', state)
  without = save(tmp_path / 'not.safetensors', {k: a for k, a in state.items() if 'label' not in k})
  for source, null, begins in (
    (with_labels, with_labels, f'{with_labels} is no unconditional network, for it has label_emb'),
    (without, '', f'{without} is the unconditional network, for it has no label_emb.weight'),
    (without, with_labels, without),
  ):
    with pytest.raises(errors.ConfigError, match=f'^{re.escape(begins)}'):
      teachers.read(source, kind='adm64', null=null)
  assert teachers.read(with_labels, kind='adm64', null=without).null == 'network'


def test_adm_alone_has_no_null_condition_and_a_stage_one_is_refused(tmp_path, monkeypatch):
  small_adm(monkeypatch)
  state, params = published.adm_state(8, 'new')
  folder = imported(save(tmp_path / 'a.safetensors', state), tmp_path, kind='adm64')
  jax.tree.map(np.testing.assert_array_equal, folder.params, params)
  assert folder.card['null'] == 'none' and folder.noise.name == 'squared_cosine'
  assert folder.card['imported']['head_order'] == 'q, k, v in thirds'
  with pytest.raises(errors.ConfigError, match=r'no null condition .* \(--null\)'):
    run_checks.initial(recipe_from(folder), folder.card)
  # With one it would be taken.
  run_checks.initial(recipe_from(folder), {**folder.card, 'null': 'network'})


def recipe_from(folder):
  config = edge.load_config('configs/digits.py:tiny', [])
  config.update(stages=('guidance', 'progressive'), initial=str(folder.path))
  config['model'] = {**folder.card['model'], 'dropout': 0.0, 'dtype': 'bfloat16'}
  config['noise'] = dict(folder.card['noise'])
  return reading.from_config(config)


@pytest.mark.parametrize(
  ('config', 'fields', 'noise'),
  [
    ('stable_diffusion.py', latent_unet.SD1, published.SD_NOISE),
    ('stable_diffusion.py:sd2', latent_unet.SD2, published.SD_NOISE),
    ('imagenet256_latent.py', latent_unet.CIN256, cin256_teacher._LDM_NOISE),
  ],
)
def test_the_configs_of_imported_teachers_are_of_what_is_imported(config, fields, noise):
  net = latent_unet.LatentUNet(**fields)
  fields = unet2d.settings_from(unet2d.config_from(net, 64), fields.get('num_classes', 0))
  settings = stable_diffusion.latent_settings(fields, 64, 'eps')
  card = {
    'stage': 'teacher', 'p_uncond': None, 'null': 'trained', 'num_steps': 0, 'takes_w': False,
    'sampler': 'any',
    'model': reading.to_dict(settings), 'noise': reading.to_dict(noise), 'guided': True,
    'w_min': 0.0, 'w_max': 0.0,
  }  # fmt: skip
  given = edge.load_config(f'configs/{config}', ["--config.initial='somewhere'"])
  given['latents'].update(autoencoder='a')
  run_checks.initial(reading.from_config(given), card)


@pytest.mark.parametrize(
  ('kind', 'change', 'words'),
  [
    (
      'adm64',
      {'surplus': (1,), 'out.2.bias': None, 'time_embed.2.weight': None},
      r'2 missing: time_embed.2.weight \(64, 64\), out.2.bias \(6,\); '
      r'1 not expected: surplus \(1,\)$',
    ),
    (
      'adm64',
      {'out.2.bias': (7,), 'middle_block.1.qkv.weight': (5, 3, 1)},
      r'2 of another shape: out.2.bias \(7,\) for \(6,\), middle_block.1.qkv.weight \(5, 3\) for '
      r'\(192, 64\)$',
    ),
    ('adm64', {'label_emb.weight': (4, 64)}, r'label_emb.weight \(4, 64\) for \(5, 64\)$'),
    (
      'dit',
      {'surplus': (1,), 'blocks.1.mlp.fc2.bias': None, 't_embedder.mlp.0.bias': (7,)},
      r'1 missing: blocks.1.mlp.fc2.bias \(64,\); 1 not expected: surplus \(1,\); '
      r'1 of another shape: t_embedder.mlp.0.bias \(7,\) for \(64,\)$',
    ),
    ('dit', {'blocks.0.attn.qkv.weight': (5, 3)}, r'attn.qkv.weight \(5, 3\) for \(192, 64\)$'),
    (
      'dit',
      {'x_embedder.proj.weight': (5, 3), 'blocks.0.attn.proj.bias': None},
      r'1 missing: blocks.0.attn.proj.bias; 1 of another shape: x_embedder.proj.weight \(5, 3\) '
      r'for \(4 n, channels, patch, patch\)$',
    ),
    ('dit', {'pos_embed': (16, 64)}, "'pos_embed' holds other positions"),
  ],
)
def test_arrays_that_do_not_fit_are_named(kind, change, words, tmp_path, monkeypatch):
  small_adm(monkeypatch)
  state = published.adm_state(8, 'new')[0] if kind == 'adm64' else dit.state_from(
    of_dit(), 'original', 4
  )  # fmt: skip
  state |= {name: np.zeros(shape, np.float32) for name, shape in change.items() if shape}
  state = {name: a for name, a in state.items() if change.get(name, 1) is not None}
  source = save(tmp_path / 'odd.safetensors', state)
  with pytest.raises(errors.ConfigError, match=rf'^{re.escape(source)}: .*{words}'):
    importing.run(source, storage.path(tmp_path / 'round'), kind=kind,
                  autoencoder=str(tmp_path) if kind == 'dit' else '')  # fmt: skip
  assert not finished_rounds.is_finished(tmp_path / 'round')


@pytest.mark.parametrize(('fields', 'size', 'kind'),
                         [(adm.ADM_64, 64, 'adm64'), (adm.ADM_256, 256, 'adm256')])  # fmt: skip
def test_adm_is_told_by_its_names(fields, size, kind, tmp_path):
  entries = len(fields['multipliers']) * (fields['num_blocks'] + 1)  # and one that ends no level
  names = [f'input_blocks.{i}.0.in_layers.0.weight' for i in range(1, entries)]
  assert entries == {64: 16, 256: 18}[size]
  source = save(tmp_path / 'adm.safetensors', {n: np.zeros(1, np.float32) for n in names})
  assert teachers._kind(pathlib.Path(source)) == kind
