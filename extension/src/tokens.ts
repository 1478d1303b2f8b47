/** What our plugins offer each other; each is optional, so that every plugin can be disabled by itself. */

import { Token } from '@lumino/coreutils';
import type { ISignal } from '@lumino/signaling';

export const TARGET = 'torchwatt.session';

export namespace CommandIDs {
  export const profileCell = 'torchwatt:profile-cell';
  export const profileAll = 'torchwatt:profile-all';
  export const exportCsv = 'torchwatt:export-csv';
  export const jump = 'torchwatt:jump-to-cell';
  export const showPanel = 'torchwatt:show-panel';
}

/** The user's settings; the defaults where there is no settings registry. */
export interface ISettings {
  readonly badge: boolean;
  readonly status: boolean;
  readonly region: string;
  readonly changed: ISignal<ISettings, void>;
}

export const ISettings = new Token<ISettings>('torchwatt:ISettings', "The user's settings of torchwatt.");

/** A run as its kernel tells it. */
export interface SessionRun {
  readonly run_id: string;
  readonly name: string;
  readonly cell_id: string | null;
  readonly status: string;
  readonly t_s: number | null;
  readonly energy_j: number | null;
  readonly carbon_g: number | null;
  readonly power_w: number | null;
}

/** The runs of the kernels of all open notebooks, live. */
export interface ISessions {
  /** Emits the path of the notebook whose runs changed. */
  readonly changed: ISignal<ISessions, string>;
  runs(path: string): readonly SessionRun[];
  running(): { readonly path: string; readonly run: SessionRun } | null;
}

export const ISessions = new Token<ISessions>(
  'torchwatt:ISessions',
  'The profiled runs of all open notebooks.'
);
