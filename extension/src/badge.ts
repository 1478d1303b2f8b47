/** A badge at each profiled cell, read from the saved report: it is there after a reload, without a kernel. */

import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import type { Cell } from '@jupyterlab/cells';
import type { DocumentRegistry } from '@jupyterlab/docregistry';
import { INotebookTracker, type NotebookPanel } from '@jupyterlab/notebook';
import { DisposableDelegate, type IDisposable } from '@lumino/disposable';
import { Signal } from '@lumino/signaling';
import { h, say, set } from './dom';
import { formatEnergy, formatMass, formatShare } from './numbers';
import type { Payload } from './payload';
import { notebookJ, reportOf, reportsOf } from './reports';
import { CommandIDs, ISettings } from './tokens';

const CLASS = 'tw-badge';
const WAIT_MS = 100; // a notebook that opens changes once a cell

/** The badges of one notebook. */
class Badges {
  private timer = 0;

  constructor(
    private readonly app: JupyterFrontEnd,
    private readonly panel: NotebookPanel,
    private readonly settings: ISettings | null
  ) {
    const again = (): void => this.later();
    panel.content.modelContentChanged.connect(again, this);
    // A windowed notebook makes the rest of a cell when it comes into view.
    panel.content.cellInViewportChanged?.connect(again, this);
    settings?.changed.connect(again, this);
    void panel.context.ready.then(again);
  }

  dispose(): void {
    window.clearTimeout(this.timer);
    Signal.disconnectReceiver(this);
    Signal.clearData(this);
  }

  private later(): void {
    window.clearTimeout(this.timer);
    this.timer = window.setTimeout(() => this.draw(), WAIT_MS);
  }

  private draw(): void {
    if (this.panel.isDisposed) {
      return;
    }
    const whole = notebookJ(reportsOf(this.panel.content));
    const shown = this.settings?.badge ?? true;
    for (const cell of this.panel.content.widgets) {
      const report = shown ? reportOf(cell) : null;
      report ? this.put(cell, report, whole) : cell.node.querySelector(`.${CLASS}`)?.remove();
    }
  }

  private put(cell: Cell, report: Payload, whole: number | null): void {
    const footer = cell.node.querySelector('.jp-CellFooter');
    if (!footer) {
      void cell.ready.then(() => cell.isDisposed || this.later());
      return;
    }
    const badge = footer.querySelector(`.${CLASS}`) ?? footer.appendChild(this.make());
    const energyJ = report.energy.value_j;
    const words = [
      formatEnergy(energyJ),
      report.carbon.value_g === null ? '' : `${formatMass(report.carbon.value_g)} CO2e`,
      energyJ !== null && whole ? `${formatShare(energyJ / whole)} of the notebook` : '',
      report.status === 'complete' ? '' : report.status
    ];
    say(badge, `⚡ ${words.filter(Boolean).join(' · ')}`);
    set(badge, {
      title: `${report.name}: ${report.energy.text}, ${report.energy.provenance ?? 'nothing was metered'}`
    });
  }

  private make(): HTMLElement {
    const badge = h('button', { class: CLASS, type: 'button' });
    badge.addEventListener('click', () => {
      if (this.app.commands.hasCommand(CommandIDs.showPanel)) {
        void this.app.commands.execute(CommandIDs.showPanel);
      }
    });
    return badge;
  }
}

class BadgeExtension implements DocumentRegistry.IWidgetExtension<NotebookPanel, DocumentRegistry.IModel> {
  constructor(
    private readonly app: JupyterFrontEnd,
    private readonly settings: ISettings | null
  ) {}

  createNew(panel: NotebookPanel): IDisposable {
    const badges = new Badges(this.app, panel, this.settings);
    return new DisposableDelegate(() => badges.dispose());
  }
}

export const badgePlugin: JupyterFrontEndPlugin<void> = {
  id: 'torchwatt:badge',
  description: "Shows each profiled cell's energy at the cell.",
  autoStart: true,
  requires: [INotebookTracker],
  optional: [ISettings],
  activate: (app, _tracker: INotebookTracker, settings: ISettings | null) => {
    app.docRegistry.addWidgetExtension('Notebook', new BadgeExtension(app, settings) as never);
  }
};
