/** How a number is known: a glyph and a word, explained by hover and by a legend, in the words of `core/terms.py`. */

import { h } from './dom';

interface Provenance {
  readonly glyph: string;
  readonly meaning: string;
}

/** From best known to least known. */
const PROVENANCES: ReadonlyMap<string, Provenance> = new Map(
  Object.entries({
    measured: { glyph: '●', meaning: 'the difference of two readings of a meter' },
    derived: { glyph: '◆', meaning: 'calculated from other numbers' },
    apportioned: { glyph: '◐', meaning: 'a share of a measured total' },
    sourced: { glyph: '■', meaning: 'a published factor' },
    modelled: { glyph: '○', meaning: 'calculated by a model, without a meter' },
    declared: { glyph: '◇', meaning: 'stated by the user' },
    assumed: { glyph: '□', meaning: 'a default of torchwatt' }
  })
);

/** Return a chip; nothing where the provenance is not known. */
export function chip(word: string | null | undefined): HTMLElement {
  const node = h('span', { class: 'tw-chip' });
  mark(node, word);
  return node;
}

/** Write a provenance into a chip. Where a view is too narrow for the word, the glyph stays. */
export function mark(node: HTMLElement, word: string | null | undefined): void {
  if (node.dataset.provenance === (word ?? '')) {
    return;
  }
  node.dataset.provenance = word ?? '';
  node.hidden = !word;
  node.title = word ? explain(word) : '';
  node.replaceChildren(
    h('span', { class: 'tw-glyph', 'aria-hidden': 'true' }, word ? (PROVENANCES.get(word)?.glyph ?? '') : ''),
    h('span', { class: 'tw-chip-word' }, word ?? '')
  );
}

export function explain(word: string): string {
  const known = PROVENANCES.get(word);
  return known ? `${word}: ${known.meaning}` : word;
}

/** List the provenances that occur, each with its meaning. */
export function legend(words: Iterable<string | null>): HTMLElement {
  const found = new Set(words);
  const items = [...PROVENANCES.keys()]
    .filter(word => found.has(word))
    .map(word => h('li', {}, chip(word), ` ${PROVENANCES.get(word)?.meaning ?? ''}`));
  return h('ul', { class: 'tw-provenances', 'aria-label': 'provenance of the numbers' }, ...items);
}
