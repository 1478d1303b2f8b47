/** The first look: the strip above a running cell's output, and the card that stays when it ends. */

import { h, s, say, set } from './dom';
import { formatShare, known } from './numbers';
import type { Payload } from './payload';
import type { Columns } from './power';
import { chip } from './provenance';

export type Top = readonly (readonly [name: string, share: number | null])[];

const WIDTH = 150;
const HEIGHT = 30;
const MAX_TOP = 3;

/** Add up the domains at each instant; null where one that counts is unknown. */
export function totalPower({ t_s, power_w }: Columns): readonly (number | null)[] {
  const lines = Object.values(power_w).filter(values => values.some(known));
  return t_s.map((_, index) => {
    const watts = lines.map(values => values[index]);
    return lines.length && watts.every(known) ? watts.reduce<number>((a, b) => a + (b as number), 0) : null;
  });
}

/** Return the path of a line through values over time in a box; it breaks where a value is unknown. */
export function sparkline(
  t_s: readonly number[],
  values: readonly (number | null)[],
  width = WIDTH,
  height = HEIGHT
): string {
  const [first, last] = [t_s[0] ?? 0, t_s[t_s.length - 1] ?? 0];
  const top = Math.max(...values.filter(known), Number.EPSILON);
  let pen = 'M';
  let path = '';
  values.forEach((value, index) => {
    if (value === null) {
      pen = 'M';
      return;
    }
    const x = last > first ? (((t_s[index] ?? first) - first) / (last - first)) * width : width;
    path += `${pen}${x.toFixed(1)} ${(height - 1 - (value / top) * (height - 2)).toFixed(1)}`;
    pen = 'L';
  });
  return path;
}

/** Power of the last minute as a small line. */
export class Sparkline {
  private readonly path = s('path', { class: 'tw-spark-line' });
  readonly node = s(
    'svg',
    {
      class: 'tw-spark',
      width: WIDTH,
      height: HEIGHT,
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
      'aria-hidden': 'true'
    },
    this.path
  );

  show(data: Columns): void {
    set(this.path, { d: sparkline(data.t_s, totalPower(data)) });
  }
}

/** The groups with most of the joules, each with its share and a bar. */
export class TopGroups {
  readonly node = h('div', { class: 'tw-top', role: 'list', 'aria-label': 'most of the energy' });
  private readonly rows = Array.from({ length: MAX_TOP }, () => {
    const [name, share, bar] = [h('span', { class: 'tw-top-name' }), h('b', {}), h('i', {})];
    const node = h(
      'div',
      { class: 'tw-top-group', role: 'listitem', hidden: true },
      name,
      share,
      h('div', { class: 'tw-share' }, bar)
    );
    this.node.append(node);
    return { node, name, share, bar };
  });

  show(top: Top): void {
    this.rows.forEach(({ node, name, share, bar }, index) => {
      const group = top[index];
      node.hidden = !group;
      if (group) {
        say(name, group[0]);
        set(name, { title: group[0] });
        say(share, formatShare(group[1]));
        bar.style.width = `${Math.min(Math.max((group[1] ?? 0) * 100, 0), 100)}%`;
        bar.className = 'tw-bg-forward';
      }
    });
  }
}

/** A finished run in a few lines: the answer, what to do about it, and how it was measured. */
export function summaryCard(payload: Payload): HTMLElement {
  const { energy, answer, domains, unavailable, rates } = payload;
  const first = [
    energy.text,
    energy.systematic_text,
    ...rates.slice(0, 1).map(rate => `${rate.value} ${rate.label}`)
  ];
  const sentences = answer?.sentences.length ? answer.sentences : [first.filter(Boolean).join(' · ')];
  const meters = domains.map(({ domain, provenance }) =>
    h('span', { class: 'tw-meter' }, `${domain} `, chip(provenance))
  );
  const missing = [...new Set(unavailable.map(gone => gone.domain))].join(', ');
  return h(
    'div',
    { class: 'tw-card' },
    h('p', { class: 'tw-answer' }, sentences.join(' ')),
    answer?.hint ? h('p', { class: 'tw-hint' }, answer.hint) : null,
    h(
      'div',
      { class: 'tw-meters' },
      ...meters,
      missing ? h('span', { class: 'tw-note' }, `no meter: ${missing}`) : null
    )
  );
}
