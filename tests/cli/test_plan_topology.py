"""Tests of plans for chips that are not here, with stand-ins for the process that compiles."""

import importlib.util
import json
import os

import pytest

from gdistill.cli import command
from gdistill.cli import config_file
from gdistill.cli import plan_topology
from gdistill.devices import topology as topologies
from gdistill.recipe import reading
from gdistill.training import assemble

CHIPS = topologies.parse('v5e:2x4')
FIGURES = {
  'level': 'O0',
  'seconds': {'tracing': 1.0, 'lowering': 2.0, 'compiling': 3.0},
  'memory': {'arguments': 10**9, 'results': 0, 'temporaries': 2 * 10**9, 'program': 10**6},
  'flops': 197 * 10**9,  # a millisecond of a v5e
  'bytes': 819e6 * 2,  # two milliseconds
  'collectives': [
    {'kind': 'reduce-scatter', 'axis': 'data', 'count': 2, 'leaves': 2, 'bytes': 5_000_000}
  ],
  'largest': [{'bytes': 10**8, 'shape': 'bf16[50,1000,1000]', 'where': 'UNet/mid/add'}],
  'products': {'bfloat16': 9, 'float32': 1},
  'float32': ['UNet/conv_out'],
  'donated': 7,
  'state': 7,
  'callbacks': 0,
}


@pytest.fixture(autouse=True)
def stand_in(monkeypatch, tmp_path):
  """Takes libtpu as installed, and keeps figures in tmp_path."""
  find = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util, 'find_spec', lambda n, *a: True if n == 'libtpu' else find(n, *a)
  )
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


def compiles_by(monkeypatch, code):
  monkeypatch.setattr(plan_topology, '_COMMAND', ('-c', f'import json, os, sys, time\n{code}'))


def gives(monkeypatch, found):
  compiles_by(monkeypatch, f"open(sys.argv[1] + '.result', 'w').write('''{json.dumps(found)}''')")


def plan(*more, topology='v5e:2x4'):
  argv = ['plan', '--config=configs/digits.py:tiny', f'--topology={topology}', *more]
  return command.main(argv)


def run_of(*overrides):
  overrides = [f'--config.{o}' for o in overrides]
  recipe = reading.from_config(config_file.load('configs/digits.py:tiny', overrides))
  return assemble.Run(recipe, devices=CHIPS.devices)


def test_a_plan_prints_and_writes_what_the_compiled_steps_need(monkeypatch, tmp_path, capsys):
  gives(monkeypatch, FIGURES)
  out = tmp_path / 'plan.json'
  assert plan('--stage=guidance', '--mfu=0.25', f'--json={out}') == 0
  text = capsys.readouterr().out
  row = next(line for line in text.splitlines() if line.startswith('guidance  ')).split()
  #      fits, GB: state, temporaries, all, TFLOP, GB moved, ms by FLOPs, by bytes, MFU, seconds
  assert row[1:] == ['yes', '1.00', '2.00', '3.00', '0.20', '1.6', '1.0', '2.0', '50%', '6', 's']
  assert 'guidance sends: 2 reduce-scatter over data of 2 arrays, 5.0 MB' in text
  assert 'guidance multiplies: 9 in bfloat16, 1 in float32; float32 in UNet/conv_out' in text
  assert 'guidance: 7 of 7 arrays of the state are donated; 0 callbacks' in text
  assert '0.100 GB bf16[50,1000,1000] in UNet/mid/add' in text
  # At a quarter of the peak an update takes 4 ms, which is more than its 2 ms by bytes.
  r = next(r for r in run_of().plan if r.stage == 'guidance')
  hours = r.steps * 0.004 / 3600
  line = next(line for line in text.splitlines() if line.startswith(r.name)).split()
  assert line[1:] == [f'{r.steps:,}', f'{hours:.2f}', f'{8 * hours:,.0f}']
  found = json.loads(out.read_text())
  assert found['devices'] == 8 and found['stages']['guidance'] == FIGURES
  assert found['mesh'] == {'slice': 1, 'data': 8, 'fsdp': 1}


def test_figures_are_kept_for_equal_programs_only(monkeypatch):
  gives(monkeypatch, FIGURES)
  first = plan_topology.Compiler(run_of(), CHIPS, 1, 'O0').figures('guidance')
  compiles_by(monkeypatch, 'sys.exit(9)')
  assert (
    plan_topology.Compiler(run_of('evaluation.ws=(1.0,)'), CHIPS, 1, 'O0').figures('guidance')
    == first
  )
  others = [run_of('guidance.batch_size=64'), run_of('model.channels=32')]
  for run, stage, chips in (
    *((other, 'guidance', CHIPS) for other in others),
    (run_of(), 'teacher', CHIPS),
    (run_of(), 'guidance', topologies.parse('v6e:2x4')),
  ):
    found = plan_topology.Compiler(run, chips, 1, 'O0').figures(stage)
    assert 'exit code 9' in found['failed']


@pytest.mark.parametrize(
  'code, minutes, words',
  [
    ('print("compiling", flush=True); os.kill(os.getpid(), 11)', 1, 'crashed with signal 11 while'),
    ('print("compiling", flush=True); time.sleep(99)', 0.01, 'no result within 0.01 minutes'),
    ('sys.exit("no such device")', 1, 'exit code 1 while starting: no such device'),
  ],
)
def test_a_stage_without_figures_is_a_line_and_the_others_go_on(
  monkeypatch, capsys, code, minutes, words
):
  good = f"open(sys.argv[1] + '.result', 'w').write('''{json.dumps(FIGURES)}''')"
  request = "json.load(open(sys.argv[1]))['stage']"
  compiles_by(monkeypatch, f'if {request} == "teacher":\n  {code}\nelse:\n  {good}')
  slow = plan_topology.Compiler(run_of(), CHIPS, minutes, 'O0').figures('teacher')
  assert words in slow['failed']
  if minutes == 1:
    assert plan() == 0
    lines = capsys.readouterr().out.splitlines()
    teacher = next(line for line in lines if line.startswith('teacher '))
    assert words in teacher and teacher.split()[1] == '?'
    assert any(line.startswith('progressive ') and 'yes' in line for line in lines)


def test_the_compilers_refusal_is_told_in_its_words_and_kept(monkeypatch, capsys):
  gives(monkeypatch, {'refused': 'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm'})
  assert plan('--stage=guidance') == 0
  compiles_by(monkeypatch, 'sys.exit(9)')
  assert plan('--stage=guidance') == 0
  lines = [a for a in capsys.readouterr().out.splitlines() if a.startswith('guidance ')]
  assert len(lines) == 2
  for line in lines:
    assert line.split()[1] == 'no' and 'Ran out of memory in memory space hbm' in line


def test_another_error_of_the_compiler_is_no_answer_and_is_not_kept(monkeypatch, capsys):
  gives(monkeypatch, {'failed': "INTERNAL: Couldn't find output tile sizes"})
  assert plan('--stage=guidance') == 0
  [line] = [a for a in capsys.readouterr().out.splitlines() if a.startswith('guidance ')]
  assert line.split()[1] == '?' and 'output tile sizes' in line
  gives(monkeypatch, FIGURES)
  assert plan('--stage=guidance') == 0
  assert 'guidance           yes' in capsys.readouterr().out


def test_an_interrupted_plan_leaves_no_process(monkeypatch, tmp_path):
  compiles_by(monkeypatch, f"open('{tmp_path}/pid', 'w').write(str(os.getpid())); time.sleep(99)")

  def interrupt(text):
    if (tmp_path / 'pid').exists() and (tmp_path / 'pid').read_text():
      raise KeyboardInterrupt

  monkeypatch.setattr(plan_topology, '_SAY_EVERY', 0.0)
  monkeypatch.setattr(plan_topology.progress, 'say', interrupt)
  with pytest.raises(KeyboardInterrupt):
    plan_topology.Compiler(run_of(), CHIPS, 1, 'O0').figures('guidance')
  with pytest.raises(ProcessLookupError):
    os.kill(int((tmp_path / 'pid').read_text()), 0)


@pytest.mark.parametrize(
  'flags, words',
  [
    (['--topology=v5litepod:2x4'], 'perhaps v5e:2x4'),
    (['--topology=v5e:2x4', '--stage=guide'], '--stage=guide is no stage of this config'),
    (['--topology=v5e:2x4', '--devices=8'], 'leave --devices out'),
    (['--topology=v5e:2x4', '--mfu=40'], '--mfu=40.0 must be above 0 and at most 1'),
    (['--topology=v5e:2x4', '--level=0'], '--level=0 must be one of O0'),
    (['--topology=v5e:2x4', '--minutes=0'], '--minutes=0.0 must be above 0'),
    (['--topology=v5e:2x4', '--config.guidance.batch_size=12'], 'guidance.batch_size=12 must be'),
    (['--topology=v5e:2x4', '--json=setup.py'], '--json=setup.py exists already'),
    (['--stage=guidance'], '--stage=guidance needs --topology'),
    (['--json=a.json'], '--json=a.json needs --topology'),
  ],
)
def test_wrong_flags_are_one_line(capsys, flags, words):
  code = command.main(['plan', '--config=configs/digits.py:tiny', *flags])
  lines = capsys.readouterr().err.splitlines()
  assert code == 2 and len(lines) == 1 and words in lines[0], lines


def test_what_was_compiled_before_is_printed_without_a_compiler(monkeypatch, capsys):
  assert plan('--kept') == 2
  assert 'no step of this config was compiled for v5e:2x4' in capsys.readouterr().err
  gives(monkeypatch, FIGURES)
  assert plan('--stage=guidance') == 0
  first = capsys.readouterr().out
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *a: None)
  compiles_by(monkeypatch, 'sys.exit(9)')
  assert plan('--kept', topology='v5litepod-8') == 0
  assert capsys.readouterr().out == first


def test_a_damaged_file_of_figures_is_written_again(monkeypatch, tmp_path):
  gives(monkeypatch, FIGURES)
  compiler = plan_topology.Compiler(run_of(), CHIPS, 1, 'O0')
  assert compiler.figures('guidance') == FIGURES
  (file,) = (tmp_path / 'cache' / 'gdistill' / 'plans').iterdir()
  file.write_text('{"level": "O')
  assert compiler.kept('guidance') is None
  assert compiler.figures('guidance') == FIGURES == compiler.kept('guidance')


def test_figures_that_cannot_be_kept_are_printed_all_the_same(monkeypatch, tmp_path, capsys):
  (tmp_path / 'cache').write_text('a file where the folder would be')
  gives(monkeypatch, FIGURES)
  assert plan('--stage=guidance') == 0
  found = capsys.readouterr()
  assert 'guidance           yes' in found.out and 'are not kept' in found.err


def test_an_error_in_the_process_that_compiles_is_one_line_with_its_exit_code(monkeypatch, capsys):
  gives(monkeypatch, {'wrong': 'data/sd/autoencoder holds no autoencoder', 'kind': 'DataError'})
  assert plan('--samplers') == 3
  assert capsys.readouterr().err.splitlines()[-1].startswith('gdistill: data/sd/autoencoder holds')
