"""The files of a run, read so that a missing or damaged file leaves a gap, not an error."""

import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from gdistill import errors
from gdistill.workdir import storage


def json_or_none(path: epath.Path) -> Any:
  """Returns the content of a JSON file, or None if the file is missing or damaged."""
  try:
    return storage.read_json(path) if storage.exists(path) else None
  except errors.GdistillError:
    return None


def rounds(workdir: epath.Path) -> list[dict[str, Any]]:
  """Returns [{name, card, log}] for each folder with a card or a log, in the order of the names."""
  found = []
  for name in storage.list_dir(workdir):
    folder = workdir / name
    if not folder.is_dir():
      continue
    card, log = json_or_none(folder / 'card.json'), log_entries(folder / 'metrics.jsonl')
    if isinstance(card, Mapping) or log:
      found.append({'name': name, 'card': card if isinstance(card, Mapping) else {}, 'log': log})
  return found


def log_entries(path: epath.Path) -> list[dict[str, Any]]:
  """Returns the objects in a file of JSON lines; skips lines that are not JSON objects."""
  try:
    text = storage.read_text(path) if storage.exists(path) else ''
  except errors.GdistillError:
    return []
  entries = []
  for line in text.splitlines():
    try:
      entry = json.loads(line)
    except ValueError:  # the last line of a killed process may be half a line
      continue
    if isinstance(entry, Mapping):
      entries.append(dict(entry))
  return entries
