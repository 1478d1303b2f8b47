/** The text of a cell and `%%energy`. */

export function isProfiled(source: string): boolean {
  return /^\s*%%energy\b/.test(source);
}

/** Put `%%energy` on the first line, where a cell magic has to be. */
export function profiled(source: string, region: string): string {
  return `%%energy${region ? ` --region ${region}` : ''}\n${source}`;
}
