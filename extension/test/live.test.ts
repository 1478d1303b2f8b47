import { describe, expect, test, vi } from 'vitest';
import { LiveView } from '../src/chart';
import { layersCsv } from '../src/csv';
import { historyTable } from '../src/history';
import { ageText, FRESH, LiveState } from '../src/live';
import { isProfiled, profiled } from '../src/magic';
import { asPayload, type Begin } from '../src/payload';
import { joined } from '../src/power';
import { ReportView } from '../src/report';
import { golden, row } from './fixture';

const BEGIN: Begin = {
  schema: 'torchwatt.live',
  version: 1,
  run_id: '',
  name: '',
  carbon_how: '',
  traces: false,
  unavailable: [],
  domains: [{ domain: 'cpu', provenance: 'measured', meter: '' }]
};
const state = (): LiveState => new LiveState(BEGIN);
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

describe('how old a live view is', () => {
  test('grows while no message comes, and says so only when it is too old', () => {
    const one = state();
    one.take(
      { ...beat([1, 10]), as_of_s: 9.8, layers: { as_of_s: 8, layers: [], reserved: [], folded: null } },
      1000
    );
    expect(one.ages(1000).figures).toBeCloseTo(0.2);
    expect(one.ages(1000).layers).toBeCloseTo(2);
    expect(one.ages(5000).figures).toBeCloseTo(4.2);
    expect(one.ages(5000).layers).toBeCloseTo(6);
    expect(ageText(0.2, FRESH.figures)).toBe('');
    expect(ageText(4.2, FRESH.figures)).toBe('4.2 s old');
    expect(ageText(62.3, FRESH.layers)).toBe('62 s old');
  });

  test('is that of the layers that came last, also when later messages bring none', () => {
    const one = state();
    one.take({ ...beat([2]), layers: { as_of_s: 2, layers: [], reserved: [], folded: null } }, 0);
    one.take(beat([9]), 7000);
    expect(one.ages(7000)).toEqual({ figures: 0, layers: 7 });
  });

  test('is unknown before the first layers', () => {
    expect(state().ages(5)).toEqual({ figures: 0, layers: null });
    expect(ageText(null, 5)).toBe('');
  });
});

describe('keys in a view are not for the notebook', () => {
  const FOCUSABLE = 'a, button, input, select, summary, textarea, [tabindex]';
  const live = new LiveView({ ...BEGIN, traces: true });
  const views = { report: new ReportView(golden()).node, live: live.node, history: historyTable([], null) };

  test.each(Object.entries(views))('of the %s: everything that can have the focus says so', (_, node) => {
    const found = [node, ...node.querySelectorAll(FOCUSABLE)];
    expect(found.filter(one => !one.hasAttribute('data-lm-suppress-shortcuts'))).toEqual([]);
    expect(node.getAttribute('tabindex')).toBe('-1'); // takes the focus of what is clicked in it
  });
});

test('a live view says that the report is being made, and what it shows grows no older', () => {
  vi.useFakeTimers({ toFake: ['setInterval', 'clearInterval', 'performance', 'requestAnimationFrame'] });
  const view = new LiveView({ ...BEGIN, traces: true });
  document.body.append(view.node);
  view.take(beat([1]));
  vi.advanceTimersByTime(3500);
  expect(view.node.querySelector('.tw-stale')).not.toBeNull();
  view.settle();
  vi.advanceTimersByTime(5000);
  expect(view.node.querySelector('.tw-status')?.textContent).toBe('making the report');
  expect(view.node.querySelector('.tw-stale')).toBeNull();
  expect(view.node.textContent).not.toMatch(/s old/);
  view.dispose();
  vi.useRealTimers();
});

test('a live view keeps a minute and one set of layers, however many messages a hidden tab was sent', () => {
  const one = new LiveState({ ...BEGIN, traces: true });
  for (let n = 0; n < 20_000; n++) {
    one.take(
      {
        ...beat([n / 4]),
        layers: { as_of_s: n / 4, layers: [row('a', null, n)], reserved: [], folded: null }
      },
      n
    );
  }
  expect(one.columns().t_s.length).toBeLessThanOrEqual(242);
  expect(one.freshLayers()?.as_of_s).toBe(19_999 / 4);
  expect(one.freshLayers()).toBeNull();
});

test('a live view that gets no message greys what it shows and says how old it is', () => {
  vi.useFakeTimers({ toFake: ['setInterval', 'clearInterval', 'performance', 'requestAnimationFrame'] });
  const view = new LiveView({ ...BEGIN, traces: true });
  document.body.append(view.node);
  view.take({
    ...beat([1]),
    steps: 3,
    layers: { as_of_s: 1, layers: [row('a', null, 1)], reserved: [], folded: null }
  });
  vi.advanceTimersByTime(300);
  expect(view.node.querySelector('.tw-stale')).toBeNull();
  vi.advanceTimersByTime(2700);
  expect(view.node.querySelector('.tw-strip .tw-figures')?.classList.contains('tw-stale')).toBe(true);
  expect(view.node.querySelector('.tw-head')?.textContent).toMatch(/[23]\.\d s old/);
  expect(view.node.querySelector('.tw-layers-view')?.classList.contains('tw-stale')).toBe(false);
  vi.advanceTimersByTime(9000);
  expect(view.node.querySelector('.tw-layers-view')?.classList.contains('tw-stale')).toBe(true);
  view.take(beat([8]));
  vi.advanceTimersByTime(20);
  expect(view.node.querySelector('.tw-figures')?.classList.contains('tw-stale')).toBe(false);
  view.dispose();
  vi.useRealTimers();
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
  expect(one.strip()[0]?.value).toBe('400 W');
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
