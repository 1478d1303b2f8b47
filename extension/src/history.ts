/** The session's runs as a table, each with a way to its cell. */

import { h, ROOT } from './dom';
import { DASH, formatEnergy, formatMass, formatTime } from './numbers';

export interface HistoryRow {
  readonly name: string;
  readonly cell_id: string | null;
  readonly status: string;
  readonly energy_j: number | null;
  readonly carbon_g: number | null;
  readonly duration_s: number | null;
}

export function historyTable(
  rows: readonly HistoryRow[],
  jump: ((cellId: string) => void) | null
): HTMLElement {
  const lines = rows.map(row => {
    const { cell_id } = row;
    const name =
      cell_id && jump
        ? h('button', { class: 'tw-button', type: 'button' }, row.name)
        : h('span', {}, row.name);
    name.addEventListener('click', () => cell_id && jump?.(cell_id));
    const numbers = [
      formatEnergy(row.energy_j),
      row.carbon_g === null ? DASH : `${formatMass(row.carbon_g)} CO2e`,
      formatTime(row.duration_s)
    ];
    return h(
      'tr',
      {},
      h('td', { class: 'tw-name' }, name),
      ...numbers.map(text => h('td', { class: 'tw-number' }, text)),
      h('td', {}, row.status)
    );
  });
  const head = ['run', 'energy', 'carbon', 'time', 'status'].map(text => h('th', { scope: 'col' }, text));
  const table = h(
    'table',
    { class: 'tw-table tw-history' },
    h('thead', {}, h('tr', {}, ...head)),
    h('tbody', {}, ...lines)
  );
  return h('div', ROOT, rows.length ? table : h('p', {}, 'nothing was measured yet'));
}
