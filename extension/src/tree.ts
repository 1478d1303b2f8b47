/** The layers as a tree: what is inside what, which of them match, and in what order they are listed. */

import { known, sumKnown } from './numbers';
import type { Booked, ByPhase, Joules, LayerRow, Layers } from './payload';

export const PARTS = ['forward', 'backward', 'other', 'static'] as const;
export type Part = (typeof PARTS)[number];
export type Parts = Readonly<Record<Part, number>>;

export interface Branch {
  readonly key: string;
  readonly name: string;
  readonly fqn: string;
  readonly className: string;
  readonly kind: 'layer' | 'reserved' | 'folded';
  readonly totalJ: number;
  readonly selfJ: Joules;
  readonly interval: readonly [number, number] | null;
  /** Joules by phase, children included; a phase that is missing did not occur. */
  readonly phases: ByPhase;
  /** `totalJ` cut into what to draw; static is taken out of its phases where it is known. */
  readonly parts: Parts;
  /** What is known to be static; a lower bound unless `staticWhole`. */
  readonly staticJ: Joules;
  readonly staticWhole: boolean;
  readonly calls: number | null;
  readonly provenance: string | null;
  readonly children: readonly Branch[];
}

/** Build the branches of a report: modules, most joules first, then reserved names. */
export function branches(layers: Layers): readonly Branch[] {
  const children: LayerRow[][] = layers.layers.map(() => []);
  const tops: LayerRow[] = [];
  for (const row of layers.layers) {
    (row.parent === null ? tops : (children[row.parent] ?? tops)).push(row);
  }
  const indices = new Map(layers.layers.map((row, index) => [row, index]));
  const build = (row: LayerRow): Branch => branch(row, (children[indices.get(row) ?? -1] ?? []).map(build));
  const found = [...tops.map(build), ...layers.reserved.map(reserved)];
  if (layers.folded) {
    found.push(folded(layers.folded.layers, layers.folded.energy_j));
  }
  return found;
}

function branch(row: LayerRow, children: readonly Branch[]): Branch {
  return {
    ...booked(row),
    key: row.fqn,
    name: row.name,
    kind: row.folded ? 'folded' : 'layer',
    totalJ: row.energy_j ?? total(row.total_j),
    phases: row.total_j,
    parts: parts(row.total_j, row.static_j ?? {}),
    staticJ: staticOf(row.static_j ?? {}),
    staticWhole: row.static_whole ?? false,
    children
  };
}

function reserved(row: Booked): Branch {
  return {
    ...booked(row),
    key: row.fqn,
    name: row.fqn,
    kind: 'reserved',
    totalJ: total(row.self_j),
    phases: row.self_j,
    parts: parts(row.self_j, {}),
    staticJ: null,
    staticWhole: false,
    children: []
  };
}

function folded(layers: number, energyJ: Joules): Branch {
  const totalJ = energyJ ?? 0;
  return {
    key: '(folded)',
    name: `other (${layers})`,
    fqn: '(folded)',
    className: '',
    kind: 'folded',
    totalJ,
    selfJ: energyJ,
    interval: null,
    phases: { other: energyJ },
    parts: { forward: 0, backward: 0, other: totalJ, static: 0 },
    staticJ: null,
    staticWhole: false,
    calls: null,
    provenance: null,
    children: []
  };
}

function booked(
  row: Booked
): Pick<Branch, 'fqn' | 'className' | 'selfJ' | 'interval' | 'calls' | 'provenance'> {
  const phases = Object.keys(row.self_j);
  const ends = phases.map(phase => row.interval_j?.[phase]);
  const lo = ends.length ? sumKnown(ends.map(end => end?.[0])) : null;
  const hi = ends.length ? sumKnown(ends.map(end => end?.[1])) : null;
  return {
    fqn: row.fqn,
    className: row.class,
    // A pure container has nothing of its own: that is no zero.
    selfJ: phases.length ? sumKnown(Object.values(row.self_j)) : null,
    interval: lo !== null && hi !== null ? [lo, hi] : null,
    calls: phases.length ? row.calls : null,
    provenance: row.provenance
  };
}

function total(phases: ByPhase): number {
  return Object.values(phases).reduce<number>((sum, value) => sum + (value ?? 0), 0);
}

function parts(phases: ByPhase, still: ByPhase): Parts {
  const found: Record<Part, number> = { forward: 0, backward: 0, other: 0, static: 0 };
  for (const [phase, value] of Object.entries(phases)) {
    const staticJ = Math.min(still[phase] ?? 0, value ?? 0);
    found[phase === 'forward' || phase === 'backward' ? phase : 'other'] += (value ?? 0) - staticJ;
    found.static += staticJ;
  }
  return found;
}

function staticOf(still: ByPhase): Joules {
  const values = Object.values(still);
  return values.length ? sumKnown(values) : null;
}

export type SortKey = 'name' | 'total' | 'forward' | 'backward' | 'other' | 'static' | 'self' | 'calls';

/** Sort siblings; unknown comes last in either direction. */
export function sorted(list: readonly Branch[], key: SortKey, descending: boolean): readonly Branch[] {
  const sign = descending ? -1 : 1;
  return [...list].sort((a, b) => {
    if (key === 'name') {
      return sign * a.name.localeCompare(b.name, undefined, { numeric: true });
    }
    const [x, y] = [column(a, key), column(b, key)];
    if (!known(x) || !known(y)) {
      return Number(known(y)) - Number(known(x));
    }
    return sign * (x - y) || a.name.localeCompare(b.name, undefined, { numeric: true });
  });
}

/** Return the number that a column shows; null where it is unknown or does not apply. */
export function column(one: Branch, key: Exclude<SortKey, 'name'>): Joules {
  switch (key) {
    case 'total':
      return one.kind === 'folded' ? one.selfJ : one.totalJ;
    case 'self':
      return one.selfJ;
    case 'calls':
      return one.calls || null;
    case 'static':
      return one.staticJ;
    case 'other': {
      const rest = Object.entries(one.phases).filter(
        ([phase]) => phase !== 'forward' && phase !== 'backward'
      );
      return rest.length ? sumKnown(rest.map(([, value]) => value)) : null;
    }
    default:
      return one.phases[key] ?? null;
  }
}

export interface Line {
  readonly branch: Branch;
  readonly depth: number;
  readonly open: boolean;
  readonly siblings: number;
  readonly position: number;
  /** Its order and that of the sibling above cannot be told apart: only where they are listed by what has an interval. */
  readonly tied: boolean;
}

export interface Listing {
  readonly lines: readonly Line[];
  /** How many names match the search; all of them where nothing is searched. */
  readonly matches: number;
}

/** List what a table shows: open branches in order, or every match of a search with what it is inside. */
export function listing(
  tops: readonly Branch[],
  opened: ReadonlySet<string>,
  search: string,
  key: SortKey,
  descending: boolean
): Listing {
  const lines: Line[] = [];
  const words = searchWords(search);
  let matches = 0;
  const visit = (list: readonly Branch[], depth: number): void => {
    const shown = words.length ? list.filter(one => within(one, words)) : list;
    sorted(shown, key, descending).forEach((one, index, all) => {
      const above = key === 'self' && descending ? all[index - 1] : undefined;
      const open = one.children.length > 0 && (words.length > 0 || opened.has(one.key));
      matches += Number(!words.length || hit(one, words));
      const tied = above !== undefined && mayComeBefore(one, above);
      lines.push({ branch: one, depth, open, siblings: shown.length, position: index + 1, tied });
      if (open) {
        visit(one.children, depth + 1);
      }
    });
  };
  visit(tops, 0);
  return { lines, matches };
}

/** Say whether the 90 % interval of the difference of two layers' own joules includes 0, as `tied` in Python. */
function mayComeBefore(one: Branch, above: Branch): boolean {
  if (!one.interval || !above.interval || one.selfJ === null || above.selfJ === null) {
    return false;
  }
  return above.selfJ - one.selfJ <= Math.hypot(above.interval[1] - above.selfJ, one.interval[1] - one.selfJ);
}

export function searchWords(search: string): readonly string[] {
  return search.toLowerCase().split(/\s+/).filter(Boolean);
}

export function hit(one: Branch, words: readonly string[]): boolean {
  const text = `${one.fqn} ${one.name} ${one.className}`.toLowerCase();
  return words.every(word => text.includes(word));
}

function within(one: Branch, words: readonly string[]): boolean {
  return hit(one, words) || one.children.some(child => within(child, words));
}

export function everyBranch(tops: readonly Branch[]): Branch[] {
  return tops.flatMap(one => [one, ...everyBranch(one.children)]);
}
