/** Two runs beside each other, name by name. */

import { h } from './dom';
import { formatEnergy, formatShare, known, sumKnown } from './numbers';
import type { Payload } from './payload';

export interface Difference {
  readonly fqn: string;
  readonly a: number | null;
  readonly b: number | null;
  /** b - a; null where the name is unknown in one of them: that is no zero. */
  readonly change: number | null;
}

/** Compare self energies, greatest change first, then what only one of them has. */
export function compare(a: Payload, b: Payload): readonly Difference[] {
  const [left, right] = [selfByName(a), selfByName(b)];
  const rows = [...new Set([...left.keys(), ...right.keys()])].map(fqn => {
    const [x, y] = [left.get(fqn) ?? null, right.get(fqn) ?? null];
    return { fqn, a: x, b: y, change: x !== null && y !== null ? y - x : null };
  });
  const size = (row: Difference): number => Math.abs(row.change ?? 0);
  return rows.sort(
    (x, y) =>
      Number(y.change !== null) - Number(x.change !== null) || size(y) - size(x) || x.fqn.localeCompare(y.fqn)
  );
}

function selfByName(payload: Payload): Map<string, number | null> {
  // What is folded in two reports may be different modules.
  const layers = payload.layers.filter(row => !row.folded);
  const rows = [...layers, ...payload.reserved].filter(row => Object.keys(row.self_j).length > 0);
  return new Map(rows.map(row => [row.fqn, sumKnown(Object.values(row.self_j))]));
}

export function compareTable(a: Payload, b: Payload): HTMLElement {
  const whole: Difference = {
    fqn: 'the whole run',
    a: a.energy.value_j,
    b: b.energy.value_j,
    change: known(a.energy.value_j) && known(b.energy.value_j) ? b.energy.value_j - a.energy.value_j : null
  };
  const rows = [whole, ...compare(a, b)].map(row => {
    const texts = [formatEnergy(row.a), formatEnergy(row.b), signed(row.change), relative(row)];
    return h(
      'tr',
      {},
      h('td', { class: 'tw-name', title: row.fqn }, row.fqn),
      ...texts.map(text => h('td', { class: 'tw-number' }, text))
    );
  });
  const heads = ['layer (self)', `A: ${a.name}`, `B: ${b.name}`, 'B − A', 'B / A'];
  const head = h('tr', {}, ...heads.map(text => h('th', { scope: 'col' }, text)));
  return h(
    'div',
    { class: 'tw-scroll' },
    h('table', { class: 'tw-table tw-compare' }, h('thead', {}, head), h('tbody', {}, ...rows))
  );
}

function signed(change: number | null): string {
  return change === null
    ? formatEnergy(null)
    : `${change > 0 ? '+' : change < 0 ? '−' : ''}${formatEnergy(Math.abs(change))}`;
}

function relative(row: Difference): string {
  return row.a && row.b !== null ? formatShare(row.b / row.a) : formatShare(null);
}
