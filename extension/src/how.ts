/** *How this was measured*: everything that qualifies the numbers, under one fold. */

import { h } from './dom';
import { DASH, formatEnergy, formatTime } from './numbers';
import type { DomainInfo, Gone, Payload } from './payload';
import { chip, legend } from './provenance';

export function how(payload: Payload): HTMLElement {
  const sentences = [...new Set([...(payload.notes ?? []), ...(payload.how ?? [])])];
  const warnings = payload.events.filter(event => event.severity !== 'info').length;
  const title = `How this was measured${warnings ? ` (${warnings} ${warnings === 1 ? 'warning' : 'warnings'})` : ''}`;
  const nothing = payload.domains.length === 0;
  return h(
    'details',
    { class: 'tw-how', open: nothing },
    h('summary', {}, title),
    sentences.length ? h('ul', { class: 'tw-sentences' }, ...sentences.map(text => h('li', {}, text))) : null,
    domains(payload),
    unavailable(payload.unavailable, nothing),
    foldedNote(payload),
    events(payload),
    h('h4', {}, 'Provenance of the numbers'),
    legend(provenances(payload)),
    foot(payload)
  );
}

function provenances(payload: Payload): readonly (string | null)[] {
  const rows = [...payload.layers, ...payload.reserved, ...payload.domains, payload.energy];
  return ['derived', ...rows.map(row => row.provenance)];
}

function domains(payload: Payload): HTMLElement | null {
  if (payload.domains.length === 0) {
    return null;
  }
  const cards = payload.domains.map(one =>
    h(
      'div',
      { class: 'tw-domain' },
      h('div', {}, h('b', {}, one.domain), ' ', chip(one.provenance), ' ', shareOf(one)),
      h('div', { class: 'tw-domain-value' }, one.text),
      h('div', { class: 'tw-note' }, one.sentence),
      h('div', { class: 'tw-note' }, one.meter)
    )
  );
  return h('div', {}, h('h4', {}, 'Domains'), h('div', { class: 'tw-domains' }, ...cards));
}

function shareOf(one: DomainInfo): string {
  if (one.counted === false) {
    return 'not in the total';
  }
  return one.share === null ? '' : `${(one.share * 100).toFixed(1)} %`;
}

/** Name what has no meter on one line, which opens to why and to what would help. */
export function unavailable(list: readonly Gone[], open = false): HTMLElement | null {
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
  return count ? h('p', {}, `In the tree, the ${count} smallest layers stand ${where}; ${all}`) : null;
}

function events(payload: Payload): HTMLElement | null {
  if (payload.event_count === 0) {
    return null;
  }
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
  const heads = ['at', 'severity', 'code', 'subject', 'message'].map(text => h('th', { scope: 'col' }, text));
  const more = payload.event_count - payload.events.length;
  return h(
    'div',
    { class: 'tw-events' },
    h('h4', {}, `Events (${payload.event_count})`),
    h('table', {}, h('thead', {}, h('tr', {}, ...heads)), h('tbody', {}, ...rows)),
    more > 0 ? h('div', { class: 'tw-note' }, `and ${more} more`) : null
  );
}

function foot(payload: Payload): HTMLElement {
  const versions = Object.entries(payload.software).map(([name, version]) => `${name} ${version}`);
  return h(
    'div',
    { class: 'tw-foot' },
    payload.carbon.how ? h('div', {}, `Carbon: ${payload.carbon.how}`) : null,
    h('div', {}, `Measuring: ${payload.cost}.`),
    h('div', {}, [`Run ${payload.run_id}`, ...versions].join(' · '))
  );
}
