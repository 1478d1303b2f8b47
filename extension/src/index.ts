/** The JupyterLab extension: small plugins, each of which can be disabled by itself. */

import { badgePlugin } from './badge';
import { commandsPlugin } from './commands';
import { mimePlugin } from './mime';
import { panelPlugin } from './panel';
import { sessionsPlugin } from './sessions';
import { settingsPlugin } from './settings';
import { statusPlugin } from './status';

export default [
  settingsPlugin,
  sessionsPlugin,
  mimePlugin,
  badgePlugin,
  statusPlugin,
  panelPlugin,
  commandsPlugin
];
