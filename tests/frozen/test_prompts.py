"""Tests of the prompts that the card of a finished round gives."""

import pytest

from gdistill.frozen import prompts

CLASSES = ['big_cat', 'dog']


def test_a_card_gives_the_held_out_captions_that_it_keeps():
  about = {'prompts': ['a cat at sea', 'a dog'], 'template': 'a photo of {}'}
  found = prompts.of_card({'class_names': CLASSES, 'latents': about})
  assert found == ['a cat at sea', 'a dog']


def test_a_card_without_captions_gives_one_prompt_for_each_class():
  about = {'prompts': [], 'template': 'a photo of {}'}
  found = prompts.of_card({'class_names': CLASSES, 'latents': about})
  assert found == ['a photo of big cat', 'a photo of dog']


@pytest.mark.parametrize(
  'card', [{}, {'latents': None}, {'latents': {'prompts': [], 'template': ''}}]
)
def test_a_card_without_a_template_gives_no_prompts(card):
  assert prompts.of_card({'class_names': CLASSES, **card}) == []
