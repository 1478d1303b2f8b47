import { describe, expect, test } from 'vitest';
import { compare, compareTable, compareTotals } from '../src/compare';
import type { Group, LayerRow, Payload } from '../src/payload';
import { golden, row } from './fixture';

function group(name: string, energyJ: number, interval: [number, number] | null): Group {
  return {
    name,
    count: 1,
    energy_j: energyJ,
    share: null,
    interval_j: interval,
    each_j: null,
    by_phase: {},
    provenance: null,
    unclear: false
  };
}

function report(layers: readonly LayerRow[], more: Partial<Payload> = {}): Payload {
  return { ...golden(), layers, reserved: [], step: { count: 0, energy_j: null }, ...more };
}

describe('two runs compared', () => {
  test('change most first; what only one has is no zero', () => {
    const a = report([row('x', null, 1), row('y', null, 10), row('gone', null, 3)]);
    const b = report([row('x', null, 2), row('y', null, 4), row('new', null, 5)]);
    expect(compare(a, b).map(one => [one.fqn, one.change])).toEqual([
      ['y', -6],
      ['x', 1],
      ['gone', null],
      ['new', null]
    ]);
  });

  test('a run against itself changes nothing, and no difference is clear', () => {
    const rows = [compareTotals(golden(), golden()), ...compare(golden(), golden())];
    expect(rows.every(one => one.change === 0 && one.unclear !== false)).toBe(true);
    expect(rows[0]?.unclear).toBe(true);
  });

  test('are compared by the joules of a step where both have steps', () => {
    const a = report([row('x', null, 10)], { step: { count: 10, energy_j: 1 } });
    const b = report([row('x', null, 30)], { step: { count: 15, energy_j: 2 } });
    const [x] = compare(a, b);
    expect([x?.a, x?.b, x?.aStep, x?.bStep, x?.change]).toEqual([10, 30, 1, 2, 1]);
    expect(compare(a, report([row('x', null, 30)]))[0]?.change).toBe(20);
  });

  test('joules of a step are unknown where the meters did not cover the run', () => {
    const a = report([row('x', null, 10)], { step: { count: 10, energy_j: null } });
    expect(compare(a, a)[0]?.aStep).toBeNull();
  });
});

describe('a difference', () => {
  const layers = [row('x', null, 10), row('y', null, 10)];
  const a = report(layers, {
    groups: { hottest: [group('x', 10, [9, 11]), group('y', 10, [9.9, 10.1])] },
    step: { count: 10, energy_j: 2 }
  });
  const other = [row('x', null, 21), row('y', null, 21)];
  const b = report(other, {
    groups: { hottest: [group('x', 21, [19, 23]), group('y', 21, [20.9, 21.1])] },
    step: { count: 20, energy_j: 2 }
  });

  test('inside of the intervals of a step is not clear, outside of them it is', () => {
    expect(compare(a, b).map(one => [one.fqn, one.unclear])).toEqual([
      ['x', true],
      ['y', false]
    ]);
  });

  test('is not marked where an interval is unknown', () => {
    const none = report(other, { groups: { hottest: [group('x', 21, null)] } });
    expect(compare(a, none)[0]?.unclear).toBeNull();
  });

  test('of several phases has no interval unless Python gave one', () => {
    const both = { ...row('x', null, 2), self_j: { forward: 1, backward: 1 } };
    const phases = { ...both, interval_j: { forward: [0.9, 1.1], backward: [0.9, 1.1] } as const };
    expect(compare(report([phases]), report([phases]))[0]?.unclear).toBeNull();
  });

  test('is marked in the table in words, and a step is beside the total', () => {
    const table = compareTable(a, b);
    const rows = [...table.querySelectorAll('tbody')];
    const texts = Object.fromEntries(rows.map(one => [one.dataset.name, one.textContent]));
    expect(texts.x).toContain('no clear difference');
    expect(texts.y).not.toContain('no clear difference');
    expect(texts.y).toContain('10.0 J1.00 J/step21.0 J1.05 J/step+50.0 mJ+5.0 %');
  });
});
