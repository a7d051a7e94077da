"""A round is written for diffusers and read back whole; what diffusers cannot run is refused."""

import dataclasses
import json
import shutil

import exported
import jax
import numpy as np
import published
import pytest
import texts

from gdistill import errors
from gdistill.convert import text as text_encoders
from gdistill.published import exporting
from gdistill.published import importing
from gdistill.recipe import reading
from gdistill.recipe import settings as recipes
from gdistill.rounds import classes
from gdistill.rounds import folder as folders
from gdistill.workdir import finished as finished_rounds
from gdistill.workdir import storage

pytestmark = pytest.mark.full

COSINE = recipes.Noise('cosine')


@pytest.fixture(scope='module')
def text_round(tmp_path_factory):
  folder = tmp_path_factory.mktemp('text') / 'round'
  published.finished(folder, recipes.Model(**published.TEXT), published.SD_NOISE, 'kl')
  return folder


@pytest.fixture(scope='module')
def pixel_round(tmp_path_factory):
  folder = tmp_path_factory.mktemp('pixel') / 'round'
  published.finished(folder, recipes.Model(**published.PIXEL), COSINE)
  return folder


def test_a_text_student_is_a_folder_of_stable_diffusions(text_round, tmp_path):
  out, notes = exported.export(folders.read_folder(text_round), tmp_path)
  assert notes == []
  assert {p.name for p in out.iterdir()} == {
    'unet', 'vae', 'text_encoder', 'tokenizer', 'scheduler', 'model_index.json', 'README.md',
    'gdistill',
  }  # fmt: skip
  index = json.loads((out / 'model_index.json').read_text())
  assert index['_class_name'] == 'StableDiffusionPipeline'
  assert index['unet'] == ['diffusers', 'UNet2DConditionModel']
  readme = (out / 'README.md').read_text()
  assert readme.startswith('---\nlicense: openrail\n')
  assert (
    'takes the guidance strength w, from 0 to 14' in readme and 'num_inference_steps=4' in readme
  )
  assert 'guidance_scale=7.5' in readme and 'A negative prompt has no effect' in readme
  scheduler = json.loads((out / 'scheduler' / 'scheduler_config.json').read_text())
  assert scheduler['prediction_type'] == 'epsilon' and not scheduler['clip_sample']
  assert exporting.is_export(out) and not exporting.is_export(text_round)


def test_what_was_exported_comes_back_and_says_when_it_was_changed(pixel_round, tmp_path):
  folder = folders.read_folder(pixel_round)
  out, _ = exported.export(folder, tmp_path)
  scheduler = json.loads((out / 'scheduler' / 'scheduler_config.json').read_text())
  assert scheduler['prediction_type'] == 'v_prediction' and scheduler['clip_sample']
  card = importing.run(str(out), storage.path(tmp_path / 'again'))
  assert card == folder.card
  again = folders.read_folder(tmp_path / 'again')
  jax.tree.map(np.testing.assert_array_equal, again.params, folder.params)
  with pytest.raises(errors.ConfigError, match='was exported by gdistill and needs no --tiny'):
    importing.run(str(out), storage.path(tmp_path / 'third'), tiny='x')
  file = out / 'unet' / published.WEIGHTS
  state = published.safetensors.numpy.load_file(file)
  state['conv_out.bias'] += 1.0
  published.safetensors.numpy.save_file(state, file)
  with pytest.raises(errors.DataError, match='holds other weights than it was exported with'):
    importing.run(str(out), storage.path(tmp_path / 'fourth'))


@pytest.mark.parametrize(
  ('fields', 'noise', 'card', 'words'),
  [
    (dict(published.PIXEL), COSINE, dict(sampler='stochastic'), 'for the stochastic sampler'),
    (dict(published.PIXEL, time='index'), published.SD_NOISE, {}, "model.time='phi' and noise"),
    (dict(published.PIXEL, freq_shift=0.0), COSINE, {}, r'model\.freq_shift=0\.0 is not 1\.0'),
    (dict(published.PIXEL, cos_first=True), COSINE, {}, r'model\.cos_first=True is not False'),
    (dict(published.PIXEL, learned_sigma=True), COSINE, {}, r'model\.learned_sigma=True is not'),
    (
      dict(published.CLASS, extra_channels=3), published.SD_NOISE, {},
      r'model\.extra_channels=3 must be 0, or 4 for inpainting',
    ),
    (
      dict(published.PIXEL, guided_channels=2), COSINE, dict(guided=True, takes_w=False),
      "guided_channels=2 must be 0, .* because diffusers' pipelines guide all channels",
    ),
    (dict(published.CLASS, time='phi'), COSINE, {}, "model.time='phi' must be 'index'"),
    (
      dict(published.PIXEL, network='dit', multipliers=(1,), attention_resolutions=(), patch=2),
      COSINE, {}, "diffusers' DiT has no input for w",
    ),
  ],
)  # fmt: skip
def test_what_diffusers_does_not_have_is_refused(fields, noise, card, words, tmp_path):
  published.finished(tmp_path / 'round', recipes.Model(**fields), noise, **card)
  with pytest.raises(errors.ConfigError, match=words):
    exporting.run(folders.read_folder(tmp_path / 'round'), tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


def test_the_epsilon_of_norms_is_written(tmp_path):
  settings = recipes.Model(**dict(published.PIXEL, epsilon=1e-5))
  published.finished(tmp_path / 'round', settings, COSINE)
  out, _ = exported.export(folders.read_folder(tmp_path / 'round'), tmp_path)
  assert json.loads((out / 'unet' / 'config.json').read_text())['norm_eps'] == 1e-5


def test_a_text_encoder_in_half_precision_is_written_in_float32(text_round, tmp_path):
  mine = shutil.copytree(text_round, tmp_path / 'mine')
  file = mine / 'text_encoder' / 'model.safetensors'
  state = published.safetensors.numpy.load_file(file)
  half = {n: a.astype(np.float16) if a.dtype == np.float32 else a for n, a in state.items()}
  published.safetensors.numpy.save_file(half, file)
  described = json.loads((mine / 'text_encoder' / 'config.json').read_text())
  texts.put(mine / 'text_encoder' / 'config.json', json.dumps({**described, 'dtype': 'float16'}))
  about = dict(folders.read_folder(text_round).card['latents'])
  encoder = text_encoders.read(str(mine), 77)
  found = exported.with_card(mine, tmp_path, latents=dict(about, text=encoder.digest))
  out, _ = exported.export(found, tmp_path)
  written = published.safetensors.numpy.load_file(out / 'text_encoder' / 'model.safetensors')
  assert written.keys() == half.keys()
  for name, a in half.items():
    assert written[name].dtype in (np.float32, np.int64)
    np.testing.assert_array_equal(written[name], a.astype(written[name].dtype))
  assert json.loads((out / 'text_encoder' / 'config.json').read_text())['dtype'] == 'float32'
  assert text_encoders.read(str(out), 77).digest == encoder.digest
  assert importing.run(str(out), storage.path(tmp_path / 'back')) == found.card


def test_a_licence_given_at_the_export_stays(pixel_round, tmp_path):
  out, _ = exported.export(folders.read_folder(pixel_round), tmp_path, licence='mit')
  readme = (out / 'README.md').read_text()
  assert '- Licence: mit, as stated at the export.' in readme
  card = importing.run(str(out), storage.path(tmp_path / 'again'))
  assert card == {**folders.read_folder(pixel_round).card, 'licence': 'mit'}
  other = exported.with_card(pixel_round, tmp_path, licence='')
  out, _ = tmp_path / 'third', exporting.run(other, tmp_path / 'third')
  readme = (out / 'README.md').read_text()
  assert readme.startswith('---\nlicense: not stated\n') and 'ask the publisher' in readme


def test_names_that_an_earlier_version_did_not_record_are_in_the_exported_card(
  pixel_round, tmp_path, monkeypatch
):
  names = ['tench', 'goldfish', 'shark', 'ray', 'cock', 'hen', 'jay', 'kite', 'crane', 'owl']
  found = folders.read_folder(pixel_round)
  names = tuple(names[: found.settings.num_classes])
  monkeypatch.setattr(classes, 'of_published', lambda kind, count: names)
  card = {**found.card, 'class_names': list(map(str, range(len(names))))}
  card['imported'] = {'kind': 'adm64'}
  finished_rounds.finish(storage.path(tmp_path / 'old'), found.params, card)
  out, _ = exported.export(folders.read_folder(tmp_path / 'old'), tmp_path)
  assert 'lists all names by number' in (out / 'README.md').read_text()
  assert json.loads((out / 'gdistill' / 'card.json').read_text())['class_names'] == list(names)
  assert importing.run(str(out), storage.path(tmp_path / 'again'))['class_names'] == list(names)


def test_a_round_of_an_earlier_version_whose_card_knows_no_latents_comes_back(
  pixel_round, tmp_path
):
  found = folders.read_folder(pixel_round)
  card = {k: v for k, v in found.card.items() if k not in ('latents', 'params_digest')}
  finished_rounds.finish(storage.path(tmp_path / 'old'), found.params, card)
  old = folders.read_folder(tmp_path / 'old')
  out, _ = exported.export(old, tmp_path)
  assert importing.run(str(out), storage.path(tmp_path / 'again')) == old.card


def test_texts_that_diffusers_would_read_otherwise_are_refused(text_round, tmp_path):
  about = dict(folders.read_folder(text_round).card['latents'])
  short = dict(about, text_length=16)
  fields = reading.to_dict(recipes.Model(**dict(published.TEXT, context_length=16)))
  cut = tmp_path / 'cut'
  settings = recipes.Model(**dict(published.TEXT, context_length=16))
  published.finished(cut, settings, published.SD_NOISE, 'kl')
  found = exported.with_card(cut, tmp_path, latents=short, model=fields)
  with pytest.raises(errors.ConfigError, match=r'reads 16 tokens .* latents\.text_length=0'):
    exporting.run(found, tmp_path / 'out')

  bert = tmp_path / 'bert'
  published.finished(bert, recipes.Model(**published.TEXT), published.SD_NOISE, 'kl')
  for part in ('text_encoder', 'tokenizer'):
    shutil.rmtree(bert / part)
  texts.bert_folder(bert / 'text_encoder')
  shutil.copytree(bert / 'text_encoder', bert / 'tokenizer')
  encoder = text_encoders.read(str(bert), 16)
  about = dict(about, text=encoder.digest, text_length=16)
  with pytest.raises(errors.ConfigError, match='with a bert encoder and masks the padding'):
    exporting.run(exported.with_card(bert, tmp_path, latents=about), tmp_path / 'out')


def test_weights_that_are_not_finite_are_not_exported(tmp_path):
  published.finished(tmp_path / 'round', recipes.Model(**published.PIXEL), COSINE)
  found = folders.read_folder(tmp_path / 'round')
  last = {**found.params['conv_out'], 'bias': np.array([0.0, np.inf, 1.0])}
  params = {**found.params, 'conv_out': last}
  with pytest.raises(errors.NumericsError, match=r'conv_out\.bias is not finite .* nothing is exp'):
    exporting.run(dataclasses.replace(found, params=params), tmp_path / 'out')
