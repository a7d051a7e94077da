"""Tests of the flags that all commands have."""

import pwd

from gdistill.cli import command_line
from gdistill.cli import picture_flags
from gdistill.cli import sample
from gdistill.cli import table


def test_the_home_of_a_flag_is_ones_own(monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')
  args = command_line.parse(sample.parser(), ['--folder=~/run', '--out=~', '--labels=a~/b'])
  assert (args.folder, args.out, args.labels) == ('/home/me/run', '/home/me', ['a~/b'])


def test_a_list_of_paths_has_homes_and_words_have_none(monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')
  args = command_line.parse(table.parser(), ['~/a.json', 'b~.json'])
  assert args.files == ['/home/me/a.json', 'b~.json']
  given = ['--folder=~root/run', '--out=o', '--image=i', '--prompt=~/o', '--label=~']
  args = command_line.parse(picture_flags.parser('edit', ''), given)
  assert (args.folder, args.prompt, args.label) == (
    f'{pwd.getpwnam("root").pw_dir}/run',
    '~/o',
    '~',
  )
  args = command_line.parse(sample.parser(), ['--folder=f', '--out=o', '--prompt=~', '--prompt=~/'])
  assert args.prompt == ['~', '~/']
