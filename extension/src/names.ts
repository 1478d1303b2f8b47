/** Names of modules where there is little room: the middle goes first, because both ends tell modules apart. */

import { h, say, set } from './dom';

const TAIL = 18; // characters at most that stay at the end

/** Cut a name into a head that may be shortened and a tail that stays: the last parts of a dotted name, or its end. */
export function split(name: string): readonly [string, string] {
  const from = Math.max(name.length - TAIL, 0);
  if (from === 0) {
    return ['', name];
  }
  const dot = name.indexOf('.', from);
  const at = dot > 0 && dot < name.length - 1 ? dot : from;
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
