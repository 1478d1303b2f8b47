import { afterEach, describe, expect, test } from 'vitest';
import { viewCsv, viewMarkdown } from '../src/export';
import { label } from '../src/icicle';
import { LayersView } from '../src/layers';
import { shorten, split } from '../src/names';
import { formatEnergy, formatInterval, formatShare } from '../src/numbers';
import type { Group, Payload } from '../src/payload';
import { branches, everyBranch } from '../src/tree';
import { golden } from './fixture';

const VIEWS = ['hottest', 'blocks', 'type'] as const;

function view(payload: Payload): LayersView {
  const made = new LayersView();
  document.body.append(made.node, made.map);
  made.show(payload, payload.energy.value_j ?? 0);
  return made;
}

const pick = (made: LayersView, name: string): void =>
  made.node.querySelector<HTMLInputElement>(`input[value=${name}]`)?.click();
const lines = (made: LayersView): HTMLElement[] => [
  ...made.node.querySelectorAll<HTMLElement>('.tw-groups tbody tr')
];
const texts = (made: LayersView, column: string): (string | null | undefined)[] =>
  lines(made).map(line => line.querySelector(`[data-column=${column}]`)?.textContent);
const groups = (payload: Payload, name: (typeof VIEWS)[number]): readonly Group[] =>
  payload.groups?.[name] ?? [];

afterEach(() => document.body.replaceChildren());

describe('the views of the layers', () => {
  test.each(VIEWS)('%s: every row as Python has it, in its order and digits', name => {
    const payload = golden();
    const made = view(payload);
    pick(made, name);
    const rows = groups(payload, name);
    expect(lines(made).map(line => line.dataset.name)).toEqual(rows.map(row => row.name));
    expect(texts(made, 'energy')).toEqual(rows.map(row => formatEnergy(row.energy_j)));
    expect(texts(made, 'share')).toEqual(rows.map(row => formatShare(row.share)));
    expect(texts(made, 'interval')).toEqual(
      rows.map(row => (row.interval_j ? formatInterval(...row.interval_j) : ''))
    );
    expect(
      rows.reduce((sum, row) => sum + (row.energy_j ?? 0), 0) / (payload.energy.value_j ?? 0)
    ).toBeCloseTo(1, 5);
  });

  test('begin with the one that Python chose, and keep the one that was picked', () => {
    const payload = { ...golden(), default_view: 'type' } as const;
    const made = view(payload);
    expect(made.current().view).toBe('type');
    pick(made, 'hottest');
    made.show(payload, 1);
    expect(made.current().view).toBe('hottest');
    pick(made, 'tree');
    expect(made.node.querySelector('[role=treegrid]')).not.toBeNull();
    expect(made.node.querySelector('.tw-groups')).toBeNull();
  });

  test('a report of an older version has its tree, and no choice', () => {
    const { groups: _, default_view: __, ...old } = golden();
    const made = view(old as Payload);
    expect(made.node.querySelector<HTMLElement>('.tw-switch')?.hidden).toBe(true);
    expect(made.node.querySelectorAll('[role=treegrid] tbody tr').length).toBeGreaterThan(3);
  });

  test('have the icicle once: above the tree, else where the owner puts it', () => {
    const made = view(golden());
    expect(made.map.contains(made.icicle.node)).toBe(true);
    pick(made, 'tree');
    expect(made.map.contains(made.icicle.node)).toBe(false);
    expect(made.node.contains(made.icicle.node)).toBe(true);
  });

  test('name the basis of the interval, and mark rows whose order is not clear', () => {
    const made = view(golden());
    pick(made, 'hottest');
    expect(made.node.querySelector('th[data-column=interval]')?.textContent).toBe('90 % of repeats');
    const marked = lines(made).filter(line => line.querySelector('.tw-tie')?.textContent === '~');
    const unclear = groups(golden(), 'hottest').filter(row => row.unclear);
    expect(marked.map(line => line.dataset.name)).toEqual(unclear.map(row => row.name));
    expect(unclear.length).toBeGreaterThan(0);
    expect(made.node.querySelector('.tw-basis')?.textContent).toContain(
      'may as well come before the row above'
    );
  });

  test('are searched together', () => {
    const made = view(golden());
    const box = made.node.querySelector<HTMLInputElement>('.tw-search');
    if (box) {
      box.value = 'attn';
      box.dispatchEvent(new Event('input'));
    }
    expect(lines(made).length).toBeGreaterThan(0);
    expect(lines(made).every(line => line.dataset.name?.includes('attn'))).toBe(true);
    pick(made, 'tree');
    const found = [...made.node.querySelectorAll<HTMLElement>('[role=treegrid] tbody tr')];
    expect(found.some(one => one.dataset.key === 'blocks.0.attn')).toBe(true);
    expect(found.some(one => one.dataset.key === 'head')).toBe(false);
  });

  test('are walked by the keyboard, and the card of a row says what a narrow view leaves out', () => {
    const made = view(golden());
    const rows = lines(made);
    rows[0]?.focus();
    rows[0]?.dispatchEvent(
      new KeyboardEvent('keydown', { key: 'ArrowDown', bubbles: true, cancelable: true })
    );
    expect(document.activeElement).toBe(rows[1]);
    rows[1]?.dispatchEvent(new Event('focusin', { bubbles: true }));
    const card = made.node.querySelector<HTMLElement>('[role=tooltip]');
    expect(card?.hidden).toBe(false);
    expect(card?.textContent).toContain(groups(golden(), 'blocks')[1]?.name);
    expect(card?.textContent).toContain('forward');
    expect(rows[1]?.getAttribute('aria-describedby')).toBe(card?.id);
  });
});

describe('what is taken along', () => {
  test.each(['blocks', 'tree'])('%s as Markdown: as many cells in every line', name => {
    const payload = { ...golden(), name: 'a|b <c>' };
    const made = view(payload);
    pick(made, name);
    const table = viewMarkdown(payload, made)
      .split('\n')
      .filter(line => line.startsWith('|'));
    const cells = table.map(line => line.split(/(?<!\\)\|/).length);
    expect(new Set(cells).size).toBe(1);
    const shown = name === 'tree' ? everyBranch(branches(payload)) : groups(payload, 'blocks');
    expect(table.length - 2).toBe(shown.length);
  });

  test('a view as CSV adds up to the run', () => {
    const payload = golden();
    const made = view(payload);
    const [head = '', ...rows] = viewCsv(payload, made).trim().split('\n');
    const at = head.split(',').indexOf('energy_j');
    const sum = rows.reduce((total, row) => total + Number(row.split(',')[at]), 0);
    expect(sum / (payload.energy.value_j ?? 0)).toBeCloseTo(1, 5);
    expect(rows.length).toBe(groups(payload, 'blocks').length);
  });
});

describe('a name where there is little room', () => {
  const name = 'model.layers.17.self_attention.query_key_value';

  test('is cut in the middle and keeps both ends', () => {
    const short = shorten(name, 20);
    expect(short.length).toBe(20);
    expect(name.startsWith(short.split('…')[0] ?? '?')).toBe(true);
    expect(name.endsWith(short.split('…')[1] ?? '?')).toBe(true);
    expect(shorten('head', 20)).toBe('head');
  });

  test('is whole in the text of the page', () => {
    expect(split(name).join('')).toBe(name);
    expect(split(name)[1]).toBe('.query_key_value');
    expect(split('head')).toEqual(['', 'head']);
    const tails = ['up', 'down', 'act'].map(last => split(`blocks.*.mlp.${last}`)[1]);
    expect(tails).toEqual(['.*.mlp.up', '.*.mlp.down', '.*.mlp.act']); // told apart in the side panel
  });

  test('in the icicle a number is named with what it counts', () => {
    const block = everyBranch(branches(golden())).find(one => one.fqn === 'blocks.1');
    expect(block && label(block, 60)).toContain('blocks.1 · ');
    expect(block && label(block, 8)).toBe('blocks.1');
  });
});
