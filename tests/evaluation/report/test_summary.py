"""Tests of the sentences at the head of the page, which follow from the rows."""

import fake_run

from gdistill.evaluation.report import summary
from gdistill.evaluation.report import tables


def test_the_summary_is_computed_from_the_rows(small_page):
  student, teacher = (
    fake_run.fd('student', 'ddim', 4, 1.0),
    fake_run.fd('teacher', 'ddim', 256, 1.0),
  )
  short = fake_run.fd('teacher', 'ddim', 4, 1.0)
  text = fake_run.text_of(small_page)
  assert f'At w = 1 the student at 4 steps has FD {student:.2f} for 4 network calls' in text
  assert f'256-step reference has FD {teacher:.2f} for 512 network calls' in text
  assert f'cut to 4 steps of DDIM has FD {short:.1f} for 8 network calls' in text
  assert summary.PROTOCOL in text


def test_a_distance_is_called_by_its_extractors_name():
  about = {'extractor': 'inception', 'distance': 'FID', 'extractor_digest': '0a1b',
           'resize': 'to 299', 'reference_set': 'cifar10', 'reference_images': 50_000}  # fmt: skip
  rows = [{**r, **about} for r in fake_run.rows()]
  text = tables.markdown(rows)
  assert 'FD = FID, a Fréchet distance in the features of inception (weights 0a1b; to 299)' in text
  assert 'of cifar10' in text and summary.PROTOCOL not in text
  assert summary.PROTOCOL in tables.markdown(fake_run.rows())
