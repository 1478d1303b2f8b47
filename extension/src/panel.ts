/** The side panel: the runs of the notebook in front, their layers, two of them compared, and the way to a cell. */

import {
  ILabShell,
  ILayoutRestorer,
  type JupyterFrontEnd,
  type JupyterFrontEndPlugin
} from '@jupyterlab/application';
import { INotebookTracker } from '@jupyterlab/notebook';
import { LabIcon } from '@jupyterlab/ui-components';
import { Widget } from '@lumino/widgets';
import { compareTable } from './compare';
import { arrange, h, ROOT, say } from './dom';
import { exportMenu } from './export';
import { LayersView } from './layers';
import { DASH, formatEnergy, formatMass, formatPower, formatTime } from './numbers';
import { type CellReport, reportsOf } from './reports';
import { CommandIDs, ISessions, type SessionRun } from './tokens';

const BOLT = new LabIcon({
  name: 'torchwatt:bolt',
  svgstr:
    '<svg xmlns="http://www.w3.org/2000/svg" width="16" viewBox="0 0 24 24"><path class="jp-icon3" fill="#616161" d="M13 2 4 14h6l-1 8 9-12h-6z"/></svg>'
});

/** A run of the list: its report lies in an output, or only its kernel knows of it (`-q`, or it still runs). */
interface Item {
  readonly id: string;
  readonly name: string;
  readonly cellId: string | null;
  readonly text: string;
  readonly report: CellReport['report'] | null;
}

class EnergyPanel extends Widget {
  private readonly notebook = h('div', { class: 'tw-note' });
  private readonly list = h('ul', { class: 'tw-runs' });
  private readonly detail = h('div', { class: 'tw-detail' });
  private readonly layers = new LayersView();
  private readonly rows = new Map<string, HTMLElement>();
  private readonly size = new ResizeObserver(() => requestAnimationFrame(() => this.layers.resize()));
  private picked: readonly string[] = [];
  private drawn = '';

  constructor(
    private readonly app: JupyterFrontEnd,
    private readonly tracker: INotebookTracker,
    private readonly sessions: ISessions | null
  ) {
    super();
    this.id = 'torchwatt-panel';
    this.title.icon = BOLT;
    this.title.caption = 'Energy of this notebook (torchwatt)';
    this.addClass('tw-panel');
    const hint = h('div', { class: 'tw-note' }, 'Pick one run for its layers, two to compare them.');
    this.node.append(h('div', ROOT, h('h2', {}, 'Energy'), this.notebook, this.list, hint, this.detail));
    this.size.observe(this.node);
    const again = (): void => this.draw();
    tracker.currentChanged.connect((_, panel) => {
      panel?.content.modelContentChanged.connect(again);
      void panel?.context.ready.then(again);
      again();
    });
    tracker.currentWidget?.content.modelContentChanged.connect(again);
    sessions?.changed.connect(again);
  }

  protected override onAfterShow(): void {
    this.draw();
  }

  override dispose(): void {
    this.size.disconnect();
    super.dispose();
  }

  private draw(): void {
    if (!this.isVisible) {
      return; // nothing is worked out for a panel that nobody sees
    }
    const panel = this.tracker.currentWidget;
    const reports = panel ? reportsOf(panel.content) : [];
    const items = merge(reports, panel ? (this.sessions?.runs(panel.context.path) ?? []) : []);
    say(
      this.notebook,
      panel
        ? `${panel.context.path}: ${items.length} ${items.length === 1 ? 'run' : 'runs'}`
        : 'no notebook is open'
    );
    this.picked = this.picked.filter(id => items.some(item => item.id === id && item.report));
    if (!this.picked.length) {
      this.picked = items
        .filter(item => item.report)
        .slice(-1)
        .map(item => item.id);
    }
    arrange(
      this.list,
      items.map(item => this.row(item))
    );
    this.detailOf(items);
  }

  private row(item: Item): HTMLElement {
    const row = this.rows.get(item.id) ?? this.makeRow(item.id, item.cellId);
    this.rows.set(item.id, row);
    const [box, name, text] = [...row.children] as [HTMLInputElement, HTMLElement, HTMLElement];
    box.disabled = !item.report;
    box.checked = this.picked.includes(item.id);
    box.setAttribute('aria-label', `show ${item.name}`);
    say(name, item.name);
    say(text, item.text);
    return row;
  }

  private makeRow(id: string, cellId: string | null): HTMLElement {
    const box = h('input', { type: 'checkbox' });
    const name = h('button', {
      class: 'tw-button',
      type: 'button',
      title: 'go to the cell',
      disabled: !cellId
    });
    box.addEventListener('change', () => {
      // Of three, the oldest choice goes.
      this.picked = box.checked ? [...this.picked, id].slice(-2) : this.picked.filter(one => one !== id);
      this.draw();
    });
    name.addEventListener(
      'click',
      () =>
        cellId &&
        this.app.commands.hasCommand(CommandIDs.jump) &&
        this.app.commands.execute(CommandIDs.jump, { cellId })
    );
    return h('li', {}, box, name, h('span', {}));
  }

  private detailOf(items: readonly Item[]): void {
    // In the notebook's order, not in that of the clicks: B is the later one.
    const shown = items.filter(item => this.picked.includes(item.id));
    const [a, b] = shown.map(item => item.report);
    const what = shown.map(item => item.id).join(' ');
    if (what === this.drawn) {
      return;
    }
    this.drawn = what;
    if (a && b) {
      this.detail.replaceChildren(compareTable(a, b));
    } else if (a) {
      this.detail.replaceChildren(exportMenu(a, this.layers, false), this.layers.node);
      this.layers.show(a, a.energy.value_j ?? 0);
      requestAnimationFrame(() => this.layers.resize());
    } else {
      this.detail.replaceChildren();
    }
  }
}

function merge(reports: readonly CellReport[], runs: readonly SessionRun[]): readonly Item[] {
  const saved = new Set(reports.map(one => one.report.run_id));
  const items: Item[] = reports.map(({ cellId, report }) => ({
    id: report.run_id,
    name: report.name,
    cellId,
    report,
    text: words(report.energy.value_j, report.carbon.value_g, report.duration_s, report.status)
  }));
  const rest = runs
    .filter(run => !saved.has(run.run_id))
    .map(run => ({
      id: run.run_id,
      name: run.name,
      cellId: run.cell_id,
      report: null,
      text:
        run.status === 'running'
          ? `${formatPower(run.power_w)} · ${formatEnergy(run.energy_j)} · running`
          : words(run.energy_j, run.carbon_g, run.t_s, run.status)
    }));
  return [...items, ...rest];
}

function words(energyJ: number | null, carbonG: number | null, timeS: number | null, status: string): string {
  const grams = carbonG === null ? DASH : formatMass(carbonG);
  return [formatEnergy(energyJ), grams, formatTime(timeS), status === 'complete' ? '' : status]
    .filter(Boolean)
    .join(' · ');
}

export const panelPlugin: JupyterFrontEndPlugin<void> = {
  id: 'torchwatt:panel',
  description: "Lists a notebook's profiled runs at the side.",
  autoStart: true,
  requires: [INotebookTracker],
  optional: [ILabShell, ILayoutRestorer, ISessions], // Notebook 7 has no such shell
  activate: (
    app,
    tracker: INotebookTracker,
    shell: ILabShell | null,
    restorer: ILayoutRestorer | null,
    sessions: ISessions | null
  ) => {
    if (!shell) {
      return;
    }
    const panel = new EnergyPanel(app, tracker, sessions);
    shell.add(panel, 'right', { rank: 800 });
    restorer?.add(panel, panel.id);
    app.commands.addCommand(CommandIDs.showPanel, {
      label: 'Show the energy of this notebook',
      describedBy: { args: { type: 'object', properties: {} } },
      execute: () => shell.activateById(panel.id)
    });
  }
};
