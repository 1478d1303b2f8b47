/** Find the reports in a notebook: its saved outputs are the one place where they are. */

import type { Cell, CodeCell } from '@jupyterlab/cells';
import type { Notebook, NotebookPanel } from '@jupyterlab/notebook';
import { asPayload, MIME, type Payload } from './payload';

export interface CellReport {
  readonly cellId: string;
  readonly count: number | null;
  readonly report: Payload;
}

export function reportOf(cell: Cell): Payload | null {
  // A cell can be on its way out when a signal about it arrives.
  if (cell.isDisposed || cell.model?.type !== 'code') {
    return null;
  }
  const { outputs } = (cell as CodeCell).model;
  for (let index = (outputs?.length ?? 0) - 1; index >= 0; index--) {
    const found = asPayload(outputs.get(index).data[MIME]);
    if (found) {
      return found;
    }
  }
  return null;
}

export function reportsOf(notebook: Notebook): readonly CellReport[] {
  return notebook.widgets.flatMap(cell => {
    const report = reportOf(cell);
    return report ? [{ cellId: cell.model.id, count: (cell as CodeCell).model.executionCount, report }] : [];
  });
}

/** Joules of all reports; null where one of them is unknown, or there is none. */
export function notebookJ(reports: readonly CellReport[]): number | null {
  const known = reports.map(one => one.report.energy.value_j);
  return known.length && known.every(value => value !== null)
    ? known.reduce<number>((a, b) => a + (b ?? 0), 0)
    : null;
}

/** Bring a cell into view and select it; false where the notebook has no such cell (any more). */
export async function jumpTo(panel: NotebookPanel, cellId: string): Promise<boolean> {
  const { content } = panel;
  const index = content.widgets.findIndex(cell => cell.model.id === cellId);
  const cell = content.widgets[index];
  if (!cell) {
    return false;
  }
  content.activeCellIndex = index;
  content.deselectAll();
  await content.scrollToCell(cell, 'center');
  return true;
}
