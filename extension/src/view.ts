/** What a live view and a report have in common: figures, layers, power, and the width that they are drawn for. */

import { h, ROOT } from './dom';
import { Figures } from './figures';
import { LayersView } from './layers';
import { PowerLine } from './power';

export abstract class View {
  readonly node = h('section', ROOT);
  protected readonly power = new PowerLine();
  protected readonly layers = new LayersView();
  protected readonly figures = new Figures();
  private readonly size = new ResizeObserver(() => requestAnimationFrame(() => this.resize()));

  constructor() {
    this.size.observe(this.node);
  }

  dispose(): void {
    this.size.disconnect();
    this.power.dispose();
    this.node.remove();
  }

  protected resize(): void {
    if (this.node.isConnected && this.node.clientWidth > 0) {
      this.power.resize(this.power.node.clientWidth);
      this.layers.resize();
    }
  }
}
