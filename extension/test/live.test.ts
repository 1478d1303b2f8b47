import { describe, expect, test } from 'vitest';
import { compare } from '../src/compare';
import { layersCsv } from '../src/csv';
import { LiveState } from '../src/live';
import { isProfiled, profiled } from '../src/magic';
import { asPayload } from '../src/payload';
import { joined } from '../src/power';
import { golden, row } from './fixture';

const state = (): LiveState =>
  new LiveState({
    schema: 'torchwatt.live',
    version: 1,
    run_id: '',
    name: '',
    carbon_how: '',
    traces: false,
    unavailable: [],
    domains: [{ domain: 'cpu', provenance: 'measured', meter: '' }]
  });
const beat = (times: number[], now = times[times.length - 1] ?? 0) => ({
  t_s: now,
  energy_j: now,
  carbon_g: null,
  power_w: { cpu: 1 },
  domains_j: { cpu: now },
  points: { t_s: times, power_w: { cpu: times.map(t => t * 10) } }
});

describe('the line of a live view', () => {
  test('has each point once, whichever messages were lost or came again', () => {
    const one = state();
    one.take(beat([1, 2]));
    one.take(beat([1, 2, 3]));
    one.take(beat([4, 5])); // a message in between was lost
    expect(one.columns()).toEqual({ t_s: [1, 2, 3, 4, 5], power_w: { cpu: [10, 20, 30, 40, 50] } });
  });

  test('holds a minute, however long the run', () => {
    const one = state();
    for (let t = 0; t < 1000; t++) {
      one.take(beat([t]));
    }
    expect(one.columns().t_s.length).toBe(61);
  });

  test('leaves a hole where a domain was silent', () => {
    const one = state();
    one.take({ ...beat([1, 2]), points: { t_s: [1, 2], power_w: { cpu: [5, null] } } });
    expect(one.columns().power_w.cpu).toEqual([5, null]);
  });
});

test('what turns out to be inside of a module makes room for the module, and the total is its own', () => {
  const one = state();
  one.take(beat([1]));
  one.take({
    ...beat([1, 2]),
    power_w: { 'module:0': 400 },
    domains_j: { 'module:0': 800 },
    points: { t_s: [1, 2], power_w: { 'module:0': [null, 400] } }
  });
  expect(one.columns().power_w).toEqual({ cpu: [10, null], 'module:0': [null, 400] });
  expect(one.figures()[0]?.value).toBe('400 W');
  expect(one.figures().map(figure => figure.label)).not.toContain('cpu');
});

test('curves with times of their own share one axis, and none breaks the other', () => {
  const curves = [
    { domain: 'a', t_s: [0, 2], power_w: [1, null] },
    { domain: 'b', t_s: [1], power_w: [3] }
  ];
  expect(joined(curves)).toEqual({
    t_s: [0, 1, 2],
    power_w: { a: [1, undefined, null], b: [undefined, 3, undefined] }
  });
});

describe('two runs compared', () => {
  test('change most first; what only one has is no zero', () => {
    const a = {
      ...golden(),
      layers: [row('x', null, 1), row('y', null, 10), row('gone', null, 3)],
      reserved: []
    };
    const b = {
      ...golden(),
      layers: [row('x', null, 2), row('y', null, 4), row('new', null, 5)],
      reserved: []
    };
    expect(compare(a, b).map(one => [one.fqn, one.change])).toEqual([
      ['y', -6],
      ['x', 1],
      ['gone', null],
      ['new', null]
    ]);
  });

  test('a run against itself changes nothing', () => {
    expect(compare(golden(), golden()).every(one => one.change === 0)).toBe(true);
  });
});

describe('the CSV', () => {
  const lines = layersCsv(golden()).trimEnd().split('\n');

  test('has one row a name and phase', () => {
    const { layers, reserved } = golden();
    const rows = [...layers, ...reserved].reduce((sum, one) => sum + Object.keys(one.self_j).length, 0);
    expect(lines.length).toBe(rows + 1);
  });

  test('adds up to the report', () => {
    const joules = lines.slice(1).map(line => Number(line.split(',')[4]));
    expect(joules.reduce((a, b) => a + b, 0) / (golden().energy.value_j ?? 0)).toBeCloseTo(1, 4);
  });

  test('quotes what needs it, runs no formula, and leaves the unknown empty', () => {
    const evil = { ...row('=cmd()', null, 1), class: 'A,"B"' };
    const text = layersCsv({ ...golden(), name: 'n', layers: [evil], reserved: [], folded: null });
    expect(text.split('\n')[1]).toBe(`n,'=cmd(),"A,""B""",forward,1,,,1,apportioned`);
  });

  test('leaves calls empty that are not known of all steps', () => {
    const untold = { ...row('expert', null, 1), calls: null };
    const text = layersCsv({ ...golden(), name: 'n', layers: [untold], reserved: [], folded: null });
    expect(text.split('\n')[1]).toBe('n,expert,Linear,forward,1,,,,apportioned');
  });
});

test('a report of another version is none', () => {
  expect(asPayload({ ...golden(), version: 2 })).toBeNull();
  expect(asPayload(null)).toBeNull();
});

test('%%energy goes on the first line, once', () => {
  expect(profiled('x = 1', 'FRA')).toBe('%%energy --region FRA\nx = 1');
  expect(isProfiled(profiled('x = 1', ''))).toBe(true);
  expect(isProfiled('%%energyx\n')).toBe(false);
});
