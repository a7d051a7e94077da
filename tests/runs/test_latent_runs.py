"""Tests of whole runs in latent space: from pictures to figures, resumed, moved, fine-tuned."""

import dataclasses
import json
import shutil

import jax
import latent_runs
import micro
import numpy as np
import pytest
import stand_in
from PIL import Image

from gdistill import errors
from gdistill.cli import command
from gdistill.cli import evaluate as evaluate_command
from gdistill.cli import statistics as statistics_command
from gdistill.drawing import sampling
from gdistill.evaluation.features import extractors
from gdistill.frozen import networks as frozen_networks
from gdistill.rounds import folder as folders
from gdistill.training import assemble
from gdistill.training import checks as run_checks
from gdistill.training import run as training_run
from gdistill.workdir import finished as finished_rounds

pytestmark = pytest.mark.full

PHOTOS, TEXT, IMAGENET, SD = latent_runs.KINDS
COMPILED = {}  # {config: compiled train steps, which all runs of the config share}


@pytest.fixture(scope='session')
def given(tmp_path_factory):
  return latent_runs.inputs(tmp_path_factory.mktemp('latent_inputs'))


def run(name, given, workdir, stop=None, **sections):
  recipe = latent_runs.recipe(name, given, **sections)
  compiled = COMPILED.setdefault((name, recipe.model, recipe.stages), {})
  return recipe, latent_runs.trained(recipe, workdir, stop, compiled)


def digests(workdir):
  return {
    p.parent.name: finished_rounds.params_digest(p.parent) for p in workdir.glob('*/card.json')
  }


@pytest.fixture(scope='session')
def undisturbed(given, tmp_path_factory):
  return run(PHOTOS, given, tmp_path_factory.mktemp('latent_run') / 'run')[1]


@pytest.mark.parametrize('name', [PHOTOS, TEXT, IMAGENET, SD])
def test_every_config_goes_from_pictures_to_figures(given, tmp_path, name):
  recipe, workdir = run(name, given, tmp_path / 'run')
  kind, text = latent_runs.KINDS[name]
  cards = [finished_rounds.read_card(workdir / r.name) for r in assemble.plan_of(recipe)]
  assert [c['num_steps'] for c in cards] == [0, 0, 2, 1]
  own = latent_runs.autoencoder(kind)
  for card in cards:
    assert card['latents']['autoencoder'] == frozen_networks.encoder_digest(own)
    assert bool(card['latents']['text']) == text and card['class_names'] == (
      ['pictures'] if name == SD else list(latent_runs.CLASSES)
    )
  assert (workdir / 'text_encoder').exists() == (workdir / 'tokenizer').exists() == text
  rows = latent_runs.evaluated(workdir)
  assert all(np.isfinite(r['fd']) and np.isfinite(r['fd_teacher']) for r in rows)
  assert {r['clipping'] for r in rows} == {'none'}
  students = [r for r in rows if r['model'] == 'student']
  assert {(r['num_steps'], r['w']) for r in students} == {
    (n, w) for n in (1, 2) for w in recipe.evaluation.ws
  }
  for r in rows:
    reference = r['model'] == 'teacher' and r['num_steps'] == 4 and r['sampler'] == 'ddim'
    assert (r['rms_latents'] == 0) == reference and (r['rms_teacher'] == 0 or not reference)
  stored = np.load(workdir / 'evaluation' / 'cells' / f'{rows[0]["cell"]}.npz')
  shape = (8, 8, recipe.model.image_channels)
  assert stored['latents'].shape == (8, *shape) and stored['latents'].dtype == np.float16
  # The latents were not clipped to [-1, 1], and the pictures are the decoded latents.
  assert np.abs(stored['latents']).max() > 1.05
  images = jax.jit(own.decode)(own.params, stored['latents'].astype(np.float32))
  expected = (np.clip(images, -1, 1) + 1) * 127.5
  # The rounding to float16 may move one latent in a hundred to another entry of a VQ codebook.
  assert (np.abs(stored['pixels'] - expected) < 2).mean() > (0.9 if kind == 'vq' else 0.9999)
  assert stored['pixels'].std() > 5


def test_interrupted_again_and_again_it_ends_with_the_same_bits(undisturbed, given, tmp_path):
  workdir, interruptions = tmp_path / 'run', 0
  while True:
    try:
      run(PHOTOS, given, workdir, micro.StopAfter(1))
      break
    except errors.Preempted:
      interruptions += 1
      assert interruptions < 40
  # 14 updates and two shards of latents; the last update of a round finishes it without a stop.
  assert interruptions >= 12
  assert digests(workdir) == digests(undisturbed)
  index = [json.loads((w / 'latents' / 'index.json').read_text()) for w in (workdir, undisturbed)]
  assert index[0] == index[1]
  before = {p: p.stat().st_mtime_ns for p in workdir.rglob('*')}
  run(PHOTOS, given, workdir)  # a finished run does nothing
  assert {p: p.stat().st_mtime_ns for p in workdir.rglob('*')} == before


def test_a_shared_cache_serves_runs_and_one_of_another_autoencoder_is_refused(
  undisturbed, given, tmp_path
):
  cache = shutil.copytree(undisturbed / 'latents', tmp_path / 'cache')
  before = {p: p.stat().st_mtime_ns for p in cache.iterdir()}
  run(PHOTOS, given, tmp_path / 'run', latents=dict(cache=str(cache)))
  assert digests(tmp_path / 'run') == digests(undisturbed)
  assert not (tmp_path / 'run' / 'latents').exists()
  latent_runs.autoencoders.write(tmp_path / 'b', latent_runs.autoencoder('tiny', seed=1))
  other = dict(autoencoder=str(tmp_path / 'b'))
  with pytest.raises(errors.DataError, match=r"another autoencoder \(tiny-.*\) than this run's"):
    run(PHOTOS, given, tmp_path / 'other', latents=dict(cache=str(cache), **other))
  assert {p: p.stat().st_mtime_ns for p in cache.iterdir()} == before
  # A run also refuses to resume with latents of other networks than at its start.
  workdir = shutil.copytree(undisturbed, tmp_path / 'again')
  (workdir / '03_progressive_1' / 'card.json').unlink()
  shutil.rmtree(workdir / 'latents')
  with pytest.raises(errors.DataError, match='are not those this run began with'):
    run(PHOTOS, given, workdir, latents=other)


@pytest.mark.parametrize('name', [PHOTOS, SD])
def test_a_copy_elsewhere_is_evaluated_with_its_own_networks(given, tmp_path, name):
  (tmp_path / 'inputs').mkdir()
  for part in ('pictures', 'captioned.tar', 'text', latent_runs.KINDS[name][0]):
    copy = shutil.copytree if (given / part).is_dir() else shutil.copy
    copy(given / part, tmp_path / 'inputs' / part)
  _, workdir = run(name, tmp_path / 'inputs', tmp_path / 'run')
  expected = latent_runs.evaluated(workdir)
  shutil.rmtree(workdir / 'evaluation')
  elsewhere = workdir.rename(tmp_path / 'elsewhere')
  shutil.rmtree(tmp_path / 'inputs' / latent_runs.KINDS[name][0])
  shutil.rmtree(tmp_path / 'inputs' / 'text')
  frozen_networks.autoencoder.cache_clear()
  frozen_networks.text_encoder.cache_clear()
  found = latent_runs.evaluated(elsewhere)
  for a, b in zip(found, expected, strict=True):
    for key in a.keys() - {'seconds_per_image'}:
      assert a[key] == (pytest.approx(b[key], rel=1e-5, abs=1e-5) if isinstance(a[key], float)
                        else b[key]), key  # fmt: skip


def test_a_round_beside_another_autoencoder_or_none_is_refused(undisturbed, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(undisturbed / '00_teacher', workdir / '00_teacher')
  folder = folders.read_folder(workdir / '00_teacher')
  with pytest.raises(errors.CheckpointError, match='needs autoencoder/, which is neither'):
    frozen_networks.read_frozen(folder)
  latent_runs.autoencoders.write(workdir / 'autoencoder', latent_runs.autoencoder('tiny', seed=1))
  with pytest.raises(errors.CheckpointError, match='on the latents of another autoencoder'):
    frozen_networks.read_frozen(folder)
  # An autoencoder in the folder of the round goes before an autoencoder in the folder above.
  own = latent_runs.autoencoder('tiny')
  latent_runs.autoencoders.write(workdir / '00_teacher' / 'autoencoder', own)
  assert frozen_networks.read_frozen(folder).autoencoder.digest == own.digest


def test_the_samplers_bounds_are_those_of_float32(undisturbed):
  """Latents above 20, from a network with huge parameters, are not clipped while sampling."""
  folder = folders.read_folder(undisturbed / '03_progressive_1')
  last = jax.tree.map(lambda a: a + 20.0, folder.params['conv_out'])
  large = dataclasses.replace(folder, params={**folder.params, 'conv_out': last})
  sampler = sampling.Sampler(large, 'ddim', 8)
  pixels, x = sampler.draw_both(np.arange(8), np.zeros(8), np.ones(8), 1)
  assert np.abs(x).max() > 20 and pixels.dtype == np.uint8


def first_state(recipe):
  """Returns the state with which the first round of a recipe starts."""
  run = assemble.Run(recipe)
  run_checks.everything(run)
  first = run.plan[0]
  key = jax.random.key(0)
  return training_run._fresh_state(run.setups[first.stage], first.teacher, key, run.mesh)


def test_an_inpainting_run_goes_from_pictures_to_figures_and_paints(given, tmp_path):
  more = dict(model=dict(extra_channels=5), latents=dict(masks=2))
  recipe, workdir = run(SD, given, tmp_path / 'run', **more)
  index = json.loads((workdir / 'latents' / 'index.json').read_text())
  assert index['masks'] == 2
  examples = assemble.Run(recipe, workdir).examples
  found = examples.gather(np.arange(8))['masked'].astype(np.float32)
  masks = found[..., 0]
  assert set(np.unique(masks)) == {0.0, 1.0}
  # A wholly masked picture is encoded as grey, whatever the picture shows.
  own = latent_runs.autoencoder('kl')
  grey, _ = jax.jit(own.encode)(own.params, np.zeros((1, 16, 16, 3), np.float32))
  whole = found[masks.all((3, 4))][..., 1:]
  np.testing.assert_allclose(whole, np.broadcast_to(grey, whole.shape), atol=0.02)
  rows = latent_runs.evaluated(workdir)
  assert all(np.isfinite(r['fd_teacher']) for r in rows)
  # An ordinary network can be trained on to inpaint: its new input channels start at zero.
  _, plain = run(SD, given, tmp_path / 'plain', stages=('teacher',))
  tuned = latent_runs.recipe(SD, given, initial=str(plain / '00_teacher'), **more)
  state = first_state(tuned)
  kernel = folders.read_folder(plain / '00_teacher').params['conv_in']['kernel']
  np.testing.assert_array_equal(state.params['conv_in']['kernel'][:, :, :4], kernel)
  assert not np.any(state.params['conv_in']['kernel'][:, :, 4:])
  # The student paints into a picture of another shape than the training pictures.
  pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
  mask = np.zeros((16, 24), np.uint8)
  mask[:, 12:] = 255
  Image.fromarray(pixels).save(tmp_path / 'in.png')
  Image.fromarray(mask).save(tmp_path / 'mask.png')
  argv = ['inpaint', f'--folder={workdir}/02_progressive_2', f'--image={tmp_path}/in.png',
          f'--mask={tmp_path}/mask.png', '--prompt=the cat of 3', '--guidance_scale=4',
          '--size=24x16', f'--out={tmp_path}/out']  # fmt: skip
  assert command.main(argv) == 0
  painted = np.asarray(Image.open(tmp_path / 'out' / 'in.png'))
  np.testing.assert_array_equal(painted[:, :12], pixels[:, :12])
  assert (painted[:, 12:] != pixels[:, 12:]).any()
  edit = ['edit', *argv[1:3], *argv[4:7], f'--out={tmp_path}/edited']
  assert command.main(edit) == 0
  assert np.asarray(Image.open(tmp_path / 'edited' / 'in.png')).shape == (16, 24, 3)


def test_a_teacher_may_start_from_one_that_predicts_something_else(given, tmp_path):
  small = dict(model=dict(predict='eps'), stages=('teacher',))
  _, first = run(PHOTOS, given, tmp_path / 'eps', **small)
  initial = str(first / '00_teacher')
  cache = dict(cache=str(first / 'latents'))
  recipe = latent_runs.recipe(PHOTOS, given, initial=initial, latents=cache)
  assert recipe.stages[0] == 'teacher' and recipe.model.predict == 'v'
  plan = assemble.plan_of(recipe)
  assert [r.teacher for r in plan[:2]] == [initial, '00_teacher']
  state = first_state(recipe)
  expected = folders.read_folder(initial).params
  jax.tree.map(np.testing.assert_array_equal, state.params, expected)
  jax.tree.map(np.testing.assert_array_equal, state.ema, expected)
  # After training, the teacher is a round of this run, and its card names the initial teacher.
  _, workdir = run(PHOTOS, given, tmp_path / 'v', initial=initial, latents=cache,
                   stages=('teacher',))  # fmt: skip
  card = finished_rounds.read_card(workdir / '00_teacher')
  assert (card['predict'], card['teacher'], card['stage']) == ('v', initial, 'teacher')
  found = folders.read_folder(workdir / '00_teacher').params
  near = jax.tree.map(lambda a, b: np.abs(a - b).max(), found, expected)
  assert 0 < max(jax.tree.leaves(near)) < 5 * recipe.teacher.lr * 1.1  # after five updates
  with pytest.raises(errors.ConfigError, match=r"model\.predict='v' differs from"):
    later = dataclasses.replace(recipe, stages=('guidance', 'progressive'))
    run_checks.initial(assemble.Run(later), finished_rounds.read_card(initial))


def test_an_evaluation_needs_no_cache_and_a_finished_run_does_not_make_it(
  undisturbed, given, tmp_path
):
  workdir = shutil.copytree(undisturbed, tmp_path / 'run')
  shutil.rmtree(workdir / 'latents')
  assert assemble.of_workdir(workdir).latents.autoencoder == str(workdir / 'autoencoder')
  assert latent_runs.evaluated(workdir)
  run(PHOTOS, given, workdir)
  assert not (workdir / 'latents').exists()


def test_pictures_are_measured_at_their_own_size_not_at_that_of_latents(
  undisturbed, given, tmp_path, monkeypatch, capsys
):
  """model.image_size is the size of a latent, here 8; the pictures have more pixels."""
  height = assemble.Run(latent_runs.recipe(PHOTOS, given)).picture_shape[0]
  assert height > 8
  assert evaluate_command.main([f'--workdir={undisturbed}', '--preset=cifar10']) == 2
  expected = f'pictures of 32 pixels, and this run draws pictures of {height} pixels;'
  assert expected in capsys.readouterr().err
  monkeypatch.setattr(extractors, 'load', lambda name, *rest, **more: stand_in.extractor(name))
  config = tmp_path / 'config.json'
  config.write_text(json.dumps(latent_runs.config(PHOTOS, given)))
  argv = [f'--config={config}', '--extractor=lite0', f'--out={tmp_path}/real.npz']
  assert statistics_command.main(argv) == 0
  assert (tmp_path / 'real.npz').is_file()
