/** The layers of a report as CSV: what the report holds, one row a name and phase. */

import type { Booked, Payload } from './payload';

const COLUMNS = [
  'run',
  'fqn',
  'class',
  'phase',
  'energy_self_j',
  'energy_self_lo_j',
  'energy_self_hi_j',
  'calls',
  'provenance'
];

/** Unknown is an empty cell. Six figures, as the report has them; the audit tables have all. */
export function layersCsv(payload: Payload): string {
  const rows = [...payload.layers, ...payload.reserved].flatMap(row => booked(payload.name, row));
  if (payload.folded) {
    rows.push([
      payload.name,
      `(other ${payload.folded.layers} layers)`,
      '',
      '',
      payload.folded.energy_j,
      null,
      null,
      null,
      null
    ]);
  }
  return toCsv([COLUMNS, ...rows]);
}

type Cell = string | number | null | undefined;

/** Write rows; unknown is an empty cell. */
export function toCsv(rows: readonly (readonly Cell[])[]): string {
  return rows
    .map(row => row.map(cell).join(','))
    .join('\n')
    .concat('\n');
}

function booked(run: string, row: Booked): Cell[][] {
  return Object.entries(row.self_j).map(([phase, energyJ]) => {
    const [lo, hi] = row.interval_j?.[phase] ?? [null, null];
    return [run, row.fqn, row.class, phase, energyJ, lo, hi, row.calls, row.provenance];
  });
}

function cell(value: Cell): string {
  const text = value === null || value === undefined ? '' : String(value);
  // A spreadsheet would run a name that begins like a formula.
  const safe = typeof value === 'string' && /^[=+\-@\t\r＝＋－＠]/.test(text) ? `'${text}` : text;
  return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}
