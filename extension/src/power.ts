/** The power line: watts of each domain over seconds. */

import uPlot from 'uplot';
import { h } from './dom';
import { formatPower } from './numbers';
import type { Curve } from './payload';

/** One domain after the other; a dash as well as a colour tells them apart. */
export const LINES: readonly { readonly color: string; readonly dash: readonly number[] }[] = [
  { color: '#2f81d6', dash: [] },
  { color: '#e8842a', dash: [8, 3] },
  { color: '#009e73', dash: [3, 3] },
  { color: '#cc79a7', dash: [10, 3, 2, 3] },
  { color: '#8c9096', dash: [2, 5] },
  { color: '#b8a100', dash: [14, 4] }
];
const HEIGHT = 170;

export interface Columns {
  readonly t_s: readonly number[];
  /** null breaks the line: not known then. undefined does not: another domain's time. */
  readonly power_w: Readonly<Record<string, readonly (number | null | undefined)[]>>;
}

/** Join curves with times of their own on one axis of time. */
export function joined(curves: readonly Curve[]): Columns {
  const at = new Map<number, Map<string, number | null>>();
  for (const curve of curves) {
    curve.t_s.forEach((t, index) => {
      if (t !== null) {
        const row = at.get(t) ?? new Map<string, number | null>();
        at.set(t, row.set(curve.domain, curve.power_w[index] ?? null));
      }
    });
  }
  const t_s = [...at.keys()].sort((a, b) => a - b);
  const power = curves.map(({ domain }) => [domain, t_s.map(t => at.get(t)?.get(domain))] as const);
  return { t_s, power_w: Object.fromEntries(power) };
}

export class PowerLine {
  readonly node = h('div', { class: 'tw-power' });
  private plot: uPlot | null = null;
  private names = '';
  private data: Columns = { t_s: [], power_w: {} };
  private width = 0;
  private readonly stop = new AbortController();

  constructor() {
    const again = (): void => this.rebuild();
    const dark = globalThis.matchMedia?.('(prefers-color-scheme: dark)');
    dark?.addEventListener('change', again, { signal: this.stop.signal });
    const theme = new MutationObserver(again);
    theme.observe(document.body, {
      attributes: true,
      attributeFilter: ['data-jp-theme-name', 'data-theme', 'class']
    });
    this.stop.signal.addEventListener('abort', () => theme.disconnect());
  }

  show(data: Columns): void {
    this.data = data;
    const names = Object.keys(data.power_w).join(' ');
    if (names !== this.names || !this.plot) {
      this.names = names;
      this.rebuild();
    } else {
      this.plot.setData(columns(data));
    }
  }

  resize(width: number): void {
    if (Math.abs(width - this.width) >= 1) {
      this.width = width;
      this.plot ? this.plot.setSize({ width, height: HEIGHT }) : this.rebuild();
    }
  }

  dispose(): void {
    this.stop.abort();
    this.plot?.destroy();
    this.plot = null;
  }

  private rebuild(): void {
    this.plot?.destroy();
    this.plot = null;
    if (this.width > 0 && this.names && this.node.isConnected) {
      this.plot = new uPlot(this.options(), columns(this.data), this.node);
    }
  }

  private options(): uPlot.Options {
    const style = getComputedStyle(this.node);
    const axis = {
      stroke: style.color || '#888',
      grid: { stroke: 'rgba(128,128,128,0.22)', width: 1 },
      ticks: { stroke: 'rgba(128,128,128,0.35)', width: 1, size: 4 },
      font: `11px ${style.fontFamily || 'sans-serif'}`
    };
    const series = Object.keys(this.data.power_w).map((label, index) => {
      const line = LINES[index % LINES.length] ?? { color: '#888', dash: [] };
      return {
        label,
        stroke: line.color,
        dash: [...line.dash],
        width: 1.6,
        points: { show: false },
        value: (_: uPlot, watts: number | null) => formatPower(watts)
      };
    });
    return {
      width: this.width,
      height: HEIGHT,
      scales: { x: { time: false }, y: { range: (_plot, _low, high) => [0, high > 0 ? high * 1.08 : 1] } },
      axes: [
        { ...axis, size: 28, values: (_, ticks) => ticks.map(t => `${t} s`) },
        {
          ...axis,
          size: 62,
          space: 26,
          values: (_, ticks) => ticks.map(w => (w === 0 ? '0 W' : formatPower(w)))
        }
      ],
      series: [
        { label: 't', value: (_: uPlot, t: number | null) => (t === null ? '—' : `${t.toFixed(2)} s`) },
        ...series
      ],
      cursor: { drag: { x: true, y: false }, points: { size: 5 } },
      legend: { live: true }
    };
  }
}

function columns(data: Columns): uPlot.AlignedData {
  return [[...data.t_s], ...Object.values(data.power_w).map(values => [...values])];
}
