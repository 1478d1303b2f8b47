/** The settings plugin. */

import type { JupyterFrontEndPlugin } from '@jupyterlab/application';
import { ISettingRegistry } from '@jupyterlab/settingregistry';
import { Signal } from '@lumino/signaling';
import { ISettings } from './tokens';

const ID = 'torchwatt:settings';

class Settings implements ISettings {
  badge = true;
  status = true;
  region = '';
  readonly changed: Signal<ISettings, void> = new Signal<ISettings, void>(this);

  take(found: ISettingRegistry.ISettings): void {
    this.badge = found.get('badge').composite !== false;
    this.status = found.get('status').composite !== false;
    this.region = String(found.get('region').composite ?? '');
    this.changed.emit();
  }
}

export const settingsPlugin: JupyterFrontEndPlugin<ISettings> = {
  id: ID,
  description: 'Settings of torchwatt.',
  autoStart: true,
  provides: ISettings,
  optional: [ISettingRegistry],
  activate: (_app, registry: ISettingRegistry | null) => {
    const settings = new Settings();
    registry
      ?.load(ID)
      .then(found => {
        settings.take(found);
        found.changed.connect(() => settings.take(found));
      })
      .catch(error => console.warn(`torchwatt: default settings are used: ${error}`));
    return settings;
  }
};
