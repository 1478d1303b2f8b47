/** Numbers for people, digit for digit as `views/number_format.py` writes them. */

export const DASH = '—';
const J_PER_KWH = 3.6e6;
const PREFIXES: Readonly<Record<number, string>> = {
  [-9]: 'n',
  [-6]: 'µ',
  [-3]: 'm',
  0: '',
  3: 'k',
  6: 'M',
  9: 'G',
  12: 'T'
};

type Maybe = number | null | undefined;

export function formatEnergy(energyJ: Maybe): string {
  if (known(energyJ) && Math.abs(energyJ) >= J_PER_KWH) {
    return si((energyJ / J_PER_KWH) * 1000, 'Wh');
  }
  return si(energyJ, 'J');
}

export function formatPower(powerW: Maybe): string {
  return si(powerW, 'W');
}

export function formatMass(massG: Maybe): string {
  return known(massG) && Math.abs(massG) >= 1e6 ? si(massG / 1e6, 't') : si(massG, 'g');
}

/** Seconds up to ten minutes, then minutes, then hours. */
export function formatTime(timeS: Maybe): string {
  if (!known(timeS) || Math.abs(timeS) < 600) {
    return si(timeS, 's');
  }
  return Math.abs(timeS) < 7200 ? `${three(timeS / 60)} min` : `${three(timeS / 3600)} h`;
}

export function formatShare(share: Maybe): string {
  return known(share) ? `${fixed(share * 100, 1)} %` : DASH;
}

export function formatInterval(lo: Maybe, hi: Maybe, unit = 'J'): string {
  if (!known(lo) || !known(hi)) {
    return DASH;
  }
  const power = powerOf(Math.max(Math.abs(lo), Math.abs(hi)));
  return `${three(lo / 10 ** power)} to ${three(hi / 10 ** power)} ${PREFIXES[power]}${unit}`;
}

/** Keep each number on one line with its unit: a narrow screen would else begin a line with "%". */
export function keepUnits(text: string): string {
  return text.replace(/(\d) (?=%|°C|(?:[nµmkMGT]?(?:Wh|[JWgsth])|min)(?![A-Za-z]))/g, '$1\u00a0');
}

/** Add up; unknown as soon as one of the parts is. */
export function sumKnown(values: Iterable<Maybe>): number | null {
  let total = 0;
  for (const value of values) {
    if (!known(value)) {
      return null;
    }
    total += value;
  }
  return total;
}

export function known(value: Maybe): value is number {
  return typeof value === 'number' && Number.isFinite(value);
}

function si(value: Maybe, unit: string): string {
  if (!known(value)) {
    return DASH;
  }
  const power = powerOf(value);
  return `${three(value / 10 ** power)} ${PREFIXES[power]}${unit}`;
}

/** The power of ten of the prefix, after rounding: 999.9 is 1.00 k. */
function powerOf(value: number): number {
  if (value === 0) {
    return 0;
  }
  return Math.max(Math.min(Math.floor(exponent(value) / 3) * 3, 12), -9);
}

function three(value: number): string {
  return fixed(value, value === 0 ? 0 : Math.max(Math.min(2 - exponent(value), 2), 0));
}

function exponent(value: number): number {
  return Number(Math.abs(value).toExponential(2).split('e')[1]);
}

/** Round ties to even, as Python does; `toFixed` rounds them up. Only a dyadic fraction can be a tie. */
function fixed(value: number, decimals: number): string {
  const scaled = Math.abs(value) * 10 ** decimals;
  const below = Math.floor(scaled);
  const tie = Number.isInteger(value * 2 ** (decimals + 1)) && scaled - below === 0.5;
  return (tie && below % 2 === 0 ? (Math.sign(value) * below) / 10 ** decimals : value).toFixed(decimals);
}
