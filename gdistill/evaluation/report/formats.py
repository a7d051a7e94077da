"""Turns the values on the report page into text, and tests whether a value is a number."""

import json
import math
from typing import Any

DASH = '–'  # printed instead of an unknown value


def is_number(value: Any) -> bool:
  """Returns whether the value is a finite number; bool does not count as a number."""
  finite = isinstance(value, (int, float)) and math.isfinite(value)
  return finite and not isinstance(value, bool)


def is_positive(value: Any) -> bool:
  """Returns whether the value is a positive number, which a logarithmic axis can show."""
  return is_number(value) and value > 0


def short(value: Any) -> str:
  """Returns a value as text: None is a dash, a float below 1,000 has three significant digits."""
  if not is_number(value):
    return DASH if value is None else str(value)
  return f'{value:.0f}' if isinstance(value, int) or abs(value) >= 1000 else f'{value:.3g}'


def score(value: Any) -> str:
  """Returns a score with three digits, such as 2.50 or 12.0, so that columns of scores line up."""
  if not is_number(value) or not 0.1 <= abs(value) < 100:
    return short(value)
  return f'{value:.2f}' if abs(value) < 9.995 else f'{value:.1f}'


def steps(num_steps: Any) -> str:
  """Returns the number of sampling steps in words, such as '1 step' or '4 steps'."""
  return f'{short(num_steps)} step{"" if num_steps == 1 else "s"}'


def calls(network_calls: Any) -> str:
  """Returns the number of network calls in words; None means that the number is unknown."""
  if network_calls is None:
    return 'an unknown number of network calls'
  return f'{short(network_calls)} network call{"" if network_calls == 1 else "s"}'


def duration(seconds: float) -> str:
  """Returns a duration as text: in seconds below 100 s, in minutes below 100 min, else in hours."""
  if seconds < 100:
    return f'{seconds:.1f} s'
  minutes = seconds / 60
  return f'{minutes:.1f} min' if minutes < 100 else f'{minutes / 60:.1f} h'


def indented(value: Any) -> str:
  """Returns the value as indented JSON; a value of a type that JSON lacks is converted by `str`."""
  return json.dumps(value, indent=2, ensure_ascii=False, default=str)
