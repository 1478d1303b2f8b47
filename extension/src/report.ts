/**
 * A finished report: the answer first, then the layers, then more of the evidence, then how all of it was measured.
 *
 * It draws what Python sent and fetches nothing.
 */

import { h } from './dom';
import { exportMenu } from './export';
import type { Figure } from './figures';
import { how, sources } from './how';
import { formatInterval, formatPower, formatTime, known } from './numbers';
import type { Curve, Payload } from './payload';
import { joined } from './power';
import { View } from './view';

export class ReportView extends View {
  constructor(private readonly payload: Payload) {
    super();
    this.node.setAttribute('aria-label', `energy report of ${payload.name || 'a run'}`);
    this.node.classList.add('tw-report');
    const children = [
      this.head(),
      answer(payload),
      this.figures.node,
      sources(payload),
      ...this.evidence(),
      how(payload)
    ];
    this.node.append(...children.filter(child => child !== null));
    this.figures.show(reportFigures(payload));
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

  /** The layers, and under a fold the map of the layers and the power. */
  private evidence(): readonly HTMLElement[] {
    const { payload } = this;
    const found: HTMLElement[] = [];
    const details = h(
      'details',
      { class: 'tw-details' },
      h('summary', {}, 'Details: map of the layers, power over time')
    );
    if (payload.layers.length + payload.reserved.length > 0) {
      this.layers.show(payload, payload.energy.value_j ?? 0);
      found.push(this.layers.node);
      details.append(this.layers.map);
    }
    if (payload.curves.some(curve => curve.t_s.length > 0)) {
      details.append(
        h('h4', {}, 'Power'),
        this.power.node,
        h('p', { class: 'tw-note' }, powerText(payload.curves))
      );
      this.power.show(joined(payload.curves));
    }
    return details.children.length > 1 ? [...found, details] : found;
  }
}

function answer(payload: Payload): HTMLElement | null {
  const { sentences = [], hint = '' } = payload.answer ?? {};
  return sentences.length
    ? h(
        'div',
        { class: 'tw-answer' },
        h('p', {}, sentences.join(' ')),
        hint ? h('p', { class: 'tw-hint' }, hint) : null
      )
    : null;
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

/** The curve in words, for those who do not see it. */
export function powerText(curves: readonly Curve[]): string {
  const words = curves.flatMap(({ domain, t_s, power_w }) => {
    const watts = power_w.filter(known);
    const end = Math.max(...t_s.filter(known));
    return watts.length
      ? [`${domain}: ${formatInterval(Math.min(...watts), Math.max(...watts), 'W')} over ${formatTime(end)}`]
      : [];
  });
  return words.length ? `${words.join('; ')}.` : '';
}
