/** The layers as a table: sorted by a click, searched, opened; bars, and what a repeat would give of what a layer itself used. */

import { arrange, h, say, set } from './dom';
import { REPEATS } from './groups';
import { nameNode, writeName } from './names';
import { formatEnergy, formatInterval, formatShare } from './numbers';
import { mark } from './provenance';
import { type Branch, column, everyBranch, type Line, listing, PARTS, type SortKey } from './tree';

const MAX_LINES = 200; // drawn at once; more on request

type Key = SortKey | 'interval' | 'provenance';

interface Column {
  readonly key: Key;
  readonly title: string;
  readonly hint: string;
}

const COLUMNS: readonly Column[] = [
  { key: 'name', title: 'layer', hint: 'module, as in state_dict' },
  { key: 'total', title: 'total', hint: 'with everything inside it' },
  { key: 'forward', title: 'forward', hint: 'with everything inside it' },
  { key: 'backward', title: 'backward', hint: 'with everything inside it' },
  { key: 'other', title: 'other', hint: 'neither forward nor backward' },
  {
    key: 'static',
    title: 'static',
    hint: 'the part of the total that the device draws when nothing runs; ≥ where not every domain says'
  },
  { key: 'self', title: 'self', hint: 'without what is inside it' },
  { key: 'interval', title: REPEATS, hint: 'of self: what nine of ten repeats would give' },
  { key: 'calls', title: 'calls', hint: 'forward calls' },
  { key: 'provenance', title: 'provenance', hint: 'how self is known' }
];

interface Drawn {
  readonly row: HTMLTableRowElement;
  readonly cells: ReadonlyMap<Exclude<Key, 'name'>, HTMLElement>;
  readonly bar: HTMLElement;
  update(line: Line): void;
}

export class LayerTable {
  readonly node = h('div', { class: 'tw-layers' });
  private search = '';
  private readonly found = h('span', { class: 'tw-note', 'aria-live': 'polite' });
  private readonly table = h('table', { class: 'tw-table', role: 'treegrid', 'aria-label': 'layers' });
  private readonly body = h('tbody');
  private readonly more = h('button', { class: 'tw-button', type: 'button', hidden: true });
  private readonly heads = new Map<SortKey, HTMLTableCellElement>();
  private readonly drawn = new Map<string, Drawn>();
  private readonly opened = new Set<string>();
  private tops: readonly Branch[] = [];
  private lines: readonly Line[] = [];
  private runJ = 0;
  private limit = MAX_LINES;
  private key: SortKey = 'total';
  private descending = true;
  private active = '';
  private touched = false;

  constructor(private readonly picked: (key: string) => void) {
    const all = (label: string, open: boolean): HTMLElement => {
      const button = h('button', { class: 'tw-button', type: 'button' }, label);
      button.addEventListener('click', () => this.openAll(open));
      return button;
    };
    const bar = h(
      'div',
      { class: 'tw-bar' },
      all('expand all', true),
      all('collapse all', false),
      this.found
    );
    this.table.append(h('thead', {}, h('tr', {}, ...COLUMNS.map(one => this.head(one)))), this.body);
    this.node.append(bar, h('div', { class: 'tw-scroll' }, this.table), this.more);
    this.more.addEventListener('click', () => {
      this.limit += MAX_LINES;
      this.draw();
    });
    this.body.addEventListener('keydown', event => this.onKey(event));
    this.body.addEventListener('click', event => this.onClick(event));
  }

  show(tops: readonly Branch[], runJ: number): void {
    this.tops = tops;
    this.runJ = runJ;
    if (!this.touched) {
      // What holds nearly everything says little: it starts open.
      let list = tops;
      for (let one = list[0]; one && one.children.length > 0 && one.totalJ > 0.5 * sum(list); one = list[0]) {
        this.opened.add(one.key);
        list = one.children;
      }
    }
    this.draw();
  }

  filter(search: string): void {
    this.search = search;
    this.draw();
  }

  /** Open what a layer is in and put it in view. */
  reveal(key: string): void {
    const path = pathTo(this.tops, key);
    for (const one of path.slice(0, -1)) {
      this.opened.add(one.key);
    }
    this.touched = true;
    this.active = key;
    this.draw();
    // Not `scrollIntoView`: that would scroll the notebook, too.
    const row = this.drawn.get(key)?.row;
    const frame = row?.closest<HTMLElement>('.tw-scroll');
    if (row && frame) {
      frame.scrollTop = Math.max(row.offsetTop - frame.clientHeight / 2, 0);
    }
  }

  private head(one: Column): HTMLElement {
    const { key, title, hint } = one;
    if (key === 'interval' || key === 'provenance') {
      const kind = key === 'interval' ? 'tw-number' : 'tw-known-by';
      return h('th', { scope: 'col', class: kind, 'data-column': key, title: hint }, title);
    }
    const button = h('button', { type: 'button', class: 'tw-sort', title: `${hint}; click to sort` }, title);
    button.addEventListener('click', () => {
      this.descending = this.key === key ? !this.descending : key !== 'name';
      this.key = key;
      this.draw();
    });
    const kind = key === 'name' ? 'tw-name' : 'tw-number';
    const cell = h('th', { scope: 'col', class: kind, 'data-column': key }, button);
    this.heads.set(key, cell);
    return cell;
  }

  private openAll(open: boolean): void {
    this.touched = true;
    this.opened.clear();
    for (const one of open ? everyBranch(this.tops) : []) {
      this.opened.add(one.key);
    }
    this.draw();
  }

  private toggle(key: string): void {
    this.touched = true;
    if (!this.opened.delete(key)) {
      this.opened.add(key);
    }
    this.draw();
  }

  private draw(): void {
    for (const [key, cell] of this.heads) {
      set(cell, { 'aria-sort': key !== this.key ? 'none' : this.descending ? 'descending' : 'ascending' });
    }
    const { lines, matches } = listing(this.tops, this.opened, this.search, this.key, this.descending);
    this.lines = lines.slice(0, this.limit);
    if (!this.lines.some(line => line.branch.key === this.active)) {
      this.active = this.lines[0]?.branch.key ?? '';
    }
    const largest = Math.max(0, ...this.tops.map(one => one.totalJ));
    const rows = this.lines.map(line => {
      const { key } = line.branch;
      const drawn = this.drawn.get(key) ?? makeRow(key);
      this.drawn.set(key, drawn);
      drawn.update(line);
      paint(drawn, line.branch, largest, this.runJ);
      set(drawn.row, {
        tabindex: key === this.active ? 0 : -1,
        'aria-selected': key === this.active ? 'true' : null
      });
      return drawn.row;
    });
    arrange(this.body, rows);
    const hidden = lines.length - this.lines.length;
    this.more.hidden = hidden <= 0;
    say(this.more, `show ${Math.min(hidden, MAX_LINES)} more of ${hidden}`);
    const every = everyBranch(this.tops).length;
    say(this.found, this.search.trim() ? `${matches} of ${every} match` : `${every} names`);
  }

  private onClick(event: Event): void {
    const target = event.target instanceof Element ? event.target : null;
    const key = target?.closest('tr')?.getAttribute('data-key');
    if (key === null || key === undefined) {
      return;
    }
    this.active = key;
    if (target?.closest('.tw-twist')) {
      this.toggle(key);
    } else {
      this.draw();
    }
    this.picked(key);
  }

  private onKey(event: KeyboardEvent): void {
    const at = this.lines.findIndex(line => line.branch.key === this.active);
    const line = this.lines[at];
    if (!line) {
      return;
    }
    const closed = line.branch.children.length > 0 && !line.open;
    const steps: Readonly<Record<string, number>> = {
      ArrowDown: at + 1,
      ArrowUp: at - 1,
      Home: 0,
      End: this.lines.length - 1,
      PageDown: at + 10,
      PageUp: at - 10
    };
    const to = steps[event.key];
    if (to !== undefined) {
      this.goTo(to);
    } else if (event.key === 'ArrowRight') {
      closed ? this.toggle(this.active) : this.goTo(line.open ? at + 1 : at);
    } else if (event.key === 'ArrowLeft') {
      line.open ? this.toggle(this.active) : this.goTo(this.above(at));
    } else if (event.key === 'Enter' || event.key === ' ') {
      this.picked(this.active);
      line.branch.children.length > 0 && this.toggle(this.active);
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation(); // the notebook has its own meaning for these keys
  }

  private above(at: number): number {
    const depth = this.lines[at]?.depth ?? 0;
    for (let i = at; i >= 0; i--) {
      if ((this.lines[i]?.depth ?? 0) < depth) {
        return i;
      }
    }
    return at;
  }

  private goTo(index: number): void {
    const line = this.lines[Math.max(0, Math.min(index, this.lines.length - 1))];
    if (line) {
      this.active = line.branch.key;
      this.draw();
      this.drawn.get(this.active)?.row.focus();
    }
  }
}

const TIED = 'may as well come before the layer above: the interval of their difference includes 0';

function makeRow(key: string): Drawn {
  const twist = h('span', { class: 'tw-twist', 'aria-hidden': 'true' });
  const name = nameNode();
  const tie = h('span', { class: 'tw-tie', title: TIED });
  const kind = h('span', { class: 'tw-class' });
  const bar = h('div', { class: 'tw-share' });
  const first = h('td', { class: 'tw-name' }, h('div', { class: 'tw-line' }, twist, name, tie, kind), bar);
  const cells = new Map<Exclude<Key, 'name'>, HTMLElement>();
  for (const { key: column } of COLUMNS) {
    if (column === 'provenance') {
      cells.set(
        column,
        h('td', { class: 'tw-known-by', 'data-column': column }, h('span', { class: 'tw-chip' }))
      );
    } else if (column !== 'name') {
      cells.set(column, h('td', { class: 'tw-number', 'data-column': column }));
    }
  }
  const row = h('tr', { 'data-key': key }, first, ...cells.values());
  return {
    row,
    cells,
    bar,
    update: line => {
      const { branch } = line;
      set(row, {
        class: `tw-${branch.kind}`,
        'aria-level': line.depth + 1,
        'aria-posinset': line.position,
        'aria-setsize': line.siblings,
        'aria-expanded': branch.children.length ? String(line.open) : null
      });
      first.style.paddingLeft = `${6 + line.depth * 14}px`;
      say(twist, branch.children.length ? (line.open ? '▾' : '▸') : '');
      writeName(name, branch.name, branch.fqn);
      say(tie, line.tied ? '~' : '');
      say(kind, branch.className);
    }
  };
}

/** Write the numbers; a number says how it is known. */
function paint({ cells, bar }: Drawn, branch: Branch, largest: number, runJ: number): void {
  for (const [key, cell] of cells) {
    if (key === 'provenance') {
      mark(cell.firstElementChild as HTMLElement, branch.provenance);
    } else {
      say(cell, cellText(branch, key));
    }
  }
  const total = cells.get('total');
  if (total) {
    set(total, { title: runJ > 0 ? `${formatShare(branch.totalJ / runJ)} of the run` : null });
  }
  const whole = largest > 0 ? largest : 1;
  const widths = PARTS.map(part => [part, (100 * branch.parts[part]) / whole] as const).filter(
    ([, width]) => width > 0
  );
  const before = [...bar.children] as HTMLElement[];
  arrange(
    bar,
    widths.map(([part, width], index) => {
      const piece = before[index] ?? h('i');
      piece.className = `tw-bg-${part}`;
      piece.style.width = `${width.toFixed(2)}%`;
      return piece;
    })
  );
}

function cellText(branch: Branch, key: Exclude<Key, 'name' | 'provenance'>): string {
  if (key === 'interval') {
    return branch.interval ? formatInterval(...branch.interval) : '';
  }
  const value = column(branch, key);
  if (key === 'calls') {
    return value === null ? '' : String(value);
  }
  if (key === 'self') {
    return value === null && branch.provenance === null ? '' : formatEnergy(value);
  }
  const least = key === 'static' && value !== null && !branch.staticWhole ? '≥ ' : '';
  const applies = key in branch.phases || key === 'total' || (key === 'static' && branch.kind === 'layer');
  return applies || value !== null ? least + formatEnergy(value) : '';
}

function sum(list: readonly Branch[]): number {
  return list.reduce((total, one) => total + one.totalJ, 0);
}

function pathTo(tops: readonly Branch[], key: string): readonly Branch[] {
  for (const one of tops) {
    const below = one.key === key ? [one] : pathTo(one.children, key);
    if (below.length) {
      return one.key === key ? below : [one, ...below];
    }
  }
  return [];
}
