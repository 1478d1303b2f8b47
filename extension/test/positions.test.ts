import { expect, test } from 'vitest';
import type { Payload, PositionRow } from '../src/payload';
import { positions } from '../src/positions';
import { ReportView } from '../src/report';
import { golden } from './fixture';

const ROWS: readonly PositionRow[] = [
  { first: 0, last: 0, tokens: 2, energy_j: 4, time_s: 0.5 },
  { first: 1, last: 15, tokens: 30, energy_j: 1, time_s: 0.1 },
  { first: 16, last: 31, tokens: 4, energy_j: null, time_s: null }
];

test('a bar is as long as the joules of its tokens; unknown joules are a dash', () => {
  const rows = [...(positions(ROWS)?.querySelectorAll('tbody tr') ?? [])];
  const texts = rows.map(row => [...row.children].slice(0, 4).map(cell => cell.textContent));
  expect(texts).toEqual([
    ['0 (prefill)', '2', '4.00 J', '500 ms'],
    ['1 to 15', '30', '1.00 J', '100 ms'],
    ['16 to 31', '4', '—', '—']
  ]);
  expect(rows.map(row => row.querySelector<HTMLElement>('.tw-position-bar')?.style.width)).toEqual([
    '100.0%',
    '25.0%',
    '0.0%'
  ]);
});

test('a report with tokens has them under its figures, one without has no such table', () => {
  const payload = golden() as Payload;
  expect(new ReportView({ ...payload, positions: ROWS }).node.querySelectorAll('.tw-positions').length).toBe(
    1
  );
  expect(new ReportView({ ...payload, positions: [] }).node.querySelector('.tw-positions')).toBeNull();
});
