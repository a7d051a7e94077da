"""Tests of the losses and times of rounds: values that are not numbers are left out."""

from gdistill.evaluation.report import training


def test_losses_are_those_of_the_log():
  log = [{'step': 4, 'loss': 0.5, 'updates_per_second': 3.0}, {'step': 8, 'loss': float('nan')}]
  log += [{'step': 12, 'loss': 0.25, 'updates_per_second': 5.0}, {'step': 'x', 'loss': 1.0}]
  rounds = [{'name': 'a', 'card': {'stage': 'teacher', 'seconds': 5.0}, 'log': log}]
  rounds += [{'name': 'b', 'card': {}, 'log': []}]
  found = training.losses(rounds)
  first, second = found['lines']
  assert (first['updates'], first['last_loss'], first['updates_per_second']) == (12, 0.25, 4.0)
  assert first['stage'] == 'teacher' and second['updates'] is None and len(found['drawn']) == 1


def test_bars_are_shares_of_the_longest():
  rounds = [{'name': 'a', 'card': {'seconds': 2.0}}, {'name': 'b', 'card': {}}]
  found = training.times({'save': 1.0, 'compile': 4.0, 'broken': 'x', 'wrong': -1.0}, rounds)
  assert [(b['name'], b['percent']) for b in found['run']] == [
    ('save', 25.0), ('compile', 100.0), ('wrong', 0.0),
  ]  # fmt: skip
  assert found['rounds'] == [{'name': 'round a', 'seconds': 2.0, 'percent': 100.0}]
  assert training.times([1, 2], []) == {'run': [], 'rounds': []}
