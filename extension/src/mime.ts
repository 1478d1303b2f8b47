/** Renderers of the report and of the history. They only make text nodes: also for notebooks that are not trusted. */

import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { type IRenderMime, IRenderMimeRegistry } from '@jupyterlab/rendermime';
import { Widget } from '@lumino/widgets';
import { h } from './dom';
import { type HistoryRow, historyTable } from './history';
import { asPayload, HISTORY_MIME, MIME } from './payload';
import { ReportView } from './report';
import { CommandIDs } from './tokens';

class ReportRenderer extends Widget implements IRenderMime.IRenderer {
  private view: ReportView | null = null;

  async renderModel(model: IRenderMime.IMimeModel): Promise<void> {
    this.view?.dispose();
    const payload = asPayload(model.data[MIME]);
    this.view = payload && new ReportView(payload);
    this.node.replaceChildren(this.view?.node ?? unreadable(model));
  }

  override dispose(): void {
    this.view?.dispose();
    super.dispose();
  }
}

/** A report of another version still has its text. */
function unreadable(model: IRenderMime.IMimeModel): HTMLElement {
  const text = model.data['text/plain'];
  const why = 'This report was written by another version of torchwatt; here is its text.';
  return h(
    'div',
    {},
    h('p', {}, why),
    h('pre', {}, Array.isArray(text) ? text.join('') : String(text ?? ''))
  );
}

class HistoryRenderer extends Widget implements IRenderMime.IRenderer {
  constructor(private readonly app: JupyterFrontEnd) {
    super();
  }

  async renderModel(model: IRenderMime.IMimeModel): Promise<void> {
    const rows = (model.data[HISTORY_MIME] as { runs?: readonly HistoryRow[] } | null)?.runs ?? [];
    const jump = (cellId: string): void => void this.app.commands.execute(CommandIDs.jump, { cellId });
    this.node.replaceChildren(
      historyTable(rows, this.app.commands.hasCommand(CommandIDs.jump) ? jump : null)
    );
  }
}

export const mimePlugin: JupyterFrontEndPlugin<void> = {
  id: 'torchwatt:mime',
  description: 'Draws energy reports in notebooks.',
  autoStart: true,
  requires: [IRenderMimeRegistry],
  activate: (app, registry: IRenderMimeRegistry) => {
    // A rank below 50 is preferred to text/html.
    registry.addFactory({ safe: true, mimeTypes: [MIME], createRenderer: () => new ReportRenderer() }, 40);
    registry.addFactory(
      { safe: true, mimeTypes: [HISTORY_MIME], createRenderer: () => new HistoryRenderer(app) },
      40
    );
  }
};
