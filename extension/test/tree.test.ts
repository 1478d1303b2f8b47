import { describe, expect, test } from 'vitest';
import { layout } from '../src/icicle';
import { branches, column, everyBranch, listing, PARTS } from '../src/tree';
import { golden, many, row } from './fixture';

const all = (tops: ReturnType<typeof branches>): Set<string> =>
  new Set(everyBranch(tops).map(one => one.key));

describe('the tree', () => {
  test('holds every joule of the report exactly once', () => {
    const payload = golden();
    const total = branches(payload).reduce((sum, one) => sum + one.totalJ, 0);
    expect(total / (payload.energy.value_j ?? 0)).toBeCloseTo(1, 4);
  });

  test('cuts every branch into parts that add up to it', () => {
    for (const one of everyBranch(branches(golden()))) {
      const parts = PARTS.reduce((sum, part) => sum + one.parts[part], 0);
      expect(parts / one.totalJ).toBeCloseTo(1, 5); // six figures each
    }
  });

  test('takes what is known to be static out of its phase, and says whether that is all of it', () => {
    const layer = { ...row('a', null, 10), static_j: { forward: 4 }, static_whole: true };
    const [one] = branches({ layers: [layer], reserved: [], folded: null });
    expect(one?.parts).toEqual({ forward: 6, backward: 0, other: 0, static: 4 });
    expect([one?.staticJ, one?.staticWhole]).toEqual([4, true]);
  });

  test('has nothing, not zero, where nothing is known', () => {
    const [one] = branches({ layers: [row('a', null, 5, null)], reserved: [], folded: null });
    expect([one?.selfJ, one?.staticJ, one?.interval, one && column(one, 'backward')]).toEqual([
      null,
      null,
      null,
      null
    ]);
  });

  test('has no calls where they are not known', () => {
    const layers = [
      { ...row('a', null, 5), calls: null },
      { ...row('b', null, 4), calls: 7 }
    ];
    const [a, b] = branches({ layers, reserved: [], folded: null });
    expect([a && column(a, 'calls'), b && column(b, 'calls')]).toEqual([null, 7]);
  });

  test('shows what was folded inside its parent, whose total is that of Python', () => {
    const layers = [
      { ...row('net', null, 12.0001, null), energy_j: 12 },
      row('net.big', 0, 8),
      { ...row('net.(3 smaller)', 0, 4), name: '(3 smaller)', folded: 3 }
    ];
    const tops = branches({ layers, reserved: [], folded: null });
    expect(tops.map(one => [one.name, one.totalJ])).toEqual([['net', 12]]);
    const inside = tops[0]?.children ?? [];
    expect(inside.map(one => [one.name, one.kind, one.totalJ, one.selfJ])).toEqual([
      ['big', 'layer', 8, 8],
      ['(3 smaller)', 'folded', 4, 4]
    ]);
    expect(column(inside[1] as (typeof inside)[number], 'total')).toBe(4);
  });

  test('shows what a report of an older version folded at the end, with its joules', () => {
    const folded = branches(many(20)).find(one => one.kind === 'folded');
    expect([folded?.name, folded?.totalJ]).toEqual(['other (700)', 3.5]);
  });
});

describe('the listing', () => {
  const tops = branches(golden());

  test('lists siblings by what is asked, in both directions', () => {
    const names = (descending: boolean): string[] =>
      listing(tops, new Set(), '', 'total', descending).lines.map(line => line.branch.key);
    expect(names(false)).toEqual(names(true).reverse());
    const values = listing(tops, all(tops), '', 'self', true)
      .lines.filter(line => line.depth === 1)
      .map(line => line.branch.selfJ ?? -1);
    expect(values).toEqual([...values].sort((a, b) => b - a));
  });

  test('marks what may as well come before its sibling above, only where own joules order them', () => {
    const within = (one: ReturnType<typeof row>, lo: number, hi: number) => ({
      ...one,
      interval_j: { forward: [lo, hi] as [number, number] }
    });
    const layers = [
      within(row('a', null, 5), 4, 6),
      within(row('b', null, 4), 3, 5),
      within(row('c', null, 1), 0.9, 1.1),
      row('d', null, 0.9)
    ];
    const tied = (key: 'self' | 'total', descending: boolean): string[] =>
      listing(branches({ layers, reserved: [], folded: null }), new Set(), '', key, descending)
        .lines.filter(line => line.tied)
        .map(line => line.branch.key);
    expect(tied('self', true)).toEqual(['b']); // 5 and 4, each +-1; 1 +- .1 is apart, of d no interval is known
    expect(tied('self', false)).toEqual([]);
    expect(tied('total', true)).toEqual([]);
  });

  test('puts the unknown last, whatever the direction', () => {
    const layers = { layers: [row('known', null, 1), row('box', null, 9, null)], reserved: [], folded: null };
    for (const descending of [true, false]) {
      const keys = listing(branches(layers), new Set(), '', 'self', descending).lines.map(
        line => line.branch.key
      );
      expect(keys).toEqual(['known', 'box']);
    }
  });

  test('finds by name and class, and shows what a match is inside', () => {
    const { lines, matches } = listing(tops, new Set(), 'blocks.0 LINEAR', 'total', true);
    expect(matches).toBeGreaterThan(0);
    expect(lines[0]?.branch.key).toBe('(root)');
    expect(lines.length).toBeGreaterThan(matches);
  });

  test('finds nothing where nothing matches', () => {
    expect(listing(tops, new Set(), 'no such layer', 'total', true)).toEqual({ lines: [], matches: 0 });
  });
});

describe('the icicle', () => {
  test('gives width to energy and hides no joule', () => {
    const payload = golden();
    const { boxes } = layout(branches(payload), '', 1000);
    const top = boxes.filter(box => box.depth === 0);
    expect(top.reduce((sum, box) => sum + box.width, 0)).toBeCloseTo(1000, 0);
    for (const box of top) {
      expect(box.width / 1000).toBeCloseTo(box.branch.totalJ / (payload.energy.value_j ?? 1), 3);
    }
  });

  test('keeps children inside their parent', () => {
    const { boxes } = layout(branches(golden()), '', 1000);
    const at = new Map(boxes.map(box => [box.branch.key, box]));
    for (const box of boxes) {
      const parent = at.get(box.parent);
      if (parent) {
        expect(box.x).toBeGreaterThanOrEqual(parent.x - 1e-6);
        expect(box.x + box.width).toBeLessThanOrEqual(parent.x + parent.width + 1e-6);
      }
    }
  });

  test('counts what is too narrow to draw, with its joules', () => {
    const layers = {
      layers: [row('big', null, 1e6), row('small', null, 1), row('tiny', null, 2)],
      reserved: [],
      folded: null
    };
    expect(layout(branches(layers), '', 500).hidden).toEqual({ count: 2, energyJ: 3 });
  });

  test('looks into one layer', () => {
    const { boxes } = layout(branches(golden()), 'blocks.0', 500);
    expect(boxes[0]?.branch.key).toBe('blocks.0');
    expect(boxes[0]?.width).toBeCloseTo(500, 6);
  });
});
