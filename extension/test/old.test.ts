// @vitest-environment happy-dom
/** Payloads that earlier code wrote are still shown, with their total and their layers. */

import { describe, expect, test } from 'vitest';
import first from '../../tests/journal/old_journals/2026_11_24/payload.json';
import second from '../../tests/journal/old_journals/2026_12_01/payload.json';
import { asPayload } from '../src/payload';
import { ReportView } from '../src/report';

describe('a payload of earlier code', () => {
  for (const [day, written] of Object.entries({ '2026-11-24': first, '2026-12-01': second })) {
    test(`of ${day} is shown`, () => {
      const payload = asPayload(structuredClone(written));
      expect(payload).not.toBeNull();
      if (payload) {
        const view = new ReportView(payload);
        expect(view.node.textContent).toContain(`${payload.energy.text.split(' ')[0]}`);
        expect(view.node.textContent).toContain('(unattributed)');
      }
    });
  }
});
