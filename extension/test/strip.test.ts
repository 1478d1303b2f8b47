import { describe, expect, test } from 'vitest';
import { LiveView } from '../src/chart';
import { LiveState } from '../src/live';
import type { Beat, Begin, Payload } from '../src/payload';
import { ReportView } from '../src/report';
import { sparkline, totalPower } from '../src/strip';
import { golden } from './fixture';
import { frame } from './setup';

const BEGIN: Begin = {
  schema: 'torchwatt.live',
  version: 1,
  run_id: '',
  name: 'train',
  carbon_how: '',
  traces: true,
  unavailable: [],
  domains: [{ domain: 'cpu', provenance: 'modelled', meter: '' }]
};
const BEAT: Beat = {
  t_s: 2,
  energy_j: 20,
  carbon_g: null,
  power_w: { cpu: 10 },
  domains_j: { cpu: 20 },
  points: { t_s: [1, 2], power_w: { cpu: [8, 10] } },
  top: [
    ['layers.*.mlp', 0.55],
    ['(optimizer)', 0.2]
  ],
  rate: { label: 'per step', text: '1.16 J' }
};

describe('the strip of a running cell', () => {
  const state = new LiveState(BEGIN);
  state.take(BEAT);

  test('has watts, joules and the rate that Python counted', () => {
    expect(state.strip().map(one => [one.label, one.value])).toEqual([
      ['power now', '10.0 W'],
      ['energy so far', '20.0 J'],
      ['per step', '1.16 J']
    ]);
    expect(state.strip()[0]?.known).toBe('modelled');
  });

  test('keeps the largest groups between messages that bring none', () => {
    state.take({ ...BEAT, t_s: 3, top: undefined } as Beat);
    expect(state.top.length).toBe(2);
  });

  test('opens and closes, and works nothing out while it is closed', async () => {
    const view = new LiveView(BEGIN);
    document.body.append(view.node);
    view.take({ ...BEAT, layers: { as_of_s: 2, layers: golden().layers, reserved: [], folded: null } });
    await frame();
    const button = view.node.querySelector<HTMLButtonElement>('.tw-strip button');
    expect(view.node.querySelector('.tw-strip')?.textContent).toContain('layers.*.mlp55.0 %');
    expect(view.node.querySelectorAll('.tw-table tbody tr').length).toBe(0);
    expect(button?.getAttribute('aria-expanded')).toBe('false');
    button?.click();
    expect(button?.getAttribute('aria-expanded')).toBe('true');
    expect(view.node.querySelectorAll('.tw-table tbody tr').length).toBeGreaterThan(0);
    button?.click();
    expect(view.node.querySelector<HTMLElement>('.tw-expanded')?.hidden).toBe(true);
    view.dispose();
  });
});

describe('the small line', () => {
  test('adds up the domains, and is unknown where one of them is', () => {
    const data = { t_s: [1, 2, 3], power_w: { a: [1, 2, null], b: [10, 20, 30] } };
    expect(totalPower(data)).toEqual([11, 22, null]);
    expect(totalPower({ t_s: [1], power_w: { a: [null] } })).toEqual([null]);
  });

  test('breaks where nothing is known, and fits in its box', () => {
    const path = sparkline([0, 1, 2, 3], [5, null, 10, 5], 100, 20);
    expect(path.match(/M/g)?.length).toBe(2);
    const points = [...path.matchAll(/[ML]([\d.]+) ([\d.]+)/g)];
    expect(points.length).toBe(3);
    expect(points.every(([, x, y]) => Number(x) <= 100 && Number(y) >= 0 && Number(y) <= 20)).toBe(true);
    expect(sparkline([], [])).toBe('');
  });
});

describe('the card of a finished run', () => {
  const card = (more: Partial<Payload>): HTMLElement => new ReportView({ ...golden(), ...more }).node;

  test('has the answer and the hint, and the rest is folded', () => {
    const answer = { sentences: ['It took 8 kJ.', 'MLPs used most.'], hint: 'The GPU waited.' };
    const node = card({ answer });
    expect(node.querySelector('.tw-answer')?.textContent).toBe('It took 8\u00a0kJ. MLPs used most.');
    expect(node.querySelector('.tw-hint')?.textContent).toBe('The GPU waited.');
    const details = node.querySelector<HTMLDetailsElement>('.tw-more');
    expect(details?.open).toBe(false);
    expect(details?.querySelectorAll('.tw-figure, .tw-table, .tw-power').length).toBeGreaterThan(3);
  });

  test('of an older report has its energy', () => {
    const { answer: _, groups: __, ...old } = golden();
    const node = new ReportView(old as Payload).node;
    expect(node.querySelector('.tw-answer')?.textContent).toContain(golden().energy.text);
  });

  test('says how each meter is known, and which are missing', () => {
    const text = card({}).querySelector('.tw-meters')?.textContent;
    expect(text).toContain('gpu:0 ');
    expect(text).toContain('no meter: dram:0, psys');
  });
});
