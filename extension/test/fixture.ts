/** The payload that the Python tests write, and reports that it does not show. */

import written from '../../tests/views/golden/payload.json';
import { asPayload, type LayerRow, type Payload } from '../src/payload';

export function golden(): Payload {
  const payload = asPayload(structuredClone(written));
  if (!payload) {
    throw new Error('the golden payload is of another version');
  }
  return payload;
}

export function row(
  fqn: string,
  parent: number | null,
  totalJ: number,
  selfJ: number | null = totalJ
): LayerRow {
  return {
    fqn,
    name: fqn.split('.').pop() ?? fqn,
    class: 'Linear',
    parent,
    calls: 1,
    provenance: selfJ === null ? null : 'apportioned',
    self_j: selfJ === null ? {} : { forward: selfJ },
    total_j: { forward: totalJ }
  };
}

/** As many layers as asked, in ten blocks, all with different joules. */
export function many(count: number): Payload {
  const blocks = Array.from({ length: 10 }, (_, i) => row(`block${i}`, null, 0, null));
  const leaves = Array.from({ length: count }, (_, i) => row(`block${i % 10}.layer${i}`, i % 10, i + 1));
  const tops = blocks.map((block, i) => ({
    ...block,
    total_j: {
      forward: leaves
        .filter(leaf => leaf.parent === i)
        .reduce((sum, leaf) => sum + (leaf.total_j.forward ?? 0), 0)
    }
  }));
  return { ...golden(), layers: [...tops, ...leaves], reserved: [], folded: { layers: 700, energy_j: 3.5 } };
}
