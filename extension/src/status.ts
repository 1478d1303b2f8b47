/** Live watts in the status bar, while something is profiled. */

import type { JupyterFrontEndPlugin } from '@jupyterlab/application';
import { IStatusBar } from '@jupyterlab/statusbar';
import { Signal } from '@lumino/signaling';
import { Widget } from '@lumino/widgets';
import { h, say, set } from './dom';
import { formatEnergy, formatPower } from './numbers';
import { ISessions, ISettings } from './tokens';

export const statusPlugin: JupyterFrontEndPlugin<void> = {
  id: 'torchwatt:status',
  description: 'Shows live watts in the status bar.',
  autoStart: true,
  optional: [IStatusBar, ISessions, ISettings], // Notebook 7 has no status bar
  activate: (_app, bar: IStatusBar | null, sessions: ISessions | null, settings: ISettings | null) => {
    if (!bar || !sessions) {
      return;
    }
    const text = h('span', { class: 'tw-status-item' });
    const active = new Signal<object, void>(sessions);
    const draw = (): void => {
      const found = sessions.running();
      say(text, found ? `⚡ ${formatPower(found.run.power_w)} · ${formatEnergy(found.run.energy_j)}` : '');
      set(text, { title: found ? `${found.run.name} in ${found.path} is profiled` : null });
      active.emit();
    };
    sessions.changed.connect(draw);
    settings?.changed.connect(draw);
    bar.registerStatusItem('torchwatt:watts', {
      item: new Widget({ node: text }),
      align: 'right',
      rank: 100,
      isActive: () => (settings?.status ?? true) && sessions.running() !== null,
      activeStateChanged: active
    });
  }
};
