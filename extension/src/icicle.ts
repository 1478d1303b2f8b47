/** The icicle: one row a depth, width = energy, each module cut into forward, backward, other and static. */

import { hierarchy, partition } from 'd3-hierarchy';
import type { HoverCard } from './card';
import { h, s, say, set } from './dom';
import { shorten } from './names';
import { formatEnergy, formatShare } from './numbers';
import { explain } from './provenance';
import { type Branch, hit, PARTS, type Part, searchWords } from './tree';

const ROW = 30;
const MIN_WIDTH = 1.5; // px: narrower modules are counted, not drawn
const MIN_LABEL = 38;
const CHAR = 6.6;
const PICTURE_WIDTH = 960; // of one that is saved before it was drawn
export const ROOT_KEY = '';

export interface Box {
  readonly branch: Branch;
  readonly depth: number;
  readonly x: number;
  readonly width: number;
  readonly parent: string;
}

export interface Layout {
  readonly boxes: readonly Box[];
  readonly depth: number;
  /** Names that are narrower than can be seen, and their joules. */
  readonly hidden: { readonly count: number; readonly energyJ: number };
}

/** Lay out below one branch (or everything) over a width in pixels. */
export function layout(tops: readonly Branch[], focus: string, width: number): Layout {
  const below = focus === ROOT_KEY ? tops : [find(tops, focus)].filter(one => one !== null);
  const root = hierarchy<{ branch: Branch | null; children: readonly Branch[] }>(
    { branch: null, children: below },
    one => one.children.map(child => ({ branch: child, children: child.children }))
  );
  // What a module itself uses is the width that its children leave free.
  root.sum(one => (one.branch ? own(one.branch) : 0));
  root.sort((a, b) => (b.value ?? 0) - (a.value ?? 0));
  const placed = partition<{ branch: Branch | null; children: readonly Branch[] }>().size([
    width,
    root.height + 1
  ])(root);
  const boxes: Box[] = [];
  let count = 0;
  let energyJ = 0;
  placed.each(node => {
    const { branch } = node.data;
    if (!branch) {
      return;
    }
    if (node.x1 - node.x0 >= MIN_WIDTH) {
      const parent = node.parent?.data.branch?.key ?? ROOT_KEY;
      boxes.push({ branch, depth: node.depth - 1, x: node.x0, width: node.x1 - node.x0, parent });
    } else {
      count += 1;
      const above = node.parent;
      energyJ += !above || above.x1 - above.x0 >= MIN_WIDTH || !above.data.branch ? branch.totalJ : 0;
    }
  });
  return { boxes, depth: 1 + Math.max(0, ...boxes.map(box => box.depth)), hidden: { count, energyJ } };
}

function own(branch: Branch): number {
  return Math.max(branch.totalJ - branch.children.reduce((sum, child) => sum + child.totalJ, 0), 0);
}

export function find(tops: readonly Branch[], key: string): Branch | null {
  for (const one of tops) {
    const found = one.key === key ? one : find(one.children, key);
    if (found) {
      return found;
    }
  }
  return null;
}

/** Draws; clicking or Enter looks into a module, Escape or Backspace out again. */
export class Icicle {
  readonly node = h('div', { class: 'tw-icicle' });
  private readonly svg = s('svg', { class: 'tw-icicle-map', role: 'tree', 'aria-label': 'energy by layer' });
  private readonly above = h('button', { class: 'tw-button', type: 'button', hidden: true });
  private readonly note = h('div', { class: 'tw-note', 'aria-live': 'polite' });
  private tops: readonly Branch[] = [];
  private runJ = 0;
  private focus = ROOT_KEY;
  private active = ROOT_KEY;
  private width = 0;
  private search = '';
  private drawn = new Map<string, { box: Box; group: SVGGElement }>();

  constructor(
    private readonly card: HoverCard,
    private readonly picked: (key: string) => void
  ) {
    this.node.append(h('div', { class: 'tw-legend' }, ...phaseKeys(PARTS)), this.above, this.svg, this.note);
    this.above.addEventListener('click', () => this.lookInto(ROOT_KEY));
    for (const kind of ['pointerover', 'focusin']) {
      this.svg.addEventListener(kind, event => this.explain(event.target));
    }
    for (const kind of ['pointerleave', 'focusout']) {
      this.svg.addEventListener(kind, () => this.card.hide());
    }
    this.svg.addEventListener('keydown', event => this.onKey(event));
    this.svg.addEventListener('click', event => this.onClick(event));
  }

  show(tops: readonly Branch[], runJ: number): void {
    this.tops = tops;
    this.runJ = runJ;
    if (this.focus !== ROOT_KEY && !find(tops, this.focus)) {
      this.focus = ROOT_KEY;
    }
    this.draw();
  }

  resize(width: number): void {
    if (width > 0 && Math.abs(width - this.width) >= 1) {
      this.width = width;
      this.draw();
    }
  }

  /** Return the drawing, also where it was never in view. */
  drawing(): SVGSVGElement {
    if (this.width === 0) {
      this.resize(PICTURE_WIDTH);
    }
    return this.svg;
  }

  /** Make what matches a search stand out. */
  highlight(search: string): void {
    this.search = search;
    const words = searchWords(search);
    for (const { box, group } of this.drawn.values()) {
      const found = words.length > 0 && hit(box.branch, words);
      group.classList.toggle('tw-match', found);
      group.classList.toggle('tw-miss', words.length > 0 && !found);
    }
  }

  /** Mark a layer that was picked elsewhere. */
  mark(key: string): void {
    for (const [name, { group }] of this.drawn) {
      group.classList.toggle('tw-picked', name === key);
    }
  }

  private lookInto(key: string): void {
    this.focus = key;
    this.draw();
    this.tabTo(
      this.drawn.has(this.active) ? this.active : (this.drawn.keys().next().value ?? ROOT_KEY),
      true
    );
  }

  private draw(): void {
    if (this.width <= 0) {
      return;
    }
    const { boxes, depth, hidden } = layout(this.tops, this.focus, this.width);
    const height = depth * ROW;
    set(this.svg, { width: this.width, height, viewBox: `0 0 ${this.width} ${height}` });
    const before = this.drawn;
    this.drawn = new Map();
    for (const box of boxes) {
      const group =
        before.get(box.branch.key)?.group ?? s('g', { role: 'treeitem', 'data-key': box.branch.key });
      this.drawBox(group, box);
      this.drawn.set(box.branch.key, { box, group });
    }
    for (const [key, { group }] of before) {
      if (!this.drawn.has(key)) {
        group.remove();
      }
    }
    for (const { group } of this.drawn.values()) {
      if (!group.isConnected) {
        this.svg.append(group);
      }
    }
    this.tabTo(this.drawn.has(this.active) ? this.active : (boxes[0]?.branch.key ?? ROOT_KEY), false);
    this.highlight(this.search);
    this.above.hidden = this.focus === ROOT_KEY;
    say(this.above, `↑ all layers (inside ${this.focus})`);
    const few = `${hidden.count} too narrow to draw: ${formatEnergy(hidden.energyJ)}; look into a layer, or use the table`;
    say(this.note, boxes.length === 0 ? 'no layer was seen yet' : hidden.count ? few : '');
  }

  private drawBox(group: SVGGElement, { branch, depth, x, width }: Box): void {
    const words = `${branch.fqn}${branch.className ? `, ${branch.className}` : ''}: ${formatEnergy(branch.totalJ)}, ${this.share(branch)}`;
    const split = PARTS.filter(part => branch.parts[part] > 0).map(
      part => `${part} ${formatEnergy(branch.parts[part])}`
    );
    const description = `${words}; ${split.join(', ')}`;
    const before = group.getAttribute('data-box');
    const box = `${x.toFixed(1)} ${width.toFixed(1)} ${depth} ${description}`;
    if (before === box) {
      return;
    }
    set(group, { 'data-box': box, 'aria-label': description, 'aria-level': depth + 1, class: 'tw-box' });
    group.replaceChildren();
    const y = depth * ROW;
    const inner = Math.max(width - 1, 1);
    let left = x;
    for (const part of PARTS) {
      const share = branch.totalJ > 0 ? branch.parts[part] / branch.totalJ : 0;
      if (share > 0) {
        group.append(
          s('rect', { class: `tw-part tw-${part}`, x: left, y, width: inner * share, height: ROW - 1 })
        );
        left += inner * share;
      }
    }
    group.append(s('rect', { class: 'tw-frame', x, y, width: inner, height: ROW - 1 }));
    if (width >= MIN_LABEL) {
      group.append(
        s(
          'text',
          { class: 'tw-label', 'aria-hidden': 'true', x: x + 5, y: y + ROW / 2 + 4 },
          label(branch, Math.floor((width - 10) / CHAR))
        )
      );
    }
  }

  private explain(target: EventTarget | null): void {
    const found = this.drawn.get(keyOf(target) ?? '');
    if (found) {
      const { branch } = found.box;
      const parts = PARTS.filter(part => branch.parts[part] > 0);
      this.card.show(found.group, branch.fqn, [
        { label: 'class', value: branch.className },
        {
          label: 'total',
          value: [formatEnergy(branch.totalJ), this.share(branch)].filter(Boolean).join(', ')
        },
        ...parts.map(part => ({ label: part, value: formatEnergy(branch.parts[part]) })),
        { label: 'self', value: branch.selfJ === null ? '' : formatEnergy(branch.selfJ) },
        { label: 'provenance', value: branch.provenance ? explain(branch.provenance) : '' }
      ]);
    }
  }

  private share(branch: Branch): string {
    return this.runJ > 0 ? `${formatShare(branch.totalJ / this.runJ)} of the run` : '';
  }

  private onClick(event: Event): void {
    const key = keyOf(event.target);
    if (key !== null) {
      this.active = key;
      this.picked(key);
      this.lookInto(key === this.focus ? ROOT_KEY : key);
    }
  }

  private onKey(event: KeyboardEvent): void {
    const here = this.drawn.get(this.active)?.box;
    if (!here) {
      return;
    }
    const to = this.neighbour(event.key, here);
    if (event.key === 'Enter' || event.key === ' ') {
      this.picked(this.active);
      this.lookInto(this.active);
    } else if (event.key === 'Escape' || event.key === 'Backspace') {
      this.card.hide();
      this.lookInto(ROOT_KEY);
    } else if (to !== undefined) {
      this.tabTo(to, true);
      this.picked(to);
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation(); // the notebook has its own meaning for these keys
  }

  private neighbour(pressed: string, here: Box): string | undefined {
    const boxes = [...this.drawn.values()].map(({ box }) => box);
    const row = boxes.filter(box => box.depth === here.depth).sort((a, b) => a.x - b.x);
    const at = row.findIndex(box => box.branch.key === here.branch.key);
    switch (pressed) {
      case 'ArrowLeft':
        return row[Math.max(at - 1, 0)]?.branch.key;
      case 'ArrowRight':
        return row[Math.min(at + 1, row.length - 1)]?.branch.key;
      case 'ArrowUp':
        return this.drawn.has(here.parent) ? here.parent : here.branch.key;
      case 'ArrowDown':
        return (
          boxes.filter(box => box.parent === here.branch.key).sort((a, b) => a.x - b.x)[0]?.branch.key ??
          here.branch.key
        );
      case 'Home':
        return row[0]?.branch.key;
      case 'End':
        return row[row.length - 1]?.branch.key;
      default:
        return undefined;
    }
  }

  private tabTo(key: string, take: boolean): void {
    this.active = key;
    for (const [name, { group }] of this.drawn) {
      set(group, { tabindex: name === key ? 0 : -1 });
    }
    if (take) {
      this.drawn.get(key)?.group.focus();
    }
  }
}

function keyOf(target: EventTarget | null): string | null {
  return target instanceof Element ? (target.closest('[data-key]')?.getAttribute('data-key') ?? null) : null;
}

/** A number says little without what it counts: `blocks.3`. */
export function label({ name, fqn, totalJ }: Branch, room: number): string {
  const context = /^\d+$/.test(name) ? fqn.split('.').slice(-2).join('.') : name;
  const full = `${context} · ${formatEnergy(totalJ)}`;
  return full.length <= room ? full : shorten(context, room);
}

const MEANING: Readonly<Record<Part, string>> = {
  forward: 'forward',
  backward: 'backward',
  other: 'other',
  static: 'static (where it is known)'
};

/** What the colours mean. */
export function phaseKeys(parts: readonly Part[]): HTMLElement[] {
  return parts.map(part =>
    h('span', { class: 'tw-key' }, h('i', { class: `tw-swatch tw-bg-${part}` }), MEANING[part])
  );
}
