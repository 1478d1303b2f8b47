/**
 * The views of torchwatt without any Jupyter: a report that is finished, and a run while it runs.
 *
 * They draw what Python sent and fetch nothing.
 */

import { layersCsv } from './csv';
import { h, ROOT, say } from './dom';
import { type Figure, Figures } from './figures';
import { Icicle } from './icicle';
import { ageText, FRESH, LiveState } from './live';
import { DASH, formatEnergy, formatPower, formatTime } from './numbers';
import type { Beat, Begin, DomainInfo, Gone, Layers, Payload } from './payload';
import { joined, PowerLine } from './power';
import { Sparkline, summaryCard, TopGroups } from './strip';
import { LayerTable } from './table';
import { branches } from './tree';

/** Icicle and table side by side; what is picked in one is shown in the other. */
export class LayersView {
  readonly node = h('div', { class: 'tw-split' });
  private readonly icicle = new Icicle(key => this.table.reveal(key));
  private readonly table = new LayerTable(key => this.icicle.mark(key));

  constructor() {
    this.node.append(this.icicle.node, this.table.node);
  }

  show(layers: Layers, runJ: number): void {
    const tops = branches(layers);
    this.icicle.show(tops, runJ);
    this.table.show(tops, runJ);
  }

  resize(): void {
    this.icicle.resize(this.icicle.node.clientWidth);
  }
}

abstract class View {
  readonly node = h('section', ROOT);
  protected readonly power = new PowerLine();
  protected readonly layers = new LayersView();
  protected readonly figures = new Figures();
  private readonly size = new ResizeObserver(() => requestAnimationFrame(() => this.resize()));

  constructor() {
    this.size.observe(this.node);
  }

  dispose(): void {
    this.size.disconnect();
    this.power.dispose();
    this.node.remove();
  }

  protected resize(): void {
    if (this.node.isConnected && this.node.clientWidth > 0) {
      this.power.resize(this.power.node.clientWidth);
      this.layers.resize();
    }
  }
}

/** A finished report: a card, with everything else in its details, so that the output below stays in sight. */
export class ReportView extends View {
  private readonly details = h('details', { class: 'tw-details' }, h('summary', {}, 'Details'));

  constructor(private readonly payload: Payload) {
    super();
    this.node.append(this.head(), summaryCard(payload), this.details);
    this.details.append(this.figures.node);
    this.figures.show(reportFigures(payload));
    for (const note of payload.notes ?? []) {
      this.add(h('div', { class: 'tw-note' }, note));
    }
    this.add(domains(payload));
    if (payload.curves.some(curve => curve.t_s.length > 0)) {
      this.details.append(h('h4', {}, 'Power'), this.power.node);
      this.power.show(joined(payload.curves), payload.bands, payload.lines);
    }
    if (payload.layers.length + payload.reserved.length > 0) {
      this.details.append(h('h4', {}, 'Layers'), this.layers.node);
      this.layers.show(payload, payload.energy.value_j ?? 0);
      this.add(foldedNote(payload));
    }
    this.add(events(payload));
    this.add(foot(payload));
  }

  private head(): HTMLElement {
    const { name, status, exit_reason, duration_s } = this.payload;
    const words = [status, formatTime(duration_s), exit_reason].filter(Boolean).join(' · ');
    const csv = h(
      'button',
      { class: 'tw-button', type: 'button', title: 'save the layers as a file' },
      'Export CSV'
    );
    csv.addEventListener('click', () => save(`${name || 'torchwatt'}-layers.csv`, layersCsv(this.payload)));
    return h(
      'header',
      { class: 'tw-head' },
      h('h3', {}, name || 'torchwatt run'),
      h('span', { class: `tw-status tw-status-${status}` }, words),
      csv
    );
  }

  private add(node: HTMLElement | null): void {
    if (node) {
      this.details.append(node);
    }
  }
}

const AGES_MS = 250;

/** A run while it runs: a strip of few lines, which opens to figures, curve and layers. It needs nothing from the kernel. */
export class LiveView extends View {
  private readonly state: LiveState;
  private readonly status = h(
    'span',
    { class: 'tw-status tw-status-running', 'aria-live': 'polite' },
    'measuring'
  );
  private readonly asOf = h('span', { class: 'tw-note' });
  private readonly age = h('span', { class: 'tw-age' });
  private readonly layersAge = h('span', { class: 'tw-age' });
  private readonly first = new Figures();
  private readonly spark = new Sparkline();
  private readonly top = new TopGroups();
  private readonly strip = h('div', { class: 'tw-strip' });
  private readonly expanded = h('div', { class: 'tw-expanded', hidden: true });
  private readonly expander = h(
    'button',
    { class: 'tw-button', type: 'button', 'aria-expanded': 'false' },
    'Expand'
  );
  private readonly clock = setInterval(() => this.drawAges(), AGES_MS);
  private waiting = false;
  private ended = false;

  constructor(begin: Begin) {
    super();
    this.state = new LiveState(begin);
    this.node.classList.add('tw-live');
    this.expander.addEventListener('click', () => this.toggle());
    this.strip.append(
      h(
        'header',
        { class: 'tw-head' },
        h('span', { class: 'tw-strip-name', title: begin.name || null }, begin.name || 'torchwatt run'),
        this.status,
        this.age,
        this.expander
      ),
      h('div', { class: 'tw-strip-values' }, this.first.node, this.spark.node, this.top.node)
    );
    this.expanded.append(
      this.figures.node,
      this.power.node,
      h('h4', {}, 'Layers ', this.asOf, ' ', this.layersAge),
      this.layers.node
    );
    const gone = unavailable(begin.unavailable, begin.domains.length === 0);
    if (gone) {
      this.expanded.append(gone);
    }
    if (!begin.traces) {
      say(this.asOf, 'not traced: layers="off"');
    }
    this.node.append(this.strip, this.expanded);
    this.showFigures();
  }

  /** Take a message; however many come, the browser draws once a frame. */
  take(beat: Beat): void {
    this.state.take(beat);
    if (!this.waiting) {
      this.waiting = true;
      requestAnimationFrame(() => {
        this.waiting = false;
        this.draw();
      });
    }
  }

  /** Say that the cell has ended and that its report is being made: nothing shown here grows old any more. */
  settle(): void {
    clearInterval(this.clock);
    this.ended = true;
    say(this.status, 'making the report');
    for (const part of this.node.querySelectorAll('.tw-stale')) {
      part.classList.remove('tw-stale');
    }
    say(this.age, '');
    say(this.layersAge, '');
  }

  /** Say that nothing more will come. */
  lost(reason: string): void {
    clearInterval(this.clock);
    this.status.className = 'tw-status tw-status-aborted';
    say(this.status, reason);
  }

  override dispose(): void {
    clearInterval(this.clock);
    super.dispose();
  }

  private toggle(): void {
    this.expanded.hidden = !this.expanded.hidden;
    this.expander.setAttribute('aria-expanded', String(!this.expanded.hidden));
    say(this.expander, this.expanded.hidden ? 'Expand' : 'Collapse');
    this.resize();
    this.draw();
  }

  /** Grey what is older than it should be; also while no message comes. */
  private drawAges(): void {
    if (this.ended) {
      return;
    }
    const ages = this.state.ages();
    const figures = ageText(ages.figures, FRESH.figures);
    const layers = ageText(ages.layers, FRESH.layers);
    say(this.age, figures);
    say(this.layersAge, layers);
    for (const part of [this.first.node, this.spark.node, this.figures.node, this.power.node]) {
      part.classList.toggle('tw-stale', figures !== '');
    }
    for (const part of [this.top.node, this.layers.node]) {
      part.classList.toggle('tw-stale', layers !== '');
    }
    this.node.dataset.age = ages.figures.toFixed(2);
    this.node.dataset.layersAge = ages.layers === null ? '' : ages.layers.toFixed(2);
  }

  private draw(): void {
    if (!this.node.isConnected) {
      return;
    }
    this.drawAges();
    this.node.dataset.beats = String(this.state.beats);
    this.showFigures();
    const columns = this.state.columns();
    this.spark.show(columns);
    this.top.show(this.state.top);
    if (this.expanded.hidden) {
      return; // nothing is worked out for what nobody sees
    }
    this.power.show(columns);
    const layers = this.state.freshLayers();
    if (layers) {
      this.layers.show(layers, this.state.latest?.energy_j ?? 0);
      say(this.asOf, `as of ${formatTime(layers.as_of_s)}`);
    }
  }

  private showFigures(): void {
    this.first.show(this.state.strip());
    if (!this.expanded.hidden) {
      this.figures.show(this.state.figures());
    }
  }
}

function reportFigures(payload: Payload): readonly Figure[] {
  const { energy, carbon } = payload;
  return [
    {
      label: 'energy',
      value: energy.text,
      detail: energy.provenance ? (energy.systematic_text ?? '') : 'nothing was metered',
      known: energy.provenance
    },
    {
      label: 'mean power',
      value: formatPower(payload.power_w),
      detail: 'of all counted domains',
      known: energy.provenance && 'derived'
    },
    {
      label: 'carbon',
      value: carbon.text,
      detail: carbon.how,
      known: carbon.value_g === null ? null : 'derived'
    },
    ...payload.rates.map(rate => ({ label: rate.label, value: rate.value, detail: rate.detail }))
  ];
}

function shareOf(one: DomainInfo): string {
  if (one.counted === false) {
    return 'not in the total';
  }
  return one.share === null ? '' : `${(one.share * 100).toFixed(1)} %`;
}

function domains(payload: Payload): HTMLElement | null {
  if (payload.domains.length + payload.unavailable.length === 0) {
    return null;
  }
  const cards = payload.domains.map(one =>
    h(
      'div',
      { class: 'tw-domain' },
      h(
        'div',
        {},
        h('b', {}, one.domain),
        ' ',
        h('span', { class: 'tw-chip' }, one.provenance),
        ' ',
        shareOf(one)
      ),
      h('div', { class: 'tw-domain-value' }, one.text),
      h('div', { class: 'tw-note' }, one.sentence),
      h('div', { class: 'tw-note' }, one.meter)
    )
  );
  const gone = unavailable(payload.unavailable, payload.domains.length === 0);
  return h('div', {}, h('h4', {}, 'Domains'), h('div', { class: 'tw-domains' }, ...cards), gone);
}

/** Name what has no meter on one line, which opens to why and to what would help. */
function unavailable(list: readonly Gone[], open = false): HTMLElement | null {
  const lines = list.map(one =>
    h(
      'div',
      { class: 'tw-note' },
      h('b', {}, one.domain),
      ` ${DASH} ${one.reason}`,
      one.fix ? h('div', {}, `Fix: ${one.fix}`) : null
    )
  );
  const names = [...new Set(list.map(one => one.domain))].join(', ');
  const title = h('summary', {}, h('b', {}, 'Without a meter: '), names);
  return lines.length ? h('details', { class: 'tw-gone', open }, title, ...lines) : null;
}

function foldedNote({ layers, folded }: Payload): HTMLElement | null {
  const count = layers.reduce((sum, row) => sum + (row.folded ?? 0), folded?.layers ?? 0);
  const where = folded
    ? `at the end, other (${count}), together ${formatEnergy(folded.energy_j)}`
    : 'as "(n smaller)" inside of what contains them, whose total they are part of';
  const all = 'run.layers and the CSV of the kernel have all of them.';
  return count ? h('div', { class: 'tw-note' }, `The ${count} smallest layers stand ${where}; ${all}`) : null;
}

function events(payload: Payload): HTMLElement | null {
  if (payload.event_count === 0) {
    return null;
  }
  const worrying = payload.events.filter(event => event.severity !== 'info').length;
  const rows = payload.events.map(event =>
    h(
      'tr',
      {},
      ...[
        formatTime(event.t_s === null ? null : Math.max(event.t_s, 0)),
        event.severity,
        event.code,
        event.subject,
        event.message
      ].map(text => h('td', {}, text))
    )
  );
  const more = payload.event_count - payload.events.length;
  return h(
    'details',
    { class: 'tw-events', open: worrying > 0 },
    h('summary', {}, `Events (${payload.event_count}, ${worrying} to look at)`),
    h('table', {}, ...rows),
    more > 0 ? h('div', { class: 'tw-note' }, `and ${more} more`) : null
  );
}

function foot(payload: Payload): HTMLElement {
  const versions = Object.entries(payload.software).map(([name, version]) => `${name} ${version}`);
  return h(
    'footer',
    { class: 'tw-foot' },
    h('div', {}, `Measuring: ${payload.cost}.`),
    h('div', {}, [`Run ${payload.run_id}`, ...versions].join(' · '))
  );
}

/** Let the browser save a text under a name. */
export function save(name: string, text: string): void {
  const address = URL.createObjectURL(new Blob([text], { type: 'text/csv;charset=utf-8' }));
  const link = h('a', { href: address, download: name.replace(/[^\w.-]+/g, '_') });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}
