/** What a reader takes along: the view that is shown as Markdown or CSV, the layers as a file, the icicle as a picture. */

import { layersCsv, toCsv } from './csv';
import { h, say } from './dom';
import { eachText, REPEATS } from './groups';
import type { LayersView } from './layers';
import { formatEnergy, formatInterval, formatShare } from './numbers';
import type { Group, Payload } from './payload';
import { pngOf, svgText } from './picture';
import { copy, save, saveBlob } from './save';
import { branches, everyBranch } from './tree';

/** Return the menu of a report; the pictures only where its icicle is drawn. */
export function exportMenu(payload: Payload, layers: LayersView, pictures: boolean): HTMLElement {
  const notice = h('span', { class: 'tw-note', role: 'status' });
  const name = payload.name || 'torchwatt';
  const items: [string, () => unknown][] = [
    ['Copy as Markdown', () => copy(viewMarkdown(payload, layers))],
    ['Copy as CSV', () => copy(viewCsv(payload, layers))],
    ['Export CSV', () => save(`${name}-layers.csv`, layersCsv(payload))]
  ];
  if (pictures) {
    items.push(
      [
        'Save icicle as SVG',
        () => save(`${name}-layers.svg`, svgText(layers.icicle.drawing()), 'image/svg+xml')
      ],
      ['Save icicle as PNG', async () => saveBlob(`${name}-layers.png`, await pngOf(layers.icicle.drawing()))]
    );
  }
  const menu = h('details', { class: 'tw-export' }, h('summary', {}, 'Export'));
  const buttons = items.map(([label, act]) => {
    const button = h('button', { class: 'tw-button', type: 'button' }, label);
    button.addEventListener('click', async () => {
      try {
        await act();
        say(notice, label.startsWith('Copy') ? 'copied' : 'saved');
      } catch (error) {
        say(notice, `${label} failed: ${error instanceof Error ? error.message : String(error)}`);
      }
      menu.open = false;
    });
    return button;
  });
  menu.append(h('div', { class: 'tw-export-items' }, ...buttons));
  menu.addEventListener('keydown', event => {
    if (event.key === 'Escape') {
      menu.open = false;
      menu.querySelector('summary')?.focus();
    }
    event.stopPropagation();
  });
  return h('div', { class: 'tw-export-bar' }, notice, menu);
}

/** The view that is shown, in Markdown. */
export function viewMarkdown(payload: Payload, layers: LayersView): string {
  const { view, rows } = layers.current();
  const heads = rows
    ? ['layers', 'energy', 'share', REPEATS, 'each module', 'provenance']
    : ['layer', 'total', 'self', REPEATS, 'provenance'];
  const cells = rows ? rows.map(groupCells) : treeCells(payload);
  const answer = [
    ...(payload.answer?.sentences ?? [`Energy: ${payload.energy.text}`]),
    payload.answer?.hint ?? ''
  ];
  const table = [
    heads,
    heads.map((_, index) => (index === 0 || index === heads.length - 1 ? '---' : '---:')),
    ...cells
  ];
  return [
    `**${plain(payload.name || 'torchwatt run')}** (${view})`,
    answer.filter(Boolean).map(plain).join(' '),
    table.map(row => `| ${row.join(' | ')} |`).join('\n')
  ]
    .join('\n\n')
    .concat('\n');
}

function groupCells(row: Group): string[] {
  const interval = row.interval_j ? formatInterval(...row.interval_j) : '';
  const name = `${code(row.name)}${row.unclear ? ' ~' : ''}`;
  return [
    name,
    formatEnergy(row.energy_j),
    formatShare(row.share),
    interval,
    eachText(row),
    row.provenance ?? ''
  ];
}

function treeCells(payload: Payload): string[][] {
  return everyBranch(branches(payload)).map(one => [
    code(one.fqn),
    formatEnergy(one.totalJ),
    one.provenance ? formatEnergy(one.selfJ) : '',
    one.interval ? formatInterval(...one.interval) : '',
    one.provenance ?? ''
  ]);
}

/** A name as code: `*` and `_` in it are no markup. */
function code(text: string): string {
  return `\`${text.replace(/[`\r\n]/g, "'").replaceAll('|', '\\|')}\``;
}

function plain(text: string): string {
  return text.replace(/[\r\n]+/g, ' ').replace(/[\\`*_<>|[\]]/g, found => `\\${found}`);
}

/** The view that is shown, as CSV with all figures that the report has; the tree by name and phase. */
export function viewCsv(payload: Payload, layers: LayersView): string {
  const { rows } = layers.current();
  if (!rows) {
    return layersCsv(payload);
  }
  const phases = [...new Set(rows.flatMap(row => Object.keys(row.by_phase)))];
  const heads = [
    'layers',
    'count',
    'energy_j',
    'share',
    'energy_lo_j',
    'energy_hi_j',
    'each_lo_j',
    'each_hi_j',
    ...phases.map(phase => `${phase}_j`),
    'provenance',
    'order_unclear'
  ];
  const lines = rows.map(row => [
    row.name,
    row.count,
    row.energy_j,
    row.share,
    ...(row.interval_j ?? [null, null]),
    ...(row.each_j ?? [null, null]),
    ...phases.map(phase => row.by_phase[phase]),
    row.provenance,
    String(row.unclear)
  ]);
  return toCsv([heads, ...lines]);
}
