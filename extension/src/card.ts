/** A card beside what the pointer is on or what has the focus: the numbers that a narrow view has no column for. */

import { h } from './dom';

const GAP = 6; // px
let count = 0;

export interface Fact {
  readonly label: string;
  readonly value: string;
}

export class HoverCard {
  readonly node = h('div', { class: 'tw-hover', role: 'tooltip', hidden: true, id: `tw-hover-${++count}` });
  private anchor: Element | null = null;

  /** Show the card under an element (above it where there is no room), inside of what holds the card. */
  show(anchor: Element, title: string, facts: readonly Fact[]): void {
    this.hide();
    this.anchor = anchor;
    anchor.setAttribute('aria-describedby', this.node.id);
    const rows = facts
      .filter(fact => fact.value)
      .flatMap(({ label, value }) => [h('dt', {}, label), h('dd', {}, value)]);
    this.node.replaceChildren(h('div', { class: 'tw-hover-title' }, title), h('dl', {}, ...rows));
    this.node.hidden = false;
    this.place(anchor);
  }

  hide(): void {
    this.anchor?.removeAttribute('aria-describedby');
    this.anchor = null;
    this.node.hidden = true;
  }

  private place(anchor: Element): void {
    const frame = this.node.parentElement?.getBoundingClientRect();
    if (!frame) {
      return;
    }
    const at = anchor.getBoundingClientRect();
    const { width, height } = this.node.getBoundingClientRect();
    const left = Math.max(0, Math.min(at.left - frame.left + 24, frame.width - width));
    const below = at.bottom - frame.top + GAP;
    const above = at.top - frame.top - height - GAP;
    const top = below + height > frame.height && above >= 0 ? above : below;
    this.node.style.left = `${left}px`;
    this.node.style.top = `${top}px`;
  }
}
