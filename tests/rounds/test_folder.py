"""Tests of finished rounds on disk: the guided teacher from which a round descends."""

import pathlib

import micro
import pytest

from gdistill import errors
from gdistill.rounds import folder as folders
from gdistill.training import assemble
from gdistill.workdir import finished as finished_rounds


@pytest.mark.parametrize('initial', ['first/01_guidance', 'second/00_progressive_2'])
def test_the_teacher_of_a_run_begun_elsewhere_is_found_through_the_cards(
  tmp_path, monkeypatch, initial
):
  # first/00_teacher teaches first/01_guidance, which teaches second/00_progressive_2; the run in
  # the folder `third` begins from one of the two students.
  first, second = tmp_path / 'first', tmp_path / 'second'
  cards = {
    first / '00_teacher': {'stage': 'teacher', 'teacher': ''},
    first / '01_guidance': {'stage': 'guidance', 'teacher': '00_teacher'},
    second / '00_progressive_2': {'stage': 'progressive', 'teacher': str(first / '01_guidance')},
  }
  monkeypatch.setattr(finished_rounds, 'read_card', lambda folder: cards[pathlib.Path(folder)])
  monkeypatch.setattr(finished_rounds, 'is_finished', lambda folder: pathlib.Path(folder) in cards)
  initial = str(tmp_path / initial)
  plan = assemble.plan_of(micro.recipe(stages=('progressive',), initial=initial))
  found = folders.guided_teacher(tmp_path / 'third', plan, initial)
  assert str(found) == str(first / '00_teacher')
  del cards[first / '00_teacher']
  with pytest.raises(errors.ConfigError, match=r'descends from .*00_teacher.*copy that folder'):
    folders.guided_teacher(tmp_path / 'third', plan, initial)


def test_the_teacher_of_a_run_that_trains_one_is_its_first_round(tmp_path):
  plan = assemble.plan_of(micro.recipe())
  assert folders.guided_teacher(tmp_path, plan, '') == tmp_path / '00_teacher'
