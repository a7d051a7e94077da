"""P14: one teacher pass for several w. Time of a pair (x, w) with K of them a pass, over K = 1.

  python benchmarks/reuse.py

Two teacher forwards and a student step of three cost (2 + 3 K) / (5 K) of what K = 1 does, when
the network is all that counts: 0.8 with K = 2, 0.7 with K = 4. A batch has B images and B K pairs.
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
