/** The commands: in the palette, and for the other plugins. */

import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { ICommandPalette } from '@jupyterlab/apputils';
import { INotebookTracker, NotebookActions, type NotebookPanel } from '@jupyterlab/notebook';
import { layersCsv } from './csv';
import { isProfiled, profiled } from './magic';
import { jumpTo, reportsOf } from './reports';
import { save } from './save';
import { CommandIDs, ISettings } from './tokens';

const CATEGORY = 'Energy';
const LOAD = '%load_ext torchwatt';

export const commandsPlugin: JupyterFrontEndPlugin<void> = {
  id: 'torchwatt:commands',
  description: 'Commands to profile cells and to export what was found.',
  autoStart: true,
  requires: [INotebookTracker],
  optional: [ICommandPalette, ISettings],
  activate: (app, tracker: INotebookTracker, palette: ICommandPalette | null, settings: ISettings | null) => {
    const { commands } = app;
    const isEnabled = (): boolean =>
      tracker.currentWidget !== null && tracker.currentWidget === app.shell.currentWidget;
    const none = { args: { type: 'object', properties: {} } } as const;
    const onNotebook = (run: (panel: NotebookPanel) => unknown) => () =>
      tracker.currentWidget && run(tracker.currentWidget);
    commands.addCommand(CommandIDs.profileCell, {
      label: "Profile this cell's energy",
      caption: 'Write %%energy above the cell and run it',
      describedBy: none,
      isEnabled,
      execute: onNotebook(panel => profileCell(panel, settings?.region ?? ''))
    });
    commands.addCommand(CommandIDs.profileAll, {
      label: 'Profile all cells',
      caption: 'Put %energy on in front and run all cells',
      describedBy: none,
      isEnabled,
      execute: onNotebook(panel => profileAll(app, panel))
    });
    commands.addCommand(CommandIDs.exportCsv, {
      label: 'Export energy CSV',
      caption: 'Save the layers of the reports in this notebook',
      describedBy: none,
      isEnabled,
      execute: onNotebook(exportCsv)
    });
    commands.addCommand(CommandIDs.jump, {
      label: 'Go to a profiled cell',
      describedBy: {
        args: { type: 'object', properties: { cellId: { type: 'string' } }, required: ['cellId'] }
      },
      execute: args => tracker.currentWidget && jumpTo(tracker.currentWidget, String(args.cellId))
    });
    for (const command of [CommandIDs.profileCell, CommandIDs.profileAll, CommandIDs.exportCsv]) {
      palette?.addItem({ command, category: CATEGORY });
    }
  }
};

async function profileCell(panel: NotebookPanel, region: string): Promise<void> {
  const { content, sessionContext } = panel;
  const model = content.activeCell?.model;
  if (model?.type !== 'code') {
    return;
  }
  const source = model.sharedModel.getSource();
  if (!isProfiled(source)) {
    model.sharedModel.setSource(profiled(source, region));
  }
  if (!sources(panel).some(text => text.includes(LOAD))) {
    NotebookActions.insertAbove(content);
    content.activeCell?.model.sharedModel.setSource(LOAD);
    await NotebookActions.run(content, sessionContext);
    content.activeCellIndex += 1;
  }
  await NotebookActions.run(content, sessionContext);
}

async function profileAll(app: JupyterFrontEnd, panel: NotebookPanel): Promise<void> {
  const { content } = panel;
  if (!sources(panel).some(text => /^\s*%energy on\b/m.test(text))) {
    content.activeCellIndex = 0;
    NotebookActions.insertAbove(content);
    content.activeCell?.model.sharedModel.setSource(`${LOAD}\n%energy on`);
  }
  await app.commands.execute('notebook:run-all-cells');
}

function exportCsv(panel: NotebookPanel): void {
  const reports = reportsOf(panel.content);
  const [head, ...rows] = reports.flatMap(({ report }, index) =>
    layersCsv(report)
      .split('\n')
      .slice(index ? 1 : 0, -1)
  );
  const name =
    panel.context.path
      .split('/')
      .pop()
      ?.replace(/\.ipynb$/, '') ?? 'notebook';
  if (head) {
    save(`${name}-energy.csv`, `${[head, ...rows].join('\n')}\n`);
  }
}

function sources(panel: NotebookPanel): readonly string[] {
  return panel.content.widgets.map(cell =>
    cell.model.type === 'code' ? cell.model.sharedModel.getSource() : ''
  );
}
