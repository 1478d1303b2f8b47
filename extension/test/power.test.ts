import { describe, expect, test } from 'vitest';
import { bandAt, bandFill, describeInstant, rectangles } from '../src/bands';
import type { Bands } from '../src/payload';
import { describePower, joined, valueAt, zoomed } from '../src/power';
import { golden } from './fixture';

const BANDS: Bands = {
  epochs: [[0, 10, 'epoch 1']],
  stages: [
    [1, 5, 'train'],
    [5, 6, 'validation']
  ],
  steps: [
    [1, 2, 1],
    [2, 5, 3],
    [5, 6, 1]
  ],
  phases: [[1, 1.4, 'forward', 'blocks.*.mlp']]
};

describe('what ran at an instant', () => {
  test('names every row, and counts the steps', () => {
    expect(describeInstant(BANDS, 1.2)).toBe('epoch 1 · train · step 1 of 5 · forward, mostly blocks.*.mlp');
    expect(describeInstant(BANDS, 3)).toBe('epoch 1 · train · steps 2 to 4 of 5');
    expect(describeInstant(BANDS, 5.5)).toBe('epoch 1 · validation · step 5 of 5');
    expect(describeInstant(BANDS, 20)).toBe('');
    expect(describeInstant({}, 1)).toBe('');
  });

  test('is the band that begins then, not the one that ends', () => {
    expect(bandAt(BANDS.steps ?? [], 2)).toBe(1);
    expect(bandAt(BANDS.steps ?? [], 0.5)).toBe(-1);
  });

  test('of the golden report is known in each step', () => {
    const { bands } = golden();
    for (const [start, end] of bands?.steps ?? []) {
      expect(describeInstant(bands ?? {}, (start + end) / 2)).toMatch(/step \d+ of 40/);
    }
    expect(bands?.steps?.length).toBe(40);
  });
});

describe('bands', () => {
  const extent = { min: 2, max: 4, left: 100, width: 200 };

  test('are cut at the edges of what is shown', () => {
    expect(rectangles(BANDS.steps ?? [], extent)).toEqual([{ x: 100, width: 200, index: 1 }]);
    expect(rectangles([[3, 3.5, 'a']], extent)).toEqual([{ x: 200, width: 50, index: 0 }]);
  });

  test('have the color of their phase, also where it is only a part of the time', () => {
    expect(bandFill('backward 61%', 0)).toEqual(bandFill('backward', 1));
    expect(bandFill('', 0)).not.toEqual(bandFill('', 1));
  });
});

describe('zoom', () => {
  test('keeps what is in the center, and stays inside of the whole', () => {
    expect(zoomed([0, 10], [0, 10], 5, 0.5)).toEqual([2.5, 7.5]);
    expect(zoomed([0, 2], [0, 10], 0, 0.5)).toEqual([0, 1]);
    expect(zoomed([4, 6], [0, 10], 6, 100)).toEqual([0, 10]);
    expect(zoomed([9, 11], [0, 10], 10, 1)).toEqual([8, 10]);
  });
});

describe('curves', () => {
  test('that step keep both values of the instant', () => {
    const { t_s, power_w } = joined([{ domain: 'a', t_s: [0, 1, 1, 2], power_w: [5, 5, 7, 7] }]);
    expect(power_w.a).toEqual([5, 5, 7, 7]);
    expect(t_s.map(t => Math.round(t))).toEqual([0, 1, 1, 2]);
    expect(new Set(t_s).size).toBe(4);
  });

  test('have the value of their last point where only another curve has one', () => {
    expect(valueAt([1, undefined, undefined, null], 2)).toBe(1);
    expect(valueAt([1, undefined, undefined, null], 3)).toBeNull();
    expect(valueAt([undefined, 2], 0)).toBeUndefined();
  });

  test('are described in words', () => {
    const data = { t_s: [0, 12], power_w: { 'gpu:0': [100, 300], cpu: [null, null] } };
    expect(describePower(data)).toBe('Power over 12.0 s: gpu:0 from 100 W to 300 W; cpu unknown');
  });
});
