/** The runs of every open notebook's kernel, through the one comm that the kernel opens; attached again after a reload. */

import type { JupyterFrontEndPlugin } from '@jupyterlab/application';
import { INotebookTracker, type NotebookPanel } from '@jupyterlab/notebook';
import type { Kernel, KernelMessage } from '@jupyterlab/services';
import { Signal } from '@lumino/signaling';
import { ISessions, type SessionRun, TARGET } from './tokens';

const VERSION = 1;
const MAX_RUNS = 500;

/** The runs of one notebook. */
class Attached {
  readonly runs = new Map<string, SessionRun>();

  constructor(
    readonly panel: NotebookPanel,
    private readonly tell: () => void
  ) {
    panel.sessionContext.kernelChanged.connect(this.onKernel, this);
    panel.sessionContext.statusChanged.connect(this.onStatus, this);
    this.attach(panel.sessionContext.session?.kernel ?? null);
  }

  dispose(): void {
    Signal.disconnectReceiver(this);
  }

  private onKernel(_: unknown, { newValue }: { newValue: Kernel.IKernelConnection | null }): void {
    this.ended();
    this.attach(newValue);
  }

  private onStatus(_: unknown, status: string): void {
    if (status === 'restarting' || status === 'autorestarting' || status === 'dead') {
      this.ended();
    }
  }

  /** Nothing runs any more in a kernel that is gone; what was measured stays known. */
  private ended(): void {
    for (const [id, run] of this.runs) {
      if (run.status === 'running') {
        this.runs.set(id, { ...run, status: 'kernel gone', power_w: null });
      }
    }
    this.tell();
  }

  private attach(kernel: Kernel.IKernelConnection | null): void {
    if (!kernel) {
      return;
    }
    kernel.registerCommTarget(TARGET, (comm, message) => {
      this.listen(comm);
      this.take(message.content.data);
    });
    // The comm's id is known, so that the messages of a kernel that is busy now are heard at once.
    const comm = kernel.hasComm(TARGET) ? null : kernel.createComm(TARGET, TARGET);
    if (!comm) {
      return;
    }
    this.listen(comm);
    kernel.info
      .then(() => kernel.requestCommInfo({ target_name: TARGET }))
      .then(reply => {
        if (reply.content.status === 'ok' && TARGET in reply.content.comms && !comm.isDisposed) {
          comm.send({ kind: 'hello', version: VERSION }); // answered with all runs
        }
      })
      .catch(() => undefined); // a kernel that ends meanwhile has no runs
  }

  private listen(comm: Kernel.IComm): void {
    comm.onMsg = (message: KernelMessage.ICommMsgMsg) => this.take(message.content.data);
  }

  private take(data: unknown): void {
    const message = data as { version?: number; runs?: readonly SessionRun[] };
    if (message?.version !== VERSION || !Array.isArray(message.runs)) {
      return;
    }
    for (const run of message.runs) {
      this.runs.set(run.run_id, run);
    }
    for (const id of [...this.runs.keys()].slice(0, Math.max(this.runs.size - MAX_RUNS, 0))) {
      this.runs.delete(id);
    }
    this.tell();
  }
}

class Sessions implements ISessions {
  readonly changed: Signal<ISessions, string> = new Signal<ISessions, string>(this);
  private readonly attached = new Set<Attached>();

  add(panel: NotebookPanel): void {
    const one = new Attached(panel, () => this.changed.emit(panel.context.path));
    this.attached.add(one);
    panel.disposed.connect(() => {
      one.dispose();
      this.attached.delete(one);
    });
  }

  runs(path: string): readonly SessionRun[] {
    return [...this.attached]
      .filter(one => one.panel.context.path === path)
      .flatMap(one => [...one.runs.values()]);
  }

  running(): { path: string; run: SessionRun } | null {
    for (const { panel, runs } of this.attached) {
      const run = [...runs.values()].reverse().find(one => one.status === 'running');
      if (run) {
        return { path: panel.context.path, run };
      }
    }
    return null;
  }
}

export const sessionsPlugin: JupyterFrontEndPlugin<ISessions> = {
  id: 'torchwatt:sessions',
  description: 'Listens to the profiled runs of open notebooks.',
  autoStart: true,
  provides: ISessions,
  requires: [INotebookTracker],
  activate: (_app, tracker: INotebookTracker) => {
    const sessions = new Sessions();
    tracker.widgetAdded.connect((_, panel) => sessions.add(panel));
    tracker.forEach(panel => {
      sessions.add(panel);
    });
    return sessions;
  }
};
