/** happy-dom has no canvas and lays nothing out: the plot is told apart, widths are given. */

import { vi } from 'vitest';

export const plots: { data: unknown[]; destroyed: boolean }[] = [];

vi.mock('uplot', () => ({
  default: class {
    private readonly one = { data: [] as unknown[], destroyed: false };
    constructor(_options: unknown, data: unknown) {
      this.one.data.push(data);
      plots.push(this.one);
    }
    setData(data: unknown): void {
      this.one.data.push(data);
    }
    setSize(): void {}
    destroy(): void {
      this.one.destroyed = true;
    }
  }
}));
vi.stubGlobal('requestAnimationFrame', (draw: () => void) => setTimeout(draw, 0));

/** Let everything that waits for a frame happen. */
export const frame = (): Promise<void> => new Promise(resolve => setTimeout(resolve, 5));
