/** A run while it runs. It draws what Python sent and fetches nothing. */

import { h, say } from './dom';
import { Figures } from './figures';
import { unavailable } from './how';
import { ageText, FRESH, LiveState } from './live';
import { formatTime } from './numbers';
import type { Beat, Begin } from './payload';
import { Sparkline, TopGroups } from './strip';
import { View } from './view';

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
