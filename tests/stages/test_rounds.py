import micro
import pytest

from gdistill.stages import rounds


def test_the_plan_halves_from_start_to_end_and_gives_the_last_rounds_their_own_length_and_rate():
  recipe = micro.recipe(
    teacher={'steps': 12, 'lr': 1e-3},
    guidance={'steps': 10, 'lr': 2e-3},
    progressive={
      'start_steps': 16, 'end_steps': 1, 'steps': 5, 'lr': 3e-3, 'last_steps': 7, 'last_lr': 4e-3,
    },
  )  # fmt: skip
  found = [(r.index, r.name, r.num_steps, r.steps, r.lr, r.teacher) for r in rounds.plan(recipe)]
  assert found == [
    (0, '00_teacher', 0, 12, 1e-3, ''),
    (1, '01_guidance', 0, 10, 2e-3, '00_teacher'),
    (2, '02_progressive_8', 8, 5, 3e-3, '01_guidance'),
    (3, '03_progressive_4', 4, 5, 3e-3, '02_progressive_8'),
    (4, '04_progressive_2', 2, 7, 4e-3, '03_progressive_4'),
    (5, '05_progressive_1', 1, 7, 4e-3, '04_progressive_2'),
  ]


@pytest.mark.parametrize(('start', 'end', 'steps'), [(4, 2, [2]), (40, 10, [20, 10])])
def test_a_ladder_may_end_early_and_need_not_be_powers_of_two(start, end, steps):
  recipe = micro.recipe(
    stages=('progressive',), initial='/elsewhere/01_guidance',
    progressive={'start_steps': start, 'end_steps': end},
    evaluation={'num_steps': (steps[0],)},
  )  # fmt: skip
  plan = rounds.plan(recipe)
  assert [r.num_steps for r in plan] == steps
  assert plan[0].teacher == '/elsewhere/01_guidance' and plan[0].index == 0
