"""Tests of finished rounds: the card is written last, and card and parameters belong together."""

import shutil

import chex
import pytest
import trees

from gdistill import errors
from gdistill.workdir import finished as finished_rounds
from gdistill.workdir import storage

CARD = {'stage': 'progressive', 'num_steps': 4}


def test_a_round_is_finished_by_its_card(tmp_path, monkeypatch):
  params = trees.state(1).params
  with monkeypatch.context() as m:
    m.setattr(storage, 'write_once', lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      finished_rounds.finish(tmp_path / 'r', params, CARD)
  assert not finished_rounds.is_finished(tmp_path / 'r')
  with pytest.raises(errors.CheckpointError, match=r'without card.json: training did not finish'):
    finished_rounds.read_params(tmp_path / 'r')
  card = finished_rounds.finish(tmp_path / 'r', params, CARD)
  assert finished_rounds.is_finished(tmp_path / 'r')
  assert finished_rounds.read_card(tmp_path / 'r') == card
  assert card == {**CARD, 'params_digest': finished_rounds.params_digest(tmp_path / 'r')}
  chex.assert_trees_all_equal(finished_rounds.read_params(tmp_path / 'r', params), params)


def test_a_finished_round_is_never_rewritten(tmp_path):
  finished_rounds.finish(tmp_path, trees.state(1).params, CARD)
  before = {n: (tmp_path / n).read_bytes() for n in storage.files(tmp_path)}
  finished_rounds.finish(tmp_path, trees.state(1).params, CARD)
  with pytest.raises(errors.CheckpointError, match='is finished, with other parameters'):
    finished_rounds.finish(tmp_path, trees.state(2).params, CARD)
  assert before == {n: (tmp_path / n).read_bytes() for n in storage.files(tmp_path)}


def test_the_digest_of_parameters_depends_on_nothing_else(tmp_path):
  for i, seed in enumerate((1, 1, 2)):
    finished_rounds.finish(tmp_path / str(i), trees.state(seed).params, {'n': i})
  one, again, other = (finished_rounds.params_digest(tmp_path / str(i)) for i in range(3))
  assert one == again != other


def test_a_card_that_was_changed_is_refused(tmp_path):
  finished_rounds.finish(tmp_path, trees.state(1).params, CARD)
  text = (tmp_path / 'card.json').read_text()
  (tmp_path / 'card.json').write_text(text.replace('"num_steps": 4', '"num_steps": 5'))
  with pytest.raises(errors.CheckpointError, match=r'card.json cannot be trusted'):
    finished_rounds.read_card(tmp_path)


def test_parameters_of_another_round_are_refused(tmp_path):
  for seed in (1, 2):
    finished_rounds.finish(tmp_path / str(seed), trees.state(seed).params, CARD)
  shutil.rmtree(tmp_path / '1' / 'params')
  shutil.copytree(tmp_path / '2' / 'params', tmp_path / '1' / 'params')
  with pytest.raises(errors.CheckpointError, match='written for other parameters'):
    finished_rounds.read_params(tmp_path / '1')


@pytest.mark.parametrize(
  'name, kind, text',
  [
    ('none', errors.CheckpointError, 'none does not exist'),
    ('plain', errors.ConfigError, 'is not a round folder'),
    ('model.pt', errors.ConfigError, 'model.pt is a .pt file.*give the folder WORKDIR'),
    ('model.SAFETENSORS', errors.ConfigError, 'not a round folder; give the folder'),
    ('none.ckpt', errors.ConfigError, 'not a round folder; give the folder'),
  ],
)
def test_what_is_no_round_is_said_to_be_none(tmp_path, name, kind, text):
  (tmp_path / 'plain').mkdir()
  (tmp_path / 'model.pt').write_bytes(b'')
  with pytest.raises(kind, match=text):
    finished_rounds.read_params(tmp_path / name)
