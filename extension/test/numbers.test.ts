import { describe, expect, test } from 'vitest';
import {
  formatEnergy,
  formatInterval,
  formatMass,
  formatPower,
  formatShare,
  formatTime,
  keepUnits,
  sumKnown
} from '../src/numbers';
import { golden } from './fixture';

describe('numbers are written as Python writes them', () => {
  test.each([
    [null, '—'],
    [Number.NaN, '—'],
    [0, '0 J'],
    [999.9, '1.00 kJ'],
    [999.4, '999 J'],
    [0.000001234, '1.23 µJ'],
    [12.34, '12.3 J'],
    [0.125, '125 mJ'],
    [2.675, '2.67 J'],
    [-5.5, '-5.50 J'],
    [3.6e6, '1.00 kWh'],
    [4.44e7, '12.3 kWh'],
    [1.125, '1.12 J'],
    [1.375, '1.38 J'],
    [0.5, '500 mJ'],
    [999500, '1.00 MJ']
  ])('%s joules are %s', (value, text) => expect(formatEnergy(value)).toBe(text));

  test('the golden total reads the same here and there', () => {
    const { energy } = golden();
    const [lo, hi] = energy.interval_90_j ?? [null, null];
    expect(`${formatEnergy(energy.value_j)} (90 % of repeats: ${formatInterval(lo, hi)})`).toBe(energy.text);
  });

  test('the golden grams read the same here and there', () => {
    const { carbon } = golden();
    expect(`${formatMass(carbon.value_g)} CO2e`).toBe(carbon.text);
  });

  test('times, powers and shares fit their unit', () => {
    expect([formatTime(59.96), formatTime(600), formatTime(7200), formatTime(null)]).toEqual([
      '60.0 s',
      '10.0 min',
      '2.00 h',
      '—'
    ]);
    expect([formatPower(1200), formatShare(0.1234), formatShare(undefined)]).toEqual([
      '1.20 kW',
      '12.3 %',
      '—'
    ]);
  });

  test('a sum with an unknown part is unknown', () => {
    expect(sumKnown([1, null, 2])).toBeNull();
    expect(sumKnown([1, 2])).toBe(3);
  });
});

test('a number stays on one line with its unit, and words wrap', () => {
  expect(keepUnits('38.1 J (0 to 182 mJ) in 21 s, 7 %; 3 min, 61 °C, 6 steps of 8 hosts')).toBe(
    '38.1\u00a0J (0 to 182\u00a0mJ) in 21\u00a0s, 7\u00a0%; 3\u00a0min, 61\u00a0°C, 6 steps of 8 hosts'
  );
});
