"""What a recipe says of itself: its sections, and whether its students take w."""

import changed_config
import pytest

from gdistill.recipe import reading


@pytest.mark.parametrize(
  ('stages', 'sections'),
  [
    ((), ('progressive',)),
    (('progressive',), ('progressive',)),
    (('guidance',), ('guidance', 'progressive')),
    (('teacher', 'guidance', 'progressive'), ('teacher', 'guidance', 'progressive')),
  ],
)
def test_an_encoder_has_the_decoders_settings(stages, sections):
  given = changed_config.changed(encoder=True, stages=stages, initial='somewhere')
  recipe = reading.from_config(given)
  assert recipe.sections == sections
  assert recipe.settings('encoder') is recipe.settings('progressive') is recipe.progressive
  assert recipe.settings('guidance') is recipe.guidance


def test_students_take_w_unless_there_is_only_one_w_or_guidance_comes_when_sampling():
  one = {'guidance__w_min': 1.0, 'guidance__w_max': 1.0}
  plain = {f'{stage}__w_power': 0.0 for stage in ('guidance', 'progressive')}
  naive = {'stages': ('teacher', 'progressive'), 'progressive__clip_x_hat': False}
  found = [
    reading.from_config(changed_config.changed(**fields))
    for fields in ({}, one | plain, naive | plain)
  ]
  assert [r.takes_w for r in found] == [True, False, False]
  assert [r.single_w for r in found] == [False, True, False]
  assert [r.naive for r in found] == [False, False, True]


def test_extra_channels_make_an_inpainting_network():
  assert not reading.from_config(changed_config.DIGITS).inpainting
  assert reading.from_config(changed_config.changed(model__extra_channels=2)).inpainting
