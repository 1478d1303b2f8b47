/**
 * A finished report: the answer first, then the layers, then more of the evidence, then how all of it was measured.
 *
 * It draws what Python sent and fetches nothing.
 */

import { h } from './dom';
import { exportMenu } from './export';
import type { Figure } from './figures';
import { how } from './how';
import { formatPower, formatTime, keepUnits } from './numbers';
import type { Payload } from './payload';
import { TITLE as POSITIONS, positions } from './positions';
import { joined } from './power';
import { summaryCard } from './strip';
import { View } from './view';

export class ReportView extends View {
  constructor(private readonly payload: Payload) {
    super();
    this.node.setAttribute('aria-label', `energy report of ${payload.name || 'a run'}`);
    this.node.classList.add('tw-report');
    const shown = unbroken(payload);
    // Folded, so that what the cell printed stays in sight.
    const details = h(
      'details',
      { class: 'tw-more' },
      h('summary', {}, 'Details'),
      ...this.evidence(),
      how(shown)
    );
    this.node.append(this.head(), summaryCard(shown), details);
    this.figures.show(reportFigures(shown));
  }

  private head(): HTMLElement {
    const { name, status, exit_reason, duration_s } = this.payload;
    const words = [status, formatTime(duration_s), exit_reason].filter(Boolean).join(' · ');
    return h(
      'header',
      { class: 'tw-head' },
      h('h3', {}, name || 'torchwatt run'),
      h('span', { class: `tw-status tw-status-${status}` }, words),
      exportMenu(this.payload, this.layers, true)
    );
  }

  /** The layers, and under a fold the figures, the map of the layers and the power. */
  private evidence(): readonly HTMLElement[] {
    const { payload } = this;
    const summary = h('summary', {}, 'All figures, map of the layers, power over time');
    const details = h('details', { class: 'tw-details', open: true }, summary, this.figures.node);
    if (payload.curves.some(curve => curve.t_s.length > 0)) {
      details.append(h('h4', {}, 'Power'), this.power.node);
      this.power.show(joined(payload.curves), payload.bands, payload.lines);
    }
    const tokens = positions(payload.positions ?? []);
    if (tokens) {
      details.append(h('h4', {}, POSITIONS), tokens);
    }
    if (payload.layers.length + payload.reserved.length === 0) {
      return [details];
    }
    this.layers.show(payload, payload.energy.value_j ?? 0);
    this.figures.node.after(this.layers.map);
    return [this.layers.node, details];
  }
}

/** Return the payload with its texts as they are drawn; what is copied and saved keeps plain spaces. */
function unbroken(payload: Payload): Payload {
  const { answer } = payload;
  return {
    ...payload,
    answer: answer && { sentences: answer.sentences.map(keepUnits), hint: keepUnits(answer.hint) },
    notes: payload.notes?.map(keepUnits),
    how: payload.how?.map(keepUnits),
    rates: payload.rates.map(rate => ({ ...rate, detail: keepUnits(rate.detail) }))
  };
}

function reportFigures(payload: Payload): readonly Figure[] {
  const { energy, carbon } = payload;
  const [, value = energy.text, basis = ''] = /^(.*?) \((.*)\)$/.exec(energy.text) ?? [];
  return [
    {
      label: 'energy',
      value,
      detail: energy.provenance ? basis || (energy.systematic_text ?? '') : 'nothing was metered',
      known: energy.provenance
    },
    ...payload.rates.map(rate => ({ label: rate.label, value: rate.value, detail: rate.detail })),
    {
      label: 'mean power',
      value: formatPower(payload.power_w),
      detail: 'of all counted domains',
      known: energy.provenance && 'derived'
    },
    {
      label: 'carbon',
      value: carbon.text,
      detail: carbon.value_g === null ? carbon.how : '',
      known: carbon.value_g === null ? null : 'derived'
    }
  ];
}
