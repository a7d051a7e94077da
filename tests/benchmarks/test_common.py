"""Tests of the benchmarks' helpers: timing in turns, rows and the table, random parameters."""

import json
import pathlib
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'benchmarks'))
import common  # noqa: E402
import run  # noqa: E402


def test_variants_take_turns_forwards_and_backwards():
  calls = []
  variants = {name: (lambda name=name: calls.append(name)) for name in 'ab'}
  taken = common.interleaved(variants, repeats=2, seconds=0.0)
  assert [len(taken[name]) for name in 'ab'] == [2, 2]
  assert ''.join(calls) == 'aa' + 'bb' + 'ab' * 2  # one warm-up and one timed call each, then turns


def test_ratios_are_within_a_repeat():
  assert common.ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
  assert common.added([1.0, 2.0], [3.0, 4.0]) == [4.0, 6.0]


@pytest.mark.parametrize(
  ('values', 'bar', 'met'),
  [
    ([1.0, 1.2, 9.0], '<= 1.2', True),
    ([1.3], '<= 1.2', False),
    ([127.0], '>= 128', False),
    ([3], '= 3', True),
    ([4], '= 3', False),
    ([1.0], '', None),
  ],
)
def test_a_row_holds_its_median_against_the_bar(values, bar, met):
  row = common.row('P1', 'this', values, bar)
  assert row['met'] is met
  assert (row['median'], row['low'], row['high']) == (np.median(values), min(values), max(values))


def test_the_table_says_met_missed_or_nothing():
  rows = [
    common.row('P1', 'one', [1.0, 1.1, 1.3], '<= 1.05'),
    common.row('P2', 'two', 12345, '', 'bytes'),
  ]
  lines = common.table(rows).splitlines()
  assert lines[2] == '| P1 | one | 1.1 | 1 to 1.3 | <= 1.05 | missed |'
  assert lines[3] == '| P2 | two | 12,345 bytes |  |  |  |'


def test_results_replace_the_table_and_nothing_else(tmp_path):
  readme = tmp_path / 'README.md'
  readme.write_text(f'before\n{run.BEGIN}\nold\n{run.END}\nafter\n')
  machine = {'cores': 2, 'cpu': 'this', 'python': '3', 'jax': '0', 'load_before': 0.5}
  results = {
    'startup': {'rows': [common.row('P16', 'late', 1.0)], 'machine': machine},
    'step': {'rows': [common.row('P2', 'early', 2.0)], 'machine': machine},
  }
  for _ in range(2):
    run.write(readme, json.loads(json.dumps(results)))
  text = readme.read_text()
  assert text.startswith('before\n') and text.endswith('\nafter\n') and 'old' not in text
  assert text.index('early') < text.index('late')
  assert '2 cores of this, Python 3, JAX 0: P2, P16.' in text


def test_every_script_is_run_by_run():
  helpers = {'common', 'counting', 'torch_inception', 'torch_unet', 'run', 'accelerator', 'editing'}
  scripts = {p.stem for p in (ROOT / 'benchmarks').glob('*.py')}
  assert scripts == helpers | set(run.SCRIPTS)


def test_random_parameters_have_the_shapes_and_no_zero_layer():
  settings = common.recipe('tiny').model
  params = common.random_params(settings, True)
  assert np.abs(params['conv_out']['kernel']).min() > 0
  assert np.all(params['norm_out']['scale'] == 1)
  assert common.count(params) == common.count(common.param_shapes(settings, True))
