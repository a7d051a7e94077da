"""Tests of the checks before a run: what is refused, in which words, before anything is written."""

import dataclasses
import json
import shutil

import disturbed
import ladder
import latent_runs
import micro
import numpy as np
import pytest
from PIL import Image

from gdistill import errors
from gdistill.frozen import networks as frozen_networks
from gdistill.recipe import reading
from gdistill.rounds import network as networks
from gdistill.training import assemble
from gdistill.training import checks as run_checks
from gdistill.workdir import finished as finished_rounds


@pytest.mark.parametrize(
  ('given', 'words'),
  [
    (
      dict(stages=('progressive',), initial='{}/00_teacher'),
      'is a teacher round that needs guidance',
    ),
    (dict(stages=('guidance',), initial='{}/01_guidance'), "stage 'guidance' needs a teacher"),
    (dict(stages=('progressive',), initial='{}/02_progressive_2'), 'set progressive.start_steps=2'),
    (
      dict(
        stages=('progressive',), initial='{}/02_progressive_2',
        progressive={'start_steps': 2, 'sampler': 'stochastic'},
      ),
      "set progressive.sampler='deterministic'",
    ),
    (
      dict(stages=('progressive',), initial='{}/01_guidance', guidance={'w_max': 3.0}),
      'differ from the range of',
    ),
    (
      dict(stages=('guidance',), initial='{}/00_teacher', model={'channels': 8}),
      r'model\.channels=8 differs',
    ),
    (dict(model={'num_classes': 7}), r'model\.num_classes=7 .* set model\.num_classes=10'),
    (dict(evaluation={'num_steps': (8,)}), r'evaluation\.num_steps=\(8,\) contains none'),
    (dict(evaluation={'ws': (5.0,)}), r'evaluation\.ws=\(5\.0,\) contains no w'),
    (dict(mesh={'data': 3}), r'mesh\.data=3 x mesh\.fsdp=1 must equal the number of devices, 1;'),
  ],
)  # fmt: skip
def test_wrong_beginnings_are_refused_before_anything_is_written(
  undisturbed, tmp_path, given, words
):
  if 'initial' in given:
    given = {**given, 'initial': given['initial'].format(undisturbed)}
  with pytest.raises(errors.ConfigError, match=words):
    ladder.run(tmp_path / 'run', **given)
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('given', 'card', 'words'),
  [
    (
      dict(stages=()), dict(stage='progressive', num_steps=4),
      "is a student for sampling in 4 steps, and the encoder learns from a round of stage 'guid",
    ),
    (
      dict(stages=('progressive',)), dict(stage='progressive', num_steps=4),
      "a round of stage 'guidance'; set initial to such a round, or set encoder=False",
    ),
    (
      dict(stages=('progressive',)), dict(stage='encoder', num_steps=4),
      "is a round of the encoder, from which stage 'progressive' cannot learn",
    ),
    (
      dict(stages=('progressive',), encoder=False), dict(stage='encoder', num_steps=4),
      "is a round of the encoder, from which stage 'progressive' cannot learn",
    ),
    (
      dict(stages=('guidance',)), dict(stage='encoder', num_steps=4),
      "is a round of stage 'encoder', and stage 'guidance' needs a teacher",
    ),
    (
      dict(stages=()), dict(stage='encoder', num_steps=2),
      'is a student of 2 steps; set progressive.start_steps=2',
    ),
    (
      dict(stages=()), dict(stage='teacher', guided=True, takes_w=False),
      'is a teacher round that needs guidance for sampling',
    ),
    (dict(stages=(), guidance={'w_max': 3.0}), {}, 'differ from the range of'),
    (
      dict(stages=(), guidance={'clip_x_hat': False}, progressive={'clip_x_hat': False}), {},
      'progressive.clip_x_hat=False, but',
    ),
  ],
)  # fmt: skip
def test_encoders_begin_from_a_student_of_stage_one_or_go_on_from_an_encoder(
  undisturbed, given, card, words
):
  folder = undisturbed / '01_guidance'
  recipe = micro.recipe(**{'initial': str(folder), 'encoder': True, **given})
  card = {**finished_rounds.read_card(folder), 'sampler': 'deterministic', **card}
  with pytest.raises(errors.ConfigError, match=words) as e:
    run_checks.initial(assemble.Run(recipe), card)
  assert '\n' not in str(e.value)
  fine = micro.recipe(initial=str(folder), encoder=True, stages=())
  for theirs in (dict(), dict(stage='encoder', num_steps=4)):
    own = {**finished_rounds.read_card(folder), 'sampler': 'deterministic', **theirs}
    run_checks.initial(assemble.Run(fine), own)


def test_a_teacher_without_label_dropout_cannot_be_guided(undisturbed):
  card = finished_rounds.read_card(undisturbed / '00_teacher')
  recipe = micro.recipe(stages=('guidance',), initial=str(undisturbed / '00_teacher'))
  with pytest.raises(errors.ConfigError, match='no null condition'):
    run_checks.initial(assemble.Run(recipe), {**card, 'p_uncond': 0.0})


def test_a_teacher_of_other_frozen_networks_is_refused(latent_inputs):
  given = dict(stages=('guidance', 'progressive'), initial='sd')
  recipe = latent_runs.recipe('stable_diffusion.py:tiny', latent_inputs, **given)
  card = {
    'stage': 'teacher', 'p_uncond': 0.1, 'takes_w': False,
    'latents': frozen_networks.of_settings(recipe.latents).names(),
    **{name: reading.to_dict(getattr(recipe, name)) for name in ('model', 'noise')},
  }  # fmt: skip
  run_checks.initial(assemble.Run(recipe), card)
  assert card['latents']['text_length'] == 9
  for name, value in (('autoencoder', 'kl-x-1-0'), ('text', 'y'), ('text_length', 77)):
    with pytest.raises(
      errors.ConfigError,
      match=rf"latents\.{name} gives .* initial='sd' was trained with '?{value}'?;",
    ):
      changed = {**card, 'latents': {**card['latents'], name: value}}
      run_checks.initial(assemble.Run(recipe), changed)
  run = assemble.Run(recipe)
  text = dataclasses.replace(run.frozen.text, digest='new', earlier_digest=run.frozen.text.digest)
  run.frozen = dataclasses.replace(run.frozen, text=text)
  with pytest.raises(
    errors.ConfigError, match=r"initial='sd' was made by a version .* into bytes;"
  ):
    run_checks.initial(run, card)


def test_a_missing_initial_folder_is_a_checkpoint_error(tmp_path):
  with pytest.raises(errors.CheckpointError):
    ladder.run(tmp_path / 'run', stages=('guidance',), initial=str(tmp_path / 'nothing'))


def test_another_config_is_refused_and_its_fields_are_named(undisturbed, tmp_path):
  workdir = shutil.copytree(undisturbed, tmp_path / 'run')
  with pytest.raises(errors.ConfigError, match=r'teacher\.lr: 0\.002 -> 0\.001'):
    ladder.run(workdir, teacher={'lr': 1e-3})
  ladder.run(workdir, train={'log_every': 6})  # how often a run logs does not reach its parameters


def test_a_config_of_a_run_that_is_none_is_said_so(undisturbed, tmp_path):
  shutil.copytree(undisturbed, tmp_path / 'run')
  (tmp_path / 'run' / 'config.json').write_text('[]')
  with pytest.raises(errors.CheckpointError, match='holds no config; restore the file from a copy'):
    ladder.run(tmp_path / 'run')


def test_a_card_without_newer_keys_has_their_defaults(undisturbed):
  run = assemble.Run(micro.recipe(stages=('guidance',), initial=str(undisturbed / '00_teacher')))
  card = finished_rounds.read_card(f'{undisturbed}/00_teacher')
  old = {**card, 'model': dict(card['model'])}
  del old['model']['guided_channels']
  run_checks.initial(run, old)
  changed = dataclasses.replace(
    run.recipe, model=dataclasses.replace(run.recipe.model, guided_channels=1)
  )
  with pytest.raises(errors.ConfigError, match=r'guided_channels=1 .*set model\.guided_channels=0'):
    run_checks.initial(assemble.Run(changed), old)


def test_a_run_goes_on_when_keys_with_defaults_have_come_since(undisturbed, tmp_path):
  shutil.copytree(undisturbed, tmp_path / 'run')
  old = json.loads((tmp_path / 'run' / 'config.json').read_text())
  for section, key in (('data', 'flip'), ('data', 'split'), ('train', 'remat'), ('mesh', 'slices')):
    del old[section][key]
  (tmp_path / 'run' / 'config.json').write_text(json.dumps(old))
  ladder.run(tmp_path / 'run')
  old['data']['flip'] = True  # not the default, so the workdir holds another run
  (tmp_path / 'run' / 'config.json').write_text(json.dumps(old))
  with pytest.raises(errors.ConfigError, match=r'data\.flip: True -> False'):
    ladder.run(tmp_path / 'run')


@pytest.mark.parametrize(
  'given', [dict(data={'held_out': 0.999}), dict(teacher={'batch_size': 2048})]
)
def test_too_little_data_is_said_before_anything_is_written(tmp_path, given):
  with pytest.raises(errors.DataError, match=r'training and|0\.999 holds out all'):
    ladder.run(tmp_path / 'run', **given)
  assert not (tmp_path / 'run').exists()


def class_folders(path, *names):
  for name in names:
    file = path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(file)
  data = {'name': 'folder', 'path': str(path), 'split': '', 'held_out': 0.5}
  return assemble.Run(micro.recipe(data=data))


def test_fewer_classes_are_not_advised_when_pictures_were_passed_over(tmp_path, capsys):
  names = [f'{c}/{k}.png' for c in 'ab' for k in range(4)]
  run = class_folders(tmp_path / 'one', *names)
  with pytest.raises(errors.ConfigError, match=r'has 2 classes; set model\.num_classes=2$'):
    run_checks.data(run)
  assert 'passed over' not in capsys.readouterr().err
  run = class_folders(tmp_path / 'two', *names, 'c.png', 'a/deep/1.png')
  said = (
    'has 2 classes; correct the data first, because files were passed over, as said above; only'
  )
  with pytest.raises(errors.ConfigError, match=said):
    run_checks.data(run)
  told = capsys.readouterr().err.splitlines()
  assert told == [
    f'data.path={tmp_path}/two: passed over 1 picture in a folder too deep (such as a/deep/1.png), '
    '1 picture in no class folder (such as c.png)'
  ]


def test_a_plan_of_latents_says_what_the_encoding_would_say(tmp_path, capsys, monkeypatch):
  run = class_folders(tmp_path, *(f'{c}/{k}.png' for c in 'ab' for k in range(4)), 'c.png')
  monkeypatch.setattr(type(run.recipe), 'latent', True)
  for plan in True, False:
    with pytest.raises(errors.ConfigError, match='has 2 classes') as e:
      run_checks.data(run, plan)
    assert ('passed over 1 picture' in capsys.readouterr().err) == plan
    assert ('passed over 1 picture' in str(e.value)) != plan  # told once


def test_workdirs_that_cannot_be_are_refused(tmp_path):
  file = tmp_path / 'file'
  file.write_text('')
  for workdir in (file, file / 'under', tmp_path / ('x' * 300), tmp_path / 'a\0b'):
    with pytest.raises(errors.ConfigError, match='--workdir'):
      ladder.run(workdir)


def test_the_command_refuses_in_one_line_and_leaves_the_workdir_alone(tmp_path):
  for more, words in (
    (['--config.teacher.lr=-1'], 'teacher.lr=-1.0 must be above 0'),
    (['--config.teacher.lr=1e400'], 'teacher.lr=inf must be a finite number'),
    (['--config.teacher.batch_sise=1'], 'did you mean teacher.batch_size'),
    (['--coordinator=localhost:1'], 'needs --num_processes and --process_id'),
    (['--bogus'], 'unrecognized'),
  ):
    done = disturbed.run(tmp_path / 'run', *more)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr and done.stderr.count('\n') == 1
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('noise', 'weight', 'predict', 'times'),
  [
    ('squared_cosine', 'snr_trunc', 'eps', '20,291'),
    ('linear_beta', 'snr_plus_one', 'eps', '157'),
    ('squared_cosine', 'snr', 'eps', ''),
    ('squared_cosine', 'snr_trunc', 'v', ''),
    ('scaled_linear', 'snr_trunc', 'eps', ''),
  ],
)
def test_where_errors_of_eps_blow_up_in_v_it_is_said(capsys, noise, weight, predict, times):
  betas = dict(beta_start=1e-4, beta_end=0.02) if noise == 'linear_beta' else {}  # as DDPM
  recipe = micro.recipe(
    noise=dict(name=noise, **betas), model=dict(predict=predict), guidance=dict(weight=weight),
    progressive=dict(weight='snr'),
  )  # fmt: skip
  if times:
    one_over_alpha = np.prod(1.0 - networks.betas(recipe.noise)) ** -0.5  # at t = 1
    assert f'{one_over_alpha:,.0f}' == times
  run_checks.everything(assemble.Run(recipe))
  said = capsys.readouterr().err
  assert (f'counts {times} times in v, under guidance.weight=' in said) if times else not said
