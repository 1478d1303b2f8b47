/** Rows of bands under the power: which epoch, stage, step and phase ran when. */

import { h, s } from './dom';
import type { BandRow, Bands } from './payload';

export const ROWS = ['epochs', 'windows', 'stages', 'steps', 'phases'] as const;
const COLORS: Readonly<Record<string, string>> = {
  forward: '#3b8ede',
  backward: '#ec8626',
  optimizer: '#a06cd5',
  data: '#2fa87a',
  transfer: '#6fbf9f',
  communication: '#b8a100',
  compile: '#d9534f',
  train: '#3b8ede',
  validation: '#2fa87a',
  inference: '#a06cd5'
};
const GREY = '#8b929b';
const ROW_HEIGHT = 13;
const BAND_HEIGHT = 10;
const LETTER_WIDTH = 6;

/** Return the color of a band, and its opacity: neighbours without a color of their own alternate. */
export function bandFill(label: string, index: number): readonly [color: string, opacity: number] {
  const color = COLORS[label.split(/[ ,]/)[0] ?? ''];
  return color ? [color, 0.85] : [GREY, index % 2 ? 0.45 : 0.75];
}

/** Return the index of the band at an instant; -1 if there is none. */
export function bandAt(row: readonly BandRow[], t: number): number {
  return row.findIndex(([start, end]) => start <= t && t < end);
}

/** Say what ran at an instant: `epoch 1 · train · step 12 of 40 · backward, mostly blocks.*.mlp`. */
export function describeInstant(bands: Bands, t: number): string {
  const texts = ROWS.map(name => {
    const row = bands[name] ?? [];
    const index = bandAt(row, t);
    const band = row[index];
    if (!band) {
      return '';
    }
    if (name === 'steps') {
      const counts = row.map(one => Number(one[2]));
      const before = sum(counts.slice(0, index));
      const count = counts[index] ?? 0;
      const numbers = count > 1 ? `steps ${before + 1} to ${before + count}` : `step ${before + 1}`;
      return `${numbers} of ${sum(counts)}`;
    }
    return [String(band[2]), band[3] ? `mostly ${band[3]}` : ''].filter(Boolean).join(', ');
  });
  return texts.filter(Boolean).join(' · ');
}

function sum(values: readonly number[]): number {
  return values.reduce((a, b) => a + b, 0);
}

export interface Extent {
  readonly min: number;
  readonly max: number;
  /** Of the plot's area, in CSS pixels. */
  readonly left: number;
  readonly width: number;
}

export interface Rectangle {
  readonly x: number;
  readonly width: number;
  readonly index: number;
}

/** Return the bands that are at least partly in the extent, cut at its edges. */
export function rectangles(row: readonly BandRow[], extent: Extent): readonly Rectangle[] {
  const { min, max, left, width } = extent;
  const scale = width / Math.max(max - min, Number.EPSILON);
  return row.flatMap(([start, end], index) => {
    const [lo, hi] = [Math.max(start, min), Math.min(end, max)];
    return hi < lo || (hi === lo && start !== end)
      ? []
      : [{ x: left + (lo - min) * scale, width: Math.max((hi - lo) * scale, 0.3), index }];
  });
}

/** Explain the colors of the phases. */
export function bandLegend(bands: Bands): HTMLElement {
  const phases = [...new Set((bands.phases ?? []).map(band => String(band[2]).split(/[ ,]/)[0] ?? ''))];
  const swatches = phases.map(phase => {
    const swatch = h('i', { class: 'tw-swatch' });
    swatch.style.background = bandFill(phase, 0)[0];
    return h('span', {}, swatch, phase);
  });
  return h('div', { class: 'tw-legend' }, ...swatches);
}

/** The rows as a picture; `pick` is called with the bounds of a band that was clicked. */
export class BandRows {
  readonly node = s('svg', { class: 'tw-bands', 'aria-hidden': 'true' });
  private bands: Bands = {};

  constructor(pick: (start: number, end: number) => void) {
    this.node.addEventListener('click', event => {
      const { row, index } = (event.target as SVGElement).dataset;
      const band = this.bands[row as (typeof ROWS)[number]]?.[Number(index)];
      if (band) {
        pick(band[0], band[1]);
      }
    });
  }

  show(bands: Bands): void {
    this.bands = bands;
  }

  draw(extent: Extent): void {
    const rows = ROWS.filter(name => this.bands[name]?.length);
    const height = rows.length * ROW_HEIGHT + 2;
    this.node.setAttribute('width', String(extent.left + extent.width));
    this.node.setAttribute('height', String(rows.length ? height : 0));
    this.node.replaceChildren(...rows.flatMap((name, at) => this.drawRow(name, at * ROW_HEIGHT + 1, extent)));
  }

  private drawRow(name: (typeof ROWS)[number], y: number, extent: Extent): SVGElement[] {
    const row = this.bands[name] ?? [];
    const title = s(
      'text',
      { x: extent.left - 6, y: y + 9, 'text-anchor': 'end', class: 'tw-band-row' },
      name
    );
    const shapes = rectangles(row, extent).flatMap(({ x, width, index }) => {
      const label = name === 'steps' ? '' : String(row[index]?.[2] ?? '');
      const [fill, opacity] = bandFill(label, index);
      const shape = s('rect', {
        x: x.toFixed(1),
        y,
        width: width.toFixed(1),
        height: BAND_HEIGHT,
        fill,
        'fill-opacity': opacity,
        'data-row': name,
        'data-index': index
      });
      const fits = label && width > LETTER_WIDTH * label.length + 6;
      return fits
        ? [shape, s('text', { x: (x + 3).toFixed(1), y: y + 8, class: 'tw-band-label' }, label)]
        : [shape];
    });
    return [title, ...shapes];
  }
}
