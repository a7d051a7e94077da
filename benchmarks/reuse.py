"""P14: one teacher pass for K values of w: the time per pair (x, w), relative to K = 1.

  python benchmarks/reuse.py

A step makes two teacher forwards, and a student step of three forwards for each w. If only the
network's calls took time, a pair would cost (2 + 3 K) / (5 K) of a pair with K = 1: 0.8 with K = 2,
0.7 with K = 4. A batch has B images and B K pairs.
"""

import common

BARS = {2: '<= 0.85', 4: '<= 0.75'}


def main() -> None:
  args = common.arguments(__doc__)
  rows, details = [], {}
  sizes = (('tiny', 4),) if args.smoke else (('small32', 16), ('small128', 4))
  for network, batch in sizes:
    steps = {
      k: common.Step(common.recipe(network, batch, guidance=dict(ws_per_pass=k)), 'guidance')
      for k in (1, *BARS)
    }
    taken = common.interleaved(steps, args.repeats, args.seconds)
    for k, bar in BARS.items():
      values = [a / k for a in common.ratios(taken[k], taken[1])]
      rows.append(
        common.row('P14', f'a pair (x, w) with K = {k}, {network}, {batch} images', values, bar)
      )
    details[f'{network}_seconds'] = common.medians(taken)
  common.show(rows, **details)


if __name__ == '__main__':
  main()
