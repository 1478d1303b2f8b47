/** What Python sends: the report (`views/report_payload.py`) and, while a cell runs, the live messages (`views/live_payload.py`). */

export const MIME = 'application/vnd.torchwatt.report.v1+json';
export const HISTORY_MIME = 'application/vnd.torchwatt.history.v1+json';
export const VERSION = 1;

export type Joules = number | null;
export type ByPhase = Readonly<Record<string, Joules>>;

/** What is booked to one name. A missing key or null is unknown, never 0. */
export interface Booked {
  readonly fqn: string;
  readonly class: string;
  readonly self_j: ByPhase;
  /** What another repeat would give, 90 %, by phase. */
  readonly interval_j?: Readonly<Record<string, readonly [Joules, Joules]>>;
  /** Null: not known of all steps. */
  readonly calls: number | null;
  readonly provenance: string | null;
}

/** One module of the tree; `parent` is the index of a row before. */
export interface LayerRow extends Booked {
  readonly name: string;
  readonly parent: number | null;
  /** Stands for so many modules of its parent that are not shown; `self_j` is what they used together. */
  readonly folded?: number;
  /** The sum of `total_j`, as Python rounds it; missing in reports of older versions. */
  readonly energy_j?: Joules;
  readonly total_j: ByPhase;
  /** The part of `total_j` that is known to be static power; `static_whole` says whether all of it is known. */
  readonly static_j?: ByPhase;
  readonly static_whole?: boolean;
}

export interface Layers {
  readonly layers: readonly LayerRow[];
  readonly reserved: readonly Booked[];
  /** What reports of older versions left out of their parents. */
  readonly folded: { readonly layers: number; readonly energy_j: Joules } | null;
}

export type Grouping = 'hottest' | 'blocks' | 'type';

/** The same joules in several views; missing in reports of older versions. */
export interface Grouped {
  readonly groups?: Readonly<Partial<Record<Grouping, readonly Group[]>>>;
  readonly default_view?: Grouping;
}

export interface DomainInfo {
  readonly domain: string;
  readonly energy_j: Joules;
  readonly interval_90_j?: readonly [Joules, Joules] | null;
  /** False for a domain with books of its own beside the total; missing in reports of older versions. */
  readonly counted?: boolean;
  readonly share: number | null;
  readonly provenance: string;
  readonly meter: string;
  readonly sentence: string;
  readonly text: string;
}

export interface Gone {
  readonly domain: string;
  readonly reason: string;
  readonly fix: string;
}

export interface Curve {
  readonly domain: string;
  readonly t_s: readonly Joules[];
  readonly power_w: readonly Joules[];
}

/** Start and end in seconds, the number of steps or a label, and of a phase the modules with the most of its time. */
export type BandRow = readonly [start: number, end: number, what: number | string, modules?: string];

/** What ran when, by row; missing in reports of older versions. */
export type Bands = {
  readonly [row in 'epochs' | 'windows' | 'stages' | 'steps' | 'phases']?: readonly BandRow[];
};

/** Readings beside the power: utilisation or temperature of a domain. */
export interface GaugeLine {
  readonly domain: string;
  readonly kind: string;
  readonly unit: string;
  readonly t_s: readonly Joules[];
  readonly value: readonly Joules[];
}

/** Output tokens at positions `first` to `last` of their requests: mean joules and seconds of one. */
export interface PositionRow {
  readonly first: number;
  readonly last: number;
  readonly tokens: number;
  readonly energy_j: Joules;
  readonly time_s: number | null;
}

/** Energy of a group of modules, or of a reserved name: the rows of one view add up to the total. */
export interface Group {
  readonly name: string;
  readonly count: number;
  readonly energy_j: Joules;
  readonly share: number | null;
  /** What another repeat would give, 90 %. */
  readonly interval_j: readonly [Joules, Joules] | null;
  /** The least and the most of one module of the group. */
  readonly each_j: readonly [Joules, Joules] | null;
  readonly by_phase: ByPhase;
  readonly provenance: string | null;
  /** Its order relative to the row above cannot be told: the interval of their difference includes 0. */
  readonly unclear: boolean;
  /** Of 1e12 operations; missing where those of a module of the group are unknown. */
  readonly energy_per_tflop_j?: Joules;
}

export interface EventInfo {
  readonly t_s: number | null;
  readonly severity: string;
  readonly code: string;
  readonly subject: string;
  readonly message: string;
}

export interface Payload extends Layers, Grouped {
  readonly schema: 'torchwatt.report';
  readonly version: number;
  readonly run_id: string;
  readonly name: string;
  readonly status: string;
  readonly exit_reason: string;
  readonly started_at: string;
  readonly duration_s: number | null;
  readonly energy: {
    readonly value_j: Joules;
    /** What another repeat of the run would give, 90 %: the basis of every interval of a layer. */
    readonly interval_90_j?: readonly [Joules, Joules] | null;
    /** What another meter would say: the meters' bands, stated beside the total and nowhere else. */
    readonly systematic_j?: readonly [Joules, Joules] | null;
    readonly systematic_text?: string;
    readonly provenance: string | null;
    readonly text: string;
  };
  /** The answer in one or two sentences, and at most one hint ("": none); missing in reports of older versions. */
  readonly answer?: { readonly sentences: readonly string[]; readonly hint: string };
  /** How the numbers came about, in sentences; missing in reports of older versions. */
  readonly how?: readonly string[];
  /** What the total does and does not contain, in sentences; missing in reports of older versions. */
  readonly notes?: readonly string[];
  readonly power_w: number | null;
  readonly carbon: { readonly value_g: number | null; readonly text: string; readonly how: string };
  readonly rates: readonly { readonly label: string; readonly value: string; readonly detail: string }[];
  readonly domains: readonly DomainInfo[];
  readonly unavailable: readonly Gone[];
  readonly curves: readonly Curve[];
  readonly bands?: Bands;
  readonly lines?: readonly GaugeLine[];
  /** Missing in reports of older versions. */
  readonly positions?: readonly PositionRow[];
  /** The number of steps, and the joules of one; null if unknown. Missing in reports of older versions. */
  readonly step?: { readonly count: number; readonly energy_j: Joules };
  readonly events: readonly EventInfo[];
  readonly event_count: number;
  readonly cost: string;
  readonly software: Readonly<Record<string, string>>;
}

/** What is known when a run begins. */
export interface Begin {
  readonly schema: 'torchwatt.live';
  readonly version: number;
  readonly run_id: string;
  readonly name: string;
  readonly domains: readonly {
    readonly domain: string;
    readonly provenance: string;
    readonly meter: string;
  }[];
  readonly unavailable: readonly Gone[];
  readonly carbon_how: string;
  readonly traces: boolean;
}

/** One beat of a running cell. Everything but `points` is absolute, so that a lost message costs nothing. */
export interface Beat {
  readonly t_s: number;
  /** Until when all joules are known; missing: until now. */
  readonly as_of_s?: number;
  readonly energy_j: Joules;
  readonly carbon_g: number | null;
  readonly power_w: Readonly<Record<string, number | null>>;
  readonly domains_j: Readonly<Record<string, Joules>>;
  /** The last seconds of the line again; what is known already is skipped. */
  readonly points: {
    readonly t_s: readonly number[];
    readonly power_w: Readonly<Record<string, readonly (number | null)[]>>;
  };
  /** Steps and joules a step, with each beat where layers are traced; layers as of an instant, now and then. */
  readonly steps?: number;
  readonly per_step?: string;
  readonly layers?: Layers & { readonly as_of_s: number };
  /** The groups with most of the joules, with the layers; energy per step or counted unit, with each beat. */
  readonly top?: readonly (readonly [name: string, share: number | null])[];
  readonly rate?: { readonly label: string; readonly text: string };
}

/** Return a report of a version that this code can draw, else null. */
export function asPayload(value: unknown): Payload | null {
  const found = value as Partial<Payload> | null;
  const ours = typeof found === 'object' && found !== null && found.schema === 'torchwatt.report';
  return ours && found.version === VERSION && Array.isArray(found.layers) ? (found as Payload) : null;
}
