/** Names of modules where there is little room: the middle goes first, because both ends tell modules apart. */

import { h, say, set } from './dom';

const TAIL = 12; // characters at most of the last parts: the side panel has room for 14
const LAST_PART = 18; // characters at most of the last part alone

/** Cut a name into a head that may be shortened and a tail that stays: the last parts of a dotted name, or its end. */
export function split(name: string): readonly [string, string] {
  if (name.length <= TAIL) {
    return ['', name];
  }
  const dots = [TAIL, LAST_PART].map(room => name.indexOf('.', Math.max(name.length - room, 0)));
  const at = dots.find(dot => dot > 0 && dot < name.length - 1) ?? Math.max(name.length - LAST_PART, 0);
  return [name.slice(0, at), name.slice(at)];
}

/** Shorten a name in the middle to so many characters. */
export function shorten(name: string, room: number): string {
  if (name.length <= room) {
    return name;
  }
  if (room <= 2) {
    return `${name.slice(0, Math.max(room - 1, 1))}…`;
  }
  const tail = Math.floor((room - 1) / 2);
  return `${name.slice(0, room - 1 - tail)}…${name.slice(name.length - tail)}`;
}

export function nameNode(): HTMLElement {
  return h(
    'span',
    { class: 'tw-fqn' },
    h('span', { class: 'tw-fqn-head' }),
    h('span', { class: 'tw-fqn-tail' })
  );
}

/** Write a name; the whole of it is in the text, and in the title for a pointer. */
export function writeName(node: HTMLElement, name: string, title = name): void {
  const [head, tail] = split(name);
  const [first, last] = [...node.children];
  if (first && last) {
    say(first, head);
    say(last, tail);
  }
  set(node, { title });
}
