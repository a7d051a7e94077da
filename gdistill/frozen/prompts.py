"""The prompts with which evaluation samples from a text-conditional network."""

from typing import Any

from gdistill.data import captions
from gdistill.data import source

_MOST = 200  # largest number of captions that card.json lists


def held_out(held: source.Source) -> list[str]:
  """Returns up to 200 captions of held-out pictures; [] if the pictures have no captions."""
  return captions.held_out(held, _MOST)


def of_run(train: source.Source, held: source.Source, template: str) -> list[str]:
  """Returns the prompts for evaluating a run: captions of held-out pictures or, without captions, a
  prompt for each class.
  """
  return held_out(held) or captions.of_names(train.class_names, template)


def of_card(card: dict[str, Any]) -> list[str]:
  """Returns the prompts in card.json, the record of a finished round, or else a prompt for each
  class; [] if the network takes no text.
  """
  about = card.get('latents') or {}
  if about.get('prompts'):
    return list(about['prompts'])
  template = about.get('template', '')
  return captions.of_names(card['class_names'], template) if template else []
