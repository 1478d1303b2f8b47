/** One view of the layers as rows that add up to the total: hottest, blocks or type, in the order that Python gave. */

import type { HoverCard } from './card';
import { arrange, h, set } from './dom';
import { nameNode, writeName } from './names';
import { formatEnergy, formatInterval, formatShare, known } from './numbers';
import type { Group } from './payload';
import { explain, mark } from './provenance';
import { searchWords } from './tree';

export const TIE = '~ may as well come before the row above: the interval of their difference includes 0';
export const REPEATS = '90 % of repeats';

interface Column {
  readonly key: string;
  readonly title: string;
  text(row: Group): string;
}

const COLUMNS: readonly Column[] = [
  { key: 'share', title: 'share', text: row => formatShare(row.share) },
  { key: 'energy', title: 'energy', text: row => formatEnergy(row.energy_j) },
  { key: 'interval', title: REPEATS, text: row => (row.interval_j ? formatInterval(...row.interval_j) : '') },
  { key: 'each', title: 'each, from to', text: eachText },
  { key: 'forward', title: 'forward', text: row => phaseText(row, 'forward') },
  { key: 'backward', title: 'backward', text: row => phaseText(row, 'backward') }
];

export class GroupTable {
  readonly node = h('div', { class: 'tw-scroll' });
  private readonly body = h('tbody');
  private readonly table = h('table', {
    class: 'tw-table tw-groups',
    role: 'grid',
    'aria-label': 'energy by group'
  });
  private readonly none = h('caption', { class: 'tw-note', hidden: true }, 'no name matches');
  private rows: readonly Group[] = [];
  private shown: readonly Group[] = [];
  private lines: readonly HTMLTableRowElement[] = [];
  private active = 0;

  constructor(private readonly card: HoverCard) {
    const heads = COLUMNS.map(({ key, title }) =>
      h('th', { scope: 'col', class: 'tw-number', 'data-column': key }, title)
    );
    const first = h('th', { scope: 'col', class: 'tw-name' }, 'layers');
    const last = h('th', { scope: 'col', class: 'tw-known-by' }, 'provenance');
    this.table.append(this.none, h('thead', {}, h('tr', {}, first, ...heads, last)), this.body);
    this.node.append(this.table);
    this.body.addEventListener('pointerover', event => this.onPointer(event));
    this.body.addEventListener('pointerleave', () => this.card.hide());
    this.body.addEventListener('focusin', event => this.onPointer(event));
    this.body.addEventListener('focusout', () => this.card.hide());
    this.body.addEventListener('keydown', event => this.onKey(event));
  }

  show(rows: readonly Group[], search: string): void {
    this.rows = rows;
    this.filter(search);
  }

  filter(search: string): void {
    const words = searchWords(search);
    this.shown = this.rows.filter(row => words.every(word => row.name.toLowerCase().includes(word)));
    this.active = 0;
    this.draw();
  }

  private draw(): void {
    const largest = Math.max(0, ...this.rows.map(row => row.energy_j ?? 0));
    const several = this.rows.some(row => row.count > 1);
    this.table.classList.toggle('tw-has-each', several);
    this.lines = this.shown.map((row, index) => line(row, index, largest));
    arrange(this.body, this.lines);
    this.none.hidden = this.lines.length > 0;
    this.tabTo(this.active);
  }

  private onPointer(event: Event): void {
    const at =
      event.target instanceof Element
        ? this.lines.findIndex(row => row.contains(event.target as Element))
        : -1;
    const [row, node] = [this.shown[at], this.lines[at]];
    if (row && node) {
      this.card.show(node, row.name, facts(row));
    }
  }

  private onKey(event: KeyboardEvent): void {
    const to: Readonly<Record<string, number>> = {
      ArrowDown: this.active + 1,
      ArrowUp: this.active - 1,
      Home: 0,
      End: this.lines.length - 1,
      PageDown: this.active + 10,
      PageUp: this.active - 10
    };
    if (event.key === 'Escape') {
      this.card.hide();
    } else if (to[event.key] === undefined) {
      return;
    } else {
      this.tabTo(to[event.key] ?? 0);
      this.lines[this.active]?.focus();
    }
    event.preventDefault();
    event.stopPropagation(); // the notebook has its own meaning for these keys
  }

  private tabTo(index: number): void {
    this.active = Math.max(0, Math.min(index, this.lines.length - 1));
    this.lines.forEach((row, at) => {
      set(row, { tabindex: at === this.active ? 0 : -1 });
    });
  }
}

function line(row: Group, index: number, largest: number): HTMLTableRowElement {
  const name = nameNode();
  writeName(name, row.name);
  const times = row.count > 1 && !row.name.includes(`x${row.count}`) ? ` x${row.count}` : '';
  const title = h(
    'div',
    { class: 'tw-line' },
    name,
    times ? h('span', { class: 'tw-class' }, times) : null,
    row.unclear ? h('span', { class: 'tw-tie', title: TIE }, '~') : null
  );
  const provenance = h('span', { class: 'tw-chip' });
  mark(provenance, row.provenance);
  return h(
    'tr',
    { 'data-name': row.name, 'data-index': index },
    h('td', { class: 'tw-name' }, title, bar(row, largest)),
    ...COLUMNS.map(column => h('td', { class: 'tw-number', 'data-column': column.key }, column.text(row))),
    h('td', { class: 'tw-known-by' }, provenance)
  );
}

const DRAWN = ['forward', 'backward', 'other'] as const;

function bar(row: Group, largest: number): HTMLElement {
  const energyJ = row.energy_j ?? 0;
  const phases = { forward: row.by_phase.forward ?? 0, backward: row.by_phase.backward ?? 0 };
  const parts = { ...phases, other: Math.max(energyJ - phases.forward - phases.backward, 0) };
  const pieces = DRAWN.filter(part => parts[part] > 0 && largest > 0).map(part => {
    const piece = h('i', { class: `tw-bg-${part}` });
    piece.style.width = `${((100 * parts[part]) / largest).toFixed(2)}%`;
    return piece;
  });
  return h('div', { class: 'tw-share' }, ...pieces);
}

function facts(row: Group): readonly { label: string; value: string }[] {
  const phases = Object.entries(row.by_phase).map(([phase, value]) => ({
    label: phase,
    value: formatEnergy(value)
  }));
  return [
    { label: 'energy', value: `${formatEnergy(row.energy_j)}, ${formatShare(row.share)} of the run` },
    { label: REPEATS, value: row.interval_j ? formatInterval(...row.interval_j) : '' },
    { label: 'each module', value: eachText(row) },
    ...phases,
    { label: 'J/TFLOP', value: known(row.energy_per_tflop_j) ? formatEnergy(row.energy_per_tflop_j) : '' },
    { label: 'provenance', value: row.provenance ? explain(row.provenance) : '' },
    { label: 'order', value: row.unclear ? TIE.slice(2) : '' }
  ];
}

/** The mean of one module, and the range over the modules of the group. */
export function eachText(row: Group): string {
  if (row.count < 2 || !known(row.energy_j)) {
    return '';
  }
  const range = row.each_j ? `, ${formatInterval(...row.each_j)}` : '';
  return `${formatEnergy(row.energy_j / row.count)}${range}`;
}

function phaseText(row: Group, phase: string): string {
  return phase in row.by_phase ? formatEnergy(row.by_phase[phase]) : '';
}
