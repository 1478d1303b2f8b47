// @vitest-environment happy-dom
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { LiveView } from '../src/chart';
import { formatEnergy } from '../src/numbers';
import type { Beat, Begin, Payload } from '../src/payload';
import { ReportView } from '../src/report';
import { golden, many } from './fixture';
import { frame, plots } from './setup';

let views: { dispose(): void }[] = [];

function report(payload: Payload): HTMLElement {
  const view = new ReportView(payload);
  views.push(view);
  document.body.append(view.node);
  return view.node;
}

/** A report of which the tree is shown. */
function tree(payload: Payload): HTMLElement {
  const node = report(payload);
  node.querySelector<HTMLInputElement>('input[value=tree]')?.click();
  return node;
}

const rows = (node: Element): HTMLElement[] => [...node.querySelectorAll<HTMLElement>('tbody tr[data-key]')];
const cell = (line: Element | undefined, column: string): string =>
  line?.querySelector(`[data-column=${column}]`)?.textContent ?? '';
const find = (node: Element, fqn: string): HTMLElement | undefined =>
  rows(node).find(one => one.dataset.key === fqn);
const press = (target: Element | null | undefined, key: string): void => {
  target?.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true, cancelable: true }));
};
const click = (node: Element, label: string): void =>
  [...node.querySelectorAll('button')].find(one => one.textContent?.startsWith(label))?.click();
function search(node: Element, text: string): void {
  const box = node.querySelector<HTMLInputElement>('.tw-search');
  if (box) {
    box.value = text;
    box.dispatchEvent(new Event('input', { bubbles: true }));
  }
}

beforeEach(() => {
  plots.length = 0;
});
afterEach(() => {
  for (const view of views) {
    view.dispose();
  }
  views = [];
  document.body.replaceChildren();
});

describe('a report', () => {
  test('says its figures, domains, what is missing, and how each number is known', () => {
    const payload = golden();
    const text = (report(payload).textContent ?? '').replaceAll('\u00a0', ' ');
    for (const word of [payload.energy.text, payload.carbon.text, ...payload.domains.map(one => one.text)]) {
      expect(text).toContain(word);
    }
    for (const gone of payload.unavailable) {
      expect(text).toContain(gone.reason);
      expect(text).toContain(gone.fix);
    }
    expect(text).toContain('modelled');
  });

  test('says in its head what the total holds, and of each domain whether it is in it', () => {
    const payload = golden();
    const noted = { ...payload, notes: ['gpu:1 was not used by this run'] };
    const aside = {
      ...noted,
      domains: payload.domains.map(one => ({ ...one, counted: false, share: null }))
    };
    const text = report(aside).textContent ?? '';
    expect(text.indexOf('gpu:1 was not used by this run')).toBeLessThan(text.indexOf('Domains'));
    expect(text).toContain('not in the total');
    expect(report(payload).textContent).not.toContain('not in the total');
  });

  test('shows the joules of every layer to the digits that Python shows', () => {
    const payload = golden();
    const node = tree(payload);
    click(node, 'expand all');
    for (const layer of payload.layers) {
      const line = find(node, layer.fqn);
      expect(line, layer.fqn).toBeDefined();
      for (const phase of ['forward', 'backward'] as const) {
        expect(cell(line, phase)).toBe(phase in layer.total_j ? formatEnergy(layer.total_j[phase]) : '');
      }
    }
  });

  test('sorts by a click and says so', () => {
    const node = tree(golden());
    const before = rows(node).map(one => one.dataset.key);
    click(node, 'total');
    expect(node.querySelector('th[aria-sort=ascending]')?.textContent).toBe('total');
    expect(rows(node).map(one => one.dataset.key)).not.toEqual(before);
  });

  test('opens, closes and walks by the keyboard', () => {
    const node = tree(golden());
    click(node, 'collapse all');
    const count = rows(node).length;
    const root = find(node, '(root)');
    root?.click();
    press(root, 'ArrowRight');
    expect(rows(node).length).toBeGreaterThan(count);
    expect(root?.getAttribute('aria-expanded')).toBe('true');
    press(root, 'ArrowDown');
    expect(node.querySelector('tr[tabindex="0"]')).toBe(rows(node)[1]);
    press(rows(node)[1], 'ArrowLeft');
    press(node.querySelector('tr[tabindex="0"]'), 'ArrowLeft');
    expect(rows(node).length).toBe(count);
  });

  test('keeps its keys from the notebook, which has its own meaning for them', () => {
    const node = tree(golden());
    let heard = 0;
    document.body.addEventListener('keydown', () => heard++);
    press(rows(node)[0], 'ArrowDown');
    press(node.querySelector('.tw-search'), 'a');
    expect(heard).toBe(0);
  });

  test('searches, and counts what it found', () => {
    const node = tree(golden());
    search(node, 'attn');
    const found = rows(node).filter(one => one.dataset.key?.includes('attn')).length;
    expect(found).toBeGreaterThan(0);
    expect(node.textContent).toContain(`${found} of `);
  });

  test('draws many modules a part at a time and says how many more there are', () => {
    const node = tree(many(450));
    click(node, 'expand all');
    expect(rows(node).length).toBe(200);
    expect(node.textContent).toContain('show 200 more of 261');
    click(node, 'show 200 more');
    expect(rows(node).length).toBe(400);
    expect(node.textContent).toContain(
      'the 700 smallest layers stand at the end, other (700), together 3.50 J'
    );
    expect(node.textContent).toContain('other (700)');
    expect(node.textContent).toContain('3.50 J');
  });

  test('makes no element of a name that looks like one', () => {
    const payload = { ...golden(), name: '<img src=x onerror=alert(1)>' };
    const node = report(payload);
    expect(node.querySelector('img')).toBeNull();
    expect(node.querySelector('h3')?.textContent).toBe(payload.name);
  });

  test('of nothing metered shows dashes and no zero', () => {
    const payload: Payload = {
      ...golden(),
      layers: [],
      reserved: [],
      curves: [],
      domains: [],
      power_w: null,
      rates: [],
      energy: { value_j: null, interval_90_j: null, provenance: null, text: '—' }
    };
    const node = report(payload);
    expect(node.querySelector('[data-figure=energy] .tw-figure-value')?.textContent).toBe('—');
    expect(node.textContent).not.toMatch(/\b0 J\b/);
    expect(node.textContent).toContain('nothing was metered');
  });
});

const BEGIN: Begin = {
  schema: 'torchwatt.live',
  version: 1,
  run_id: 'x',
  name: 'live',
  carbon_how: 'how',
  traces: true,
  unavailable: [],
  domains: [
    { domain: 'gpu:0', provenance: 'measured', meter: 'H200' },
    { domain: 'ram', provenance: 'modelled', meter: '' }
  ]
};

function beat(t: number, more: Partial<Beat> = {}): Beat {
  return {
    t_s: t,
    energy_j: 100 * t,
    carbon_g: null,
    domains_j: { 'gpu:0': 99 * t, ram: t },
    power_w: { 'gpu:0': 99, ram: 1 },
    points: { t_s: [t - 0.25, t], power_w: { 'gpu:0': [98, 99], ram: [1, null] } },
    ...more
  };
}

describe('a live view', () => {
  const live = (): LiveView => {
    const view = new LiveView(BEGIN);
    views.push(view);
    document.body.append(view.node);
    return view;
  };
  const expanded = (): LiveView => {
    const view = live();
    click(view.node, 'Expand');
    return view;
  };
  const figure = (view: LiveView, label: string): string =>
    view.node.querySelector(`[data-figure="${label}"] .tw-figure-value`)?.textContent ?? '';

  test('draws once a frame, however many messages come', async () => {
    const view = live();
    for (let i = 1; i <= 50; i++) {
      view.take(beat(i));
    }
    expect(view.node.dataset.beats).toBeUndefined();
    await frame();
    expect(view.node.dataset.beats).toBe('50');
    expect(figure(view, 'energy so far')).toBe('5.00 kJ');
    expect(figure(view, 'power now')).toBe('100 W');
  });

  test('shows an unknown power as unknown, not as the rest of the sum', async () => {
    const view = expanded();
    view.take(beat(1, { power_w: { 'gpu:0': 99, ram: null } }));
    await frame();
    expect(figure(view, 'power now')).toBe('—');
    expect(figure(view, 'gpu:0')).toBe('99.0 W');
    expect(figure(view, 'carbon so far')).toBe('—');
  });

  test('keeps what was opened and sorted while new layers come', async () => {
    const view = expanded();
    const { layers, reserved, folded } = golden();
    view.take(beat(1, { layers: { layers, reserved, folded, as_of_s: 1 }, steps: 3, per_step: '7.00 J' }));
    await frame();
    click(view.node, 'collapse all');
    const kept = rows(view.node)[0];
    view.take(beat(2, { layers: { layers, reserved, folded, as_of_s: 2 }, steps: 6, per_step: '7.10 J' }));
    await frame();
    expect(rows(view.node)[0]).toBe(kept);
    expect(find(view.node, '(root)')?.getAttribute('aria-expanded')).toBe('false');
    expect(view.node.textContent).toContain('as of 2.00 s');
    expect(figure(view, 'steps')).toBe('6');
  });

  test('says that the kernel is gone', () => {
    const view = live();
    view.lost('the kernel is gone');
    expect(view.node.textContent).toContain('the kernel is gone');
  });
});
