/** Power over time: watts of each domain, what ran under them, and on request utilisation and temperature. */

import uPlot from 'uplot';
import { BandRows, bandLegend, describeInstant, type Extent } from './bands';
import { h, say, set } from './dom';
import { formatPower, known } from './numbers';
import type { Bands, Curve, GaugeLine } from './payload';

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
const AXIS_WIDTH = 62;
/** Seconds between the two ends of a step of a curve: an axis of time has each instant once. */
const EDGE_S = 1e-9;
const HINT = 'Drag to zoom, double-click or 0 to see all; arrow keys move, + and - zoom.';

export interface Columns {
  readonly t_s: readonly number[];
  /** null breaks the line: not known then. undefined does not: another domain's time. */
  readonly power_w: Readonly<Record<string, readonly (number | null | undefined)[]>>;
}

/** Join curves with times of their own on one axis of time; where a curve steps, both of its values are kept. */
export function joined(curves: readonly Curve[]): Columns {
  const at = new Map<number, Map<string, number | null>>();
  for (const curve of curves) {
    curve.t_s.forEach((t, index) => {
      if (t !== null) {
        const key = at.get(t)?.has(curve.domain) ? t + Math.max(EDGE_S, Math.abs(t) * EDGE_S) : t;
        const row = at.get(key) ?? new Map<string, number | null>();
        at.set(key, row.set(curve.domain, curve.power_w[index] ?? null));
      }
    });
  }
  const t_s = [...at.keys()].sort((a, b) => a - b);
  const power = curves.map(({ domain }) => [domain, t_s.map(t => at.get(t)?.get(domain))] as const);
  return { t_s, power_w: Object.fromEntries(power) };
}

/** Describe the lines in words, for who does not see them. */
export function describePower({ t_s, power_w }: Columns): string {
  const seconds = (t_s[t_s.length - 1] ?? 0) - (t_s[0] ?? 0);
  const ranges = Object.entries(power_w).map(([domain, values]) => {
    const watts = values.filter(known);
    return watts.length
      ? `${domain} from ${formatPower(Math.min(...watts))} to ${formatPower(Math.max(...watts))}`
      : `${domain} unknown`;
  });
  return `Power over ${seconds.toFixed(1)} s: ${ranges.join('; ')}`;
}

/** Return the range of time that a zoom by `factor` around `center` shows, inside of the whole. */
export function zoomed(
  shown: readonly [number, number],
  whole: readonly [number, number],
  center: number,
  factor: number
): readonly [number, number] {
  const width = Math.min((shown[1] - shown[0]) * factor, whole[1] - whole[0]);
  const part = (center - shown[0]) / Math.max(shown[1] - shown[0], Number.EPSILON);
  const low = Math.min(Math.max(center - part * width, whole[0]), whole[1] - width);
  return [low, low + width];
}

/** Return a line's value at an instant at which maybe only another line has a point; null where it is unknown. */
export function valueAt(
  values: ArrayLike<number | null | undefined>,
  index: number
): number | null | undefined {
  let at = index;
  while (at > 0 && values[at] === undefined) {
    at -= 1;
  }
  return values[at];
}

export class PowerLine {
  readonly node = h('div', { class: 'tw-power', role: 'group', tabindex: 0 });
  private readonly canvas = h('div', { class: 'tw-power-plot' });
  private readonly readout = h('div', { class: 'tw-readout', 'aria-live': 'polite' });
  private readonly bar = h('div', { class: 'tw-bar' });
  private readonly legend = h('div', { class: 'tw-power-legend' });
  private readonly reset = h('button', { class: 'tw-button', type: 'button', hidden: true }, 'Show all');
  private readonly bands = new BandRows((start, end) => this.zoom(start, end));
  private plot: uPlot | null = null;
  private names = '';
  private data: Columns = { t_s: [], power_w: {} };
  private under: Bands = {};
  private lines: readonly GaugeLine[] = [];
  private readonly kinds = new Set<string>();
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
    this.reset.addEventListener('click', () => this.showAll());
    this.node.addEventListener('keydown', event => this.onKey(event));
    this.bands.node.addEventListener('pointermove', event => {
      this.plot?.setCursor({ left: event.offsetX - AXIS_WIDTH, top: 0 });
    });
    this.node.append(this.bar, this.canvas, this.bands.node, this.readout, this.legend);
  }

  show(data: Columns, bands: Bands = {}, lines: readonly GaugeLine[] = []): void {
    this.data = data;
    this.under = bands;
    this.lines = lines;
    this.bands.show(bands);
    set(this.node, { 'aria-label': describePower(data) });
    const names = Object.keys(data.power_w).join(' ');
    if (names !== this.names || !this.plot) {
      this.names = names;
      this.drawBar();
      this.rebuild();
    } else {
      this.plot.setData(this.columns(), this.reset.hidden);
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

  /** Offer the lines that the report has beside its power. */
  private drawBar(): void {
    const boxes = [...new Set(this.lines.map(line => line.kind))].map(kind => {
      const box = h('input', { type: 'checkbox', checked: this.kinds.has(kind) });
      box.addEventListener('change', () => {
        box.checked ? this.kinds.add(kind) : this.kinds.delete(kind);
        this.rebuild();
      });
      return h('label', {}, box, ` ${kind}`);
    });
    this.bar.replaceChildren(...boxes, this.reset);
  }

  private rebuild(): void {
    this.plot?.destroy();
    this.plot = null;
    this.legend.replaceChildren();
    this.reset.hidden = true;
    if (this.width > 0 && this.names && this.node.isConnected) {
      this.plot = new uPlot(this.options(), this.columns(), this.canvas);
      this.describe(null);
    }
  }

  /** Return the lines that are drawn beside the power. */
  private drawn(): readonly GaugeLine[] {
    return this.lines.filter(line => this.kinds.has(line.kind));
  }

  private columns(): uPlot.AlignedData {
    const gauges = this.drawn();
    if (!gauges.length) {
      return [[...this.data.t_s], ...Object.values(this.data.power_w).map(values => [...values])];
    }
    const power = Object.entries(this.data.power_w).map(([domain, values]) => ({
      domain,
      pairs: this.data.t_s.flatMap((t, index) => {
        const watts = values[index];
        return watts === undefined ? [] : [[t, watts] as const];
      })
    }));
    const beside = gauges.map(({ domain, kind, t_s, value }) => ({
      domain: `${domain} ${kind}`,
      t_s,
      power_w: value
    }));
    const curves = power.map(({ domain, pairs }) => ({
      domain,
      t_s: pairs.map(([t]) => t),
      power_w: pairs.map(([, watts]) => watts)
    }));
    const all = joined([...curves, ...beside]);
    return [[...all.t_s], ...Object.values(all.power_w).map(values => [...values])];
  }

  private whole(): readonly [number, number] {
    const t_s = this.data.t_s;
    return [t_s[0] ?? 0, t_s[t_s.length - 1] ?? 1];
  }

  private shown(): readonly [number, number] {
    const { min, max } = this.plot?.scales.x ?? {};
    return known(min) && known(max) ? [min, max] : this.whole();
  }

  private zoom(min: number, max: number): void {
    this.plot?.setScale('x', { min, max });
  }

  private showAll(): void {
    this.zoom(...this.whole());
  }

  private onKey(event: KeyboardEvent): void {
    const plot = this.plot;
    if (!plot || event.ctrlKey || event.metaKey || event.altKey || event.target !== this.node) {
      return;
    }
    const times = plot.data[0];
    const shown = this.shown();
    const index = plot.cursor.idx ?? times.findIndex(t => t >= shown[0]);
    const center = Math.min(Math.max(times[index] ?? shown[0], shown[0]), shown[1]);
    const move = { ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20 }[event.key];
    const factor = { '+': 0.5, '=': 0.5, '-': 2 }[event.key];
    if (move !== undefined) {
      const next = times[Math.min(Math.max(index + move, 0), times.length - 1)] ?? 0;
      if (next < shown[0] || next > shown[1]) {
        this.zoom(
          ...zoomed(
            [next - (shown[1] - shown[0]) / 2, next + (shown[1] - shown[0]) / 2],
            this.whole(),
            next,
            1
          )
        );
      }
      plot.setCursor({ left: plot.valToPos(next, 'x'), top: plot.over.clientHeight / 2 });
    } else if (factor !== undefined) {
      this.zoom(...zoomed(shown, this.whole(), center, factor));
    } else if (event.key === '0' || event.key === 'Escape') {
      this.showAll();
    } else {
      return;
    }
    event.preventDefault();
  }

  /** Show what was known at the cursor. */
  private describe(plot: uPlot | null): void {
    const index = plot?.cursor.idx;
    const t = known(index) ? plot?.data[0][index] : undefined;
    if (!plot || t === undefined || (plot.cursor.left ?? -1) < 0) {
      say(this.readout, HINT);
      return;
    }
    const watts = Object.keys(this.data.power_w).map((domain, at) => {
      const value = valueAt(plot.data[at + 1] ?? [], index as number);
      return value === undefined ? '' : `${domain} ${formatPower(value)}`;
    });
    const what = describeInstant(this.under, t);
    say(this.readout, [`${t.toFixed(2)} s`, ...watts, what].filter(Boolean).join(' · '));
  }

  private extent(plot: uPlot): Extent {
    const [min, max] = this.shown();
    const ratio = globalThis.devicePixelRatio || 1;
    return { min, max, left: plot.bbox.left / ratio, width: plot.bbox.width / ratio };
  }

  private onDraw(plot: uPlot): void {
    const [whole, shown] = [this.whole(), this.shown()];
    const all = (whole[1] - whole[0]) * 1e-3;
    this.reset.hidden = shown[0] <= whole[0] + all && shown[1] >= whole[1] - all;
    this.bands.draw(this.extent(plot));
  }

  private options(): uPlot.Options {
    const style = getComputedStyle(this.node);
    const axis = {
      stroke: style.color || '#888',
      grid: { stroke: 'rgba(128,128,128,0.22)', width: 1 },
      ticks: { stroke: 'rgba(128,128,128,0.35)', width: 1, size: 4 },
      font: `11px ${style.fontFamily || 'sans-serif'}`
    };
    const power = Object.keys(this.data.power_w).map((label, index) => {
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
    const gauges = this.drawn();
    const units = [...new Set(gauges.map(line => line.unit))];
    const beside = gauges.map(({ domain, kind, unit }, index) => ({
      label: `${domain} ${kind}`,
      scale: unit,
      stroke: LINES[(power.length + index) % LINES.length]?.color ?? '#888',
      dash: [2, 2],
      width: 1.2,
      points: { show: false },
      value: (_: uPlot, value: number | null) => (known(value) ? `${value.toFixed(0)} ${unit}` : '—')
    }));
    return {
      width: this.width,
      height: HEIGHT,
      scales: {
        x: { time: false },
        y: { range: (_plot, _low, high) => [0, high > 0 ? high * 1.08 : 1] },
        ...Object.fromEntries(
          units.map(unit => [unit, { range: (): [number, number] => [0, 105] } as uPlot.Scale])
        )
      },
      axes: [
        { ...axis, size: 28, values: (_, ticks) => ticks.map(t => `${t} s`) },
        {
          ...axis,
          size: AXIS_WIDTH,
          space: 26,
          values: (_, ticks) => ticks.map(w => (w === 0 ? '0 W' : formatPower(w)))
        },
        ...units.map(unit => ({
          ...axis,
          side: 1 as const,
          scale: unit,
          size: 46,
          grid: { show: false },
          values: (_: uPlot, ticks: number[]) => ticks.map(value => `${value} ${unit}`)
        }))
      ],
      series: [
        { label: 't', value: (_: uPlot, t: number | null) => (t === null ? '—' : `${t.toFixed(2)} s`) },
        ...power,
        ...beside
      ],
      cursor: { drag: { x: true, y: false }, points: { size: 5 } },
      legend: { live: false, mount: (_, node) => this.legend.append(node, bandLegend(this.under)) },
      hooks: { draw: [plot => this.onDraw(plot)], setCursor: [plot => this.describe(plot)] }
    };
  }
}
