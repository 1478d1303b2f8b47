/** Joules per output token by its position in its request, as one bar for each group of positions. */

import { h } from './dom';
import { formatEnergy, formatTime } from './numbers';
import type { PositionRow } from './payload';

export const TITLE = 'Joules per output token, by position';

export function positions(rows: readonly PositionRow[]): HTMLElement | null {
  if (rows.length === 0) {
    return null;
  }
  const most = Math.max(...rows.map(row => row.energy_j ?? 0));
  const heads = ['position', 'tokens', 'joules a token', 'time a token', ''];
  return h(
    'table',
    { class: 'tw-positions', 'aria-label': TITLE },
    h('thead', {}, h('tr', {}, ...heads.map(head => h('th', { scope: 'col' }, head)))),
    h('tbody', {}, ...rows.map(row => line(row, most)))
  );
}

function line(row: PositionRow, most: number): HTMLElement {
  const width = row.energy_j === null || most <= 0 ? 0 : (100 * row.energy_j) / most;
  const texts = [label(row), String(row.tokens), formatEnergy(row.energy_j), formatTime(row.time_s)];
  const bar = h('div', { class: 'tw-position-bar', style: `width:${width.toFixed(1)}%` });
  return h('tr', {}, ...texts.map(text => h('td', {}, text)), h('td', { 'aria-hidden': 'true' }, bar));
}

/** The first token is made by prefill, and its joules are those of the prompt. */
export function label(row: PositionRow): string {
  if (row.last === 0) {
    return '0 (prefill)';
  }
  return row.first === row.last ? String(row.first) : `${row.first} to ${row.last}`;
}
