"""Tests of the table: each row at its own place, on the page and as Markdown."""

import re

import fake_run
import pytest

from gdistill.evaluation.report import summary
from gdistill.evaluation.report import tables


def test_every_place_of_the_table_holds_its_own_row(small_page):
  table = re.search(r'<table class="numbers">.*?</table>', small_page, re.DOTALL)[0]
  rows = re.findall(r'<tr.*?</tr>', table, re.DOTALL)
  lines = [re.findall(r'<t[hd][^>]*>(.*?)</t[hd]>', r) for r in rows]
  names = {'student, DDIM': ('student', 'ddim'), 'teacher, DDIM': ('teacher', 'ddim'),
           'student after guidance, DDIM': ('student', 'ddim'),
           'teacher, DPM-Solver++': ('teacher', 'dpm_solver')}  # fmt: skip
  # 2 lines of head, 2 of the student, 1 of the student after guidance, 3 of the teacher by DDIM
  # (also at 256 steps) and 2 of the teacher by DPM-Solver++
  assert len(lines) == 2 + 2 + 1 + 3 + 2
  for label, steps, calls, *cells in lines[2:]:
    fds = [fake_run.fd(*names[label], int(steps), w) for w in (0.0, 1.0, 4.0)]
    assert [float(c) for c in cells[::2]] == pytest.approx(fds, rel=0.01)
    scores = [9.2 - fd / 40 for fd in fds]
    assert [float(c) for c in cells[1::2]] == pytest.approx(scores, abs=0.006)
    assert int(calls) == int(steps) * (2 if label.startswith('teacher') else 1)


def test_markdown_says_what_the_page_says():
  lines = tables.markdown(fake_run.rows(ws=(0.0, 1.0, 4.0), steps=(2, 4))).splitlines()
  cells = [[c.strip() for c in line.strip('|').split('|')] for line in lines if line[:1] == '|']
  assert {len(line) for line in cells} == {6} and len(cells) == 2 + 8
  fd = fake_run.fd('student', 'ddim', 4, 4.0)
  row = next(c for c in cells if c[:3] == ['student, DDIM', '4', '4'])
  assert row[-1] == f'{fd:.1f} / {9.2 - fd / 40:.2f}'
  assert lines[-1] == summary.PROTOCOL + '.'
