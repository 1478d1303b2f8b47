/** The anywidget module of the live view. Only messages from Python to here; nothing is asked of a busy kernel. */

import { LiveView } from './chart';
import { h } from './dom';
import { type Beat, type Begin, VERSION } from './payload';

/** The part of anywidget's model that is used. */
interface Model {
  get(name: string): unknown;
  on(event: string, callback: (...args: never[]) => void): void;
  off(event: string, callback: (...args: never[]) => void): void;
  comm_live?: boolean;
}

const DEFAULT_GONE = 'the kernel is gone: this is what was known';

function render({ model, el }: { model: Model; el: HTMLElement }): () => void {
  const begin = model.get('begin') as Begin;
  if (begin?.schema !== 'torchwatt.live' || begin.version !== VERSION) {
    el.append(h('p', {}, 'torchwatt is measuring; the report follows when the cell ends.'));
    return () => undefined;
  }
  const view = new LiveView(begin);
  el.append(view.node);
  const take = ({ kind, layers_text, ...beat }: { kind?: string; layers_text?: string }): void => {
    if (kind === 'beat') {
      view.take((layers_text ? { ...beat, layers: JSON.parse(layers_text) } : beat) as Beat);
    } else if (kind === 'settling') {
      view.settle();
    }
  };
  const gone = (): void => {
    // Told when the comm closes; anywidget's model does not say more.
    if (model.comm_live !== true) {
      view.lost(DEFAULT_GONE);
    }
  };
  model.on('msg:custom', take);
  model.on('comm_live_update', gone);
  return () => {
    model.off('msg:custom', take);
    model.off('comm_live_update', gone);
    view.dispose();
  };
}

export default { render };
