"""Tests of the plan: which rounds a recipe has, and which round teaches which."""

import dataclasses
import pathlib

import latent_runs
import micro
import pytest

from gdistill import errors
from gdistill.training import assemble


def test_the_plan_halves_from_start_to_end_and_gives_the_last_rounds_their_own_length_and_rate():
  recipe = micro.recipe(
    teacher={'steps': 12, 'lr': 1e-3},
    guidance={'steps': 10, 'lr': 2e-3},
    progressive={
      'start_steps': 16, 'end_steps': 1, 'steps': 5, 'lr': 3e-3, 'last_steps': 7, 'last_lr': 4e-3,
    },
  )  # fmt: skip
  plan = assemble.plan_of(recipe)
  found = [(r.index, r.name, r.num_steps, r.steps, r.lr, r.teacher) for r in plan]
  assert found == [
    (0, '00_teacher', 0, 12, 1e-3, ''),
    (1, '01_guidance', 0, 10, 2e-3, '00_teacher'),
    (2, '02_progressive_8', 8, 5, 3e-3, '01_guidance'),
    (3, '03_progressive_4', 4, 5, 3e-3, '02_progressive_8'),
    (4, '04_progressive_2', 2, 7, 4e-3, '03_progressive_4'),
    (5, '05_progressive_1', 1, 7, 4e-3, '04_progressive_2'),
  ]
  assert not any(r.outside for r in plan)
  # The encoder's rounds follow all others, start from the student of stage one, and change no
  # other round.
  more = assemble.plan_of(dataclasses.replace(recipe, encoder=True))
  assert more[:6] == plan
  found = [(r.index, r.name, r.stage, r.num_steps, r.steps, r.lr, r.teacher) for r in more[6:]]
  assert found == [
    (6, '06_encoder_8', 'encoder', 8, 5, 3e-3, '01_guidance'),
    (7, '07_encoder_4', 'encoder', 4, 5, 3e-3, '06_encoder_8'),
    (8, '08_encoder_2', 'encoder', 2, 7, 4e-3, '07_encoder_4'),
    (9, '09_encoder_1', 'encoder', 1, 7, 4e-3, '08_encoder_2'),
  ]
  assert not any(r.outside for r in more)


OUTSIDE = '/elsewhere/01_guidance'


@pytest.mark.parametrize(
  ('stages', 'names', 'teachers'),
  [
    ((), ['00_encoder_2', '01_encoder_1'], [OUTSIDE, '00_encoder_2']),
    (
      ('progressive',),
      ['00_progressive_2', '01_progressive_1', '02_encoder_2', '03_encoder_1'],
      [OUTSIDE, '00_progressive_2', OUTSIDE, '02_encoder_2'],
    ),
    (
      ('guidance',),
      ['00_guidance', '01_encoder_2', '02_encoder_1'],
      [OUTSIDE, '00_guidance', '01_encoder_2'],
    ),
  ],
)
def test_an_encoders_ladder_learns_from_stage_one_wherever_that_is(stages, names, teachers):
  plan = assemble.plan_of(micro.recipe(stages=stages, initial=OUTSIDE, encoder=True))
  assert [r.name for r in plan] == names and [r.teacher for r in plan] == teachers
  assert [r.outside for r in plan] == [t == OUTSIDE for t in teachers]


@pytest.mark.parametrize(('start', 'end', 'steps'), [(4, 2, [2]), (40, 10, [20, 10])])
def test_a_ladder_may_end_early_and_need_not_be_powers_of_two(start, end, steps):
  recipe = micro.recipe(
    stages=('progressive',), initial='/elsewhere/01_guidance',
    progressive={'start_steps': start, 'end_steps': end},
    evaluation={'num_steps': (steps[0],)},
  )  # fmt: skip
  plan = assemble.plan_of(recipe)
  assert [r.num_steps for r in plan] == steps
  assert plan[0].teacher == '/elsewhere/01_guidance' and plan[0].index == 0 and plan[0].outside


def test_a_ladder_may_go_through_forty_steps_down_to_five():
  photos, *_, stable_diffusion = latent_runs.KINDS
  nowhere = pathlib.Path('/nowhere')  # a plan reads no files
  progressive = dict(start_steps=40, end_steps=5)
  recipe = latent_runs.recipe(stable_diffusion, nowhere, progressive=progressive)
  assert [r.num_steps for r in assemble.plan_of(recipe)] == [0, 0, 20, 10, 5]
  progressive = dict(start_steps=1024, end_steps=1)
  with pytest.raises(errors.ConfigError, match=r'start_steps=1024 must be at most 512 with noise'):
    latent_runs.recipe(stable_diffusion, nowhere, progressive=progressive)
  latent_runs.recipe(photos, nowhere, progressive=progressive)
