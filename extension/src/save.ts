/** Hand a file or a text to the user. */

import { h } from './dom';

/** Let the browser save a text under a name. */
export function save(name: string, text: string, type = 'text/csv;charset=utf-8'): void {
  saveBlob(name, new Blob([text], { type }));
}

export function saveBlob(name: string, blob: Blob): void {
  const address = URL.createObjectURL(blob);
  const link = h('a', { href: address, download: name.replace(/[^\w.-]+/g, '_') });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

/** Put a text on the clipboard; a page that is not served securely has only the old way. */
export async function copy(text: string): Promise<void> {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const box = h('textarea', { 'aria-hidden': 'true' });
  box.value = text;
  document.body.append(box);
  box.select();
  const done = document.execCommand('copy');
  box.remove();
  if (!done) {
    throw new Error('the browser did not let the text be copied');
  }
}
