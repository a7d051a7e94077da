"""Reads a run's files for the report; a missing or damaged file gives None or an empty result."""

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
  """Returns [{name, card, log}], one entry for each round folder of the workdir, sorted by name.

  `card` is the content of card.json, the record of a finished round, or {} if unreadable. `log`
  lists the entries of the round's training log, metrics.jsonl. A folder is left out if it has
  neither a readable card.json nor entries of a training log.
  """
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
  """Returns the JSON objects of a file, one from each line; skips lines without a JSON object."""
  try:
    text = storage.read_text(path) if storage.exists(path) else ''
  except errors.GdistillError:
    return []
  entries = []
  for line in text.splitlines():
    try:
      entry = json.loads(line)
    except ValueError:  # a killed process may leave an unfinished last line
      continue
    if isinstance(entry, Mapping):
      entries.append(dict(entry))
  return entries
