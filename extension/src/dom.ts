/** Make elements. Only text nodes are ever made of what Python sent: the views are safe in untrusted notebooks. */

type Child = Node | string | null | undefined | false;
type Attributes = Readonly<Record<string, string | number | boolean | null | undefined>>;

/**
 * A key that is pressed in a view is not for the notebook, where `d d` deletes the cell. JupyterLab asks the focused
 * element before those around it: each that can have the focus must say so.
 */
const OWN_KEYS = 'data-lm-suppress-shortcuts';
const FOCUSABLE = new Set(['a', 'button', 'input', 'select', 'summary', 'textarea']);

/** The root of a view; what is clicked in it takes the focus to the root, and not to the cell. */
export const ROOT: Attributes = { class: 'tw-root', tabindex: -1 };

const SVG = 'http://www.w3.org/2000/svg';

export function h<K extends keyof HTMLElementTagNameMap>(
  name: K,
  attributes: Attributes = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const made = document.createElement(name);
  set(made, FOCUSABLE.has(name) ? { ...attributes, [OWN_KEYS]: true } : attributes);
  made.append(...present(children));
  return made;
}

export function s<K extends keyof SVGElementTagNameMap>(
  name: K,
  attributes: Attributes = {},
  ...children: Child[]
): SVGElementTagNameMap[K] {
  const made = document.createElementNS(SVG, name);
  set(made, attributes);
  made.append(...present(children));
  return made;
}

export function set(element: Element, attributes: Attributes): void {
  if (attributes.tabindex !== undefined) {
    element.setAttribute(OWN_KEYS, '');
  }
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) {
      element.removeAttribute(name);
    } else {
      element.setAttribute(name, value === true ? '' : String(value));
    }
  }
}

/** Change a text only where it differs: a view that shows the same must cost the browser nothing. */
export function say(element: Element, text: string): void {
  if (element.textContent !== text) {
    element.textContent = text;
  }
}

/** Put children in order without moving the ones that are in place: a moved element loses the focus. */
export function arrange(parent: Element, children: readonly Element[]): void {
  const wanted = new Set<Element>(children);
  const before = [...parent.children]; // read once: each look at a live collection costs as much as it is long
  for (const child of before) {
    if (!wanted.has(child)) {
      child.remove();
    }
  }
  const kept = before.filter(child => wanted.has(child));
  const moved = new Set<Element>();
  let at = 0;
  for (const child of children) {
    for (let next = kept[at]; next && moved.has(next); next = kept[at]) {
      at += 1;
    }
    if (kept[at] === child) {
      at += 1;
    } else {
      parent.insertBefore(child, kept[at] ?? null);
      moved.add(child);
    }
  }
}

function present(children: readonly Child[]): (Node | string)[] {
  return children.filter(
    (child): child is Node | string => child instanceof Node || typeof child === 'string'
  );
}
