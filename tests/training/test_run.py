"""The whole ladder: trained, interrupted, resumed, finished, refused."""

import dataclasses
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys

import disturbed
import jax
import micro
import numpy as np
import pytest

from gdistill import errors
from gdistill import notebook
from gdistill.cli import sample
from gdistill.core import projections
from gdistill.evaluation.grid import run as grid_run
from gdistill.process import interrupt
from gdistill.published import exporting
from gdistill.rounds import folder as folders
from gdistill.rounds import network as networks
from gdistill.training import assemble
from gdistill.training import checks as run_checks
from gdistill.training import losses as stage_losses
from gdistill.training import plan_text
from gdistill.workdir import finished as finished_rounds
from gdistill.workdir import ledger
from gdistill.workdir import step_checkpoints
from gdistill.workdir import storage

COMPILED = {}  # executables shared by the runs of one recipe, as a long process would


def run(workdir, stop=None, compiled=COMPILED, **sections):
  recipe = micro.recipe(**sections)
  micro.train(recipe, workdir, stop, compiled)
  return recipe


def digests(workdir):
  plan = assemble.plan_of(micro.recipe())
  return {r.name: finished_rounds.params_digest(storage.path(workdir) / r.name) for r in plan}


@pytest.fixture(scope='session')
def undisturbed(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('undisturbed') / 'run'
  run(workdir)
  return workdir


def test_every_round_leaves_a_finished_folder(undisturbed):
  for r in assemble.plan_of(micro.recipe()):
    card = finished_rounds.read_card(undisturbed / r.name)
    assert (card['stage'], card['num_steps']) == (r.stage, r.num_steps)
    assert card['takes_w'] == (r.stage != 'teacher')
    rows = [
      json.loads(a) for a in (undisturbed / r.name / 'metrics.jsonl').read_text().splitlines()
    ]
    assert rows[-1]['step'] == r.steps and np.isfinite(rows[-1]['loss'])
    np.testing.assert_allclose(rows[-1]['lr'], r.lr / r.steps, rtol=1e-5)  # annealed in its round
    assert list((undisturbed / r.name / 'events').iterdir())
  events = [e['event'] for e in ledger.ledger(undisturbed)]
  # One train step is compiled for each stage, over the whole ladder.
  assert events.count('compiled') <= 3
  assert events.count('round-finished') == len(assemble.plan_of(micro.recipe())) == 4


def test_one_compiled_step_serves_every_round_of_its_stage(tmp_path):
  compiled = {}
  run(tmp_path / 'run', compiled=compiled)
  events = [e for e in ledger.ledger(tmp_path / 'run') if e['event'] == 'compiled']
  assert [e['stage'] for e in events] == ['teacher', 'guidance', 'progressive']
  assert set(compiled) == {'teacher', 'guidance', 'progressive'}


def test_interrupted_after_every_update_and_restarted_it_ends_bitwise_the_same(
  undisturbed, tmp_path
):
  workdir, interruptions = tmp_path / 'run', 0
  while True:
    try:
      # One look at the start of a round and one after an update: two looks are one update more.
      run(workdir, micro.StopAfter(1))
      break
    except errors.Preempted:
      interruptions += 1
      assert interruptions < 100
  assert interruptions >= 36  # 40 updates, of which the last of each round hands on
  assert digests(workdir) == digests(undisturbed)
  finished = [e['round'] for e in ledger.ledger(workdir) if e['event'] == 'round-finished']
  assert finished == sorted(set(finished)) and len(finished) == 4


@pytest.mark.parametrize(('allowed', 'saved'), [(2, []), (16, [5, 10])])
def test_a_run_that_lost_its_lock_stops_and_saves_nothing_over_its_new_holder(
  undisturbed, tmp_path, allowed, saved
):  # after the undisturbed one, so that no look is spent on waiting for a compile
  # One look at the start of the round, one after each of 11 updates, two in each of two saves: the
  # 17th comes before the finished round is written.
  looks = iter(range(100))

  def lost():
    if next(looks) >= allowed:
      raise errors.ConfigError('another run has the lock')

  with pytest.raises(errors.ConfigError, match='has the lock'):
    run(tmp_path / 'run', interrupt.Interrupt(lost))
  folder = tmp_path / 'run' / '00_teacher'
  assert step_checkpoints._steps(folder / 'steps') == saved and not (folder / 'card.json').exists()
  assert next(looks) == allowed + 1


def test_a_finished_run_does_nothing(undisturbed):
  before = {p: p.stat().st_mtime_ns for p in undisturbed.rglob('*')}
  run(undisturbed)
  assert {p: p.stat().st_mtime_ns for p in undisturbed.rglob('*')} == before


def test_another_config_is_refused_and_its_fields_are_named(undisturbed):
  with pytest.raises(errors.ConfigError, match=r'teacher\.lr: 0\.002 -> 0\.001'):
    run(undisturbed, teacher={'lr': 1e-3})
  run(undisturbed, train={'log_every': 6})  # cadence may change


def test_a_config_of_a_run_that_is_none_is_said_so(undisturbed, tmp_path):
  shutil.copytree(undisturbed, tmp_path / 'run')
  (tmp_path / 'run' / 'config.json').write_text('[]')
  with pytest.raises(errors.CheckpointError, match='holds no config; restore it from a copy'):
    run(tmp_path / 'run')


def test_a_run_goes_on_when_keys_with_defaults_have_come_since(undisturbed, tmp_path):
  shutil.copytree(undisturbed, tmp_path / 'run')
  old = json.loads((tmp_path / 'run' / 'config.json').read_text())
  for section, key in (('data', 'flip'), ('data', 'split'), ('train', 'remat'), ('mesh', 'slices')):
    del old[section][key]
  (tmp_path / 'run' / 'config.json').write_text(json.dumps(old))
  run(tmp_path / 'run')
  old['data']['flip'] = True  # while a value that is not the default is another run
  (tmp_path / 'run' / 'config.json').write_text(json.dumps(old))
  with pytest.raises(errors.ConfigError, match=r'data\.flip: True -> False'):
    run(tmp_path / 'run')


def test_other_seeds_give_other_parameters(undisturbed, tmp_path):
  run(tmp_path / 'run', seed=1)
  assert not set(digests(tmp_path / 'run').values()) & set(digests(undisturbed).values())


def test_checkpoint_cadence_does_not_reach_the_parameters(undisturbed, tmp_path):
  run(tmp_path / 'run', train={'checkpoint_every': 2})
  assert digests(tmp_path / 'run') == digests(undisturbed)


def test_a_run_can_begin_from_a_finished_round_elsewhere(undisturbed, tmp_path):
  given = dict(stages=('progressive',), initial=str(undisturbed / '01_guidance'))
  recipe = run(tmp_path / 'run', **given)
  names = [r.name for r in assemble.plan_of(recipe)]
  assert names == ['00_progressive_2', '01_progressive_1']
  # Another place in the plan is another stream of random numbers, but the same network.
  card = finished_rounds.read_card(tmp_path / 'run' / names[-1])
  assert card['num_steps'] == 1 and card['takes_w']


def names_of_finished(workdir):
  return sorted(p.parent.name for p in workdir.glob('*/card.json'))


def test_a_finished_run_grows_an_encoders_ladder_and_may_leave_it_out_again(
  undisturbed, tmp_path, capsys
):
  workdir, compiled = tmp_path / 'run', {}
  shutil.copytree(undisturbed, workdir)
  before = {p: p.stat().st_mtime_ns for p in workdir.glob('0*/**/*')}
  recipe = run(workdir, encoder=True, compiled=compiled)
  assert set(compiled) == {'encoder'}
  assert {p: p.stat().st_mtime_ns for p in before} == before
  plan = assemble.plan_of(recipe)
  names = [r.name for r in plan]
  assert names[4:] == ['04_encoder_2', '05_encoder_1'] and names_of_finished(workdir) == names
  for r in plan[4:]:
    card = finished_rounds.read_card(workdir / r.name)
    found = [card[k] for k in ('stage', 'num_steps', 'sampler', 'takes_w', 'guided', 'teacher')]
    assert found == ['encoder', r.num_steps, 'deterministic', True, False, r.teacher]
    assert card['clip_x_hat'] and (card['w_min'], card['w_max']) == (0.0, 4.0)
    log = (workdir / r.name / 'metrics.jsonl').read_text().splitlines()
    assert np.isfinite(json.loads(log[-1])['loss'])
  after = {p: p.stat().st_mtime_ns for p in workdir.glob('0*/**/*')}
  for again in (False, True):
    run(workdir, encoder=again, compiled=compiled)
    assert {p: p.stat().st_mtime_ns for p in workdir.glob('0*/**/*')} == after
  # Nothing is drawn by it.
  folder, words = workdir / names[-1], 'is an encoder of N = 1, which turns pictures into noise'
  with pytest.raises(errors.ConfigError, match=words):
    notebook.Gallery(folder)
  with pytest.raises(errors.ConfigError, match=words):
    exporting.run(folders.read_folder(folder), tmp_path / 'out')
  capsys.readouterr()
  assert sample.main([f'--folder={folder}', f'--out={tmp_path}/out', '--num_steps=3']) == 2
  said = capsys.readouterr().err
  assert words in said and said.count('\n') == 1 and not (tmp_path / 'out').exists()
  # In a run that has it from the beginning all rounds are the same.
  run(tmp_path / 'whole', encoder=True, compiled={**COMPILED, **compiled})
  for name in names:
    both = [finished_rounds.params_digest(w / name) for w in (workdir, tmp_path / 'whole')]
    assert both[0] == both[1], name


def cells(recipe, workdir, size):
  run = assemble.Run(recipe, workdir)
  return grid_run.list_cells(run, grid_run.of_size(run, size))


def test_encoders_are_in_no_cell_and_no_evaluation_waits_for_them(undisturbed):
  recipe, workdir = micro.recipe(), storage.path(undisturbed)
  more = dataclasses.replace(recipe, encoder=True)
  for which in ('quick', 'full'):
    assert cells(more, workdir, which) == cells(recipe, workdir, which)
  one = {'model': 'student', 'num_steps': 3}  # it gets as far as this complaint
  with pytest.raises(errors.ConfigError, match='is no cell of this grid'):
    micro.evaluate(workdir, change=lambda config: config.update(encoder=True), again=one)
  only = dataclasses.replace(more, stages=(), initial=str(undisturbed / '01_guidance'))
  assert assemble.Run(only, 'elsewhere').teacher_folder == workdir / '00_teacher'
  assert {c.model for c in cells(only, workdir, 'full')} == {'teacher', 'floor'}
  others = dataclasses.replace(recipe.evaluation, num_steps=(64,))
  run_checks.grid(assemble.Run(dataclasses.replace(only, evaluation=others)))


def test_an_encoders_ladder_alone_and_one_beside_a_decoders_from_a_round_elsewhere(
  undisturbed, tmp_path
):
  first, compiled = str(undisturbed / '01_guidance'), {}

  def teachers(workdir):
    cards = {n: finished_rounds.read_card(workdir / n) for n in names_of_finished(workdir)}
    return {name: card['teacher'] for name, card in cards.items()}

  run(tmp_path / 'a', stages=(), initial=first, encoder=True, compiled=compiled)
  assert set(compiled) == {'encoder'}
  assert teachers(tmp_path / 'a') == {'00_encoder_2': first, '01_encoder_1': '00_encoder_2'}
  before = str(tmp_path / 'a' / '00_encoder_2')
  run(
    tmp_path / 'b', stages=(), initial=before, encoder=True, compiled=compiled,
    progressive={'start_steps': 2, 'sampler': 'stochastic'}, evaluation={'num_steps': (1,)},
  )  # fmt: skip
  assert teachers(tmp_path / 'b') == {'00_encoder_1': before}
  compiled |= {k: v for k, v in COMPILED.items() if k == 'progressive'}
  run(  # by a path that is not absolute: joined to the workdir's it would be another
    tmp_path / 'c', stages=('progressive',), initial=os.path.relpath(first), encoder=True,
    compiled=compiled,
  )  # fmt: skip
  assert teachers(tmp_path / 'c') == {
    '00_progressive_2': first, '01_progressive_1': '00_progressive_2',
    '02_encoder_2': first, '03_encoder_1': '02_encoder_2',
  }  # fmt: skip


@pytest.mark.parametrize(
  ('given', 'card', 'words'),
  [
    (
      dict(stages=()), dict(stage='progressive', num_steps=4),
      'is a student that draws in 4 steps, and an encoder learns from one of stage one; name that',
    ),
    (
      dict(stages=('progressive',)), dict(stage='progressive', num_steps=4),
      'draws in 4 steps, and an encoder learns from one of stage one; name that, or set encoder=F',
    ),
    (
      dict(stages=('progressive',)), dict(stage='encoder', num_steps=4),
      'is an encoder, which no decoder learns from',
    ),
    (
      dict(stages=('progressive',), encoder=False), dict(stage='encoder', num_steps=4),
      'is an encoder, which no decoder learns from',
    ),
    (
      dict(stages=('guidance',)), dict(stage='encoder', num_steps=4),
      'is a round of encoder; guidance needs a teacher',
    ),
    (
      dict(stages=()), dict(stage='encoder', num_steps=2),
      'is a student of 2 steps; set progressive.start_steps=2',
    ),
    (
      dict(stages=()), dict(stage='teacher', guided=True, takes_w=False),
      'is a teacher round that is guided when it is sampled',
    ),
    (dict(stages=(), guidance={'w_max': 3.0}), {}, 'differ from what'),
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


def test_the_plan_lists_an_encoders_rounds_and_their_batches_are_checked(undisturbed):
  recipe = micro.recipe(
    stages=(), initial=str(undisturbed / '01_guidance'), encoder=True, progressive={'batch_size': 8}
  )
  run = assemble.Run(recipe)
  run_checks.mesh(run)
  text = plan_text.describe(run.plan, run.setups, run.student_shapes, run.mesh)
  lines = text.splitlines()
  row = next(line for line in lines if line.startswith('01_encoder_1'))
  assert row.split()[1:] == ['9', '0.0005', '8', '72', '00_encoder_2']
  assert any(line.startswith('encoder ') and line.split()[-1] == '8' for line in lines)
  assert 'compiled train steps: 1 (encoder), each once for its rounds' in lines
  with pytest.raises(errors.ConfigError, match=r'progressive\.batch_size=8'):
    run_checks.mesh(assemble.Run(recipe, devices=3))
  with pytest.raises(errors.DataError, match='a batch needs 2048'):
    large = dataclasses.replace(recipe.progressive, batch_size=2048)
    run_checks.data(assemble.Run(dataclasses.replace(recipe, progressive=large)))


@pytest.mark.parametrize(
  ('given', 'words'),
  [
    (dict(stages=('progressive',), initial='{}/00_teacher'), 'is a teacher round that is guided'),
    (dict(stages=('guidance',), initial='{}/01_guidance'), 'guidance needs a teacher'),
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
      'differ from what',
    ),
    (
      dict(stages=('guidance',), initial='{}/00_teacher', model={'channels': 8}),
      r'model\.channels=8 differs',
    ),
    (dict(model={'num_classes': 7}), r'model\.num_classes=7 .* set it to 10'),
    (dict(evaluation={'num_steps': (8,)}), r'evaluation\.num_steps=\(8,\) contains none'),
    (dict(evaluation={'ws': (5.0,)}), r'evaluation\.ws=\(5\.0,\) contains no w'),
    (dict(mesh={'data': 3}), r'mesh\.data=3 x mesh\.fsdp=1 must make the 1 devices'),
  ],
)  # fmt: skip
def test_wrong_beginnings_are_refused_before_anything_is_written(
  undisturbed, tmp_path, given, words
):
  if 'initial' in given:
    given = {**given, 'initial': given['initial'].format(undisturbed)}
  with pytest.raises(errors.ConfigError, match=words):
    run(tmp_path / 'run', **given)
  assert not (tmp_path / 'run').exists()


def test_a_teacher_without_label_dropout_cannot_be_guided(undisturbed, tmp_path):
  card = finished_rounds.read_card(undisturbed / '00_teacher')
  recipe = micro.recipe(stages=('guidance',), initial=str(undisturbed / '00_teacher'))
  with pytest.raises(errors.ConfigError, match='no null condition'):
    run_checks.initial(assemble.Run(recipe), {**card, 'p_uncond': 0.0})


@pytest.mark.parametrize(
  'given', [dict(data={'held_out': 0.999}), dict(teacher={'batch_size': 2048})]
)
def test_too_little_data_is_said_before_anything_is_written(tmp_path, given):
  with pytest.raises(errors.DataError, match='training and'):
    run(tmp_path / 'run', **given)
  assert not (tmp_path / 'run').exists()


def test_workdirs_that_cannot_be_are_refused(tmp_path):
  file = tmp_path / 'file'
  file.write_text('')
  for workdir in (file, file / 'under', tmp_path / ('x' * 300), tmp_path / 'a\0b'):
    with pytest.raises(errors.ConfigError, match='--workdir'):
      run(workdir)


def test_what_a_kill_after_the_card_left_undone_is_done_at_the_next_start(undisturbed, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(undisturbed, workdir)
  (workdir / '00_teacher' / 'steps').mkdir()
  last = max((workdir / 'ledger').iterdir())
  assert 'round-finished' in last.name
  last.unlink()
  run(workdir)
  assert not (workdir / '00_teacher' / 'steps').exists()
  finished = [e['round'] for e in ledger.ledger(workdir) if e['event'] == 'round-finished']
  assert len(finished) == 4


def test_a_missing_initial_folder_is_a_checkpoint_error(tmp_path):
  with pytest.raises(errors.CheckpointError):
    run(tmp_path / 'run', stages=('guidance',), initial=str(tmp_path / 'nothing'))


def test_the_single_w_student_and_the_naive_baseline_take_no_w(tmp_path):
  recipe = run(
    tmp_path / 'a',
    compiled={},
    guidance={'w_min': 1.0, 'w_max': 1.0, 'w_power': 0.0},
    progressive={'w_power': 0.0},
    evaluation={'ws': (1.0,)},
  )
  last = assemble.plan_of(recipe)[-1].name
  card = finished_rounds.read_card(tmp_path / 'a' / last)
  assert not card['takes_w'] and not card['guided'] and card['w_min'] == card['w_max'] == 1.0
  recipe = run(
    tmp_path / 'b', compiled={}, stages=('teacher', 'progressive'),
    progressive={'w_power': 0.0, 'clip_x_hat': False},
  )  # fmt: skip
  names = [r.name for r in assemble.plan_of(recipe)]
  assert names == ['00_teacher', '01_progressive_2', '02_progressive_1']
  card = finished_rounds.read_card(tmp_path / 'b' / names[-1])
  assert card['guided'] and not card['takes_w'] and card['p_uncond'] == recipe.teacher.p_uncond > 0


@pytest.mark.parametrize('stage', ['guidance', 'progressive', 'encoder'])
def test_the_settings_of_a_loss_reach_it(monkeypatch, stage):
  given = {}
  module = importlib.import_module(f'gdistill.stages.{stage}')
  monkeypatch.setattr(module, 'loss', lambda *args, **settings: given.update(settings))
  section = 'progressive' if stage == 'encoder' else stage
  settings = {'w_power': 1.5, 'clip_x_hat': True, 'weight': 'snr_plus_one', 'state': 'trajectory'}
  recipe = micro.recipe(**{section: settings}, encoder=True)
  net = networks.build(recipe.model, True)
  params = networks.initial_params(net, recipe.model, jax.random.key(0))
  batch = {'pixels': np.zeros((2, 8, 8, 1), np.uint8), 'label': np.zeros(2, np.int32)}
  batch['id'] = np.arange(2, dtype=np.int32)
  stage_losses.loss_of(assemble.setup_of(recipe, stage))(
    params, params, batch, jax.random.key(1), 4
  )
  assert given['w_power'] == 1.5 and given['weight'] == 'snr_plus_one'
  assert given['loss_project'] is projections.clip
  assert (given['w_min'], given['w_max']) == (0.0, 4.0)
  assert given['project'] is projections.clip
  assert given.get('on_trajectory', True) and given.get('num_steps', 4) == 4


def test_a_broken_teacher_is_not_learnt_from(undisturbed, tmp_path):
  with pytest.raises(errors.NumericsError, match='not finite'):
    run(tmp_path / 'run', compiled={}, teacher={'lr': 1e30}, train={'max_skipped_in_a_row': 2})


def test_told_to_stop_while_it_compiles_it_leaves_at_once(tmp_path):
  # A compile may take minutes, and an orderly end would take JAX from under it.
  script = (
    'import atexit, sys, time\n'
    'from gdistill.training import shapes\n'
    'from gdistill.cli import exit_codes, train\n'
    "atexit.register(print, 'an orderly end')\n"
    'def compile(*args):\n'
    "  print('compiling', flush=True); time.sleep(600)\n"
    'shapes.compile_stage = compile\n'
    'exit_codes.exit_process(train.main(sys.argv[1:]))\n'
  )
  child = subprocess.Popen(
    [sys.executable, '-c', script, *disturbed.command(tmp_path / 'run')[3:]], cwd=disturbed.ROOT,
    text=True, stdout=subprocess.PIPE,
  )  # fmt: skip
  assert child.stdout.readline().strip() == 'compiling'
  child.send_signal(signal.SIGTERM)
  assert child.wait(timeout=60) == 42
  assert child.stdout.read() == ''


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
  betas = dict(beta_start=1e-4, beta_end=0.02) if noise == 'linear_beta' else {}  # DDPM's
  recipe = micro.recipe(
    noise=dict(name=noise, **betas), model=dict(predict=predict), guidance=dict(weight=weight),
    progressive=dict(weight='snr'),
  )  # fmt: skip
  if times:  # 1 / alpha of the last index
    found = np.prod(1.0 - networks.betas(recipe.noise)) ** -0.5
    assert f'{found:,.0f}' == times
  run_checks._warn_of_eps(assemble.Run(recipe))
  said = capsys.readouterr().err
  assert (f'counts {times} times in v, under guidance.weight=' in said) if times else not said
