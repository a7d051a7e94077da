"""Tests of training a run: every round once, and the same parameters after any interruption."""

import json
import os
import shutil
import signal
import subprocess
import sys

import disturbed
import labelled
import ladder
import micro
import numpy as np
import pytest

from gdistill import errors
from gdistill import notebook
from gdistill.cli import sample
from gdistill.process import interrupt
from gdistill.process import timing
from gdistill.published import exporting
from gdistill.recipe import reading
from gdistill.rounds import folder as folders
from gdistill.training import assemble
from gdistill.training import checks as run_checks
from gdistill.training import run as training_run
from gdistill.workdir import finished as finished_rounds
from gdistill.workdir import ledger
from gdistill.workdir import storage


def test_every_round_leaves_a_finished_folder(undisturbed):
  for r in assemble.plan_of(micro.recipe()):
    card = finished_rounds.read_card(undisturbed / r.name)
    assert (card['stage'], card['num_steps']) == (r.stage, r.num_steps)
    assert card['takes_w'] == (r.stage != 'teacher')
    rows = [
      json.loads(a) for a in (undisturbed / r.name / 'metrics.jsonl').read_text().splitlines()
    ]
    assert rows[-1]['step'] == r.steps and np.isfinite(rows[-1]['loss'])
    # The learning rate of every round falls linearly to zero.
    np.testing.assert_allclose(rows[-1]['lr'], r.lr / r.steps, rtol=1e-5)
    assert list((undisturbed / r.name / 'events').iterdir())
  events = [e['event'] for e in ledger.ledger(undisturbed)]
  # The whole ladder compiles one train step for each stage.
  assert events.count('compiled') <= 3
  assert events.count('round-finished') == len(assemble.plan_of(micro.recipe())) == 4


@pytest.mark.full
def test_one_compiled_step_serves_every_round_of_its_stage(tmp_path):
  compiled = {}
  ladder.run(tmp_path / 'run', compiled=compiled)
  events = [e for e in ledger.ledger(tmp_path / 'run') if e['event'] == 'compiled']
  assert [e['stage'] for e in events] == ['teacher', 'guidance', 'progressive']
  assert set(compiled) == {'teacher', 'guidance', 'progressive'}


@pytest.mark.full
def test_interrupted_after_every_update_and_restarted_it_ends_bitwise_the_same(
  undisturbed, tmp_path
):
  workdir, interruptions = tmp_path / 'run', 0
  while True:
    try:
      # The loop looks for a signal at the start of a round and after each update, so every start
      # makes one update.
      ladder.run(workdir, micro.StopAfter(1))
      break
    except errors.Preempted:
      interruptions += 1
      assert interruptions < 100
  # 40 updates; the last update of each of the 4 rounds finishes the round without a stop.
  assert interruptions >= 36
  assert ladder.digests(workdir) == ladder.digests(undisturbed)
  finished = [e['round'] for e in ledger.ledger(workdir) if e['event'] == 'round-finished']
  assert finished == sorted(set(finished)) and len(finished) == 4


@pytest.mark.parametrize(('allowed', 'saved'), [(2, []), (16, [5, 10])])
def test_a_run_that_lost_its_lock_stops_and_saves_nothing_over_its_new_holder(
  undisturbed, tmp_path, allowed, saved
):
  # `undisturbed` has compiled the steps, so the run does not look at the lock while it compiles.
  # The run looks once at the start of the round, once after each of 11 updates, and twice in each
  # of two saves. The 17th look comes before the finished round is written.
  looks = iter(range(100))

  def lost():
    if next(looks) >= allowed:
      raise errors.ConfigError('another run has the lock')

  with pytest.raises(errors.ConfigError, match='has the lock'):
    ladder.run(tmp_path / 'run', interrupt.Interrupt(lost))
  folder = tmp_path / 'run' / '00_teacher'
  assert sorted(int(p.name) for p in folder.glob('steps/*')) == saved
  assert not (folder / 'card.json').exists()
  assert next(looks) == allowed + 1


def test_a_finished_run_does_nothing(undisturbed):
  before = ladder.times(undisturbed)
  ladder.run(undisturbed)
  assert ladder.times(undisturbed) == before


@pytest.mark.full
def test_other_seeds_give_other_parameters(undisturbed, tmp_path):
  ladder.run(tmp_path / 'run', seed=1)
  found, others = ladder.digests(tmp_path / 'run'), ladder.digests(undisturbed)
  assert not set(found.values()) & set(others.values())


@pytest.mark.full
def test_checkpoint_cadence_does_not_reach_the_parameters(undisturbed, tmp_path):
  ladder.run(tmp_path / 'run', train={'checkpoint_every': 2})
  assert ladder.digests(tmp_path / 'run') == ladder.digests(undisturbed)


def test_a_run_can_begin_from_a_finished_round_elsewhere(undisturbed, tmp_path):
  given = dict(stages=('progressive',), initial=str(undisturbed / '01_guidance'))
  recipe = ladder.run(tmp_path / 'run', **given)
  names = [r.name for r in assemble.plan_of(recipe)]
  assert names == ['00_progressive_2', '01_progressive_1']
  # The parameters differ from those of the undisturbed run, because the place of a round in the
  # plan is part of its random keys.
  card = finished_rounds.read_card(tmp_path / 'run' / names[-1])
  assert card['num_steps'] == 1 and card['takes_w']


@pytest.mark.full
def test_a_finished_run_grows_an_encoders_ladder_and_may_leave_it_out_again(
  undisturbed, tmp_path, capsys
):
  workdir, compiled = tmp_path / 'run', {}
  shutil.copytree(undisturbed, workdir)
  before = ladder.times(workdir, '0*/**/*')
  recipe = ladder.run(workdir, encoder=True, compiled=compiled)
  assert set(compiled) == {'encoder'}
  assert {p: p.stat().st_mtime_ns for p in before} == before
  plan = assemble.plan_of(recipe)
  names = [r.name for r in plan]
  assert names[4:] == ['04_encoder_2', '05_encoder_1'] and ladder.finished(workdir) == names
  for r in plan[4:]:
    card = finished_rounds.read_card(workdir / r.name)
    found = [card[k] for k in ('stage', 'num_steps', 'sampler', 'takes_w', 'guided', 'teacher')]
    assert found == ['encoder', r.num_steps, 'deterministic', True, False, r.teacher]
    assert card['clip_x_hat'] and (card['w_min'], card['w_max']) == (0.0, 4.0)
    log = (workdir / r.name / 'metrics.jsonl').read_text().splitlines()
    assert np.isfinite(json.loads(log[-1])['loss'])
  after = ladder.times(workdir, '0*/**/*')
  for again in (False, True):
    ladder.run(workdir, encoder=again, compiled=compiled)
    assert ladder.times(workdir, '0*/**/*') == after
  # Everything that draws pictures refuses an encoder.
  folder, words = workdir / names[-1], 'is an encoder of N = 1, which turns pictures into noise'
  with pytest.raises(errors.ConfigError, match=words):
    notebook.Gallery(folder)
  with pytest.raises(errors.ConfigError, match=words):
    exporting.run(folders.read_folder(folder), tmp_path / 'out')
  capsys.readouterr()
  assert sample.main([f'--folder={folder}', f'--out={tmp_path}/out', '--num_steps=3']) == 2
  said = capsys.readouterr().err
  assert words in said and said.count('\n') == 1 and not (tmp_path / 'out').exists()
  # A run that has an encoder from the beginning ends with the same parameters in every round.
  ladder.run(tmp_path / 'whole', encoder=True, compiled={**ladder.COMPILED, **compiled})
  for name in names:
    both = [finished_rounds.params_digest(w / name) for w in (workdir, tmp_path / 'whole')]
    assert both[0] == both[1], name


@pytest.mark.full
def test_an_encoders_ladder_alone_and_one_beside_a_decoders_from_a_round_elsewhere(
  undisturbed, tmp_path
):
  first, compiled = str(undisturbed / '01_guidance'), {}

  def teachers(workdir):
    cards = {n: finished_rounds.read_card(workdir / n) for n in ladder.finished(workdir)}
    return {name: card['teacher'] for name, card in cards.items()}

  ladder.run(tmp_path / 'a', stages=(), initial=first, encoder=True, compiled=compiled)
  assert set(compiled) == {'encoder'}
  assert teachers(tmp_path / 'a') == {'00_encoder_2': first, '01_encoder_1': '00_encoder_2'}
  before = str(tmp_path / 'a' / '00_encoder_2')
  ladder.run(
    tmp_path / 'b', stages=(), initial=before, encoder=True, compiled=compiled,
    progressive={'start_steps': 2, 'sampler': 'stochastic'}, evaluation={'num_steps': (1,)},
  )  # fmt: skip
  assert teachers(tmp_path / 'b') == {'00_encoder_1': before}
  compiled |= {k: v for k, v in ladder.COMPILED.items() if k == 'progressive'}
  # A relative `initial` is relative to the working directory, not to the workdir of the run.
  ladder.run(
    tmp_path / 'c', stages=('progressive',), initial=os.path.relpath(first), encoder=True,
    compiled=compiled,
  )  # fmt: skip
  assert teachers(tmp_path / 'c') == {
    '00_progressive_2': first, '01_progressive_1': '00_progressive_2',
    '02_encoder_2': first, '03_encoder_1': '02_encoder_2',
  }  # fmt: skip


def test_what_a_kill_after_the_card_left_undone_is_done_at_the_next_start(undisturbed, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(undisturbed, workdir)
  (workdir / '00_teacher' / 'steps').mkdir()
  last = max((workdir / 'ledger').iterdir())
  assert 'round-finished' in last.name
  last.unlink()
  ladder.run(workdir)
  assert not (workdir / '00_teacher' / 'steps').exists()
  finished = [e['round'] for e in ledger.ledger(workdir) if e['event'] == 'round-finished']
  assert len(finished) == 4


@pytest.mark.full
def test_the_single_w_student_and_the_naive_baseline_take_no_w(tmp_path):
  recipe = ladder.run(
    tmp_path / 'a',
    compiled={},
    guidance={'w_min': 1.0, 'w_max': 1.0, 'w_power': 0.0},
    progressive={'w_power': 0.0},
    evaluation={'ws': (1.0,)},
  )
  last = assemble.plan_of(recipe)[-1].name
  card = finished_rounds.read_card(tmp_path / 'a' / last)
  assert not card['takes_w'] and not card['guided'] and card['w_min'] == card['w_max'] == 1.0
  recipe = ladder.run(
    tmp_path / 'b', compiled={}, stages=('teacher', 'progressive'),
    progressive={'w_power': 0.0, 'clip_x_hat': False},
  )  # fmt: skip
  names = [r.name for r in assemble.plan_of(recipe)]
  assert names == ['00_teacher', '01_progressive_2', '02_progressive_1']
  card = finished_rounds.read_card(tmp_path / 'b' / names[-1])
  assert card['guided'] and not card['takes_w'] and card['p_uncond'] == recipe.teacher.p_uncond > 0


def test_a_broken_teacher_is_not_learnt_from(tmp_path):
  with pytest.raises(errors.NumericsError, match='not finite'):
    ladder.run(
      tmp_path / 'run', compiled={}, teacher={'lr': 1e30}, train={'max_skipped_in_a_row': 2}
    )


@pytest.mark.full
def test_told_to_stop_while_it_compiles_it_leaves_at_once(tmp_path):
  # A compile may take minutes, and an orderly exit would shut JAX down while its thread compiles.
  script = (
    'import atexit, sys, time\n'
    'from gdistill.training import shapes\n'
    'from gdistill.cli import exit_codes, train\n'
    "atexit.register(print, 'an orderly end')\n"
    'def compile(*args):\n'
    "  print('compiling', flush=True); time.sleep(3600)\n"
    'shapes.compile_stage = compile\n'
    'exit_codes.exit_process(train.main(sys.argv[1:]))\n'
  )
  child = subprocess.Popen(
    [sys.executable, '-c', script, *disturbed.command(tmp_path / 'run')[3:]], cwd=disturbed.ROOT,
    text=True, stdout=subprocess.PIPE,
  )  # fmt: skip
  assert child.stdout.readline().strip() == 'compiling'
  child.send_signal(signal.SIGTERM)
  assert child.wait(timeout=300) == 42  # an hour, if it waited for the compile
  assert child.stdout.read() == ''


def test_a_ledger_that_cannot_be_written_ends_the_run_with_its_error(tmp_path, monkeypatch):
  """The thread that compiles hands the error on; the loop must not wait for its step for ever."""
  write = ledger.record

  def full(workdir, event, **fields):
    if event == 'compiled':
      raise errors.CheckpointError('the disk is full')
    return write(workdir, event, **fields)

  monkeypatch.setattr(ledger, 'record', full)
  with pytest.raises(errors.CheckpointError, match='the disk is full'):
    micro.train(micro.recipe(), tmp_path / 'run')


def test_a_workdir_taken_by_another_run_since_the_checks_is_left_as_it_is(tmp_path):
  run = assemble.Run(micro.recipe(), tmp_path / 'run')
  run_checks.everything(run)
  other = reading.to_dict(micro.recipe(seed=99))
  storage.write_json(run.workdir / 'config.json', other)
  with pytest.raises(errors.ConfigError, match=r'holds a run with another config .*seed: 99 -> 0'):
    training_run.train(run, interrupt.Interrupt(), timing.Seconds())
  assert storage.read_json(run.workdir / 'config.json') == other
  assert storage.list_dir(run.workdir) == ['config.json']


def test_a_run_that_began_with_captions_of_one_line_is_refused_with_the_reason(tmp_path):
  """Earlier versions read only the first line of a caption, so they gave another fingerprint."""
  for i in range(8):
    labelled.write(
      tmp_path / 'set' / f'{i}.png', labelled.encode(labelled.pixels_of('train', 0, i))
    )
    (tmp_path / 'set' / f'{i}.txt').write_text(f'picture {i}' + '\nof a cat' * (i == 3))
  data = dict(name='captions', path=str(tmp_path / 'set'), split='', held_out=0.25)
  run = assemble.Run(micro.recipe(data=data), tmp_path / 'run')
  ledger.record(tmp_path / 'run', 'data', examples=6, fingerprint='0123456789abcdef')
  with interrupt.Interrupt() as stop, pytest.raises(
    errors.DataError,
    match=r"are not those this run began with: .*: earlier versions of gdistill read only the "
    r"first line of a caption, and 1 captions are longer \(the first is '3.png'\); restore the",
  ):  # fmt: skip
    training_run.train(run, stop, timing.Seconds())
