/** What a live view knows: the latest beat, the last minute of the line, and whether the layers are new. */

import type { Figure } from './figures';
import { DASH, formatEnergy, formatMass, formatPower, formatTime, sumKnown } from './numbers';
import type { Beat, Begin } from './payload';
import type { Columns } from './power';
import type { Top } from './strip';

const WINDOW_S = 60;
/** Seconds; what is older is grey and says how old it is. */
export const FRESH = { figures: 2.5, layers: 10 } as const;

export interface Ages {
  readonly figures: number;
  /** Null before the first layers. */
  readonly layers: number | null;
}

/** Say how old something is that is older than it should be. */
export function ageText(age: number | null, fresh: number): string {
  return age !== null && age > fresh ? `${age < 10 ? age.toFixed(1) : Math.round(age)} s old` : '';
}

export class LiveState {
  latest: Beat | null = null;
  beats = 0;
  private readonly t_s: number[] = [];
  private readonly power = new Map<string, (number | null)[]>();
  private takenMs = 0;
  private layersAsOf: number | null = null;
  private steps: { readonly count: number; readonly each: string } | null = null;
  private layers: NonNullable<Beat['layers']> | null = null;
  /** The groups with most of the joules, as of the latest layers. */
  top: Top = [];

  constructor(private readonly begin: Begin) {
    for (const { domain } of begin.domains) {
      this.power.set(domain, []);
    }
  }

  /** Take a message that came at `nowMs`, by any clock that does not stand still. */
  take(beat: Beat, nowMs = performance.now()): void {
    this.latest = beat;
    this.takenMs = nowMs;
    this.beats += 1;
    this.layers = beat.layers ?? this.layers;
    this.top = beat.top ?? this.top;
    this.layersAsOf = beat.layers?.as_of_s ?? this.layersAsOf;
    this.steps = beat.steps === undefined ? this.steps : { count: beat.steps, each: beat.per_step ?? '' };
    // A counter may turn out to be that of a whole module: its line begins when that is known.
    for (const domain of Object.keys(beat.points.power_w)) {
      if (!this.power.has(domain)) {
        this.power.set(domain, new Array(this.t_s.length).fill(null));
      }
    }
    const last = this.t_s[this.t_s.length - 1] ?? Number.NEGATIVE_INFINITY;
    beat.points.t_s.forEach((t, index) => {
      if (t > last) {
        this.t_s.push(t);
        for (const [domain, values] of this.power) {
          values.push(beat.points.power_w[domain]?.[index] ?? null);
        }
      }
    });
    const old = this.t_s.findIndex(t => t >= beat.t_s - WINDOW_S);
    if (old > 0) {
      this.t_s.splice(0, old);
      for (const values of this.power.values()) {
        values.splice(0, old);
      }
    }
  }

  /** Return how old in seconds what is shown is, also while no message comes. */
  ages(nowMs = performance.now()): Ages {
    if (!this.latest) {
      return { figures: 0, layers: null };
    }
    const now = this.latest.t_s + (nowMs - this.takenMs) / 1000;
    return {
      figures: now - (this.latest.as_of_s ?? this.latest.t_s),
      layers: this.layersAsOf === null ? null : now - this.layersAsOf
    };
  }

  columns(): Columns {
    return { t_s: this.t_s, power_w: Object.fromEntries(this.power) };
  }

  /** Return layers that were not drawn yet. */
  freshLayers(): NonNullable<Beat['layers']> | null {
    const found = this.layers;
    this.layers = null;
    return found;
  }

  /** Return the domains that make the total now: what only others use, or what is inside of a module, is none. */
  private counted(): Begin['domains'] {
    const { latest, begin } = this;
    if (!latest) {
      return begin.domains;
    }
    const found = new Map(begin.domains.map(one => [one.domain, one]));
    return Object.keys(latest.power_w).map(
      domain => found.get(domain) ?? { domain, provenance: 'measured', meter: '' }
    );
  }

  /** Return what the strip shows: power, energy, and energy of one step or counted unit. */
  strip(): readonly Figure[] {
    const { latest } = this;
    const counted = this.counted();
    const known = weakest(counted.map(one => one.provenance));
    const watts = counted.length ? sumKnown(counted.map(one => latest?.power_w[one.domain])) : null;
    const figures: Figure[] = [
      { label: 'power now', value: formatPower(watts), detail: 'of all counted domains', known },
      {
        label: 'energy so far',
        value: formatEnergy(latest?.energy_j),
        detail: formatTime(latest?.t_s ?? 0),
        known
      }
    ];
    if (latest?.rate) {
      figures.push({
        label: latest.rate.label,
        value: latest.rate.text || DASH,
        detail: 'in the last seconds'
      });
    }
    return figures;
  }

  /** Return what the expanded strip shows beside. */
  figures(): readonly Figure[] {
    const { latest, begin } = this;
    const counted = this.counted();
    const figures: Figure[] = [
      {
        label: 'carbon so far',
        value: latest?.carbon_g == null ? DASH : `${formatMass(latest.carbon_g)} CO2e`,
        detail: begin.carbon_how,
        known: latest?.carbon_g == null ? null : 'derived'
      }
    ];
    if (begin.traces) {
      const each = this.steps?.count ? `${this.steps.each} a step` : 'none was seen yet';
      figures.push({ label: 'steps', value: this.steps ? String(this.steps.count) : DASH, detail: each });
    }
    if (counted.length > 1) {
      for (const { domain, provenance, meter } of counted) {
        const detail = [formatEnergy(latest?.domains_j[domain]), meter].filter(Boolean).join(' · ');
        figures.push({
          label: domain,
          value: formatPower(latest?.power_w[domain]),
          detail,
          known: provenance
        });
      }
    }
    return figures;
  }
}

// From best known to least known, as in `core/terms.py`.
const PROVENANCES = ['measured', 'derived', 'apportioned', 'sourced', 'modelled', 'declared', 'assumed'];

function weakest(list: readonly string[]): string | null {
  return list.length
    ? list.reduce((a, b) => (PROVENANCES.indexOf(a) >= PROVENANCES.indexOf(b) ? a : b))
    : null;
}
