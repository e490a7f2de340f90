// Shared by bin/muster.mjs and tools/setup.mjs: plain JavaScript for Node 18 and newer.
import { existsSync } from 'node:fs'
import { join } from 'node:path'

/** Oldest Node that runs Muster: type stripping without a flag or a warning, and better-sqlite3 13. */
export const MINIMUM = '24.12'

/** True when `version` (`major.minor.patch`) is at least {@link MINIMUM}. */
export function isNewEnough(version) {
  const [major, minor] = version.split('.').map(Number)
  const [wantedMajor, wantedMinor] = MINIMUM.split('.').map(Number)
  return major > wantedMajor || (major === wantedMajor && minor >= wantedMinor)
}

/** Path of the Node that came with the lockfile, or null where there is none for this platform. */
export function bundledNode(root) {
  const name = process.platform === 'win32' ? 'node.cmd' : 'node'
  const path = join(root, 'node_modules', '.bin', name)
  return existsSync(path) ? path : null
}
