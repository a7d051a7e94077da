"""Tests of the cards of finished rounds."""

import os

import micro
import numpy as np

from gdistill.training import assemble
from gdistill.training import card as cards
from gdistill.training import step as train_step
from gdistill.workdir import state as states


def cards_of(**sections):
  """Returns the cards of all rounds of a micro run, each with a network of three parameters."""
  recipe = micro.recipe(**sections)
  found = []
  for r in assemble.plan_of(recipe):
    setup = assemble.setup_of(recipe, r.stage)
    tx = train_step.optimizer(setup.settings)
    state = states.create({'a': np.ones(3, np.float32)}, tx, with_ema=True)
    found.append(cards.make_card(r, setup, state, 1.0, {'seed': recipe.seed}))
  return found


def test_a_card_names_the_sampler_and_the_teacher_of_its_round():
  found = cards_of(encoder=True, progressive={'sampler': 'stochastic'}, seed=7)
  assert [(c['stage'], c['sampler'], c['teacher']) for c in found] == [
    ('teacher', 'any', ''),
    ('guidance', 'any', '00_teacher'),
    ('progressive', 'stochastic', '01_guidance'),
    ('progressive', 'stochastic', '02_progressive_2'),
    ('encoder', 'deterministic', '01_guidance'),
    ('encoder', 'deterministic', '04_encoder_2'),
  ]
  assert {c['seed'] for c in found} == {7} and {c['parameters'] for c in found} == {3}


def test_a_card_names_a_teacher_of_another_run_by_its_absolute_path():
  found = cards_of(stages=('progressive',), initial='elsewhere/01_guidance')
  assert found[0]['teacher'] == os.path.abspath('elsewhere/01_guidance')
  assert found[1]['teacher'] == '00_progressive_2'
