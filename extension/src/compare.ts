/** Two runs beside each other, name by name. */

import { h } from './dom';
import { shorten } from './names';
import { DASH, formatEnergy, known, sumKnown } from './numbers';
import type { Joules, Payload } from './payload';

type Interval = readonly [number, number] | null;

/** What one run used for one name; null is unknown, and no zero. */
interface Use {
  readonly energyJ: number | null;
  /** What a repeat of the run would give, 90 %. */
  readonly interval: Interval;
}

export interface Difference {
  readonly fqn: string;
  readonly a: number | null;
  readonly b: number | null;
  /** Joules of one step. */
  readonly aStep: number | null;
  readonly bStep: number | null;
  /** b - a, of one step where both runs have steps; null where the name is unknown in one of them: that is no zero. */
  readonly change: number | null;
  /** The intervals overlap: another repeat may turn the difference round. Null where an interval is unknown. */
  readonly unclear: boolean | null;
}

/** Compare self energies, greatest change first, then what only one of them has. */
export function compare(a: Payload, b: Payload): readonly Difference[] {
  const [left, right] = [usesByName(a), usesByName(b)];
  const names = [...new Set([...left.keys(), ...right.keys()])];
  const rows = names.map(fqn => difference(fqn, left.get(fqn), right.get(fqn), a, b));
  const size = (row: Difference): number => Math.abs(row.change ?? 0);
  return rows.sort(
    (x, y) =>
      Number(y.change !== null) - Number(x.change !== null) || size(y) - size(x) || x.fqn.localeCompare(y.fqn)
  );
}

/** Compare the runs as wholes. */
export function compareTotals(a: Payload, b: Payload): Difference {
  const use = ({ energy }: Payload): Use => ({
    energyJ: energy.value_j,
    interval: asInterval(energy.interval_90_j)
  });
  return difference('the whole run', use(a), use(b), a, b);
}

function difference(
  fqn: string,
  left: Use | undefined,
  right: Use | undefined,
  a: Payload,
  b: Payload
): Difference {
  const steps = [stepsOf(a), stepsOf(b)] as const;
  const [x, y] = [left?.energyJ ?? null, right?.energyJ ?? null];
  const [aStep, bStep] = [per(x, steps[0]), per(y, steps[1])];
  const byStep = steps[0] !== null && steps[1] !== null;
  const [from, to] = byStep ? [aStep, bStep] : [x, y];
  return {
    fqn,
    a: x,
    b: y,
    aStep,
    bStep,
    change: from !== null && to !== null ? to - from : null,
    unclear: overlap(
      scaled(left?.interval ?? null, byStep ? steps[0] : 1),
      scaled(right?.interval ?? null, byStep ? steps[1] : 1)
    )
  };
}

/** Return the steps of a run whose joules of one step are known. */
function stepsOf({ step }: Payload): number | null {
  return step && step.count > 0 && known(step.energy_j) ? step.count : null;
}

function per(energyJ: number | null, count: number | null): number | null {
  return energyJ === null || count === null ? null : energyJ / count;
}

function scaled(interval: Interval, count: number | null): Interval {
  return interval && count ? [interval[0] / count, interval[1] / count] : null;
}

function overlap(a: Interval, b: Interval): boolean | null {
  return a && b ? a[0] <= b[1] && b[0] <= a[1] : null;
}

function asInterval(bounds: readonly [Joules, Joules] | null | undefined): Interval {
  return bounds && known(bounds[0]) && known(bounds[1]) ? [bounds[0], bounds[1]] : null;
}

function usesByName(payload: Payload): Map<string, Use> {
  // What is folded in two reports may be different modules.
  const layers = payload.layers.filter(row => !row.folded);
  const rows = [...layers, ...payload.reserved].filter(row => Object.keys(row.self_j).length > 0);
  const hottest = new Map((payload.groups?.hottest ?? []).map(group => [group.name, group.interval_j]));
  return new Map(
    rows.map(row => {
      const phases = Object.keys(row.self_j);
      // Intervals of several phases are not added here: Python knows how they depend on each other.
      const single = phases.length === 1 ? row.interval_j?.[phases[0] ?? ''] : null;
      const interval = asInterval(hottest.get(row.fqn) ?? single);
      return [row.fqn, { energyJ: sumKnown(Object.values(row.self_j)), interval }];
    })
  );
}

const NAME_LENGTH = 34;
const HEADS = ['A', 'B', 'B − A'];
const UNCLEAR = 'no clear difference';

/** Return the comparison as a table: a name on a line of its own, and below it the joules of both runs. */
export function compareTable(a: Payload, b: Payload): HTMLElement {
  const bySteps = stepsOf(a) !== null && stepsOf(b) !== null;
  const rows = [compareTotals(a, b), ...compare(a, b)].map(row => tableRows(row, bySteps));
  const head = h('tr', {}, ...HEADS.map(text => h('th', { scope: 'col' }, text)));
  const names = [`A: ${a.name}`, `B: ${b.name}`].map(text =>
    h('div', { class: 'tw-compared', title: text }, text)
  );
  const basis = bySteps ? 'the 90 % intervals of a step' : 'the 90 % intervals of the total';
  return h(
    'div',
    {},
    ...names,
    h(
      'div',
      {
        class: 'tw-scroll tw-comparison',
        tabindex: 0,
        role: 'region',
        'aria-label': 'comparison of two runs'
      },
      h('table', { class: 'tw-table tw-compare' }, h('thead', {}, head), ...rows)
    ),
    h(
      'div',
      { class: 'tw-note' },
      `Self energy${bySteps ? '; B − A is that of a step' : ''}. “${UNCLEAR}”: ${basis} overlap.`
    )
  );
}

function tableRows(row: Difference, bySteps: boolean): HTMLElement {
  const mark = row.unclear ? h('span', { class: 'tw-unclear' }, UNCLEAR) : null;
  const name = h(
    'th',
    { colspan: 3, scope: 'rowgroup', class: 'tw-name' },
    h('span', { title: row.fqn }, shorten(row.fqn, NAME_LENGTH)),
    mark
  );
  const values = [
    [formatEnergy(row.a), bySteps ? `${formatEnergy(row.aStep)}/step` : ''],
    [formatEnergy(row.b), bySteps ? `${formatEnergy(row.bStep)}/step` : ''],
    [signed(row.change), relative(row, bySteps)]
  ].map(([first, second], column) =>
    h(
      'td',
      { class: 'tw-number', 'data-run': HEADS[column] },
      h('div', {}, first ?? ''),
      h('div', { class: 'tw-interval' }, second ?? '')
    )
  );
  return h(
    'tbody',
    { class: row.unclear ? 'tw-no-difference' : null, 'data-name': row.fqn },
    h('tr', {}, name),
    h('tr', {}, ...values)
  );
}

function signed(change: number | null): string {
  return change === null
    ? formatEnergy(null)
    : `${change > 0 ? '+' : change < 0 ? '−' : ''}${formatEnergy(Math.abs(change))}`;
}

/** Say by how many percent B is above A. */
function relative({ a, b, aStep, bStep }: Difference, bySteps: boolean): string {
  const [from, to] = bySteps ? [aStep, bStep] : [a, b];
  if (!from || to === null) {
    return DASH;
  }
  const percent = (to / from - 1) * 100;
  return `${percent > 0 ? '+' : percent < 0 ? '−' : ''}${Math.abs(percent).toFixed(1)} %`;
}
