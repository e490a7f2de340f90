import { execFileSync } from 'node:child_process'
import { join } from 'node:path'

/** The command line as a shell runs it in any directory. */
export const MUSTER_COMMAND = `${process.execPath} ${join(import.meta.dirname, '../../bin/muster.mjs')}`

/** Runs a script with bash in `cwd` and returns what it printed. @throws when it fails, or takes a minute */
export function sh(cwd: string, script: string, env: Record<string, string> = {}): string {
  return execFileSync('bash', ['-euo', 'pipefail', '-c', script], {
    cwd,
    encoding: 'utf8',
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: 60_000,
  })
}
