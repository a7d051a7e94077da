"""Tests of a run put together from its recipe: each part once, from the recipe or a workdir."""

import collections
import dataclasses
import pathlib
import types

import encoding
import labelled
import latent_runs
import micro
import numpy as np
import pytest
from PIL import Image

from gdistill import errors
from gdistill.convert import autoencoder as autoencoders
from gdistill.convert import text as texts
from gdistill.data import latents
from gdistill.data import pipeline as data
from gdistill.data import records
from gdistill.devices import mesh as meshes
from gdistill.frozen import copies
from gdistill.frozen import encode
from gdistill.frozen import networks as frozen_networks
from gdistill.frozen import prompts as run_prompts
from gdistill.rounds import network as networks
from gdistill.rounds import plan as plans
from gdistill.training import assemble
from gdistill.training import checks as run_checks
from gdistill.workdir import finished as finished_rounds
from gdistill.workdir import storage

PHOTOS, TEXT, IMAGENET, SD = latent_runs.KINDS
NOWHERE = pathlib.Path('/nowhere')
MAKERS = {  # part of a run -> (module, function that makes the part)
  'plan': (plans, 'plan'),
  'mesh': (meshes, 'make_mesh'),
  'student_net': (networks, 'build'),
  'frozen': (frozen_networks, 'of_settings'),
  'pictures': (data, 'load'),
  'latent_folder': (encode, 'cache_folder'),
  'examples': (latents, 'load'),
  'prompts': (run_prompts, 'of_run'),
}


def test_a_run_makes_each_part_once_and_only_when_it_is_asked_for(monkeypatch):
  calls = collections.Counter()

  def counted(part):
    pair = types.SimpleNamespace(fingerprint='1'), types.SimpleNamespace(fingerprint='2')
    made = {'frozen': frozen_networks.Frozen(), 'pictures': pair, 'latent_folder': str(NOWHERE)}

    def make(*given, **more):
      calls[part] += 1
      return made.get(part, ())

    return make

  for part, maker in MAKERS.items():
    monkeypatch.setattr(*maker, counted(part))
  monkeypatch.setattr(frozen_networks, 'autoencoder', lambda path: None)
  run = assemble.Run(latent_runs.recipe(TEXT, NOWHERE), NOWHERE)
  assert not calls
  for _ in range(2):
    for part in MAKERS:
      getattr(run, part)
  assert calls == dict.fromkeys(MAKERS, 1)


def test_a_run_sets_up_each_stage_once(monkeypatch):
  stages, setup_of = [], assemble.setup_of
  monkeypatch.setattr(
    assemble, 'setup_of', lambda recipe, s: stages.append(s) or setup_of(recipe, s)
  )
  run = assemble.Run(micro.recipe(encoder=True))
  assert run.setups is run.setups
  assert stages == list(run.setups) == ['teacher', 'guidance', 'progressive', 'encoder']


def test_the_parts_of_a_pixel_run_never_read_an_autoencoder(monkeypatch):
  def read(*given):
    raise AssertionError('a run on pixels reads a frozen network')

  monkeypatch.setattr(autoencoders, 'read', read)
  monkeypatch.setattr(texts, 'read', read)
  run = assemble.Run(micro.recipe(), NOWHERE)
  for part in ('plan', 'mesh', 'setups', 'student_net', 'student_shapes', 'config', 'digest'):
    getattr(run, part)
  assert run.frozen.params == {} and run.prompts == []
  assert run.picture_shape == run.input_shape == run.examples.shape == (8, 8, 1)
  assert run.examples is run.pictures[0]
  assert run.card_entries()['latents'] is None


@pytest.mark.parametrize('name', [TEXT, SD])
def test_the_card_of_a_round_keeps_the_prompts_that_the_run_is_measured_with(latent_inputs, name):
  run = assemble.Run(latent_runs.recipe(name, latent_inputs))
  run.examples = run.pictures[0]  # the card only counts the examples, so no latents are encoded
  assert run_prompts.of_card(run.card_entries()) == run.prompts != []


def test_the_prompts_of_a_finished_round_are_kept_when_captions_change(latent_inputs, monkeypatch):
  """Cells of the grid that were drawn before are not mixed with cells of other prompts."""
  card = {'latents': {'prompts': ['of the card'], 'template': 'a {}'}, 'class_names': ['pictures']}
  monkeypatch.setattr(finished_rounds, 'read_card', lambda folder: card)
  finished = []
  monkeypatch.setattr(finished_rounds, 'is_finished', lambda folder: folder.name in finished)
  recipe = latent_runs.recipe(SD, latent_inputs)
  of_data = assemble.Run(recipe, NOWHERE).prompts
  assert of_data == assemble.Run(recipe).prompts != ['of the card']
  finished.append(assemble.plan_of(recipe)[0].name)
  assert assemble.Run(recipe, NOWHERE).prompts == ['of the card']
  del card['latents']['prompts']  # a card that names no prompts
  assert assemble.Run(recipe, NOWHERE).prompts == of_data


def test_a_folder_without_a_config_holds_no_run(tmp_path):
  with pytest.raises(errors.ConfigError, match=r'holds no run \(no config\.json\)') as e:
    assemble.of_workdir(tmp_path)
  assert e.value.exit_code == 2 and not list(tmp_path.iterdir())


def test_a_config_that_this_version_cannot_read_is_named_with_its_file(tmp_path):
  storage.write_json(tmp_path / 'config.json', {**micro.config(), 'moons': 3})
  with pytest.raises(errors.ConfigError, match=r'config\.json: .*moons.*another version') as e:
    assemble.of_workdir(tmp_path)
  assert e.value.exit_code == 2


def test_a_run_of_a_workdir_is_the_run_that_wrote_it_but_for_the_changes(tmp_path):
  config = micro.config(seed=3)
  storage.write_json(tmp_path / 'config.json', config)
  assert assemble.of_workdir(tmp_path).recipe == micro.recipe(seed=3)
  changed = assemble.of_workdir(tmp_path, lambda c: c['evaluation'].update(bank=7))
  assert changed.recipe == micro.recipe(seed=3, evaluation={'bank': 7})
  assert changed.workdir == storage.path(tmp_path)


def test_a_value_out_of_newer_limits_can_be_corrected_in_an_older_workdir(tmp_path):
  old = micro.config()
  old['evaluation']['ws'] = [0.0, 2000.0]  # earlier versions had no upper limit
  storage.write_json(tmp_path / 'config.json', old)
  with pytest.raises(errors.ConfigError, match=r'config\.json: evaluation\.ws=.*from 0 to 1000'):
    assemble.of_workdir(tmp_path)
  with pytest.raises(errors.ConfigError, match=r'^evaluation\.ws=.*from 0 to 1000'):
    assemble.of_workdir(tmp_path, lambda config: config['evaluation'].update(bank=7))
  change = {'ws': [0.0, 1.0]}
  found = assemble.of_workdir(tmp_path, lambda config: config['evaluation'].update(change))
  assert found.evaluation.ws == (0.0, 1.0)
  # The file lacks keys, which get their defaults although a value is out of its limits.
  run_checks.same_run(found.config, storage.path(tmp_path))
  with pytest.raises(errors.ConfigError, match=r'another config \(seed: 0 -> 9\)'):
    run_checks.same_run({**found.config, 'seed': 9}, storage.path(tmp_path))


def test_the_evaluation_of_a_run_in_a_bucket_can_be_changed(tmp_path, monkeypatch):
  """The copies of its frozen networks lie at gs:// paths, which a config may not name."""

  def there(latents, workdir):
    return dataclasses.replace(latents, autoencoder='gs://bucket/run/autoencoder')

  monkeypatch.setattr(copies, 'own_paths', there)
  storage.write_json(tmp_path / 'config.json', latent_runs.config(PHOTOS, NOWHERE))
  found = assemble.of_workdir(tmp_path, lambda config: config['evaluation'].update(bank=7))
  assert found.evaluation.bank == 7 and found.latents.autoencoder.startswith('gs://')


@pytest.mark.parametrize(
  ('size', 'remedy'),
  [(32, 'set model.image_size=16'), (15, 'prepare RGB pictures with sides divisible by 2')],
)
def test_records_of_another_size_name_the_size_of_the_latents(
  latent_inputs, tmp_path, size, remedy
):
  pixels = np.zeros((size, size, 3), np.uint8)
  for split in ('train', 'validation'):
    (tmp_path / 'in' / split / 'a').mkdir(parents=True)
    for i in range(4):
      Image.fromarray(pixels + i).save(tmp_path / 'in' / split / 'a' / f'{i}.png')
  labelled.prepared(tmp_path / 'in', tmp_path / 'out', size=size)
  source = dict(name='records', path=str(tmp_path / 'out'))
  recipe = latent_runs.recipe(IMAGENET, latent_inputs, data=source)
  words = (
    rf'model\.image_size=8: .* \[{size}, {size}, 3\], .* 2 x 2 pixels of 3 channels \(RGB\); '
    rf'{remedy}$'
  )
  with pytest.raises(errors.DataError, match=words):
    assemble.Run(recipe).pictures  # noqa: B018
  if size == 32:
    fits = latent_runs.recipe(
      IMAGENET, latent_inputs, data=source, model=dict(image_size=16, attention_resolutions=(16,))
    )
    assert assemble.Run(fits).pictures[0].shape == (32, 32, 3)


def test_what_training_reads_is_refused_in_another_shape(latent_inputs, tmp_path):
  recipe = latent_runs.recipe(PHOTOS, latent_inputs, latents=dict(cache=str(tmp_path)))
  encoding.run(recipe, tmp_path)
  assert assemble.Run(recipe, tmp_path).examples.fields['latents'][0] == (2, 1, 8, 8, 32)
  smaller = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, image_channels=4))
  with pytest.raises(errors.DataError, match=r'image_size=8 and model\.image_channels=32'):
    assemble.Run(smaller, tmp_path).examples  # noqa: B018
  assert records.read_index(str(tmp_path), latents.FORMAT)['count'] == 12


def test_the_size_of_a_picture_needs_no_text_encoder(tmp_path):
  autoencoders.write(tmp_path / 'tiny', latent_runs.autoencoder('tiny'))
  run = assemble.Run(latent_runs.recipe(TEXT, tmp_path))  # tmp_path/text does not exist
  assert run.picture_shape == (16, 16, 3)
