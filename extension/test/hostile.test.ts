// @vitest-environment happy-dom
/** A payload may be anybody's: whatever its texts are, the page gets text and nothing else. */

import { afterEach, describe, expect, test } from 'vitest';
import { LiveView } from '../src/chart';
import { compareTable } from '../src/compare';
import { layersCsv } from '../src/csv';
import { historyTable } from '../src/history';
import type { Beat, Begin, Payload } from '../src/payload';
import { ReportView } from '../src/report';
import { golden, row } from './fixture';
import { frame } from './setup';

const HOSTILE = [
  '<script>window.owned = 1</script>',
  '"><img src=x onerror="window.owned = 1">',
  "' onmouseover='window.owned = 1",
  'javascript:window.owned = 1',
  '<svg/onload=window.owned=1>',
  '</style><script>window.owned = 1</script>',
  '&lt;b&gt;',
  '__proto__',
  'constructor',
  'a\u0000b',
  '\u202egpj.exe'
];
// What decides how a payload is read; all other texts are replaced.
const KEPT = new Set(['schema', 'parent', 'provenance']);

/** Put a name in place of every text. */
function spoilt<T>(value: T, name: string, key = ''): T {
  if (typeof value === 'string') {
    return (KEPT.has(key) ? value : name) as T;
  }
  if (Array.isArray(value)) {
    return value.map(one => spoilt(one, name, key)) as T;
  }
  if (typeof value === 'object' && value !== null) {
    const entries = Object.entries(value).map(([k, one]) => [k, spoilt(one, name, k)]);
    return Object.fromEntries(entries) as T;
  }
  return value;
}

function expectHarmless(node: Element): void {
  for (const element of [node, ...node.querySelectorAll('*')]) {
    expect(element.tagName.toLowerCase()).not.toMatch(
      /^(script|img|iframe|object|embed|link|style|base|meta)$/
    );
    for (const { name, value } of element.attributes) {
      expect(name).not.toMatch(/^on/i);
      expect(name).not.toBe('srcdoc');
      if (/^(href|src|xlink:href|action|formaction)$/i.test(name)) {
        expect(value).not.toMatch(/javascript:/i);
      }
      if (name === 'style') {
        expect(value).not.toMatch(/url\(|expression/i);
      }
    }
  }
  expect((globalThis as { owned?: unknown }).owned).toBeUndefined();
}

afterEach(() => {
  document.body.replaceChildren();
});

describe.each(HOSTILE)('a text such as %j', name => {
  const payload = (): Payload => ({
    ...spoilt(golden(), name),
    layers: [row(name, null, 3), row(`${name}.child`, 0, 2)]
  });

  test('is text in a report, in its tree and its search', async () => {
    const view = new ReportView(payload());
    document.body.append(view.node);
    await frame();
    for (const button of view.node.querySelectorAll('button')) {
      button.click();
    }
    await frame();
    expectHarmless(view.node);
    expect(view.node.textContent).toContain(name);
    view.dispose();
  });

  test('is text in a live view', async () => {
    const begin: Begin = {
      schema: 'torchwatt.live',
      version: 1,
      run_id: name,
      name,
      carbon_how: name,
      traces: true,
      unavailable: [{ domain: name, reason: name, fix: name }],
      domains: [{ domain: name, provenance: 'measured', meter: name }]
    };
    const beat: Beat = {
      t_s: 1,
      energy_j: 1,
      carbon_g: null,
      power_w: { [name]: 1 },
      domains_j: { [name]: 1 },
      points: { t_s: [0, 1], power_w: { [name]: [1, 1] } },
      steps: 1,
      per_step: name,
      layers: { layers: [row(name, null, 1)], reserved: [], folded: null, as_of_s: 1 }
    };
    const view = new LiveView(begin);
    document.body.append(view.node);
    view.take(beat);
    await frame();
    expectHarmless(view.node);
    view.dispose();
  });

  test('is text in the history and in a comparison', () => {
    const run = { name, cell_id: name, status: name, energy_j: 1, carbon_g: null, duration_s: 1 };
    const table = historyTable([run], () => undefined);
    expectHarmless(table);
    expect(table.textContent).toContain(name);
    expectHarmless(compareTable(payload(), golden()));
  });
});

test('a name that begins like a formula is text in a spreadsheet, in wide characters as well', () => {
  for (const start of ['=', '+', '-', '@', '\t', '\r', '＝', '＋', '－', '＠']) {
    const csv = layersCsv({ ...golden(), name: 'run', layers: [row(`${start}1+1`, null, 1)] });
    expect(csv).toMatch(/^run,"?'/m);
  }
});
