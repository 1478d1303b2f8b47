/**
 * The layers: the same joules as *Hottest*, *Blocks*, *Tree* or *Type*, searched together.
 *
 * What is picked in the icicle is shown in the tree, and the other way round. A live view and a report of an older
 * version have the tree alone.
 */

import { HoverCard } from './card';
import { arrange, h } from './dom';
import { GroupTable, TIE } from './groups';
import { Icicle, phaseKeys } from './icicle';
import type { Group, Grouped, Grouping, Layers } from './payload';
import { legend } from './provenance';
import { LayerTable } from './table';
import { branches } from './tree';

export type ViewName = Grouping | 'tree';
const VIEWS: Readonly<Record<ViewName, string>> = {
  hottest: 'Hottest',
  blocks: 'Blocks',
  tree: 'Tree',
  type: 'Type'
};
let count = 0;

export class LayersView {
  readonly node = h('div', { class: 'tw-layers-view' });
  /** Holds the icicle, unless the tree is shown, which has it above itself. */
  readonly map = h('div', { class: 'tw-map' });
  readonly icicle: Icicle;
  readonly table: LayerTable;
  private readonly card = new HoverCard();
  private readonly groups = new GroupTable(this.card);
  private readonly radios = new Map<ViewName, HTMLInputElement>();
  private readonly choice = h(
    'fieldset',
    { class: 'tw-switch' },
    h('legend', { class: 'tw-hidden' }, 'view of the layers')
  );
  private readonly search = h('input', {
    class: 'tw-search',
    type: 'search',
    placeholder: 'search layers',
    'aria-label': 'search layers',
    spellcheck: 'false'
  });
  private readonly panel = h('div', { class: 'tw-view' });
  private readonly note = h('div', { class: 'tw-basis' });
  private shown: Layers & Grouped = { layers: [], reserved: [], folded: null };
  private view: ViewName = 'tree';
  private touched = false;

  constructor() {
    this.icicle = new Icicle(this.card, key => this.table.reveal(key));
    this.table = new LayerTable(key => this.icicle.mark(key));
    const name = `tw-view-${++count}`;
    for (const [view, label] of Object.entries(VIEWS) as [ViewName, string][]) {
      const radio = h('input', { type: 'radio', name, value: view });
      radio.addEventListener('change', () => {
        this.touched = true;
        this.switchTo(view);
      });
      // The arrow keys are the radio's, not the notebook's.
      radio.addEventListener('keydown', event => event.stopPropagation());
      this.radios.set(view, radio);
      this.choice.append(h('label', {}, radio, h('span', {}, label)));
    }
    this.search.addEventListener('input', () => this.filter());
    this.search.addEventListener('keydown', event => event.stopPropagation());
    this.node.append(
      h('div', { class: 'tw-bar' }, this.choice, this.search),
      this.panel,
      this.note,
      this.card.node
    );
    this.switchTo('tree');
  }

  show(layers: Layers & Grouped, runJ: number): void {
    this.shown = layers;
    const tops = branches(layers);
    this.icicle.show(tops, runJ);
    this.table.show(tops, runJ);
    this.choice.hidden = !layers.groups;
    for (const [view, radio] of this.radios) {
      (radio.parentElement as HTMLElement).hidden = view !== 'tree' && !layers.groups?.[view]?.length;
    }
    const wanted = this.touched ? this.view : (layers.default_view ?? 'tree');
    this.switchTo(this.rows(wanted) ? wanted : 'tree');
  }

  resize(): void {
    this.icicle.resize(this.icicle.node.clientWidth);
  }

  /** Return the name of the view that is shown, and its rows; the tree has none here. */
  current(): { readonly view: ViewName; readonly rows: readonly Group[] | null } {
    return { view: this.view, rows: this.rows(this.view) };
  }

  private rows(view: ViewName): readonly Group[] | null {
    const rows = view === 'tree' ? null : this.shown.groups?.[view];
    return Array.isArray(rows) ? rows : null;
  }

  private switchTo(view: ViewName): void {
    this.view = view;
    this.card.hide();
    const rows = this.rows(view);
    for (const [name, radio] of this.radios) {
      radio.checked = name === view;
    }
    arrange(this.map, rows ? [this.icicle.node] : []);
    arrange(this.panel, rows ? [this.groups.node] : [this.icicle.node, this.table.node]);
    if (rows) {
      this.groups.show(rows, this.search.value);
    }
    this.note.replaceChildren(...(rows ? basis(rows) : []));
    this.resize();
  }

  private filter(): void {
    this.card.hide();
    this.groups.filter(this.search.value);
    this.table.filter(this.search.value);
    this.icicle.highlight(this.search.value);
  }
}

/** What the marks of a view mean. */
function basis(rows: readonly Group[]): HTMLElement[] {
  const colors = phaseKeys(['forward', 'backward', 'other']);
  const words = legend(rows.map(row => row.provenance));
  return [...colors, words, ...(rows.some(row => row.unclear) ? [h('span', {}, TIE)] : [])];
}
