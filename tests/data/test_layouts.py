"""Every reader finds in a drawn folder or archive what a slow and simple reader expects there."""

import os
import re
import threading
import types

import drawn_layouts
import drawn_pictures
import labelled
import numpy as np
import pytest
import slow_reader

from gdistill import errors
from gdistill.data import captions
from gdistill.data import files
from gdistill.data import folder
from gdistill.data import images
from gdistill.data import prepare
from gdistill.data import prepare_settings
from gdistill.data import prepared_shards
from gdistill.data import records
from gdistill.data import source

SIZE = 16
SHAPE = (SIZE, SIZE, 3)
# The phrases in which the readers count what they pass over.
REASONS = {
  'deep': 'in a folder too deep', 'loose': 'in no class folder', 'link': 'to a place that',
  'unread': 'of a format that is not read', 'other': 'without the suffix of a picture',
  'empty': 'without a picture', 'small': 'below a quarter of the side',
  'shard': 'compressed or in a subfolder',
}  # fmt: skip
SEEDS = [*range(9), *(pytest.param(n, marks=pytest.mark.full) for n in range(9, 60))]


def named(data, i):
  """Returns the name of example i, also of a subset."""
  read = data.read
  while hasattr(read, 'index') and hasattr(read, 'inner'):
    read, i = read.inner, int(read.index[i])
  return read.name(i)


def counts(lines):
  """Returns {reason: (count, examples)} of the lines of a reader."""
  found = {}
  for reason, phrase in REASONS.items():
    for count, name in re.findall(
      rf'([\d,]+) \w+ {phrase}[^(,]* \(such as (.*?)\)(?=,|$| )', lines
    ):
      total, names = found.get(reason, (0, []))
      found[reason] = total + int(count.replace(',', '')), [*names, name]
  return found


def differences(expected, truth, found, lines, reasons):
  """Returns what differs; `found` is {name: (class or caption, function that returns pixels)}."""
  out = []
  for name in sorted(expected.pictures.keys() - found.keys()):
    out.append(f'{name!r} is not read')
  for name in sorted(found.keys() - expected.pictures.keys()):
    out.append(f'{name!r} is read')
  for name in sorted(found.keys() & expected.pictures.keys()):
    (about, real), (other, pixels) = expected.pictures[name], found[name]
    if about != other:
      out.append(f'{name!r} is {other!r} and should be {about!r}')
    drawn = truth[real]
    try:
      seen = pixels()
    except errors.DataError as e:
      if drawn.upright is not None:
        out.append(f'{name!r} is refused: {e}')
      continue
    if drawn.upright is None:
      out.append(f'{name!r} is damaged and was read')
    elif not drawn_pictures.is_seen_in(drawn, seen):
      out.append(f'{name!r} has other pixels than it should')
  told = counts(lines)
  for reason in reasons:
    names = expected.passed.get(reason, set())
    count, examples = told.get(reason, (0, []))
    if count != len(names):
      out.append(f'{count} {reason} are told and {sorted(names)} should be')
    out += [
      f'{e!r} is told as {reason}' for e in examples if e not in names | set(map(repr, names))
    ]
  return out


def check(expected, truth, read, reasons):
  """Reads with `read()`, which returns (found, lines), and compares with `expected`."""
  try:
    found, lines = read()
  except errors.DataError as e:
    assert len(str(e).splitlines()) == 1, str(e)
    damaged = [n for n, (_, real) in expected.pictures.items() if truth[real].upright is None]
    words = expected.refused + damaged  # the first picture may be read at once
    assert words, f'refused without need: {e}'
    assert any(w in str(e) or repr(w)[1:-1] in str(e) for w in words), str(e)
    return
  assert not expected.refused, f'{expected.refused}, and nothing was said'
  assert not (wrong := differences(expected, truth, found, lines, reasons)), '\n'.join(wrong)


def of_sources(sources):
  """Returns ({name: (class, function that returns pixels)}, lines) of sources with classes."""
  found = {}
  for data in sources:
    for i in range(len(data)):
      label = int(source.labels(data)[i])
      name = named(data, i)
      assert name not in found
      found[name] = data.class_names[label], lambda data=data, i=i: data[i][0]
  return found, ' '.join(source.notes(*sources))


def both(one, two):
  """Joins what is expected of the training split and of the held-out split."""
  out = slow_reader.Expected(
    one.pictures | two.pictures, dict(one.passed), one.refused + two.refused
  )
  for reason, names in two.passed.items():
    out.passed[reason] = out.passed.get(reason, set()) | names
  return out


@pytest.mark.parametrize('seed', SEEDS)
@pytest.mark.parametrize('kind', ['folder', 'zip', 'tar', 'tar.gz'])
def test_a_folder_of_classes(kind, seed, tmp_path):
  rng = np.random.default_rng([seed, len(kind), 1])
  tree, outside = (drawn_layouts.Tree(rng, tmp_path / n, SIZE) for n in ('root', 'outside'))
  split = drawn_layouts.pick(rng, ('train', 'train', '', 'sets/train'))
  names = drawn_layouts.classes(tree, split, outside)
  apart = split and drawn_layouts.chance(rng, 0.5)
  if apart:
    drawn_layouts.held_out(tree, 'validation', names)
  closed = kind != 'folder'
  expected = slow_reader.classes(tree.root, tree.truth, SIZE, split, closed)
  if apart:
    held = slow_reader.classes(tree.root, tree.truth, SIZE, 'validation', closed, held_out=True)
    if {c for c, _ in held.pictures.values()} != {c for c, _ in expected.pictures.values()}:
      expected.refuses('differ in their classes')
    expected = both(expected, held)
  path = tree.root
  if closed:
    path = str(tmp_path / f'set.{kind}')
    top = drawn_layouts.pick(rng, ('', '', 'set/', 'a b/'))
    # With loose pictures and one class, the top folder would be taken for a class folder.
    loose = not split and expected.passed.get('loose') and len(names) < 2
    drawn_layouts.packed(rng, tree.root, path, '' if loose else top)
  held = {'held_out_split': 'validation'} if apart else {'held_out': 0.2}
  wanted = labelled.settings('folder', path, split=split, **held)
  check(expected, tree.truth, lambda: of_sources(folder.load(wanted, SHAPE)), REASONS)


def look():
  pass


def of_records(settings, job):
  """Writes the shards of a job of `gdistill prepare` in this process; returns what they hold."""
  stop, counter = threading.Event(), types.SimpleNamespace(value=0)
  for shard in job.shards:
    prepared_shards.make(settings, job.sources[shard.split], shard, stop, counter)
  found = {}
  for split, data in job.sources.items():
    shards = [s for s in job.shards if s.split == split]
    index = prepared_shards.index(settings, split, data, shards)
    names = map(data.read.name, range(len(data)))
    kept = [name for name in names if name not in index['made']['skipped']]
    files.write(os.path.join(settings.out, split, records.INDEX), files.dumps(index))
    wanted = labelled.settings('records', settings.out, split=split, held_out_split=split)
    stored = records.load(wanted, SHAPE)[0]
    assert len(stored) == len(kept)
    for i, name in enumerate(kept):
      pixels, label = stored[i]
      found[name] = stored.class_names[label], lambda pixels=pixels: pixels
  return found


@pytest.mark.parametrize('seed', SEEDS[::3])
@pytest.mark.parametrize('kind', ['folder', 'zip', 'tar.xz'])
def test_prepared_pictures(kind, seed, tmp_path):
  rng = np.random.default_rng([seed, len(kind), 2])
  tree, outside = (drawn_layouts.Tree(rng, tmp_path / n, SIZE) for n in ('root', 'outside'))
  names = drawn_layouts.classes(tree, 'train', outside)
  drawn_layouts.held_out(tree, 'validation', names)
  closed = kind != 'folder'
  one = slow_reader.classes(tree.root, tree.truth, SIZE, 'train', closed)
  two = slow_reader.classes(tree.root, tree.truth, SIZE, 'validation', closed, held_out=True)
  expected = both(one, two)
  if {c for c, _ in one.pictures.values()} != {c for c, _ in two.pictures.values()}:
    expected.refuses('differ in their classes')
  path = tree.root
  if closed:
    path = str(tmp_path / f'set.{kind}')
    drawn_layouts.packed(rng, tree.root, path, drawn_layouts.pick(rng, ('', 'set/')))
  settings = prepare_settings.Settings(
    path, str(tmp_path / 'out'), SIZE, shard_size=3, skip_corrupt=True
  )
  prepare_settings.check(settings)
  os.makedirs(settings.out)

  def read():
    job = prepare.plan(settings, look)
    found = of_records(settings, job)
    return found, ' '.join(prepare.notes(job))

  good = {c for c, real in one.pictures.values() if tree.truth[real].upright is not None}
  for damaged in sorted({c for c, _ in one.pictures.values()} - good):
    expected.refuses(damaged)
  for name, (_, real) in list(expected.pictures.items()):
    if tree.truth[real].upright is None:
      del expected.pictures[name]  # --skip_corrupt leaves it out
  try:
    check(expected, tree.truth, read, REASONS)
  finally:
    prepare.clean(settings)


@pytest.mark.parametrize('seed', SEEDS)
def test_captioned_folders(seed, tmp_path):
  rng = np.random.default_rng([seed, 3])
  tree = drawn_layouts.Tree(rng, tmp_path / 'root', SIZE)
  tables = drawn_layouts.captions(tree)
  expected = slow_reader.captioned(tree.root, tree.truth, SIZE, tables)

  def read():
    data = captions.split(tree.root, 'folder', SIZE)
    names = [os.path.relpath(data.read.name(i), tree.root) for i in range(len(data))]
    found = {n: (data.read.caption(i), lambda i=i: data[i][0]) for i, n in enumerate(names)}
    lines = ' '.join(data.read.notes)
    without = re.search(r'([\d,]+) pictures? without a caption', lines)
    assert int(without[1] if without else 0) == len(expected.passed.get('no caption', ()))
    return found, lines

  check(expected, tree.truth, read, ('unread', 'link', 'other', 'small'))


@pytest.mark.parametrize('seed', SEEDS)
def test_shards(seed, tmp_path):
  rng = np.random.default_rng([seed, 4])
  tree = drawn_layouts.Tree(rng, tmp_path / 'root', SIZE)
  expected = drawn_layouts.shards(tree, str(tmp_path / 'shards'))

  def read():
    data = captions.split(str(tmp_path / 'shards'), 'webdataset', SIZE)
    found = {}
    for i in range(len(data)):
      name = os.path.splitext(data.read.name(i).partition('.tar: ')[2])[0]
      found[os.path.normpath(name)] = data.read.caption(i), lambda i=i: data[i][0]
    lines = ' '.join(data.read.notes)
    left = [
      re.search(rf'([\d,]+)( samples?)? without a {w}', lines)
      for w in ('readable caption', 'picture')
    ]
    told = [int(m[1]) if m else 0 for m in left]
    assert told == [len(expected.passed.get(r, ())) for r in ('no caption', 'no picture')], lines
    # A shard's lines name the shard and the file; the slow reader knows samples without a suffix.
    lines = re.sub(
      r'\(such as (.*?\.tar): (.*?)\.\w+\)', lambda m: f'(such as {os.path.normpath(m[2])})', lines
    )
    return found, lines

  check(expected, tree.truth, read, ('small', 'shard'))


@pytest.mark.parametrize('seed', SEEDS)
def test_pictures_to_evaluate_and_their_captions(seed, tmp_path):
  rng = np.random.default_rng([seed, 5])
  tree, outside = (drawn_layouts.Tree(rng, tmp_path / n, SIZE) for n in ('root', 'outside'))
  drawn_layouts.classes(tree, '', outside, twice=False)
  expected = slow_reader.pictures(tree.root, tree.truth, SIZE)
  told = drawn_layouts.Tree(rng, tmp_path / 'told', SIZE)
  for name in sorted(expected.pictures):
    text = drawn_layouts.pick(rng, drawn_layouts.CAPTIONS)
    told.put(os.path.splitext(name)[0] + '.txt', text.encode())
  for name, (_, real) in expected.pictures.items():
    with open(os.path.join(told.root, os.path.splitext(name)[0] + '.txt'), 'rb') as f:
      expected.pictures[name] = slow_reader.one_line(f.read().decode()), real

  def read():
    data = images.load(tree.root, '--images', SIZE)
    said, _ = images.captions(told.root, data)
    names = [os.path.relpath(name, tree.root) for name in data.names]
    found = {name: (said[i], lambda i=i: data.read(i)) for i, name in enumerate(names)}
    return found, ' '.join(data.passed.notes('--images'))

  check(expected, tree.truth, read, ('unread', 'link', 'other', 'small'))
