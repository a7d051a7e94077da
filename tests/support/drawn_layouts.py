"""Draws folders as people have them: names, depths, links, captions, damage; packs archives."""

import csv
import io
import json
import os
import stat
import tarfile
import zipfile

import drawn_pictures
import slow_reader

CLASSES = (
  'cat', 'Dog', 'zwölf', 'zwo\u0308lf', 'a b', 'x.y', '0', '10', '9', '日本', "o'k", 'n01440764',
  'great_white_shark, shark', '-', '#1', 'cat.png', 'train', '100%', 'Ünï', '(1)',
)  # fmt: skip
STEMS = (
  '1', '01', 'a b', 'ünï', 'u\u0308ni\u0308', 'x.tar', 'IMG 01', '名前', '-', '#1', 'a.b.c',
  'UPPER', 'a\nb', '🐈', 'x.txt', 'captions', 'no suffix', "it's", 'a,b', '"q"', ' lead', '100%',
  '$HOME', '~',
)  # fmt: skip
OTHERS = ('notes.txt', 'labels.csv', 'clip.mp4', 'png', 'old.png.bak', 'list.json', 'set.zip', 'x.')
HIDDEN = ('.DS_Store', '._1.png', '.hidden.jpg', 'Thumbs.db', 'desktop.ini')
CAPTIONS = (
  'a cat', 'a cat\n', '\ufeffa cat on a mat', 'one line\nand another',
  'one\r\ntwo\r\n\r\nthree\r\n',
  '\n\n  a dog  \n', 'a\u2028b', 'a\x0bb\x0cc', 'été à la plage', '"a", b; c', 'tail\\', 'x ' * 300,
  '名前 🐈', 'tab\there', "it's", 'a,b', '\ufeff\r\n\ufeffa bird', 'one\rtwo', 'a  b',
)  # fmt: skip
BLANK = ('', '\n', '  \r\n \n', '\ufeff', '\ufeff\n')
BAD_TEXT = (b'\xff\xfea\0 \0c\0', b'caf\xe9', b'a\0b')


def chance(rng, share):
  return rng.random() < share


def pick(rng, options):
  return options[int(rng.integers(len(options)))]


class Tree:
  """A folder that is being filled; `truth` is {real path: the drawn picture}."""

  def __init__(self, rng, root, size):
    self.rng, self.root, self.size, self.truth = rng, os.path.realpath(root), size, {}
    os.makedirs(self.root, exist_ok=True)

  def put(self, name, data):
    path = os.path.join(self.root, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'wb') as f:
      f.write(data)
    return path

  def link(self, name, target):
    path = os.path.join(self.root, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if not os.path.lexists(path):
      os.symlink(target, path)

  def picture(self, folder, small=False, bad=0.0):
    """Puts a picture of a random kind, name and size into `folder`; returns its path."""
    rng = self.rng
    kind = pick(rng, drawn_pictures.KINDS)
    form = pick(rng, list(drawn_pictures.SUFFIXES)) if chance(rng, 0.1) else kind.partition('_')[0]
    low = -(-self.size // slow_reader.MOST_ENLARGED)
    sides = [int(rng.integers(low, 3 * self.size)) for _ in range(2)]
    if small:
      sides[int(rng.integers(2))] = int(rng.integers(1, low))
    drawn = drawn_pictures.draw(rng, kind, *sides)
    if not small and chance(rng, bad):
      drawn = drawn_pictures.damaged(rng, drawn)
    stem = pick(rng, STEMS)
    name = os.path.join(folder, stem + pick(rng, drawn_pictures.SUFFIXES[form]))
    if os.path.lexists(os.path.join(self.root, name)) or self._stem_is_taken(folder, stem):
      name = os.path.join(
        folder, f'{stem}{len(self.truth)}{pick(rng, drawn_pictures.SUFFIXES[form])}'
      )
    path = self.put(name, drawn.data)
    self.truth[os.path.realpath(path)] = drawn
    return path

  def _stem_is_taken(self, folder, stem):
    at = os.path.join(self.root, folder)
    return os.path.isdir(at) and stem in {os.path.splitext(n)[0] for n in os.listdir(at)}

  def litter(self, folder, share=0.15):
    """Puts files into `folder` that are no pictures, or are hidden."""
    rng = self.rng
    if chance(rng, share):
      self.put(os.path.join(folder, pick(rng, OTHERS)), b'text')
    if chance(rng, share):
      self.put(os.path.join(folder, pick(rng, STEMS) + pick(rng, slow_reader.UNREAD)), b'?')
    if chance(rng, share):
      self.put(os.path.join(folder, pick(rng, HIDDEN)), b'?')
    if chance(rng, share):
      self.put(os.path.join(folder, pick(rng, ('.git', '__MACOSX', '@eaDir')), '1.png'), b'?')
    if chance(rng, share):
      self.link(os.path.join(folder, 'dangling.dat'), 'nowhere.dat')


def classes(tree, split, outside, odd=0.12, twice=True):
  """Fills `tree` with class folders below `split`; `outside` is a tree for links to lead to.

  If `twice` is True, two names may lead to one class folder.
  """
  rng = tree.rng
  names = rng.permutation(CLASSES)[: int(rng.integers(1, 5))].tolist()
  for name in names:
    folder = os.path.join(split, name)
    for _ in range(int(rng.integers(1, 4))):
      tree.picture(folder, bad=0.03)
    tree.litter(folder)
    if chance(rng, odd):
      tree.picture(folder, small=True)
    if chance(rng, odd):
      tree.picture(os.path.join(folder, pick(rng, ('sub', '2021', 'a.png', 'x/y'))))
    if chance(rng, odd):
      real = tree.picture(os.path.join(folder))
      tree.link(os.path.join(folder, 'again.png'), os.path.basename(real))
    if chance(rng, odd):
      real = tree.picture(os.path.join(folder))
      os.link(real, os.path.join(tree.root, folder, 'hard.png'))
      tree.truth[os.path.join(tree.root, folder, 'hard.png')] = tree.truth[real]
    if chance(rng, odd):
      real = outside.picture('store')
      outside.truth[real] = tree.truth[real] = outside.truth[real]
      tree.link(os.path.join(folder, 'far.png'), real)
    if chance(rng, odd):
      tree.link(os.path.join(folder, 'loop'), pick(rng, ('.', '..')))
    if chance(rng, odd / 3):
      tree.link(os.path.join(folder, 'gone.jpg'), 'nowhere.jpg')
  if twice and chance(rng, odd):
    tree.link(os.path.join(split, 'same class'), names[0])
  if chance(rng, odd):
    real = outside.picture('class')
    tree.truth[real] = outside.truth[real]
    tree.link(os.path.join(split, 'far class'), os.path.dirname(real))
  if chance(rng, odd):
    tree.picture(split)
  if split and chance(rng, odd):
    tree.picture('')
  if chance(rng, odd / 3):
    os.makedirs(os.path.join(tree.root, split, 'empty'), exist_ok=True)
  if chance(rng, odd / 3):
    tree.put(os.path.join(split, 'unread only', '1.heic'), b'?')
  if chance(rng, odd / 3):
    tree.picture(os.path.join(split, 'small only'), small=True)
  if chance(rng, odd / 3):
    tree.picture(os.path.join(split, 'deep only', 'sub'))
  tree.litter(split)
  return names


def held_out(tree, split, names, odd=0.1):
  for name in names:
    tree.picture(os.path.join(split, name))
  if chance(tree.rng, odd):
    tree.picture(split)
  if chance(tree.rng, odd):
    os.makedirs(os.path.join(tree.root, split, 'empty'), exist_ok=True)
  tree.litter(split)


def packed(rng, root, archive, top=''):
  """Packs the folder `root` into a zip or tar archive, below the folder `top`."""
  found = []
  for folder, folders, files in os.walk(root):
    found += [os.path.join(folder, name) for name in sorted(folders) + sorted(files)]
  names = {path: top + os.path.relpath(path, root) for path in found}
  if archive.endswith('.zip'):
    with zipfile.ZipFile(archive, 'w', pick(rng, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as z:
      for path, name in names.items():
        if os.path.islink(path):
          link = zipfile.ZipInfo(name)
          link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
          z.writestr(link, os.readlink(path))
        else:
          z.write(path, name)
    return
  mode = {'gz': 'w:gz', 'bz2': 'w:bz2', 'xz': 'w:xz'}.get(archive.rpartition('.')[2], 'w')
  dots = './' if not top and chance(rng, 0.3) else ''
  with tarfile.open(archive, mode, format=pick(rng, (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))) as t:
    for path, name in names.items():
      t.add(path, dots + name, recursive=False)


def captions(tree):
  """Fills `tree` with pictures and captions; returns {table: rows, or None if it is damaged}."""
  rng = tree.rng
  folders = ['', *rng.permutation(CLASSES)[: int(rng.integers(0, 3))].tolist()]
  names = []
  for folder in folders:
    for _ in range(int(rng.integers(1, 4))):
      names.append(
        os.path.relpath(tree.picture(folder, small=chance(rng, 0.05), bad=0.03), tree.root)
      )
    tree.litter(folder)
  tables = {}
  if chance(rng, 0.55):
    for name in rng.permutation(slow_reader.TABLES)[: 1 + chance(rng, 0.15)].tolist():
      tables[name] = table(tree, name, names)
  if not tables or chance(rng, 0.15):
    for name in names:
      if chance(rng, 0.85):
        text = pick(rng, BLANK) if chance(rng, 0.1) else pick(rng, CAPTIONS)
        bad = chance(rng, 0.03)
        tree.put(os.path.splitext(name)[0] + '.txt', pick(rng, BAD_TEXT) if bad else text.encode())
  return tables


def table(tree, name, names):
  """Writes a table of captions; returns its rows (file_name, text), or None for a damaged table."""
  rng = tree.rng
  rows = [(pick(rng, ('', '', './')) + n, pick(rng, CAPTIONS)) for n in names if chance(rng, 0.9)]
  if chance(rng, 0.2):
    rows.append(('gone/1.png', 'a lost picture'))
  if rows and chance(rng, 0.1):
    rows[0] = rows[0][0], pick(rng, BLANK)
  fault = pick(rng, ('twice', 'short', 'long', 'nameless', 'bytes')) if chance(rng, 0.12) else ''
  ends, mark = pick(rng, ('\n', '\r\n')), pick(rng, ('', '', '\ufeff'))
  order = pick(rng, (('file_name', 'text'), ('text', 'file_name'), ('file_name', 'id', 'text')))
  if fault == 'twice':
    rows = [*rows, ('twice.png', 'a'), ('./twice.png', 'b')]
  lines = [
    dict(zip(('file_name', 'text'), row, strict=True), id=str(k)) for k, row in enumerate(rows)
  ]
  if fault == 'nameless':
    lines.append({'text': 'a', 'id': '0'} if name.endswith('.jsonl') else {'text': 'a'})
  if name.endswith('.jsonl'):
    found = [json.dumps(line, ensure_ascii=chance(rng, 0.5)) for line in lines]
    if fault in ('short', 'long'):
      found.append(
        {'short': '{"file_name": "a', 'long': '{"file_name": "b.png", "text": "b"} {}'}[fault]
      )
    text = ends.join([*found, '' if chance(rng, 0.5) else ends])
  else:
    out = io.StringIO()
    # With line feeds alone, Python's writer would not quote a carriage return.
    quoting = csv.QUOTE_ALL if ends == '\n' else pick(rng, (csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    writer = csv.writer(out, lineterminator=ends, quoting=quoting)
    writer.writerow([c for c in order if not (fault == 'nameless' and c == 'file_name')])
    writer.writerows([line.get(c, '') for c in order] for line in lines)
    if fault in ('short', 'long'):
      writer.writerow(['x.png'] if fault == 'short' else ['x.png', 'a', 'b', 'c', 'd'])
    text = out.getvalue()
  data = (mark + text).encode()
  tree.put(name, data.replace(b'a', b'\xe9', 1) if fault == 'bytes' else data)
  return None if fault else rows


def shards(tree, path):
  """Writes WebDataset shards into the folder `path`; returns what a person expects of them."""
  rng, out = tree.rng, slow_reader.Expected()
  number = 0
  for shard in range(int(rng.integers(1, 4))):
    members = []
    for _ in range(int(rng.integers(1, 5))):
      number += 1
      key = pick(rng, ('', 'a b/', 'x.y/', './')) + f'{pick(rng, STEMS[:8])}{number:03d}'
      members += _sample(tree, key, out)
    if chance(rng, 0.2):
      members.append((pick(rng, ('README.md', '__index__.cls', '._1.jpg', 'dir/._2.jpg')), b'text'))
    name = os.path.join(path, f'{shard:05d}.tar')
    os.makedirs(path, exist_ok=True)
    with tarfile.open(name, 'w', format=pick(rng, (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))) as t:
      for member, data in members:
        info = tarfile.TarInfo(member)
        info.size = len(data)
        t.addfile(info, io.BytesIO(data))
  for name in ('more.tar.gz', 'MORE.TAR', 'set.zip', 'part/00000.tar', '.hidden.tar'):
    if chance(rng, 0.06):
      os.makedirs(os.path.dirname(os.path.join(path, name)), exist_ok=True)
      with open(os.path.join(path, name), 'wb') as f:
        f.write(b'?')
      if name[0] != '.':
        out.passes('shard', name)
  if not out.pictures:
    out.refuses('holds no picture')
  return out


def _sample(tree, key, out):
  """Returns the members (name, bytes) of a sample, and tells `out` what to expect of it."""
  rng, size, name = tree.rng, tree.size, os.path.normpath(key)
  kind = pick(rng, drawn_pictures.KINDS)
  low = -(-size // slow_reader.MOST_ENLARGED)
  side = int(rng.integers(1, low)) if chance(rng, 0.06) else int(rng.integers(low, 3 * size))
  drawn = drawn_pictures.draw(rng, kind, side, int(rng.integers(side, 3 * size)))
  if side >= low and chance(rng, 0.03):
    drawn = drawn_pictures.damaged(rng, drawn)
  tree.truth[name] = drawn
  members, missing = [], pick(rng, ('picture', 'unread', 'caption')) if chance(rng, 0.12) else ''
  if missing != 'picture':
    suffixes = drawn_pictures.SUFFIXES[kind.partition('_')[0]]
    members.append((key + ('.heic' if missing == 'unread' else pick(rng, suffixes)), drawn.data))
  text = pick(rng, BLANK) if missing == 'caption' else pick(rng, CAPTIONS)
  how = pick(rng, ('.txt', '.TXT', '.caption', '.json', '.json text', 'none', 'empty first'))
  if how == 'none' and missing == 'caption':
    pass
  elif how == 'empty first':
    members += [(f'{key}.txt', b' \n'), (f'{key}.json', json.dumps({'caption': text}).encode())]
  elif how.startswith('.json'):
    field = 'text' if how.endswith('text') else 'caption'
    members.append((f'{key}.json', json.dumps({'id': 3, field: text}).encode()))
  else:
    members.append((key + (how if how != 'none' else '.txt'), text.encode()))
  if chance(rng, 0.3):
    members.append((f'{key}.cls', b'7'))
  if chance(rng, 0.5):
    members.reverse()
  if missing:
    out.passes('no caption' if missing == 'caption' else 'no picture', name)
  elif slow_reader.too_small(drawn, size):
    out.passes('small', name)
  else:
    out.pictures[name] = slow_reader.one_line(text), name
  return members
