import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    environment: 'happy-dom',
    setupFiles: ['test/setup.ts'],
    include: ['test/**/*.test.ts'],
    // One environment for all files: making one for each takes longer than the tests.
    pool: 'threads',
    isolate: false,
    fileParallelism: false,
    testTimeout: 60_000 // a machine that does much else must not fail a test
  }
});
