/** The figures at the top: label, value, how it is known. */

import { arrange, h, say, set } from './dom';
import { mark } from './provenance';

export interface Figure {
  readonly label: string;
  readonly value: string;
  readonly detail?: string;
  readonly known?: string | null;
}

/** Keyed by label, so that a live view changes texts and not elements. */
export class Figures {
  readonly node = h('div', { class: 'tw-figures' });
  private readonly drawn = new Map<string, HTMLElement>();

  show(figures: readonly Figure[]): void {
    arrange(
      this.node,
      figures.map(figure => {
        const node = this.drawn.get(figure.label) ?? make(figure.label);
        this.drawn.set(figure.label, node);
        const [head, value, detail] = [...node.children] as HTMLElement[];
        const known = head?.lastElementChild as HTMLElement | null;
        if (value && detail && known) {
          say(value, figure.value);
          say(detail, figure.detail ?? '');
          mark(known, figure.known);
          set(detail, { title: figure.detail || null });
        }
        return node;
      })
    );
  }
}

function make(label: string): HTMLElement {
  return h(
    'div',
    { class: 'tw-figure', 'data-figure': label },
    h('div', { class: 'tw-figure-label' }, h('span', {}, label), h('span', { class: 'tw-chip' })),
    h('div', { class: 'tw-figure-value' }),
    h('div', { class: 'tw-figure-detail' })
  );
}
